"""Layers trained in decomposed form, W = U diag(s) V^T with U (m, r), s (r), V^T (r, n) as their parameters.

Yang et al., "Learning Low-rank Deep Neural Networks via Singular Vector Orthogonality Regularization and Singular Value
Sparsification", CVPR-W 2020. Departure: the authors run two convolutions per layer while training; here W is rebuilt in
weight space and one convolution runs, which gives the same function and gradients at about the dense layer's cost.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.config import Decomposition
from trainers.factorization import exact_svd, from_matrix, to_matrix


class SVDLayer(nn.Module):
    """What both decomposed layers share: the factors, the weight they stand for and its matrix form."""

    u: nn.Parameter  # (m, r)
    s: nn.Parameter  # (r)
    vt: nn.Parameter  # (r, n)
    bias: nn.Parameter | None  # (out)

    def __init__(self, dense: nn.Linear | nn.Conv2d, decomposition: Decomposition) -> None:
        super().__init__()
        self.decomposition: Decomposition = decomposition
        self.weight_shape = tuple(dense.weight.shape)
        u, s, vt = exact_svd(to_matrix(dense.weight, decomposition))
        self.u, self.s, self.vt = (nn.Parameter(factor.to(dense.weight)) for factor in (u, s, vt))
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


class SVDConv2d(SVDLayer):
    """A convolution whose weight is rebuilt from its factors at each call; x is (N, c, H, W), y (N, n, H', W').

    Takes every `nn.Conv2d` with groups = 1: stride, padding (numbers, "same", "valid"), dilation, padding_mode, bias.
    """

    def __init__(self, dense: nn.Conv2d, decomposition: Decomposition) -> None:
        if dense.groups != 1:
            raise ValueError(f"groups must be 1, but got {dense.groups}; leave grouped convolutions dense")
        super().__init__(dense, decomposition)
        self.stride = cast(tuple[int, int], dense.stride)
        self.dilation = cast(tuple[int, int], dense.dilation)
        self.padding = cast("tuple[int, int] | str", dense.padding)
        self.padding_mode = dense.padding_mode
        # nn.Conv2d's own list of pads (left, right, top, bottom), for the modes that pad before the convolution
        self.pads = list(dense._reversed_padding_repeated_twice)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, c, H, W) to (N, n, H', W')."""
        padding = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self.pads, mode=self.padding_mode), (0, 0)
        return F.conv2d(x, self.weight(), self.bias, self.stride, padding, self.dilation)

    def dense(self, weight: Tensor) -> nn.Conv2d:
        """Return `nn.Conv2d` with `weight` (n, c, kh, kw)."""
        n, c, kh, kw = self.weight_shape
        layer = self._conv(c, n, (kh, kw), rows=True, columns=True, bias=self.bias is not None)
        return cast(nn.Conv2d, _filled(layer, weight, self.bias))

    def low_rank(self, left: Tensor, right: Tensor) -> nn.Sequential:
        """Return the two convolutions of the decomposition; the first has no bias."""
        n, c, kh, kw = self.weight_shape
        rank, bias = right.shape[0], self.bias is not None
        if self.decomposition == "channel":
            first = self._conv(c, rank, (kh, kw), rows=True, columns=True, bias=False)
            second = self._conv(rank, n, (1, 1), rows=False, columns=False, bias=bias)
            weights = right.reshape(rank, c, kh, kw), left.reshape(n, rank, 1, 1)
        else:
            first = self._conv(c, rank, (kh, 1), rows=True, columns=False, bias=False)
            second = self._conv(rank, n, (1, kw), rows=False, columns=True, bias=bias)
            weights = right.reshape(rank, c, kh, 1), left.reshape(n, kw, rank).permute(0, 2, 1).unsqueeze(2)
        return nn.Sequential(_filled(first, weights[0], None), _filled(second, weights[1], self.bias))

    def _conv(self, c: int, n: int, kernel: tuple[int, int], *, rows: bool, columns: bool, bias: bool) -> nn.Conv2d:
        """A convolution that strides, pads and dilates along the rows (height) and columns (width) asked for."""

        def along(values: tuple[int, int], neutral: int) -> tuple[int, int]:
            return (values[0] if rows else neutral, values[1] if columns else neutral)

        padding = self.padding if isinstance(self.padding, str) else along(self.padding, 0)
        return nn.Conv2d(
            c,
            n,
            kernel,
            stride=along(self.stride, 1),
            padding=padding,
            dilation=along(self.dilation, 1),
            padding_mode=self.padding_mode,
            bias=bias,
            device=self.s.device,
            dtype=self.s.dtype,
        )


def svd_layers(model: nn.Module) -> dict[str, SVDLayer]:
    """Return every decomposed layer of `model` by its module path, in module order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, SVDLayer)}


def _filled(layer: nn.Linear | nn.Conv2d, weight: Tensor, bias: nn.Parameter | None) -> nn.Module:
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None and layer.bias is not None:
            layer.bias.copy_(bias)
    return layer
