"""Layers trained in decomposed form, W = U diag(s) V^T with U (m, r), s (r), V^T (r, n) as their parameters.

Yang et al., "Learning Low-rank Deep Neural Networks via Singular Vector Orthogonality Regularization and Singular Value
Sparsification", CVPR-W 2020. Departure: the authors run two convolutions per layer while training; here W is rebuilt in
weight space and one convolution runs, which gives the same function and gradients at about the dense layer's cost.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.config import Decomposition
from trainers.factorization import exact_svd, from_matrix, to_matrix

# (kernel, stride, dilation, padding) of a convolution
_ConvGeometry = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], "tuple[int, ...] | str"]


class SVDLayer(nn.Module):
    """What both decomposed layers share: the factors, the weight they stand for and its matrix form."""

    u: nn.Parameter  # (m, r)
    s: nn.Parameter  # (r)
    vt: nn.Parameter  # (r, n)
    bias: nn.Parameter | None  # (out)

    def __init__(self, dense: nn.Linear | nn.Conv1d | nn.Conv2d, decomposition: Decomposition) -> None:
        super().__init__()
        self.decomposition: Decomposition = decomposition
        self.weight_shape = tuple(dense.weight.shape)
        u, s, vt = exact_svd(to_matrix(dense.weight, decomposition))
        # LAPACK's column-major factors would make every gradient a copy
        self.u, self.s, self.vt = (nn.Parameter(factor.to(dense.weight).contiguous()) for factor in (u, s, vt))
        self.register_parameter("bias", None if dense.bias is None else nn.Parameter(dense.bias.detach().clone()))

    @property
    def full_rank(self) -> int:
        """The largest rank that the weight matrix can have, min(m, n)."""
        return self.s.numel()

    def matrix(self) -> Tensor:
        """Return U diag(s) V^T (m, n), differentiable."""
        return (self.u * self.s) @ self.vt

    def weight(self) -> Tensor:
        """Return the weight in the dense layer's shape, differentiable."""
        return from_matrix(self.matrix(), self.weight_shape, self.decomposition)

    def extra_repr(self) -> str:
        """Shape and decomposition, for `print(model)`."""
        return f"weight={self.weight_shape}, decomposition={self.decomposition}, bias={self.bias is not None}"

    def _matches(self) -> dict[str, torch.dtype | torch.device | bool]:
        return {"device": self.s.device, "dtype": self.s.dtype, "bias": self.bias is not None}

    def dense(self, weight: Tensor) -> nn.Module:
        """Return the ordinary layer with `weight` (the dense shape) and this layer's bias."""
        raise NotImplementedError

    def low_rank(self, left: Tensor, right: Tensor) -> nn.Sequential:
        """Return two ordinary layers that compute with the matrix left (m, r) @ right (r, n), and this layer's bias."""
        raise NotImplementedError


class SVDLinear(SVDLayer):
    """y = U (s * (V^T x)) + b, run in factored form; x is (..., in_features), y (..., out_features)."""

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__(dense, "channel")
        self.in_features, self.out_features = dense.in_features, dense.out_features

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return F.linear(F.linear(x, self.vt) * self.s, self.u, self.bias)

    def dense(self, weight: Tensor) -> nn.Linear:
        """Return `nn.Linear` with `weight` (out_features, in_features)."""
        layer = nn.Linear(self.in_features, self.out_features, **self._matches())  # type: ignore[arg-type]
        return cast(nn.Linear, _filled(layer, weight, self.bias))

    def low_rank(self, left: Tensor, right: Tensor) -> nn.Sequential:
        """Return Linear(in -> r, no bias), Linear(r -> out)."""
        like = self._matches()
        first = nn.Linear(self.in_features, right.shape[0], **{**like, "bias": False})  # type: ignore[arg-type]
        second = nn.Linear(left.shape[1], self.out_features, **like)  # type: ignore[arg-type]
        return nn.Sequential(_filled(first, right, None), _filled(second, left, self.bias))


