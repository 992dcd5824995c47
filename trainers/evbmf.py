"""The analytic rank of empirical variational Bayes matrix factorization."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def evbmf_rank(s: Tensor, shape: tuple[int, int]) -> int:
    """Return the rank of empirical variational Bayes matrix factorization: how many s_i stand out of the noise.

    Nakajima, Sugiyama, Babacan and Tomioka, JMLR 14 (2013), theorem 2 and its corollaries: for L <= M, alpha = L / M,
    tau0 = 2.5129 sqrt(alpha) and x0 = (1 + tau0) (1 + alpha / tau0), a value is kept if s_i^2 > M v x0, with the noise
    variance v that minimises the free energy between its bounds. No hyper-parameter. 0 if all is noise, and for a zero
    matrix. The free energy may have several minima: v is the best of 200 values, refined by golden-section search; values
    below the rounding of s_1 count as rounding.
    """
    rows, columns = min(shape), max(shape)
    total = float(s.square().sum())
    if total == 0:
        return 0
    squares = s.clamp_min(torch.finfo(s.dtype).eps * float(s[0])).square()
    alpha = rows / columns
    tau0 = 2.5129 * math.sqrt(alpha)
    x0 = (1 + tau0) * (1 + alpha / tau0)
    most = min(math.ceil(rows / (1 + alpha)) - 1, rows)  # no more than this many can be signal
    upper = total / (rows * columns)
    lower = max(float(squares[most]) / (columns * x0), float(squares[most:].mean()) / columns) if most < rows else 0.0
    lower = max(lower, 1e-12 * upper)
    energy = _free_energy(squares, rows, columns, x0)
    grid = torch.logspace(math.log10(lower), math.log10(max(upper, lower)), 200, dtype=torch.float64)
    best = min(range(len(grid)), key=lambda i: energy(float(grid[i])))
    variance = _golden_section(energy, float(grid[max(0, best - 1)]), float(grid[min(len(grid) - 1, best + 1)]))
    return int((squares > columns * variance * x0).sum())


def _free_energy(squares: Tensor, rows: int, columns: int, x0: float) -> Callable[[float], float]:
    """The free energy per column as a function of the noise variance, up to constants (Nakajima et al., equation 27)."""
    alpha = rows / columns

    def energy(variance: float) -> float:
        x = squares / (columns * variance)
        signal, noise = x[x > x0], x[x <= x0]
        b = signal - (1 + alpha)
        tau = (b + (b.square() - 4 * alpha).clamp_min(0).sqrt()) / 2
        kept = signal - tau + torch.log((tau + 1) / signal) + alpha * torch.log(tau / alpha + 1)
        return float((noise - noise.log()).sum() + kept.sum())

    return energy


def _golden_section(function: Callable[[float], float], low: float, high: float) -> float:
    """Return the minimiser of a function with one minimum in [low, high], to 1e-9 of its size."""
    ratio = (math.sqrt(5) - 1) / 2
    while high - low > 1e-9 * high:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if function(left) <= function(right):
            high = right
        else:
            low = left
    return (low + high) / 2
