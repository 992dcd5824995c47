"""When the search ends before its last trial: rules on the trials that have ended."""

from collections.abc import Sequence

from orchestrator.config import StopConfig
from orchestrator.objectives import accuracy_of, saves
from orchestrator.records import RunRecord
from orchestrator.running_front import RunningFront


class StopRules:
    """The rules of `config`, for trials of so many `cores` each. Every trial's curve is looked at once."""

    def __init__(self, config: StopConfig, cores: int) -> None:
        self._config, self._cores = config, cores
        self._front = RunningFront()
        self._hypervolumes: list[float] = []  # after each trial
        self._reached = False

    @property
    def any(self) -> bool:
        """Whether there is a rule at all."""
        config = self._config
        rules = (config.hours, config.core_hours, config.target_accuracy, config.plateau_trials)
        return any(rule is not None for rule in rules)

    def reason(self, trials: Sequence[RunRecord], elapsed_s: float) -> str | None:
        """Return why no further trial is to start, in words, or None.

        `trials` have ended, in that order, and those of an earlier call come first; `elapsed_s` is the time since the search
        started.
        """
        config = self._config
        if config.hours is not None and elapsed_s >= 3600 * config.hours:
            return f"stop.hours: {config.hours:g} hours are over"
        core_hours = self._cores * sum(trial.duration_s or 0.0 for trial in trials) / 3600
        if config.core_hours is not None and core_hours >= config.core_hours:
            return f"stop.core_hours: the trials took {core_hours:.3g} core-hours of {config.core_hours:g}"
        if config.target_accuracy is None and config.plateau_trials is None:
            return None
        for trial in trials[self._front.num_trials :]:
            self._look_at(trial)
        if self._reached:
            return (
                f"stop.target_accuracy: a network with at most {config.target_macs_ratio:g} of the MACs has an accuracy of "
                f"{config.target_accuracy:g}"
            )
        if config.plateau_trials is not None and self._is_flat(config.plateau_trials):
            return (
                f"stop.plateau_trials: the last {config.plateau_trials} trials raised the hypervolume by less than "
                f"{config.plateau_tolerance:g} of itself"
            )
        return None

    def _look_at(self, trial: RunRecord) -> None:
        self._front.add([trial])
        self._hypervolumes.append(self._front.hypervolume)
        target = self._config.target_accuracy
        self._reached |= target is not None and any(
            (accuracy_of(cut) or 0.0) >= target and (cut.macs_ratio or 1.0) <= self._config.target_macs_ratio
            for cut in self._front.cuts
            if saves(cut)
        )

    def _is_flat(self, patience: int) -> bool:
        """Whether the last `patience` trials together raised the hypervolume by less than the tolerance."""
        if len(self._hypervolumes) <= patience:
            return False
        before, now = self._hypervolumes[-patience - 1], self._hypervolumes[-1]
        return now > 0 and now - before < self._config.plateau_tolerance * now
