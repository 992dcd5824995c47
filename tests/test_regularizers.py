import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from trainers.layers import svd_layers
from trainers.regularizers import (
    EPSILON,
    SPARSITY,
    SPECTRAL,
    OrthogonalityPenalty,
    by_shape,
    funnel,
    hoyer,
    hoyer_square,
    l1,
    log_sum,
    nuclear_norm,
    orthogonality,
    orthogonality_gradient,
    polar_factor,
    retract,
    sparsity_of,
    spectral_hoyer_square,
)
from trainers.surgery import factorize


def vector(*values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(
    ("regularizer", "s", "value"),
    [
        (l1, (3, -4), 7),
        (l1, (0, 0), 0),
        (hoyer, (3, -4), 7 / 5 - 1),
        (hoyer, (2, 2, 2, 2), math.sqrt(4) - 1),  # flat: the maximum, sqrt(r) - 1
        (hoyer, (0, 5, 0), 0),  # one value: the minimum
        (hoyer, (0, 0), 0),
        (hoyer_square, (3, -4), 49 / 25 - 1),
        (hoyer_square, (2, 2, 2, 2), 4 - 1),
        (hoyer_square, (0, 5, 0), 0),
        (hoyer_square, (0, 0), 0),
        (funnel, (EPSILON, -3 * EPSILON), 1 / 2 + 3 / 4),
        (funnel, (0, 0), 0),
        (log_sum, (EPSILON, -3 * EPSILON), math.log(2) + math.log(4)),
        (log_sum, (0, 0), 0),
    ],
)
def test_sparsity_at_closed_form_points(regularizer, s, value):
    assert regularizer(vector(*s)).item() == pytest.approx(value, abs=1e-14)


@pytest.mark.parametrize("name", SPARSITY)
def test_sparsity_gradients(name):
    assert torch.autograd.gradcheck(SPARSITY[name], [vector(0.3, -2.0, 1.1, 4.0)])
    stacked = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(SPARSITY[name], [stacked])


@pytest.mark.parametrize("name", SPARSITY)
def test_sparsity_has_a_finite_gradient_at_zero(name):
    s = vector(0, 0, 0)
    SPARSITY[name](s).backward()
    assert torch.isfinite(s.grad).all()


@pytest.mark.parametrize("name", ["hoyer", "hoyer_square"])
def test_hoyer_measures_do_not_depend_on_scale(name):
    s = torch.rand(6, dtype=torch.float64)
    torch.testing.assert_close(SPARSITY[name](1000 * s), SPARSITY[name](s), rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5), (3, 7, 4)])
def test_orthogonality_is_the_gram_defect_over_the_smaller_side(shape):
    a = torch.randn(shape, dtype=torch.float64)
    rank = min(shape[-2:])
    gram = a.mT @ a if shape[-1] == rank else a @ a.mT
    expected = (gram - torch.eye(rank, dtype=torch.float64)).square().sum((-2, -1)) / rank**2
    torch.testing.assert_close(orthogonality(a), expected, rtol=1e-13, atol=0)


def test_orthogonality_is_zero_for_orthonormal_and_one_over_r_for_zero():
    q = torch.linalg.qr(torch.randn(7, 3, dtype=torch.float64)).Q
    assert orthogonality(q).item() == pytest.approx(0, abs=1e-28)
    assert orthogonality(torch.zeros(7, 3)).item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (2, 3, 5)])
def test_orthogonality_gradient(shape):
    assert torch.autograd.gradcheck(orthogonality, [torch.randn(shape, dtype=torch.float64, requires_grad=True)])


