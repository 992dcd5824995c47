"""The models of a front that have a name: what a person takes first, and what registry and tags call them."""

from collections.abc import Sequence
from typing import Literal, Protocol, TypeVar, get_args

import numpy as np

from orchestrator.pareto import knee, non_dominated

PickName = Literal["best", "smallest", "knee"]
PICKS: tuple[PickName, ...] = get_args(PickName)
TOLERANCE = 0.01  # how much validation accuracy `smallest` may lose to the dense network: one percentage point


class Candidate(Protocol):
    """A model as far as picks look at it: `accuracy` is on validation data, a fraction of 1, never on test data."""

    @property
    def accuracy(self) -> float | None:
        """The accuracy that counts."""

    @property
    def macs(self) -> int:
        """MACs of one sample."""


C = TypeVar("C", bound=Candidate)


def pick(candidates: Sequence[C], dense_accuracy: float | None = None) -> dict[PickName, C]:
    """Return the named models among `candidates`, all names or, where no candidate has an accuracy, none.

    `best`: the highest accuracy; of equal ones, the fewest MACs. `smallest`: the fewest MACs among those at most TOLERANCE
    below `dense_accuracy`; where there is none, or no dense network, the fewest MACs of all. `knee`: see `pareto.knee`.
    One model may have several names; each is on the front of `candidates`.
    """
    points = np.array([(_negated(c.accuracy), c.macs) for c in candidates], dtype=np.float64).reshape(-1, 2)
    front = [candidates[row] for row in np.flatnonzero(non_dominated(points)).tolist()]
    if not front:
        return {}
    by_accuracy = sorted(front, key=lambda candidate: candidate.accuracy or 0.0)  # on a front also by MACs
    least = np.inf if dense_accuracy is None else dense_accuracy - TOLERANCE - 1e-9  # 0.98 - 0.01 > 0.97 in binary
    close = [candidate for candidate in by_accuracy if (candidate.accuracy or 0.0) >= least]
    bend = knee(points)
    assert bend is not None
    return {"best": by_accuracy[-1], "smallest": (close or by_accuracy)[0], "knee": candidates[bend]}


def _negated(accuracy: float | None) -> float:
    return np.nan if accuracy is None else -accuracy
