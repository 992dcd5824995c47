"""When the search ends before its last trial: pure functions of the trials that have ended."""

from collections.abc import Sequence

from orchestrator.config import StopConfig
from orchestrator.curves import candidates
from orchestrator.objectives import accuracy_of, front_hypervolume
from orchestrator.records import RunRecord


def stop_reason(config: StopConfig, trials: Sequence[RunRecord], elapsed_s: float, cores: int) -> str | None:
    """Return why no further trial is to start, in words, or None.

    `trials` have ended, in that order; `elapsed_s` is the time since the search started, `cores` those of one trial.
    """
    if config.hours is not None and elapsed_s >= 3600 * config.hours:
        return f"stop.hours: {config.hours:g} hours are over"
    core_hours = cores * sum(trial.duration_s or 0.0 for trial in trials) / 3600
    if config.core_hours is not None and core_hours >= config.core_hours:
        return f"stop.core_hours: the trials took {core_hours:.3g} core-hours of {config.core_hours:g}"
    if config.target_accuracy is not None and _reached(config, trials):
        return (
            f"stop.target_accuracy: a network with at most {config.target_macs_ratio:g} of the MACs has an accuracy of "
            f"{config.target_accuracy:g}"
        )
    if config.plateau_trials is not None and _plateau(config, config.plateau_trials, trials):
        return (
            f"stop.plateau_trials: the last {config.plateau_trials} trials raised the hypervolume by less than "
            f"{config.plateau_tolerance:g} of itself"
        )
    return None


def _reached(config: StopConfig, trials: Sequence[RunRecord]) -> bool:
    return any(
        (accuracy_of(candidate) or 0.0) >= (config.target_accuracy or 0.0)
        and (candidate.macs_ratio or 1.0) <= config.target_macs_ratio
        for candidate in candidates(trials)
    )


def _plateau(config: StopConfig, patience: int, trials: Sequence[RunRecord]) -> bool:
    """Whether the last `patience` trials together raised the hypervolume by less than the tolerance."""
    if len(trials) <= patience:
        return False
    before, now = (front_hypervolume(candidates(part)) for part in (trials[:-patience], trials))
    return now > 0 and now - before < config.plateau_tolerance * now
