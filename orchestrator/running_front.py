"""The front of a search while its trials end."""

from collections.abc import Sequence

from orchestrator.curves import candidates
from orchestrator.objectives import accuracy_of, front_hypervolume, front_of, saves
from orchestrator.records import RunRecord


class RunningFront:
    """The front of all cuts of the trials that have ended; each trial's curve is looked at once."""

    def __init__(self, trials: Sequence[RunRecord] = ()) -> None:
        self.cuts: list[RunRecord] = []
        self.num_trials = 0
        self.add(trials)

    def add(self, trials: Sequence[RunRecord]) -> None:
        """Take in trials that have ended since."""
        self.cuts = front_of([*self.cuts, *candidates(trials)])  # one that is not on the front never comes to it
        self.num_trials += len(trials)

    @property
    def hypervolume(self) -> float:
        """The area between the front and (accuracy 0, MACs of the dense network), as a fraction of 1."""
        return front_hypervolume(self.cuts)

    @property
    def best_accuracy(self) -> float | None:
        """The best accuracy of all cuts that cost less than the dense network; None where there is none."""
        return max((accuracy_of(cut) or 0.0 for cut in self.cuts if saves(cut)), default=None)
