import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from trainers.config import MethodConfig
from trainers.layers import svd_layers
from trainers.regularizers import SPARSITY, Penalty, hoyer, hoyer_square, l1, orthogonality
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


@pytest.mark.parametrize("name", SPARSITY)
def test_penalty_equals_a_plain_loop_over_layers(name):
    model = network()
    method = MethodConfig(regularizer=name, strength=0.3, orthogonality_weight=2.0)
    expected = sum(
        0.3 * SPARSITY[name](layer.s) + 2.0 * (orthogonality(layer.u) + orthogonality(layer.vt))
        for layer in svd_layers(model).values()
    )
    expected_grads = torch.autograd.grad(expected, list(model.parameters()), allow_unused=True)
    penalty = Penalty(model, method)()
    torch.testing.assert_close(penalty, expected, rtol=1e-12, atol=0)
    grads = torch.autograd.grad(penalty, list(model.parameters()), allow_unused=True)
    for found, wanted in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-14)


def test_orthogonality_error_is_the_mean_relative_defect():
    model = network()
    errors = []
    for layer in svd_layers(model).values():
        for a in (layer.u.mT, layer.vt):
            rank = a.shape[0]
            errors.append((a @ a.mT - torch.eye(rank)).norm() / math.sqrt(rank))
    found = Penalty(model, MethodConfig()).orthogonality_error()
    torch.testing.assert_close(found, torch.stack(errors).mean(), rtol=1e-10, atol=0)


def test_a_model_without_decomposed_layers_has_no_penalty():
    penalty = Penalty(nn.Linear(3, 2), MethodConfig())
    assert penalty().item() == 0
    assert penalty.orthogonality_error().item() == 0


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
def test_penalty_and_its_gradient_read_nothing_back_from_the_device(name):
    model = network()
    penalty = Penalty(model, MethodConfig(regularizer=name))
    with ReadsFromDevice() as reads:
        penalty().backward()
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
        penalty = Penalty(model, MethodConfig())
        with Count() as count:
            penalty()
        counts.append(count.total)
    assert counts[0] == counts[1]