class SVDConv(SVDLayer):
    """A convolution whose weight is rebuilt from its factors at each call; x is (N, c, *sizes), y (N, n, *sizes').

    Takes every `nn.Conv1d` and `nn.Conv2d` with groups = 1: stride, padding (numbers, "same", "valid"), dilation,
    padding_mode, bias. A one-dimensional kernel has no second axis to split off: it is always channel-wise.
    """

    def __init__(self, dense: nn.Conv1d | nn.Conv2d, decomposition: Decomposition) -> None:
        if dense.groups != 1:
            raise ValueError(f"groups must be 1, but got {dense.groups}; leave grouped convolutions dense")
        super().__init__(dense, decomposition if isinstance(dense, nn.Conv2d) else "channel")
        self.stride: tuple[int, ...] = dense.stride
        self.dilation: tuple[int, ...] = dense.dilation
        self.padding: tuple[int, ...] | str = dense.padding
        self.padding_mode = dense.padding_mode
        # the dense layer's own list of pads (left, right, top, bottom), for the modes that pad before the convolution
        self.pads = list(dense._reversed_padding_repeated_twice)

    @property
    def kernel(self) -> tuple[int, ...]:
        """The kernel's sides: (k) or (kh, kw)."""
        return self.weight_shape[2:]

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, c, *sizes) to (N, n, *sizes')."""
        padding = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self.pads, mode=self.padding_mode), (0,) * len(self.kernel)
        convolve = F.conv1d if len(self.kernel) == 1 else F.conv2d
        return convolve(x, self.weight(), self.bias, self.stride, padding, self.dilation)

    def dense(self, weight: Tensor) -> nn.Conv1d | nn.Conv2d:
        """Return the ordinary convolution with `weight` (n, c, *kernel)."""
        n, c = self.weight_shape[:2]
        layer = self._conv(c, n, self._along(), bias=self.bias is not None)
        return cast("nn.Conv1d | nn.Conv2d", _filled(layer, weight, self.bias))

    def low_rank(self, left: Tensor, right: Tensor) -> nn.Sequential:
        """Return the two convolutions of the decomposition; the first has no bias."""
        n, c = self.weight_shape[:2]
        rank, bias = right.shape[0], self.bias is not None
        if self.decomposition == "channel":
            first, second = self._along(), self._along(())
            weights = right.reshape(rank, c, *self.kernel), left.reshape(n, rank, *second[0])
        else:
            kh, kw = self.kernel
            first, second = self._along((0,)), self._along((1,))
            weights = right.reshape(rank, c, kh, 1), left.reshape(n, kw, rank).permute(0, 2, 1).unsqueeze(2)
        return nn.Sequential(
            _filled(self._conv(c, rank, first, bias=False), weights[0], None),
            _filled(self._conv(rank, n, second, bias=bias), weights[1], self.bias),
        )

    def _along(self, axes: tuple[int, ...] | None = None) -> "_ConvGeometry":
        """(kernel, stride, dilation, padding) along `axes` (None: all), neutral along the others."""

        def pick(values: tuple[int, ...], other: int) -> tuple[int, ...]:
            return tuple(value if axes is None or i in axes else other for i, value in enumerate(values))

        padding = self.padding if isinstance(self.padding, str) else pick(self.padding, 0)
        return pick(self.kernel, 1), pick(self.stride, 1), pick(self.dilation, 1), padding

    def _conv(self, c: int, n: int, geometry: "_ConvGeometry", *, bias: bool) -> "nn.Conv1d | nn.Conv2d":
        kernel, stride, dilation, padding = geometry
        like: dict[str, Any] = {"padding_mode": self.padding_mode, "device": self.s.device, "dtype": self.s.dtype}
        convolution: Any = nn.Conv1d if len(kernel) == 1 else nn.Conv2d
        return convolution(c, n, kernel, stride, padding, dilation, bias=bias, **like)  # type: ignore[no-any-return]


def svd_layers(model: nn.Module) -> dict[str, SVDLayer]:
    """Return every decomposed layer of `model` by its module path, in module order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, SVDLayer)}


def _filled(layer: nn.Linear | nn.Conv1d | nn.Conv2d, weight: Tensor, bias: nn.Parameter | None) -> nn.Module:
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None and layer.bias is not None:
            layer.bias.copy_(bias)
    return layer
