import copy

import pytest
import torch
from torch import nn

from trainers.config import ModelConfig, RankConfig
from trainers.cost import measure_cost
from trainers.deploy import deploy, exact_spectra, plan_deployment, prune
from trainers.errors import NonFiniteError
from trainers.layers import svd_layers
from trainers.models import ModelSpec, build_model
from trainers.surgery import factorize, layer_geometry

SPECS = [
    ModelSpec(ModelConfig("tiny"), (1, 8, 8), 10),
    ModelSpec(ModelConfig("lenet5"), (1, 28, 28), 10),
    ModelSpec(ModelConfig("mlp", (20, 12)), (1, 6, 6), 5),
    ModelSpec(ModelConfig("resnet8"), (3, 16, 16), 10),
]


def decomposed(spec, decomposition):
    """A decomposed model whose factors are no longer orthogonal, as after training."""
    torch.manual_seed(1)
    model = build_model(spec).double()
    factorize(model, decomposition, spec.sample_shape)
    with torch.no_grad():
        for layer in svd_layers(model).values():
            layer.u += 0.02 * torch.randn_like(layer.u)
            layer.s *= torch.linspace(1, 0, len(layer.s)) ** 3
    return model.eval()


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.model.name)
@pytest.mark.parametrize("decomposition", ["channel", "spatial"])
class TestEveryNetwork:
    def test_without_a_cut_outputs_stay_equal(self, spec, decomposition):
        model = decomposed(spec, decomposition)
        x = torch.randn(2, *spec.sample_shape, dtype=torch.float64)
        deployed = prune(model, RankConfig(energy=0.0), spec.sample_shape).model
        torch.testing.assert_close(deployed(x), model(x), rtol=0, atol=1e-10)

    def test_the_pruned_model_is_ordinary_and_the_trained_one_untouched(self, spec, decomposition):
        model = decomposed(spec, decomposition)
        before = copy.deepcopy(model.state_dict())
        pruned = prune(model, RankConfig(energy=0.1), spec.sample_shape)
        assert not svd_layers(pruned.model)
        assert list(pruned.ranks) == list(svd_layers(model))
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name])
        pruned.model.load_state_dict(pruned.model.state_dict())

    def test_each_cut_is_the_best_of_its_rank(self, spec, decomposition):
        """The product of the two layers is the truncated SVD of the trained W, although U is not orthogonal."""
        model = decomposed(spec, decomposition)
        pruned = prune(model, RankConfig(energy=0.1), spec.sample_shape)
        for planned in pruned.layers:
            if planned.form == "dense":
                continue
            matrix = svd_layers(model)[planned.name].matrix().detach()
            first, second = pruned.model.get_submodule(planned.name)
            n_out, n_in = matrix.shape
            right = first.weight.reshape(planned.rank, n_in)
            left = second.weight
            if left.ndim == 4 and decomposition == "spatial":
                left = left.squeeze(2).permute(0, 2, 1)
            left = left.reshape(n_out, planned.rank)
            tail = torch.linalg.svdvals(matrix)[planned.rank :].square().sum()
            torch.testing.assert_close((matrix - left @ right).square().sum(), tail, rtol=1e-8, atol=1e-12)

    def test_the_chosen_form_of_each_layer_is_the_cheaper_one_as_counted(self, spec, decomposition):
        """At each rank around break-even, torch's counter confirms that no other choice of form costs less."""
        model = decomposed(spec, decomposition)
        name, layer = max(svd_layers(model).items(), key=lambda item: item[1].full_rank)
        spectra, full = exact_spectra(model), {key: other.full_rank for key, other in svd_layers(model).items()}
        seen = set()
        for rank in range(1, layer.full_rank + 1, max(1, layer.full_rank // 9)):
            planned = plan_deployment(model, {**full, name: rank}, spec.sample_shape)
            chosen = next(item for item in planned if item.name == name)
            costs = {}
            for form in ("dense", "low_rank"):
                layers = [type(i)(i.name, rank, i.full_rank, form) if i.name == name else i for i in planned]
                costs[form] = measure_cost(deploy(model, layers, spectra), spec.sample_shape).macs
            assert chosen.form == ("low_rank" if costs["low_rank"] < costs["dense"] else "dense")
            assert chosen.rank == (rank if chosen.form == "low_rank" else layer.full_rank)
            seen.add(chosen.form)
        assert seen == {"low_rank", "dense"}


def test_a_dense_layer_costs_no_more_than_before_and_keeps_its_whole_weight():
    model = nn.Sequential(nn.Linear(6, 6)).double()
    weight = model[0].weight.detach().clone()
    factorize(model, "channel", (6,))
    planned = plan_deployment(model, {"0": 3}, (6,))  # 3 * (6 + 6) = 6 * 6: break-even
    assert planned[0].form == "dense"
    deployed = deploy(model, planned, exact_spectra(model))
    assert type(deployed[0]) is nn.Linear
    torch.testing.assert_close(deployed[0].weight.detach(), weight, rtol=0, atol=1e-14)


def test_rank_ratio_counts_dense_layers_as_full():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    factorize(model, "channel", (8,))
    with torch.no_grad():
        model[0].s[1:] = 0
    pruned = prune(model, RankConfig(energy=1e-6), (8,))
    assert pruned.ranks == {"0": 1, "1": 8}
    assert pruned.rank_ratio == 9 / 16


def test_a_model_that_is_one_layer():
    model = nn.Sequential(nn.Linear(9, 9))
    factorize(model, "channel", (9,))
    assert isinstance(prune(model[0], RankConfig(energy=0.9), (9,)).model, nn.Sequential)


def test_a_weight_that_is_not_finite_is_an_error():
    model = nn.Sequential(nn.Linear(4, 4))
    factorize(model, "channel", (4,))
    with torch.no_grad():
        model[0].s[0] = float("nan")
    with pytest.raises(NonFiniteError):
        prune(model, RankConfig(energy=0.1), (4,))


def test_geometry_of_a_decomposed_model_is_that_of_the_dense_one():
    spec = SPECS[1]
    dense = layer_geometry(build_model(spec), spec.sample_shape)
    assert layer_geometry(decomposed(spec, "spatial"), spec.sample_shape) == dense