def network():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Flatten()
    )
    model.append(nn.Linear(4 * 5 * 5, 3))
    factorize(model.double(), "spatial", (2, 5, 5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def layers_of(model):
    return list(svd_layers(model).values())


def with_gradients(model):
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return model


def test_the_penalty_adds_the_gradient_of_a_plain_loop():
    model = with_gradients(network())
    model[0].u.grad += 1
    expected = 2.0 * sum(orthogonality(layer.u) + orthogonality(layer.vt) for layer in layers_of(model))
    wanted = torch.autograd.grad(expected, list(model.parameters()), allow_unused=True)
    OrthogonalityPenalty(layers_of(model), 2.0).add_gradient()
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        before = torch.ones_like(parameter) if parameter is model[0].u else torch.zeros_like(parameter)
        expected = before if gradient is None else before + gradient
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5), (2, 3, 5), (2, 5, 3)])
def test_the_closed_form_gradient_is_autograds(shape):
    a = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(orthogonality(a).sum(), a)
    torch.testing.assert_close(orthogonality_gradient(a.detach()), expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", SPARSITY)
def test_sparsity_over_layers_equals_a_plain_loop(name):
    values = [torch.rand(size, dtype=torch.float64) for size in (3, 5, 3, 5, 3)]
    expected = sum(SPARSITY[name](s) for s in values)
    torch.testing.assert_close(sparsity_of(by_shape(values), SPARSITY[name]), expected, rtol=1e-12, atol=0)


class TestHeldGradient:
    def gradients(self, model, penalty):
        with_gradients(model)
        penalty.add_gradient()
        return [layer.u.grad.clone() for layer in layers_of(model)]

    def test_is_the_exact_one_when_it_is_renewed(self):
        model = network()
        exact, held = OrthogonalityPenalty(layers_of(model), 1.0), OrthogonalityPenalty(layers_of(model), 1.0, period=3)
        for _ in range(2):
            for found, wanted in zip(self.gradients(model, held), self.gradients(model, exact), strict=True):
                assert torch.equal(found, wanted)
            held.renew()
            with torch.no_grad():
                model[0].u.mul_(1.1)

    def test_stays_the_same_for_a_period(self):
        model = network()
        penalty = OrthogonalityPenalty(layers_of(model), 1.0, period=2)
        first = self.gradients(model, penalty)
        with torch.no_grad():
            model[0].u.mul_(1.1)
        second, third = self.gradients(model, penalty), self.gradients(model, penalty)
        assert torch.equal(second[0], first[0])
        assert not torch.equal(third[0], first[0])


def test_orthogonality_error_is_the_mean_relative_defect():
    model = network()
    errors = []
    for layer in layers_of(model):
        for a in (layer.u.mT, layer.vt):
            rank = a.shape[0]
            errors.append((a @ a.mT - torch.eye(rank)).norm() / math.sqrt(rank))
    found = OrthogonalityPenalty(layers_of(model), 1.0).error()
    torch.testing.assert_close(found, torch.stack(errors).mean(), rtol=1e-10, atol=0)


def test_no_layers_have_no_penalty():
    penalty = OrthogonalityPenalty([], 1.0)
    penalty.add_gradient()
    assert penalty.error().item() == 0


def test_retraction_gives_the_nearby_orthonormal_factors():
    model = network()
    before = [(layer.u.clone(), layer.vt.clone()) for layer in layers_of(model)]
    retract(layers_of(model))
    for layer, (u, vt) in zip(layers_of(model), before, strict=True):
        for factor, old in ((layer.u, u), (layer.vt.mT, vt.mT)):
            torch.testing.assert_close(factor.mT @ factor, torch.eye(factor.shape[1], dtype=torch.float64))
            # the same subspace, and directions that agree with the old ones
            r = factor.mT @ old
            torch.testing.assert_close(factor @ r, old)
            assert (r.diagonal() > 0).all()
            if old.shape[0] > old.shape[1]:
                assert torch.tril(r, -1).abs().max() < 1e-12  # the Q of a QR decomposition
    once = [layer.u.clone() for layer in layers_of(model)]
    retract(layers_of(model))
    for layer, u in zip(layers_of(model), once, strict=True):
        torch.testing.assert_close(layer.u.detach(), u.detach())


def spectrum(*values, shape=(5, 7)):
    """A matrix with exactly these singular values."""
    u = torch.linalg.qr(torch.randn(shape[0], len(values), dtype=torch.float64)).Q
    v = torch.linalg.qr(torch.randn(shape[1], len(values), dtype=torch.float64)).Q
    return (u * torch.tensor(values, dtype=torch.float64)) @ v.mT


class TestSpectral:
    @pytest.mark.parametrize("shape", [(5, 7), (7, 5), (6, 6)])
    def test_polar_factor_is_that_of_the_svd(self, shape):
        w = torch.randn(3, *shape, dtype=torch.float64)
        u, _, vt = torch.linalg.svd(w, full_matrices=False)
        torch.testing.assert_close(polar_factor(w, steps=40), u @ vt, rtol=0, atol=1e-10)

    @pytest.mark.parametrize("shape", [(5, 7), (7, 5), (6, 6)])
    def test_values_are_those_of_the_singular_values(self, shape):
        w = torch.randn(2, *shape, dtype=torch.float64)
        s = torch.linalg.svdvals(w)
        torch.testing.assert_close(nuclear_norm(w, steps=40), s.sum(-1), rtol=1e-10, atol=0)
        expected = s.sum(-1).square() / s.square().sum(-1) - 1
        torch.testing.assert_close(spectral_hoyer_square(w, steps=40), expected, rtol=1e-10, atol=0)

    @pytest.mark.parametrize("name", SPECTRAL)
    def test_gradients_are_those_of_the_singular_values(self, name):
        """Against autograd through torch's own SVD."""
        through_svd = {
            "nuclear_norm": lambda w: torch.linalg.svdvals(w).sum(),
            "spectral_hoyer_square": lambda w: hoyer_square(torch.linalg.svdvals(w)),
        }
        w = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
        (expected,) = torch.autograd.grad(through_svd[name](w), w)
        (found,) = torch.autograd.grad(SPECTRAL[name](w, steps=40), w)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)

    def test_few_steps_are_near_where_it_matters(self):
        """What the docstring promises of the default number of steps, in float32 too."""
        w = spectrum(1, 0.5, 0.1, 0.02, 0.006, shape=(30, 40))
        u, s, vt = torch.linalg.svd(w, full_matrices=False)
        for matrix, tolerance in ((w, 0.01), (w.float(), 0.012)):
            mapped = (u.mT @ polar_factor(matrix).double() @ vt.mT).diagonal()
            assert (mapped[:5] - 1).abs().max() < tolerance
            assert nuclear_norm(matrix).item() == pytest.approx(float(s.sum()), rel=0.01)

    @pytest.mark.parametrize("name", SPECTRAL)
    def test_a_zero_matrix_has_no_penalty_and_a_finite_gradient(self, name):
        w = torch.zeros(3, 4, requires_grad=True)
        value = SPECTRAL[name](w)
        value.backward()
        assert value.item() == 0
        assert torch.isfinite(w.grad).all()

    @pytest.mark.parametrize("name", SPECTRAL)
    def test_a_step_down_its_gradient_makes_the_spectrum_sparser(self, name):
        w = spectrum(3, 1, 0.5).requires_grad_()
        SPECTRAL[name](w).backward()
        s = torch.linalg.svdvals((w - 0.05 * w.grad).detach())
        assert s[2] / s[0] < 0.5 / 3


class ReadsFromDevice(TorchDispatchMode):
    """Counts the operators that make the host wait for the device."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "equal", "is_nonzero"):
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", SPARSITY)
def test_penalties_and_their_gradients_read_nothing_back_from_the_device(name):
    model = with_gradients(network())
    penalty = OrthogonalityPenalty(layers_of(model), 1.0)
    values = by_shape(layer.s for layer in layers_of(model))
    with ReadsFromDevice() as reads:
        sparsity_of(values, SPARSITY[name]).backward()
        penalty.add_gradient()
    assert reads.names == []
    with ReadsFromDevice() as control:  # the counter itself works
        float(model[0].s.detach().sum())
    assert control.names


def test_layers_of_one_shape_are_penalised_together():
    """Twelve equal layers cost as many operators as two."""

    class Count(TorchDispatchMode):
        total = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.total += 1
            return func(*args, **(kwargs or {}))

    counts = []
    for depth in (2, 12):
        model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(depth)))
        factorize(model, "channel", (6,))
        penalty = OrthogonalityPenalty(layers_of(with_gradients(model)), 1.0)
        with Count() as count:
            penalty.add_gradient()
        counts.append(count.total)
    assert counts[0] == counts[1]
