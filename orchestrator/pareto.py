"""Mathematics of fronts on plain arrays: every objective is minimised; callers negate what they maximise.

A point is a row of a float array (n, objectives). NaN and infinite points are never on a front.
"""

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]


def non_dominated(points: Points) -> NDArray[np.bool_]:
    """Return, for each point (n, d), whether no other is at least as good in all objectives and better in one.

    Of equal points the first one counts, the others are dominated by it, so that a front has no duplicates.
    """
    finite = np.isfinite(points).all(axis=1)
    keep: NDArray[np.bool_] = np.array(finite)
    for i in np.flatnonzero(finite):
        others = points[finite]
        better = (others <= points[i]).all(axis=1) & (others < points[i]).any(axis=1)
        keep[i] = not better.any()
    seen: set[tuple[float, ...]] = set()
    for i in np.flatnonzero(keep):
        key = tuple(points[i].tolist())
        keep[i] = key not in seen
        seen.add(key)
    return keep


def hypervolume(points: Points, reference: Points) -> float:
    """Return the area that two-objective points (n, 2) dominate up to `reference` (2); points beyond it add nothing."""
    if len(points) == 0:
        return 0.0
    if points.shape[1] != 2:
        raise ValueError(f"points must have 2 objectives, but got {points.shape[1]}")
    front = points[non_dominated(points)]
    front = front[(front < reference).all(axis=1)]
    front = front[np.argsort(front[:, 0])]
    heights = np.concatenate(([reference[1]], front[:, 1]))
    return float(((reference[0] - front[:, 0]) * (heights[:-1] - front[:, 1])).sum())


def spread_subset(points: Points, count: int) -> list[int]:
    """Return the rows of at most `count` non-dominated points that together cover the front, in the order chosen.

    Greedy: each choice adds the most hypervolume to those before it. Objectives are scaled to 0..1 over the front, with
    the reference point 10 % beyond its worst values, so that both ends count.
    """
    candidates = [int(i) for i in np.flatnonzero(non_dominated(points))]
    if not candidates:
        return []
    front = points[candidates]
    span = np.ptp(front, axis=0)
    scaled = (front - front.min(axis=0)) / np.where(span > 0, span, 1)
    reference = np.full(points.shape[1], 1.1)
    chosen: list[int] = []
    while len(chosen) < min(count, len(candidates)):
        left = [i for i in range(len(candidates)) if i not in chosen]
        chosen.append(max(left, key=lambda i: hypervolume(scaled[[*chosen, i]], reference)))
    return [candidates[i] for i in chosen]
