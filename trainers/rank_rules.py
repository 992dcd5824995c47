"""Rules that choose a rank from a layer's singular values: pure functions of tensors."""

import torch
from torch import Tensor


def rank_by_energy(s: Tensor, energy: float) -> int:
    """Return the smallest rank whose squared singular values sum to at least (1 - energy) of the total; at least 1.

    s is (r), descending and non-negative, in float64; 0 <= energy < 1. energy = 0 drops only exact zeros, and a zero
    matrix keeps rank 1. Source: Yang et al., CVPR-W 2020, section 3.3 (per layer).
    """
    if not 0 <= energy < 1:
        raise ValueError(f"energy must be a number with 0 <= energy < 1, but got {energy!r}")
    # summed from the small end: the tail is what is cut, and it would vanish in the rounding of the full sum
    tail = torch.flip(torch.cumsum(torch.flip(s.square(), (0,)), 0), (0,))  # tail[i] = sum of s_j^2 over j >= i
    kept = int((tail > energy * tail[0]).sum())
    return max(1, kept)
