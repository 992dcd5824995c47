"""The settings of trials as axes of a parallel-coordinates picture, and which of them mattered."""

import json
import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from orchestrator.objectives import accuracy_of
from orchestrator.records import RunRecord
from orchestrator.study import recorded_trials

_log = logging.getLogger(__name__)

ABSENT = -0.12  # where a trial stands that does not have the setting
_MIN_TRIALS = 10  # PED-ANOVA looks at the best tenth
_MAX_TRIALS = 2000  # evenly spread where there are more: shares change little, and the time stays in seconds


@dataclass(frozen=True)
class Axis:
    """One axis: each trial's place on it, 0 to 1, ABSENT where it lacks the value; and labelled places."""

    name: str
    places: list[float]
    ticks: list[tuple[float, str]]


@dataclass(frozen=True)
class Importances:
    """Shares (summing to 1) by parameter, for a place among the best tenth of trials in accuracy, and in MACs."""

    accuracy: dict[str, float]
    macs: dict[str, float]
    num_trials: int


def settings_of(record: RunRecord) -> dict[str, Any]:
    """Return the search space's choice that a run was made with."""
    found: dict[str, Any] = json.loads(record.settings or "{}")
    return found


def setting_names(records: Sequence[RunRecord]) -> list[str]:
    """Return the names of all settings that some run has, in the order in which they appear."""
    return list(dict.fromkeys(name for record in records for name in settings_of(record)))


def settings_axes(trials: Sequence[RunRecord]) -> list[Axis]:
    """Return an axis for each setting that differs between trials, and the last two for MACs (%) and accuracy (%)."""
    settings = [settings_of(trial) for trial in trials]
    axes = []
    for name in setting_names(trials):
        values = [row.get(name) for row in settings]
        if len({json.dumps(value) for value in values}) > 1:
            axes.append(make_axis(name, values))
    ratios = [None if trial.macs_ratio is None else 100 * trial.macs_ratio for trial in trials]
    accuracies = [None if (value := accuracy_of(trial)) is None else 100 * value for trial in trials]
    return [*axes, make_axis("MACs (%)", ratios), make_axis("accuracy (%)", accuracies)]


def make_axis(name: str, values: Sequence[Any]) -> Axis:
    """Place values on an axis: numbers by size, or by logarithm where they span a factor of 30 or more; others by name."""
    present = [value for value in values if value is not None]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in present)
    if not numeric:
        labels = sorted({str(value) for value in present})
        at = {label: (i + 0.5) / len(labels) for i, label in enumerate(labels)}
        places = [ABSENT if value is None else at[str(value)] for value in values]
        return Axis(name, places, [(place, label) for label, place in at.items()])
    finite = [value for value in present if math.isfinite(value)] or [0.0]
    log = min(finite) > 0 and max(finite) / min(finite) >= 30
    low, high = (math.log(min(finite)), math.log(max(finite))) if log else (min(finite), max(finite))
    span = (high - low) or 1.0

    def place(value: float) -> float:
        return ((math.log(value) if log else value) - low) / span

    def value_at(part: float) -> float:
        return math.exp(low + part * span) if log else low + part * span

    whole = not log and all(isinstance(value, int) for value in present)
    parts = [0.0] if high == low else [0.0, 1.0] if whole and (low + high) % 2 else [0.0, 0.5, 1.0]
    ticks = [(part, f"{value_at(part):.3g}") for part in parts]
    placed = [place(value) if value is not None and math.isfinite(value) else ABSENT for value in values]
    return Axis(name, placed, ticks)


def importances(trials: Sequence[FrozenTrial]) -> Importances | str:
    """Return which parameters of a study's complete trials (Optuna's), curve points among them, mattered; or why not.

    By conditional PED-ANOVA (Watanabe et al., IJCAI 2023), Optuna's default, once for each objective.
    """
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE and trial.params]
    if len(complete) < _MIN_TRIALS:
        return f"at least {_MIN_TRIALS} complete trials are needed, but the study has {len(complete)}"
    used = complete[:: -(-len(complete) // _MAX_TRIALS)]
    accuracy, macs = _importance(used, 0, -1.0), _importance(used, 1, 1.0)
    if not accuracy or not macs:
        return "the study's complete trials do not differ in any parameter"
    return Importances(accuracy, macs, len(used))


def _importance(trials: Sequence[FrozenTrial], objective: int, sign: float) -> dict[str, float]:
    """Importances for the least sign * value: a study of one objective, which the evaluator asks for."""
    study = optuna.create_study(direction="minimize")
    study.add_trials(
        [
            optuna.trial.create_trial(
                params=trial.params, distributions=trial.distributions, value=sign * trial.values[objective]
            )
            for trial in trials
        ]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # parameters that few trials have: they come out small
        return {name: float(share) for name, share in optuna.importance.get_param_importances(study).items()}


def study_trials(journal: Path) -> list[FrozenTrial]:
    """Return all trials of a sweep's study; none where the journal is missing or damaged: the rest is still worth seeing."""
    try:
        return recorded_trials(journal)[1]
    except Exception as error:  # noqa: BLE001  # Optuna raises what it meets in a damaged file
        _log.warning("%s is not readable (%s); the report goes without it", journal, error)
        return []
