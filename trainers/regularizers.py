"""The penalties: sparsity of singular values, on s or on a dense W, and orthogonality of U and V.

SPARSITY holds penalties of a vector s, for decomposed layers (Yang et al., CVPR-W 2020, equations 3-6, and others);
SPECTRAL holds penalties of a dense matrix's spectrum, which need no SVD. Layers of one shape are stacked and penalised by
one batched operation, and nothing here reads a value back from the device: a ResNet-20 has six distinct shapes, so the
penalties cost a dozen operators a step and no synchronisation.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor

from trainers.layers import SVDLayer

EPSILON = 0.1  # where `funnel` and `log_sum` bend: values far below are driven to zero, values far above left alone
POLAR_STEPS = 8


def l1(s: Tensor) -> Tensor:
    """R(s) = ||s||_1; s is (..., r), the result (...)."""
    return s.abs().sum(-1)


def hoyer(s: Tensor) -> Tensor:
    """R(s) = ||s||_1 / ||s||_2 - 1, in [0, sqrt(r) - 1]; 0 at s = 0. s is (..., r), the result (...)."""
    return _norm_ratio(s) - 1


def hoyer_square(s: Tensor) -> Tensor:
    """R(s) = ||s||_1^2 / ||s||_2^2 - 1, in [0, r - 1]; 0 at s = 0. s is (..., r), the result (...)."""
    return _norm_ratio(s).square() - 1


def funnel(s: Tensor) -> Tensor:
    """R(s) = sum |s_i| / (|s_i| + epsilon), epsilon = 0.1, in [0, r): a count that is smooth beside zero.

    A penalty of the type that Chu and Lee (arXiv 2112.03690) put on gates: steep near zero, flat for large values.
    Departure: this saturating form, on singular values. s is (..., r), the result (...).
    """
    size = s.abs()
    return (size / (size + EPSILON)).sum(-1)


def log_sum(s: Tensor) -> Tensor:
    """R(s) = sum log(1 + |s_i| / epsilon), epsilon = 0.1 (Candes, Wakin and Boyd, J. Fourier Anal. Appl. 14, 2008).

    s is (..., r), the result (...).
    """
    return torch.log1p(s.abs() / EPSILON).sum(-1)


def _norm_ratio(s: Tensor) -> Tensor:
    """||s||_1 / ||s||_2, and 1 with zero gradient where s is zero (the ratio's value on every axis)."""
    squared = s.square().sum(-1)
    nonzero = squared > 0
    norm = torch.where(nonzero, squared, 1).sqrt()  # the inner `where` keeps NaN out of the gradient
    return torch.where(nonzero, s.abs().sum(-1) / norm, 1)


SPARSITY: dict[str, Callable[[Tensor], Tensor]] = {
    "l1": l1,
    "hoyer": hoyer,
    "hoyer_square": hoyer_square,
    "funnel": funnel,
    "log_sum": log_sum,
}


def polar_factor(w: Tensor, steps: int = POLAR_STEPS) -> Tensor:
    """Return U V^T of w = U diag(s) V^T (..., m, n) by Newton-Schulz iterations: matrix products only, no SVD.

    Four steps of X <- a X + b (X X^T) X + c (X X^T)^2 X with coefficients that raise small singular values fast (Jordan et
    al., Muon, 2024), then `steps` - 4 steps with (15, -10, 3) / 8, which converge to 1 (Bjorck and Bowie, SIAM J. Numer.
    Anal. 8, 1971). With 8 steps, singular values above 0.005 ||w||_F are mapped to 1 within 0.01; smaller ones count less.
    """
    wide = w if w.shape[-2] <= w.shape[-1] else w.mT
    x = wide / wide.square().sum((-2, -1), keepdim=True).sqrt().clamp_min(torch.finfo(w.dtype).tiny)
    for step in range(steps):
        a, b, c = (3.4445, -4.7750, 2.0315) if step < 4 else (1.875, -1.25, 0.375)
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x if w.shape[-2] <= w.shape[-1] else x.mT


class _NuclearNorm(torch.autograd.Function):
    """||W||_* = <W, U V^T> of matrices (..., m, n), with its sub-gradient U V^T: one polar factor for both."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, steps: int) -> Tensor:
        polar = polar_factor(w, steps)
        ctx.save_for_backward(polar)
        return (w * polar).sum((-2, -1))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (polar,) = ctx.saved_tensors
        return grads[0][..., None, None] * polar, None


def nuclear_norm(w: Tensor, steps: int = POLAR_STEPS) -> Tensor:
    """R(W) = ||W||_*, the sum of singular values: L1 on the spectrum; 0 at W = 0. W is (..., m, n), the result (...)."""
    return cast(Tensor, _NuclearNorm.apply(w, steps))


def spectral_hoyer_square(w: Tensor, steps: int = POLAR_STEPS) -> Tensor:
    """R(W) = ||W||_*^2 / ||W||_F^2 - 1, Hoyer-Square of the spectrum; 0 at W = 0. W is (..., m, n), the result (...).

    Source: SLORR, arXiv 2607.08754; its number of Newton-Schulz steps is 6.
    """
    squared = w.square().sum((-2, -1))
    nonzero = squared > 0
    return torch.where(nonzero, nuclear_norm(w, steps).square() / torch.where(nonzero, squared, 1) - 1, 0)


SPECTRAL: dict[str, Callable[[Tensor], Tensor]] = {
    "nuclear_norm": nuclear_norm,
    "spectral_hoyer_square": spectral_hoyer_square,
}


def orthogonality(a: Tensor) -> Tensor:
    """L_o(A) = ||A A^T - I||_F^2 / r^2 over the smaller side of A (..., m, n), r = min(m, n); the result is (...)."""
    return _gram_defect(a).square().sum((-2, -1)) / min(a.shape[-2:]) ** 2


def orthogonality_gradient(a: Tensor) -> Tensor:
    """Return the gradient of `orthogonality` at A, 4 / r^2 (A A^T - I) A: two products, where autograd needs three."""
    wide = a.shape[-2] <= a.shape[-1]
    defect = _gram_defect(a) * (4 / min(a.shape[-2:]) ** 2)
    return defect @ a if wide else a @ defect


def _gram_defect(a: Tensor) -> Tensor:
    """A A^T - I, or A^T A - I where that is smaller."""
    gram = a @ a.mT if a.shape[-2] <= a.shape[-1] else a.mT @ a
    return gram - torch.eye(gram.shape[-1], dtype=a.dtype, device=a.device)


class OrthogonalityPenalty:
    """weight * sum over all U and V of L_o, by its gradient in closed form.

    With `period` k > 1 the gradient is computed at every k-th call only and held in between: an approximation that costs
    1 / k (the factors move little in k steps). `renew` makes the next call compute it.
    """

    def __init__(self, layers: Iterable[SVDLayer], weight: float, period: int = 1) -> None:
        self._groups = by_shape(factor for layer in layers for factor in (layer.u, layer.vt))
        self._weight, self._period, self._calls = weight, period, 0
        self._held: list[Tensor] = []

    def renew(self) -> None:
        """Forget the gradients that are held."""
        self._calls, self._held = 0, []

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Add the penalty's gradient to that of each factor; call it once a step, after `backward`."""
        if not self._groups or self._weight == 0:
            return
        if self._calls % self._period == 0:
            self._held = [gradient for group in self._groups for gradient in orthogonality_gradient(stack(group))]
        self._calls += 1
        gradients = [cast(Tensor, factor.grad) for group in self._groups for factor in group]
        torch._foreach_add_(gradients, self._held, alpha=self._weight)

    @torch.no_grad()
    def error(self) -> Tensor:
        """Return the mean over all U and V of ||A A^T - I||_F / sqrt(r): 0 where orthonormal, 1 at A = 0; a scalar."""
        if not self._groups:
            return torch.zeros(())
        errors = [(orthogonality(stack(group)) * min(group[0].shape)).sqrt().flatten() for group in self._groups]
        return torch.cat(errors).mean()


@torch.no_grad()
def retract(layers: Iterable[SVDLayer]) -> None:
    """Replace U and V of each layer by the orthonormal factor of their QR decomposition, in place (Absil et al., 2008).

    R's diagonal is taken positive, so that factors that are nearly orthonormal change little.
    """
    for group in by_shape(factor for layer in layers for factor in (layer.u, layer.vt)):
        tall = stack(group) if group[0].shape[0] >= group[0].shape[1] else stack(group).mT
        q, r = torch.linalg.qr(tall)
        q = q * torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1, 1)[..., None, :]
        for factor, new in zip(group, q if q.shape[-2:] == group[0].shape else q.mT, strict=True):
            factor.copy_(new)


def sparsity_of(values: list[list[Tensor]], regularizer: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the sum of `regularizer` over groups of tensors of one shape, a scalar."""
    return _total(regularizer(stack(group)).sum() for group in values)


def by_shape(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Return the tensors in groups of one shape."""
    groups: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        groups[tuple(tensor.shape)].append(tensor)
    return list(groups.values())


def stack(group: list[Tensor]) -> Tensor:
    """Return a group as one tensor; a single one is not copied."""
    return torch.stack(group) if len(group) > 1 else group[0][None]


def _total(terms: Iterable[Tensor]) -> Tensor:
    """The sum, on the terms' device; 0 without terms."""
    first, *others = list(terms) or [torch.zeros(())]
    return sum(others, start=first)
