"""Intervals of means, as the benchmarks state them."""

from collections.abc import Sequence

import numpy as np

_BOOTSTRAPS = 10_000


def interval_of_mean(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean; the same for the same values."""
    generator = np.random.default_rng(0)
    means = generator.choice(values, (_BOOTSTRAPS, len(values))).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
