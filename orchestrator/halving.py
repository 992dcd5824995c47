"""Asynchronous successive halving for any number of objectives, of trials that report curves: bookkeeping without Ray.

ASHA (Li et al., 2020, "A system for massively parallel hyperparameter tuning") compares one number. Here a trial
reports k points of d objectives, e.g. one network pruned at k thresholds, and is as good as its best front.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from orchestrator.pareto import Points, exclusive_hypervolumes, non_dominated_sort, unit_scaled

_REFERENCE = 1.1  # of objectives scaled to 0..1: both ends of a front count
_TOLERANCE = 1e-12  # contributions that differ by less are rounding


class ParetoHalving:
    """Decides, from what trials report at fixed times ("rungs"), which of them go on.

    At each rung all finite points recorded there form one pool. A trial's level is the least front number among its
    points (`non_dominated_sort` of the pool), its contribution the volume that its points of that level dominate and
    no other trial's points of that level do; objectives are scaled to 0..1 over the pool, the reference is 1.1 in
    each. The trial with the smaller level is better, at equal levels the one with the larger contribution, by more
    than 1e-12. A trial goes on if fewer than max(1, ceil(n / reduction_factor)) of the n trials of the rung, itself
    among them, are better. It is judged once, against those that came before; with one objective this is ASHA, where
    equals go on together.

    Arguments:
        directions: "min" or "max" for each of the d objectives.
        max_t: the time at which a full training ends; rungs are before it.
        grace_period: the first rung.
        reduction_factor: > 1; one of so many goes on, and rungs are at grace_period * reduction_factor**k, rounded.
        exempt_share: 0..1, the share of trials that are recorded but never stopped, so that some of the poor starters
            are seen to the end; who they are depends on `seed` and the trial's id alone.
        spare_front: whether level 0 goes on however many are on it.
        min_trials: below so many trials at a rung all that have a finite point go on.
        seed: of the choice of exempt trials.
        rungs: the rungs themselves, in any order, in place of those computed; none at all: no trial is stopped.

    Raises ValueError with every broken rule.
    """

    def __init__(
        self,
        directions: Sequence[Literal["min", "max"]],
        max_t: int,
        grace_period: int = 1,
        reduction_factor: float = 3.0,
        exempt_share: float = 0.0,
        spare_front: bool = True,
        min_trials: int = 1,
        seed: int = 0,
        rungs: Sequence[int] | None = None,
    ) -> None:
        _check(directions, max_t, grace_period, reduction_factor, exempt_share, min_trials, rungs)
        if rungs is None:
            rungs = _geometric(grace_period, reduction_factor, max_t)
        self.directions, self.rungs = tuple(directions), tuple(sorted(rungs))
        self.reduction_factor, self.min_trials, self.spare_front = reduction_factor, min_trials, spare_front
        self.exempt_share, self.seed = exempt_share, seed
        self._signs = np.array([1.0 if direction == "min" else -1.0 for direction in directions])
        self._curves: dict[int, dict[str, Points]] = {rung: {} for rung in self.rungs}

    def due(self, trial_id: str, time: float) -> int | None:
        """Return the highest rung that the trial has reached by `time` and not been recorded at; None: there is none.

        As in ASHA, a trial that skips a rung is recorded there by a later report.
        """
        open_rungs = (rung for rung in self.rungs if rung <= time and trial_id not in self._curves[rung])
        return max(open_rungs, default=None)

    def record(self, trial_id: str, time: float, points: ArrayLike) -> bool:
        """Record what a trial reports at `time`; returns whether it goes on.

        `points` (k, d) are in the objectives' own directions; those with NaN or an infinite value are left out, and a
        trial without a finite one is stopped, also below `min_trials`, unless it is exempt. Where no rung is due,
        nothing is recorded, nor are the points looked at, and the trial goes on. Raises ValueError for another shape.
        """
        rung = self.due(trial_id, time)
        if rung is None:
            return True
        self._curves[rung][trial_id] = self._finite_minimised(points)
        return self.is_exempt(trial_id) or self._goes_on(rung, trial_id)

    def is_exempt(self, trial_id: str) -> bool:
        """Return whether the trial is one of the share that is never stopped."""
        digest = hashlib.blake2b(f"{self.seed}:{trial_id}".encode(), digest_size=8).digest()
        return int.from_bytes(digest) < self.exempt_share * 2**64

    def num_recorded(self) -> dict[int, int]:
        """Return the number of trials recorded at each rung."""
        return {rung: len(curves) for rung, curves in self._curves.items()}

    def state(self) -> dict[str, Any]:
        """Return all records as plain values, for JSON; points are finite and minimised."""
        records = {
            str(rung): {trial_id: points.tolist() for trial_id, points in curves.items()}
            for rung, curves in self._curves.items()
        }
        return {"directions": list(self.directions), "records": records}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over the records of `state()` in place of those here; later decisions are those of the one that gave it.

        Raises ValueError where it comes from other directions or rungs; the other settings may differ.
        """
        rungs = tuple(int(rung) for rung in state["records"])
        if tuple(state["directions"]) != self.directions or set(rungs) != set(self.rungs):
            raise ValueError(
                f"the state must be of directions {list(self.directions)} and rungs {list(self.rungs)}, but got "
                f"{list(state['directions'])} and {sorted(rungs)}; build the halving as it was when the state was saved"
            )
        for rung, curves in state["records"].items():
            self._curves[int(rung)] = {trial_id: self._shaped(points) for trial_id, points in curves.items()}

    def _shaped(self, points: ArrayLike) -> Points:
        curve = np.asarray(points, dtype=np.float64)
        num_objectives = len(self.directions)
        if curve.size and curve.shape[1:] != (num_objectives,):
            raise ValueError(
                f"points must have shape (k, {num_objectives}), but got {curve.shape}; give a list of points, each with "
                "one value for each objective"
            )
        return curve.reshape(-1, num_objectives)

    def _finite_minimised(self, points: ArrayLike) -> Points:
        curve = self._shaped(points)
        finite: Points = curve[np.isfinite(curve).all(axis=1)] * self._signs
        return finite

    def _goes_on(self, rung: int, trial_id: str) -> bool:
        curves = self._curves[rung]
        if len(curves[trial_id]) == 0:
            return False
        if len(curves) < self.min_trials:
            return True
        num_kept = max(1, math.ceil(len(curves) / self.reduction_factor))
        return _is_among_best(list(curves.values()), list(curves).index(trial_id), num_kept, self.spare_front)


