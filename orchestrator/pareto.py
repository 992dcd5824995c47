"""Mathematics of fronts on plain arrays: every objective is minimised; callers negate what they maximise.

A point is a row of a float array (n, objectives). NaN and infinite points are never on a front.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
Indices = NDArray[np.intp]


def non_dominated(points: Points) -> NDArray[np.bool_]:
    """Return, for each point (n, d), whether no other is at least as good in all objectives and better in one.

    Of equal points the first one counts, the others are dominated by it, so that a front has no duplicates.
    """
    rows, first, _ = _distinct(points)
    keep = np.zeros(len(points), dtype=np.bool_)
    keep[first[_fronts(rows) == 0]] = True
    return keep


def non_dominated_sort(points: Points) -> Indices:
    """Return the front number (n,) of each point (n, d): 0 where no other point dominates it, 1 where none does once
    front 0 is taken away, and so on.

    Equal points share a front. Points with NaN or an infinite value come after all others, and are never in front 0.
    No points give no numbers. The cost is O(n log^2 n) for up to three objectives, O(n^2) beyond.
    """
    rows, _, group = _distinct(points)
    fronts = _fronts(rows)
    numbers: Indices = np.full(len(points), max(1, fronts.max(initial=-1) + 1), dtype=np.intp)
    numbers[group >= 0] = fronts[group[group >= 0]]
    return numbers


def _distinct(points: Points) -> tuple[Points, Indices, Indices]:
    """Return the distinct finite points (u, d) in lexicographic order, the first row of `points` that holds each (u,),
    and for each row of `points` its place among them (n,), -1 where it is not finite.
    """
    finite = np.flatnonzero(np.isfinite(points).all(axis=1))
    order = finite[np.lexsort(points[finite].T[::-1])]  # stable: of equal points the first row comes first
    rows = points[order]
    new = np.ones(len(rows), dtype=np.bool_)
    new[1:] = (rows[1:] != rows[:-1]).any(axis=1)
    group: Indices = np.full(len(points), -1, dtype=np.intp)
    group[order] = np.cumsum(new) - 1
    return rows[new], order[new], group


def _fronts(rows: Points) -> Indices:
    """Return the front number of each of the distinct finite points (u, d), given in lexicographic order.

    In that order only earlier points can dominate a later one, and a point that some front dominates is dominated by
    all fronts before it too: its own is found by bisection (Zhang et al., 2015, efficient non-dominated sort).
    """
    if rows.shape[1] > 3:
        return _peeled(rows)
    if rows.shape[1] == 3:
        return np.array(_swept(rows[:, 1:].tolist()), dtype=np.intp)
    numbers = []
    lowest: list[float] = []  # the last objective's least value in each front: ascending
    for value in rows[:, -1].tolist():
        number = bisect_right(lowest, value)
        lowest[number : number + 1] = [value]
        numbers.append(number)
    return np.array(numbers, dtype=np.intp)


class _Staircase:
    """The lower left border of a front's points in its last two objectives: `ys` ascend, `zs` descend."""

    def __init__(self) -> None:
        self.ys: list[float] = []
        self.zs: list[float] = []

    def covers(self, y: float, z: float) -> bool:
        """Return whether a point of the front is at least as good in both."""
        place = bisect_right(self.ys, y)
        return place > 0 and self.zs[place - 1] <= z

    def add(self, y: float, z: float) -> None:
        """Take in a point that is not covered, in the place of those it covers."""
        start = stop = bisect_left(self.ys, y)
        while stop < len(self.zs) and self.zs[stop] >= z:
            stop += 1
        self.ys[start:stop], self.zs[start:stop] = [y], [z]


def _swept(last_two: list[list[float]]) -> list[int]:
    """Return the front numbers of points of three objectives, given by their last two in the order of the first."""
    numbers = []
    staircases: list[_Staircase] = []
    for y, z in last_two:
        low, high = 0, len(staircases)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if staircases[middle].covers(y, z) else (low, middle)
        if low == len(staircases):
            staircases.append(_Staircase())
        staircases[low].add(y, z)
        numbers.append(low)
    return numbers


def _peeled(rows: Points) -> Indices:
    """Return the front numbers of points of any number of objectives, one front after the other."""
    numbers: Indices = np.full(len(rows), -1, dtype=np.intp)
    number = 0
    while (numbers < 0).any():
        rest = np.flatnonzero(numbers < 0)
        while len(rest):  # the first of the rest is dominated by none: such points have left it
            numbers[rest[0]] = number
            rest = rest[(rows[rest] < rows[rest[0]]).any(axis=1)]
        number += 1
    return numbers


