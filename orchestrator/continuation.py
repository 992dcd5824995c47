"""Trials that go on from the best finished trial's network instead of from stage 1 (`search.continuation`)."""

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.curves import candidates
from orchestrator.jobs import stage_one_of
from orchestrator.objectives import front_hypervolume
from orchestrator.records import RunRecord
from trainers.config import MethodConfig, TrainingConfig, apply_settings
from trainers.methods import METHODS, resolve


class Continuation:
    """Says which trial's uncut network a new one goes on from: the best of those with its method, in its form.

    The best one is that whose cuts alone dominate the largest hypervolume, of equals the first to end. It has to be
    complete, and of a method whose networks can be trained further (`can_continue`); no chain of trials from stage 1 is
    longer than `max_depth` + 1.
    """

    def __init__(self, max_depth: int) -> None:
        self._max_depth = max_depth
        self._trials: dict[str, RunRecord] = {}
        self._best: dict[tuple[str | None, str | None], tuple[float, str]] = {}

    def start(self, settings: dict[str, Any], trials: Sequence[RunRecord]) -> str | None:
        """Return the name of the trial to go on from, None for stage 1.

        `trials` are all that have ended, in that order: those of the last call and, after them, new ones.
        """
        for trial in trials[len(self._trials) :]:
            self._trials[trial.name] = trial
            self._compare(trial)
        method = resolve(apply_settings(settings, TrainingConfig(), MethodConfig())[1])
        _, name = self._best.get((method.method, stage_one_of(settings).name), (0.0, None))
        return name

    def _compare(self, trial: RunRecord) -> None:
        before = chain(trial, self._trials)
        if trial.state != "COMPLETE" or len(before) >= self._max_depth or not METHODS[trial.method or ""].can_continue:
            return
        kind = (trial.method, (before or [trial])[-1].source)
        volume = front_hypervolume(candidates([trial]))
        if kind not in self._best or volume > self._best[kind][0]:
            self._best[kind] = volume, trial.name


def chain(trial: RunRecord, trials: Mapping[str, RunRecord]) -> list[RunRecord]:
    """Return the trials that the trial's network went through before it, the last one first; none from stage 1."""
    found: list[RunRecord] = []
    while (source := trials.get(trial.source or "")) is not None:
        found.append(trial := source)
    return found