def _is_among_best(curves: list[Points], own: int, num_kept: int, spare_front: bool) -> bool:
    """Return whether fewer than `num_kept` of the curves (k, d) are better than the one at `own`, which has a point."""
    pool = np.concatenate(curves)
    owners = np.repeat(np.arange(len(curves)), [len(curve) for curve in curves])
    fronts = non_dominated_sort(pool)
    levels = np.full(len(curves), len(pool))  # beyond every front: a curve without points is never better
    np.minimum.at(levels, owners, fronts)
    level = levels[own]
    peers = levels == level
    num_better = int((levels < level).sum())
    if spare_front and level == 0:
        return True
    if num_better >= num_kept or num_better + int(peers.sum()) <= num_kept:
        return num_better < num_kept  # contributions decide nothing
    reference = np.full(pool.shape[1], _REFERENCE)
    on_level = fronts == level
    contributions = np.zeros(len(curves))
    found = exclusive_hypervolumes(unit_scaled(pool)[on_level], owners[on_level], reference)
    contributions[: len(found)] = found
    num_better += int((peers & (contributions > contributions[own] + _TOLERANCE)).sum())
    return num_better < num_kept


def _geometric(grace_period: int, reduction_factor: float, max_t: int) -> list[int]:
    """Return the distinct rounded values of grace_period * reduction_factor**k below max_t."""
    rungs: dict[int, None] = {}
    time = float(grace_period)
    while round(time) < max_t:
        rungs[round(time)] = None
        time *= reduction_factor
    return list(rungs)


def _check(
    directions: Sequence[str],
    max_t: int,
    grace_period: int,
    reduction_factor: float,
    exempt_share: float,
    min_trials: int,
    rungs: Sequence[int] | None,
) -> None:
    """Raise one ValueError with every rule that the arguments break."""
    in_order = rungs is None or (len(set(rungs)) == len(rungs) and all(1 <= rung < max_t for rung in rungs))
    known = len(directions) > 0 and all(direction in {"min", "max"} for direction in directions)
    factor_fits = 1 < reduction_factor < math.inf
    rules = [
        (known, f'directions must be "min" or "max" for each objective, but got {directions!r}; give ["min"] for one'),
        (1 <= max_t < math.inf, f"1 <= max_t < inf must hold, but got {max_t}; give the time of a full training"),
        (
            1 <= grace_period <= max_t,
            f"1 <= grace_period <= max_t={max_t} must hold, but got {grace_period}; 1 judges early",
        ),
        (factor_fits, f"1 < reduction_factor < inf must hold, but got {reduction_factor}; 3 keeps one in three"),
        (0 <= exempt_share <= 1, f"0 <= exempt_share <= 1 must hold, but got {exempt_share}; 0.1 spares one in ten"),
        (min_trials >= 1, f"min_trials >= 1 must hold, but got {min_trials}; 1 judges from the first trial on"),
        (in_order, f"rungs must be distinct and 1 <= rung < max_t={max_t}, but got {rungs}; leave out the others"),
    ]
    if broken := [text for holds, text in rules if not holds]:
        raise ValueError("\n".join(broken))
