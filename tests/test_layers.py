"""The decomposed layers against the dense layers that they came from, in float64."""

import itertools

import pytest
import torch
from torch import nn

from trainers.factorization import balanced_factors, exact_svd, from_matrix, to_matrix
from trainers.layers import SVDConv, SVDLinear, svd_layers

DECOMPOSITIONS = ["channel", "spatial"]
CONVOLUTIONS = [
    {"kernel_size": 3},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": (2, 1), "padding": (0, 2), "bias": False},
    {"kernel_size": (5, 2), "padding": (2, 0), "dilation": (1, 2)},
    {"kernel_size": 3, "padding": 2, "dilation": 2},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 3, "padding": "same", "dilation": 2},
    {"kernel_size": 4, "padding": "same", "padding_mode": "replicate"},
    {"kernel_size": 3, "padding": "valid"},
    *({"kernel_size": 3, "padding": 1, "padding_mode": mode} for mode in ("reflect", "replicate", "circular")),
    {"kernel_size": (3, 5), "stride": (1, 2), "padding": (1, 2), "padding_mode": "circular", "bias": False},
]


def conv(options, channels=(4, 6)):
    return nn.Conv2d(*channels, **options).double()


@pytest.mark.parametrize(
    ("options", "decomposition", "channels"),
    list(itertools.product(CONVOLUTIONS, DECOMPOSITIONS, [(4, 6), (1, 3), (7, 2)])),
)
def test_convolution_equals_the_dense_one_at_full_rank_decomposed_and_deployed(options, decomposition, channels):
    dense = conv(options, channels)
    layer = SVDConv(dense, decomposition)
    x = torch.randn(2, channels[0], 11, 12, dtype=torch.float64)
    expected = dense(x)
    close = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(layer(x), expected, **close)
    torch.testing.assert_close(layer.dense(layer.weight())(x), expected, **close)
    factors = balanced_factors(*exact_svd(layer.matrix()), layer.full_rank)
    torch.testing.assert_close(layer.low_rank(*factors)(x), expected, **close)


@pytest.mark.parametrize("options", CONVOLUTIONS)
@pytest.mark.parametrize("decomposition", DECOMPOSITIONS)
@pytest.mark.parametrize("rank", [1, 3])
def test_two_layers_compute_with_the_truncated_weight(options, decomposition, rank):
    dense = conv(options)
    layer = SVDConv(dense, decomposition)
    left, right = balanced_factors(*exact_svd(layer.matrix()), rank)
    truncated = layer.dense(from_matrix(left @ right, layer.weight_shape, decomposition))
    deployed = layer.low_rank(left, right)
    assert [type(part) for part in deployed] == [nn.Conv2d, nn.Conv2d]
    x = torch.randn(2, 4, 9, 10, dtype=torch.float64)
    torch.testing.assert_close(deployed(x), truncated(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(5, 8), (8, 5), (6, 6), (1, 4)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(3,), (2, 7)])
def test_linear_equals_the_dense_one_at_full_rank_decomposed_and_deployed(shape, bias, batch):
    dense = nn.Linear(*shape, bias=bias).double()
    layer = SVDLinear(dense)
    x = torch.randn(*batch, shape[0], dtype=torch.float64)
    expected = dense(x)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-13)
    factors = balanced_factors(*exact_svd(layer.matrix()), layer.full_rank)
    deployed = layer.low_rank(*factors)
    assert [type(part) for part in deployed] == [nn.Linear, nn.Linear]
    assert deployed[0].bias is None
    torch.testing.assert_close(deployed(x), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.dense(layer.weight())(x), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("decomposition", DECOMPOSITIONS)
def test_gradients_of_the_convolution(decomposition):
    layer = SVDConv(conv({"kernel_size": 3, "padding": 1, "stride": 2}, (2, 3)), decomposition)
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    parameters = [layer.u, layer.s, layer.vt, layer.bias]
    assert torch.autograd.gradcheck(lambda *_: layer(x), [x, *parameters])


def test_gradients_of_the_linear_layer():
    layer = SVDLinear(nn.Linear(4, 3).double())
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *_: layer(x), [x, layer.u, layer.s, layer.vt, layer.bias])


@pytest.mark.parametrize("decomposition", DECOMPOSITIONS)
def test_parameters_are_the_factors_and_the_bias(decomposition):
    layer = SVDConv(conv({"kernel_size": 3}), decomposition)
    m, n = to_matrix(torch.empty(6, 4, 3, 3), decomposition).shape
    rank = min(m, n)
    shapes = {name: tuple(parameter.shape) for name, parameter in layer.named_parameters()}
    assert shapes == {"u": (m, rank), "s": (rank,), "vt": (rank, n), "bias": (6,)}
    assert layer.full_rank == rank


def test_grouped_convolutions_are_refused():
    with pytest.raises(ValueError, match="groups must be 1, but got 2"):
        SVDConv(nn.Conv2d(4, 4, 3, groups=2), "channel")


def test_svd_layers_are_found_by_path():
    model = nn.Sequential(SVDLinear(nn.Linear(3, 3)), nn.Sequential(nn.ReLU(), SVDLinear(nn.Linear(3, 2))))
    assert list(svd_layers(model)) == ["0", "1.1"]
