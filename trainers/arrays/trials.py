"""The trials of an array: up to K at once, each with its own generator of results, a slot refilled as soon as it is free."""

from collections.abc import Collection, Generator
from dataclasses import dataclass, field
from typing import Any, Generic

from trainers.arrays.epoch import train_epochs
from trainers.loop import PendingEpoch, R, TrainedEpoch, answer


@dataclass(frozen=True)
class Advance(Generic[R]):
    """What an advance gave, by slot: the next results, and the trials that have ended, each with its error or None."""

    results: dict[int, R] = field(default_factory=dict)
    ended: dict[int, Exception | None] = field(default_factory=dict)


class TrialArray(Generic[R]):
    """Trials in `size` slots. A trial is a generator like `recipe.compress_steps`: of results, and of epochs that are due.

    Epochs of one shape are trained as one program. What else a trial does (evaluation, cuts, checkpoints) is its own code,
    so that it can be gone on with by the single trainer, and the other way round.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, but got {size}")
        self.size = size
        self._trials: dict[int, Generator[R | PendingEpoch, TrainedEpoch | None, Any]] = {}

    @property
    def slots(self) -> list[int]:
        """The slots that hold a trial."""
        return sorted(self._trials)

    def add(self, trial: "Generator[R | PendingEpoch, TrainedEpoch | None, Any]") -> int:
        """Put a trial into a free slot and return the slot. Raises ValueError where none is free."""
        free = [slot for slot in range(self.size) if slot not in self._trials]
        if not free:
            raise ValueError(f"a slot must be free, but all {self.size} hold trials; remove one first")
        self._trials[free[0]] = trial
        return free[0]

    def remove(self, slot: int) -> None:
        """Stop the trial of a slot, which is free then; a slot that is free stays so."""
        if (trial := self._trials.pop(slot, None)) is not None:
            trial.close()

    def advance(self, slots: Collection[int] | None = None) -> Advance[R]:
        """Bring the trials of `slots` (None: all) to their next results; slots of trials that end are free."""
        found: Advance[R] = Advance()
        pending = {}
        for slot in self.slots if slots is None else sorted(slots):
            if (due := self._step(slot, None, found)) is not None:
                pending[slot] = due
        while pending:  # one that ran out of memory may ask for its epoch again
            replies = zip(pending, train_epochs(list(pending.values())), strict=True)
            steps = {slot: self._step(slot, reply, found) for slot, reply in replies}
            pending = {slot: due for slot, due in steps.items() if due is not None}
        return found

    def _step(self, slot: int, reply: TrainedEpoch | Exception | None, found: Advance[R]) -> PendingEpoch | None:
        """Take a trial one step further; return the epoch that is due, or note what came instead."""
        trial = self._trials[slot]
        try:
            step = answer(trial, reply)
        except StopIteration:
            step, error = None, None
        except Exception as raised:  # noqa: BLE001 - one trial's failure is not the others'
            step, error = None, raised
        if isinstance(step, PendingEpoch):
            return step
        if step is None:
            del self._trials[slot]
            found.ended[slot] = error
        else:
            found.results[slot] = step
        return None