def hypervolume(points: Points, reference: Points) -> float:
    """Return the volume that points (n, d) dominate up to `reference` (d); points beyond it add nothing.

    It is a length for one objective, an area for two; from three on, the sum of slices along the last objective, at
    O(n^(d-2)) areas. Duplicates count once, points that are not finite and an empty set not at all. Raises ValueError
    where the reference has another number of objectives.
    """
    if len(points) == 0:
        return 0.0
    if points.shape[1:] != reference.shape:
        raise ValueError(
            f"the reference must have the points' {points.shape[1]} objectives, but got shape {reference.shape}; give one "
            "value for each objective"
        )
    front = points[non_dominated(points)]
    front = front[(front < reference).all(axis=1)]
    if points.shape[1] == 1:
        return float((reference - front).sum())
    if points.shape[1] == 2:
        front = front[np.argsort(front[:, 0])]
        heights = np.concatenate(([reference[1]], front[:, 1]))
        return float(((reference[0] - front[:, 0]) * (heights[:-1] - front[:, 1])).sum())
    slices = (height * hypervolume(front[below, :-1], reference[:-1]) for below, height in _slices(front, reference))
    return sum(slices, 0.0)


def _slices(points: Points, reference: Points) -> list[tuple[NDArray[np.bool_], float]]:
    """Return, for each distinct value of the last objective, the points (n,) at or below it and the height up to the
    next one, the last up to the reference.
    """
    levels = np.unique(points[:, -1])
    heights = np.diff(levels, append=reference[-1])
    return [(points[:, -1] <= level, height) for level, height in zip(levels.tolist(), heights.tolist(), strict=True)]


def exclusive_hypervolumes(points: Points, owners: Indices, reference: Points) -> Points:
    """Return, for each owner 0..max(owners), the volume up to `reference` (d) that its points dominate and nobody else's.

    Points (n, d) belong to `owners` (n,). It equals hypervolume(all) - hypervolume(all but the owner's), at the cost of
    O(n^(d-1)) for all owners together. Equal points of two owners add nothing to either; points beyond the reference,
    points that are not finite, and owners without points add 0.
    """
    volumes = np.zeros(int(owners.max(initial=-1)) + 1)
    inside = np.isfinite(points).all(axis=1) & (points < reference).all(axis=1)
    points, owners = points[inside], owners[inside]
    if points.shape[1] == 1:  # an area of height 1
        points, reference = np.pad(points, ((0, 0), (0, 1))), np.append(reference, 1.0)
    _add_exclusive(volumes, points, owners, reference, 1.0)
    return volumes


def _add_exclusive(volumes: Points, points: Points, owners: Indices, reference: Points, thickness: float) -> None:
    """Add `thickness` times each owner's exclusive volume to `volumes`, slice by slice along the last objective."""
    if points.shape[1] > 2:
        for below, height in _slices(points, reference):
            _add_exclusive(volumes, points[below, :-1], owners[below], reference[:-1], thickness * height)
        return
    order = np.argsort(points[:, 1])
    steps = np.diff(points[order, 1], append=reference[1])
    best = second = float(reference[0])  # the least value so far, and the least of all others than its owner
    holder = -1
    for x, owner, step in zip(points[order, 0].tolist(), owners[order].tolist(), steps.tolist(), strict=True):
        if owner == holder:
            best = min(best, x)
        elif x < best:
            best, second, holder = x, best, owner
        else:
            second = min(second, x)
        volumes[holder] += thickness * step * (second - best)


def unit_scaled(points: Points) -> Points:
    """Return the finite points (n, d) scaled to 0..1 in each objective; one whose values are all equal becomes 0."""
    if len(points) == 0:
        return points
    halves = points / 2  # the span of two finite numbers may be infinite, that of their halves is not
    span = np.ptp(halves, axis=0)
    scaled: Points = (halves - halves.min(axis=0)) / np.where(span > 0, span, 1)
    return scaled


def spread_subset(points: Points, count: int, given: Sequence[int] = ()) -> list[int]:
    """Return the rows of at most `count` non-dominated points that together cover the front, in the order chosen.

    Greedy: each choice adds the most hypervolume to those before it. Objectives are scaled to 0..1 over the front, with
    the reference point 10 % beyond its worst values, so that both ends count. The non-dominated rows `given` come first.
    """
    candidates = [int(i) for i in np.flatnonzero(non_dominated(points))]
    if not candidates:
        return []
    front = points[candidates]
    scaled = unit_scaled(front)
    reference = np.full(points.shape[1], 1.1)
    chosen = [candidates.index(row) for row in given][:count]
    while len(chosen) < min(count, len(candidates)):
        left = [i for i in range(len(candidates)) if i not in chosen]
        chosen.append(max(left, key=lambda i: hypervolume(scaled[[*chosen, i]], reference)))
    return [candidates[i] for i in chosen]


def knee(points: Points) -> int | None:
    """Return the row of the front's knee: the point (n, 2) farthest from the chord between the front's two ends.

    Objectives are scaled to 0..1 over the front. Only points on the side of the chord where both objectives are better
    count, so that a front without such a bend, or of two points, gives the end that is best in the first objective. None
    where no point is finite.
    """
    rows = np.flatnonzero(non_dominated(points))
    if len(rows) == 0:
        return None
    scaled = unit_scaled(points[rows])
    # on a front the ends are (0, 1) and (1, 0): the distance to the chord x + y = 1 is (1 - x - y) / sqrt(2)
    farthest = np.lexsort((scaled[:, 0], np.round(scaled.sum(axis=1), 12)))[0]
    return int(rows[farthest])
