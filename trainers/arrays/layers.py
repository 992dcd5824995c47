"""Layers of K networks as one: parameters (K, ...) stacked, activations (N, K C, ...) with the networks' channels in turn.

Whatever acts on each channel alone (activations, pooling, flattening) needs no other form. Where all networks see the same
batch, the first layer takes it as it is, (N, C, ...).
"""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.factorization import from_matrix
from trainers.layers import SVDConv, SVDLinear
from trainers.models import PadShortcut


class ArrayLayer(nn.Module):
    """`count` layers like `layer`: its parameters and buffers under their names, each with a first axis of `count`."""

    def __init__(self, layer: nn.Module, count: int) -> None:
        super().__init__()
        self.count = count
        for name, parameter in layer._parameters.items():
            stacked = None if parameter is None else nn.Parameter(parameter.detach().new_empty(count, *parameter.shape))
            self.register_parameter(name, stacked)
        for name, buffer in layer._buffers.items():
            self.register_buffer(name, None if buffer is None else buffer.new_empty(count, *buffer.shape))


class ArrayConv(ArrayLayer):
    """K convolutions of any number of groups as one grouped convolution; a shared input needs no groups for that."""

    bias: nn.Parameter | None  # (K, n)

    def __init__(self, layer: nn.Conv1d | nn.Conv2d | SVDConv, count: int) -> None:
        super().__init__(layer, count)
        self.stride, self.dilation, self.padding_mode = layer.stride, layer.dilation, layer.padding_mode
        self.padding: Any = layer.padding
        self.pads = layer.pads if isinstance(layer, SVDConv) else list(layer._reversed_padding_repeated_twice)
        self.groups = 1 if isinstance(layer, SVDConv) else layer.groups

    def weights(self) -> Tensor:
        """Return the weights (K, n, c / groups, *kernel)."""
        assert isinstance(self.weight, Tensor)
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, K c, *sizes), or (N, c, *sizes) that all share, to (N, K n, *sizes')."""
        weights, padding = self.weights(), self.padding
        shared = x.shape[1] == self.groups * weights.shape[2]
        if shared and self.groups > 1:
            x, shared = torch.cat([x] * self.count, 1), False
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self.pads, mode=self.padding_mode), 0
        bias = None if self.bias is None else self.bias.flatten()
        convolve = F.conv1d if weights.ndim == 4 else F.conv2d
        groups = 1 if shared else self.count * self.groups
        return convolve(x, weights.flatten(0, 1), bias, self.stride, padding, self.dilation, groups)


class ArraySVDConv(ArrayConv):
    """K decomposed convolutions: all weights are rebuilt by one batched product."""

    u: nn.Parameter  # (K, m, r)
    s: nn.Parameter  # (K, r)
    vt: nn.Parameter  # (K, r, n)

    def __init__(self, layer: SVDConv, count: int) -> None:
        super().__init__(layer, count)
        self.weight_shape, self.decomposition = layer.weight_shape, layer.decomposition

    def weights(self) -> Tensor:
        """Return U diag(s) V^T of each, as weights (K, n, c, *kernel)."""
        matrices = (self.u * self.s[:, None]) @ self.vt
        n, *rest = self.weight_shape
        # rows stand for output channels first: K matrices on top of each other are those of a layer with K n of them
        weights = from_matrix(matrices.flatten(0, 1), (self.count * n, *rest), self.decomposition)
        return cast(Tensor, weights.unflatten(0, (self.count, n)))


class ArrayLinear(ArrayLayer):
    """K linear layers by one batched product."""

    weight: nn.Parameter  # (K, out, in)
    bias: nn.Parameter | None  # (K, out)

    def __init__(self, layer: nn.Linear | SVDLinear, count: int) -> None:
        super().__init__(layer, count)
        self.in_features = layer.in_features

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, K in), or (N, in) that all share, to (N, K out)."""
        shared = x.shape[1] == self.in_features
        rows = x.expand(self.count, *x.shape) if shared else x.unflatten(1, (self.count, -1)).transpose(0, 1)
        return self.rows(rows).transpose(0, 1).flatten(1)

    def rows(self, x: Tensor) -> Tensor:
        """Map (K, N, in) to (K, N, out)."""
        return _affine(x, self.weight, self.bias)


class ArraySVDLinear(ArrayLinear):
    """K decomposed linear layers, y = U (s * (V^T x)) + b."""

    u: nn.Parameter  # (K, m, r)
    s: nn.Parameter  # (K, r)
    vt: nn.Parameter  # (K, r, n)

    def rows(self, x: Tensor) -> Tensor:
        """Map (K, N, in) to (K, N, out)."""
        return _affine((x @ self.vt.mT) * self.s[:, None], self.u, self.bias)


class ArrayBatchNorm(ArrayLayer):
    """K batch normalisations: each network's channels have statistics of their own."""

    weight: nn.Parameter | None  # (K, C)
    bias: nn.Parameter | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None  # (K)

    def __init__(self, layer: nn.BatchNorm1d | nn.BatchNorm2d, count: int) -> None:
        super().__init__(layer, count)
        assert layer.momentum is not None  # see `array_problem`
        self.momentum, self.eps = layer.momentum, layer.eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, K C, *sizes) by the batch's statistics, and follow them; arrays only train."""
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
        mean, var, weight, bias = (
            None if values is None else values.flatten()
            for values in (self.running_mean, self.running_var, self.weight, self.bias)
        )
        return F.batch_norm(x, mean, var, weight, bias, True, self.momentum, self.eps)


class ArrayPadShortcut(nn.Module):
    """K shortcuts that add channels: between the networks' channels, not around all of them."""

    def __init__(self, layer: PadShortcut, count: int) -> None:
        super().__init__()
        self.layer, self.count = layer, count

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, K C, H, W) to (N, K C', H', W')."""
        each = x.unflatten(1, (self.count, -1)).flatten(0, 1)  # (N K, C, H, W)
        return self.layer(each).unflatten(0, (-1, self.count)).flatten(1, 2)  # type: ignore[no-any-return]


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(K, N, in), (K, out, in), (K, out) -> (K, N, out)."""
    return x @ weight.mT if bias is None else torch.baddbmm(bias[:, None], x, weight.mT)


ARRAY_LAYERS: dict[type[nn.Module], Callable[[Any, int], nn.Module]] = {
    SVDConv: ArraySVDConv,
    SVDLinear: ArraySVDLinear,
    nn.Conv1d: ArrayConv,
    nn.Conv2d: ArrayConv,
    nn.Linear: ArrayLinear,
    nn.BatchNorm1d: ArrayBatchNorm,
    nn.BatchNorm2d: ArrayBatchNorm,
    PadShortcut: ArrayPadShortcut,
}
