"""The penalties of SVD training: orthogonality of U and V, sparsity of s (Yang et al., CVPR-W 2020, equations 3-6).

Layers of one shape are stacked and penalised by one batched operation, and nothing here reads a value back from the
device: a ResNet-20 has six distinct shapes, so the penalties cost a dozen operators a step and no synchronisation.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from trainers.config import SVDTrainingConfig
from trainers.layers import svd_layers


def l1(s: Tensor) -> Tensor:
    """R(s) = ||s||_1; s is (..., r), the result (...)."""
    return s.abs().sum(-1)


def hoyer(s: Tensor) -> Tensor:
    """R(s) = ||s||_1 / ||s||_2 - 1, in [0, sqrt(r) - 1]; 0 at s = 0. s is (..., r), the result (...)."""
    return _norm_ratio(s) - 1


def hoyer_square(s: Tensor) -> Tensor:
    """R(s) = ||s||_1^2 / ||s||_2^2 - 1, in [0, r - 1]; 0 at s = 0. s is (..., r), the result (...)."""
    return _norm_ratio(s).square() - 1


def _norm_ratio(s: Tensor) -> Tensor:
    """||s||_1 / ||s||_2, and 1 with zero gradient where s is zero (the ratio's value on every axis)."""
    squared = s.square().sum(-1)
    nonzero = squared > 0
    norm = torch.where(nonzero, squared, 1).sqrt()  # the inner `where` keeps NaN out of the gradient
    return torch.where(nonzero, s.abs().sum(-1) / norm, 1)


SPARSITY: dict[str, Callable[[Tensor], Tensor]] = {"l1": l1, "hoyer": hoyer, "hoyer_square": hoyer_square}


class _GramDefect(torch.autograd.Function):
    """||A A^T - I||_F^2 / r^2 of wide matrices A (..., r, n), with the closed-form gradient 4 / r^2 (A A^T - I) A.

    Autograd's own backward would multiply twice; this one multiplies once.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        rank = a.shape[-2]
        defect = a @ a.mT
        defect.diagonal(dim1=-2, dim2=-1).sub_(1)
        ctx.save_for_backward(a, defect)
        return defect.square().sum((-2, -1)) / rank**2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        a, defect = ctx.saved_tensors
        scale = grads[0] * (4 / a.shape[-2] ** 2)
        return cast(Tensor, scale[..., None, None] * (defect @ a))


def orthogonality(a: Tensor) -> Tensor:
    """L_o(A) = ||A A^T - I||_F^2 / r^2 over the smaller side of A (..., m, n), r = min(m, n); the result is (...)."""
    wide = a if a.shape[-2] <= a.shape[-1] else a.mT
    return cast(Tensor, _GramDefect.apply(wide))


class Penalty:
    """The two penalty terms of a model's decomposed layers, as one differentiable number; call it once a step."""

    def __init__(self, model: nn.Module, method: SVDTrainingConfig) -> None:
        layers = svd_layers(model).values()
        self._method = method
        self._sparsity = SPARSITY[method.regularizer]
        self._factors = _by_shape(factor for layer in layers for factor in (layer.u, layer.vt))
        self._values = _by_shape(layer.s for layer in layers)

    def __call__(self) -> Tensor:
        """Return strength * sum R(s) + orthogonality_weight * sum (L_o(U) + L_o(V)), a scalar."""
        method = self._method
        total = torch.zeros(())
        if method.orthogonality_weight > 0:
            for group in self._factors:
                total = method.orthogonality_weight * orthogonality(torch.stack(group)).sum() + total
        if method.strength > 0:
            for group in self._values:
                total = method.strength * self._sparsity(torch.stack(group)).sum() + total
        return total

    @torch.no_grad()
    def orthogonality_error(self) -> Tensor:
        """Return the mean over all U and V of ||A A^T - I||_F / sqrt(r): 0 where orthonormal, 1 at A = 0; a scalar."""
        if not self._factors:
            return torch.zeros(())
        errors = [(orthogonality(torch.stack(group)) * min(group[0].shape)).sqrt().flatten() for group in self._factors]
        return torch.cat(errors).mean()


def _by_shape(tensors: Iterable[nn.Parameter]) -> list[list[Tensor]]:
    groups: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        groups[tuple(tensor.shape)].append(tensor)
    return list(groups.values())
