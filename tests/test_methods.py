"""Each method against its equations, written out again."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from small_networks import SHAPE, attached, matrices, network, numerical_rank
from torch import nn

from trainers.config import FactorizationConfig, MethodConfig
from trainers.cost import measure_cost
from trainers.distillation import Distillation
from trainers.errors import ConfigError, NonFiniteError
from trainers.factorization import to_matrix
from trainers.form import from_products, product_factors
from trainers.layers import svd_layers
from trainers.methods import in_force, pretraining
from trainers.methods.lc import learned_ranks
from trainers.rank_rules import rank_by_energy, scaled_stable_rank
from trainers.regularizers import SPARSITY, SPECTRAL, hoyer, orthogonality


def loss_terms(method, progress):
    """What a step adds to the task's loss, None where that is nothing."""
    weight = method.loss_weight(progress)
    return None if weight == 0 else weight * method.loss_term()


class TestSVDTraining:
    @pytest.mark.parametrize("name", SPARSITY)
    def test_gradients_are_those_of_equations_3_to_6(self, name):
        """Loss term and closed-form gradient together, against autograd through the formula as it stands."""
        config = MethodConfig(regularizer=name, strength=0.3, orthogonality_weight=2.0, decomposition="spatial")
        method = attached(config)
        parameters = dict(method.model.named_parameters())
        with torch.no_grad():
            for parameter in parameters.values():
                parameter += 0.1 * torch.randn_like(parameter)
        x, y = torch.randn(4, *SHAPE, dtype=torch.float64), torch.tensor([0, 1, 2, 3])
        task_loss = nn.functional.cross_entropy(method.model(x), y)
        penalties = sum(
            0.3 * SPARSITY[name](layer.s) + 2.0 * (orthogonality(layer.u) + orthogonality(layer.vt))
            for layer in svd_layers(method.model).values()
        )
        expected = torch.autograd.grad(task_loss + penalties, list(parameters.values()))
        (nn.functional.cross_entropy(method.model(x), y) + loss_terms(method, 0.7)).backward()
        method.after_backward()
        for parameter, wanted in zip(parameters.values(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, wanted, rtol=1e-9, atol=1e-12)

    def test_warm_up_raises_the_strength_over_the_first_half(self):
        config = MethodConfig(regularizer="hoyer", strength=0.4, strength_schedule="warmup")
        method = attached(config)
        whole = sum(hoyer(layer.s) for layer in svd_layers(method.model).values())
        assert loss_terms(method, 0.0) is None
        for progress, share in ((0.1, 0.2), (0.25, 0.5), (0.5, 1.0), (0.9, 1.0)):
            torch.testing.assert_close(loss_terms(method, progress), 0.4 * share * whole, rtol=1e-12, atol=0)

    def test_retraction_comes_every_period(self):
        method = attached(MethodConfig(retraction_period=3))
        layer = method.model[0]
        with torch.no_grad():
            layer.u.mul_(1.5)
        for step in (1, 2):
            method.after_step(step)
            assert orthogonality(layer.u) > 0.01
        method.after_step(3)
        assert orthogonality(layer.u) < 1e-20

    def test_stage_one_has_no_sparsity(self):
        start = pretraining(MethodConfig(regularizer="l1", strength=0.5, decomposition="spatial"))
        assert (start.strength, start.decomposition) == (0.0, "spatial")


class TestTruncatedSVD:
    def test_without_a_regularizer_it_is_plain_training(self):
        assert loss_terms(attached(MethodConfig(method="truncated_svd")), 0.5) is None

    @pytest.mark.parametrize("name", SPECTRAL)
    def test_a_regularizer_acts_on_the_weights_as_matrices(self, name):
        config = MethodConfig(method="truncated_svd", regularizer=name, strength=0.3, decomposition="spatial")
        method = attached(config)
        expected = 0.3 * sum(SPECTRAL[name](matrix) for matrix in matrices(method.model, "spatial"))
        torch.testing.assert_close(loss_terms(method, 0.5), expected, rtol=1e-12, atol=0)

    @pytest.mark.parametrize("decomposition", ["channel", "spatial"])
    def test_the_cut_is_eckart_young(self, decomposition):
        """What the cut leaves of each weight differs from it by the energy of the tail, and by nothing more."""
        method = attached(MethodConfig(method="truncated_svd", decomposition=decomposition, energy=0.3))
        pruned = method.finish()
        weights = dict(zip(("0", "2", "4"), matrices(method.model, decomposition), strict=True))
        for layer in pruned.layers:
            matrix = weights[layer.name].detach()
            assert layer.form == "dense" or layer.rank == rank_by_energy(torch.linalg.svdvals(matrix), 0.3)
        x = torch.randn(3, *SHAPE, dtype=torch.float64)
        truncated = copy.deepcopy(method.model)
        with torch.no_grad():
            for layer in pruned.layers:
                if layer.form == "low_rank":
                    module = truncated.get_submodule(layer.name)
                    u, s, vt = torch.linalg.svd(weights[layer.name].detach(), full_matrices=False)
                    low = (u[:, : layer.rank] * s[: layer.rank]) @ vt[: layer.rank]
                    n, c, *kernel = module.weight.shape
                    if kernel and decomposition == "spatial":
                        low = low.reshape(n, kernel[1], c, kernel[0]).permute(0, 2, 3, 1)
                    module.weight.copy_(low.reshape(module.weight.shape))
        assert any(layer.form == "low_rank" for layer in pruned.layers)
        torch.testing.assert_close(pruned.model(x), truncated(x), rtol=1e-9, atol=1e-11)


class TestTRP:
    def test_truncates_at_the_start_and_every_period(self):
        method = attached(MethodConfig(method="trp", truncation_energy=0.4, compression_period=2))
        before = [matrix.detach().clone() for matrix in matrices(method.model)]
        method.start_epoch(0, 1)
        for now, old in zip(matrices(method.model), before, strict=True):
            u, s, vt = torch.linalg.svd(old, full_matrices=False)
            k = rank_by_energy(s, 0.4)
            torch.testing.assert_close(now.detach(), (u[:, :k] * s[:k]) @ vt[:k])
        full = before[2]
        with torch.no_grad():
            method.model[4].weight.copy_(full)
        method.after_step(1)
        assert torch.equal(method.model[4].weight, full)
        method.after_step(2)
        assert numerical_rank(method.model[4].weight) == rank_by_energy(torch.linalg.svdvals(full), 0.4)

    def test_the_loss_term_has_the_nuclear_norms_subgradient(self):
        """At the truncated weights, U V^T is the gradient of the nuclear norm on their range."""
        method = attached(MethodConfig(method="trp", truncation_energy=0.4))
        method.start_epoch(0, 1)
        loss_terms(method, 0.0).backward()
        for layer in (method.model[0], method.model[2], method.model[4]):
            matrix = to_matrix(layer.weight.detach(), "channel")
            u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
            k = numerical_rank(matrix)
            expected = 3e-4 * u[:, :k] @ vt[:k]
            torch.testing.assert_close(to_matrix(layer.weight.grad, "channel"), expected, rtol=1e-8, atol=1e-12)


class TestLoRITa:
    @pytest.mark.parametrize("num_factors", [2, 3])
    @pytest.mark.parametrize("decomposition", ["channel", "spatial"])
    def test_products_leave_outputs_equal_and_multiply_out_again(self, num_factors, decomposition):
        x = torch.randn(3, *SHAPE, dtype=torch.float64)
        expected = network()(x)
        method = attached(MethodConfig(method="lorita", num_factors=num_factors, decomposition=decomposition))
        torch.testing.assert_close(method.model(x), expected, rtol=1e-9, atol=1e-11)
        assert len(product_factors(method.model)) == 3 * num_factors
        with torch.no_grad():
            for factor in product_factors(method.model):
                factor += 0.1 * torch.randn_like(factor)
        moved = method.model(x)
        dense = from_products(method.model)
        torch.testing.assert_close(dense(x), moved, rtol=1e-9, atol=1e-11)
        assert [type(module) for module in dense] == [type(module) for module in network()]
        torch.testing.assert_close(method.model(x), moved, rtol=0, atol=0)  # and the trained network is as it was

    @pytest.mark.parametrize("num_factors", [2, 3])
    def test_the_decay_of_balanced_factors_is_the_schatten_norm(self, num_factors):
        method = attached(MethodConfig(method="lorita", num_factors=num_factors, strength=0.02))
        s = [torch.linalg.svdvals(matrix.detach()) for matrix in matrices(network())]
        expected = 0.01 * num_factors * sum((values ** (2 / num_factors)).sum() for values in s)
        torch.testing.assert_close(loss_terms(method, 0.5).detach(), expected, rtol=1e-9, atol=0)


def test_a_layer_of_zeros_can_be_trained_as_a_product():
    """Vision transformers start with a head of zeros: were all factors zero, so would all gradients be."""
    for num_factors in (2, 3):
        model = network()
        nn.init.zeros_(model[4].weight)
        x = torch.randn(3, *SHAPE, dtype=torch.float64)
        expected = model(x)
        method = attached(MethodConfig(method="lorita", num_factors=num_factors), model)
        torch.testing.assert_close(method.model(x), expected, rtol=1e-9, atol=1e-11)
        method.model(x).square().sum().backward()
        assert any(factor.grad.abs().max() > 0 for factor in method.model[4].parametrizations.parameters())


class TestLC:
    def test_a_c_step_minimises_cost_and_distance_over_all_ranks(self):
        method = attached(MethodConfig(method="lc", rank_cost=2.0))
        method.start_epoch(0, 1)
        dense = measure_cost(network(), SHAPE).macs
        per_rank = {"0": (18 + 6) * 36, "2": (54 + 8) * 16, "4": 128 + 5}
        whole = {"0": 18 * 6 * 36, "2": 54 * 8 * 16, "4": 128 * 5}
        for mu in (0.05, 0.5, 5.0):
            ranks = learned_ranks(with_spectra(method), 2.0, mu, "macs", 1)
            for name, matrix in zip(("0", "2", "4"), matrices(method.model), strict=True):
                s = torch.linalg.svdvals(matrix.detach())
                prices = {
                    rank: 2.0 * per_rank[name] * rank / dense + mu / 2 * float(s[rank:].square().sum())
                    for rank in range(1, len(s))
                    if per_rank[name] * rank < whole[name]
                }
                prices[len(s)] = 2.0 * whole[name] / dense
                assert ranks[name] == min(prices, key=prices.get)

    def test_the_loss_term_draws_the_weights_to_their_copies(self):
        method = attached(MethodConfig(method="lc", rank_cost=5.0, mu_first=0.1, mu_last=10.0))
        method.start_epoch(0, 1)
        copies = [torch.clone(near) for near in method._copies]
        layers = [method.model[i] for i in (0, 2, 4)]
        for progress, mu in ((0.0, 0.1), (0.5, 1.0), (1.0, 10.0)):
            expected = (
                mu / 2 * sum(float((x.weight.detach() - d).square().sum()) for x, d in zip(layers, copies, strict=True))
            )
            assert loss_terms(method, progress).item() == pytest.approx(expected, rel=1e-9)
        assert any(numerical_rank(to_matrix(d, "channel")) < min(to_matrix(d, "channel").shape) for d in copies)

    def test_the_weight_at_the_cut_is_that_of_the_end_of_the_epoch(self):
        """So that stage 3, which knows only the end, cuts at the ranks that stage 2 reported."""
        method = attached(MethodConfig(method="lc", mu_first=0.1, mu_last=10.0))
        after_loading = method._mu
        for epoch, mu in ((0, 1.0), (1, 10.0)):
            method.start_epoch(epoch, 2)
            loss_terms(method, (epoch + 0.9) / 2)
            method.end_epoch()
            assert method._mu == pytest.approx(mu, rel=1e-12)
        assert method._mu == after_loading

    def test_a_higher_price_gives_a_cheaper_network(self):
        costs = []
        for price in (0.1, 1.0, 10.0, 100.0):
            pruned = attached(MethodConfig(method="lc", rank_cost=price)).finish()
            costs.append(measure_cost(pruned.model, SHAPE).macs)
        assert costs == sorted(costs, reverse=True)
        assert costs[-1] < costs[0]


def with_spectra(method):
    """The problem of a C step, with the spectra of the weights as they are."""
    spectra = [torch.linalg.svdvals(matrix.detach()) for matrix in matrices(method.model)]
    layers = {
        name: replace(layer, s=s) for (name, layer), s in zip(method._problem.layers.items(), spectra, strict=True)
    }
    return replace(method._problem, layers=layers)


class TestCuttlefish:
    def test_switches_when_the_stable_ranks_have_settled_and_not_before(self):
        method = attached(MethodConfig(method="cuttlefish", plateau_tolerance=0.01, rank_scale=0.5))
        method.end_epoch()
        assert method.form.layers is None  # one epoch alone shows no plateau
        with torch.no_grad():
            method.model[4].weight += 3 * torch.outer(
                torch.ones(5), torch.ones(128)
            )  # its stable rank falls to about 1
        method.end_epoch()
        assert method.form.layers is None
        expected = {
            name: math.ceil(0.5 * scaled_stable_rank(torch.linalg.svdvals(matrix.detach()), matrix.shape) - 1e-9)
            for name, matrix in zip(("0", "2", "4"), matrices(method.model), strict=True)
        }
        method.end_epoch()
        assert method.form.layers is not None
        for layer in method.form.layers:
            assert layer.form == "dense" or layer.rank == expected[layer.name]
        assert any(layer.form == "low_rank" for layer in method.form.layers)
        assert isinstance(method.model[4], nn.Sequential)

    def test_after_the_switch_it_is_cut_no_further(self):
        method = attached(MethodConfig(method="cuttlefish", plateau_tolerance=1.0, rank_scale=0.5))
        method.end_epoch()
        method.end_epoch()
        pruned = method.finish()
        assert tuple(pruned.layers) == method.form.layers
        x = torch.randn(2, *SHAPE, dtype=torch.float64)
        assert torch.equal(pruned.model(x), method.model(x))

    def test_its_state_brings_back_the_form(self):
        method = attached(MethodConfig(method="cuttlefish", plateau_tolerance=1.0, rank_scale=0.5))
        method.end_epoch()
        method.end_epoch()
        other = attached(MethodConfig(method="cuttlefish", plateau_tolerance=1.0, rank_scale=0.5))
        other.load_state(method.state())
        other.model.load_state_dict(method.model.state_dict())
        assert other.form == method.form
        x = torch.randn(2, *SHAPE, dtype=torch.float64)
        assert torch.equal(other.model(x), method.model(x))


@pytest.mark.parametrize("name", ["trp", "lc"])
def test_a_weight_that_is_not_finite_ends_a_truncation_by_name(name):
    method = attached(MethodConfig(method=name, compression_period=1))
    method.start_epoch(0, 1)
    with torch.no_grad():
        method.model[2].weight[0] = float("nan")
    with pytest.raises(NonFiniteError, match="weights must be finite before an SVD"):
        method.after_step(1)


def test_a_network_without_a_layer_to_decompose_is_refused():
    for name in ("truncated_svd", "trp", "lc"):
        with pytest.raises(ConfigError, match="must leave at least one layer to decompose"):
            attached(MethodConfig(method=name), factorization=FactorizationConfig(exclude=("*",)))


def test_records_show_the_settings_that_count():
    shown = in_force(MethodConfig(method="trp", rank_rule="knapsack", budget=0.3))
    assert shown == {
        "method": "trp",
        "decomposition": "channel",
        "regularizer": "nuclear_norm",
        "strength": 3e-4,
        "strength_schedule": "constant",
        "rank_rule": "knapsack",
        "rank_multiple": 1,
        "budget": 0.3,
        "budget_unit": "macs",
        "compression_period": 20,
        "truncation_energy": 0.1,
    }
    assert "orthogonality_weight" in in_force(MethodConfig())
    assert "energy" not in in_force(MethodConfig(method="arsvd"))


def test_a_number_of_factors_that_is_not_offered_is_refused():
    with pytest.raises(ConfigError, match=r"num_factors: unknown value '4'; known: 2, 3"):
        MethodConfig(method="lorita", num_factors=4)


def test_distillation_is_the_weighted_divergence_of_softened_outputs():
    teacher, student = nn.Linear(4, 3), nn.Linear(4, 3)
    x, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    logits = student(x)
    task_loss = nn.functional.cross_entropy(logits, labels)
    found = Distillation(teacher, 0.7, 4.0)(x, logits, task_loss)
    p, q = (torch.softmax(out.double() / 4, 1) for out in (teacher(x), logits))
    divergence = (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(found.double(), 0.3 * task_loss.double() + 0.7 * 16 * divergence, rtol=1e-5, atol=1e-7)
    found.backward()
    assert teacher.weight.grad is None
    assert student.weight.grad is not None
