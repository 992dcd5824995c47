"""Optuna's study as a Ray Tune searcher that tells it the truth: COMPLETE for finished trials, FAIL for the others.

Ray's own OptunaSearch leaves a trial with NaN values RUNNING for ever and tells a stopped one COMPLETE. The study lives
in a journal file, so that it outlives the driver and can be opened with optuna-dashboard.
"""

import logging
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.samplers import RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import TrialState
from ray.tune.search import Searcher

from orchestrator.records import RunRecord
from trainers.config import Decomposition, SVDTrainingConfig, TrainingConfig, apply_settings
from trainers.errors import ConfigError

if TYPE_CHECKING:
    from search_spaces import SearchSpace

OBJECTIVES = ("val_accuracy", "macs")
DIRECTIONS = (StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE)
_RUN_ATTRIBUTE = "run"
_PROBES = 200

optuna.logging.set_verbosity(optuna.logging.WARNING)
_log = logging.getLogger(__name__)


def open_study(journal: Path, name: str, seed: int) -> optuna.Study:
    """Open the journal's study, or create it. The sampler is TPE, seeded with `seed` plus the number of trials there:
    the same seed on a study that goes on would draw its first points again.
    """
    storage = JournalStorage(JournalFileBackend(str(journal)))
    study = optuna.create_study(storage=storage, study_name=name, directions=DIRECTIONS, load_if_exists=True)
    study.sampler = TPESampler(seed=seed + len(study.trials))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(list(OBJECTIVES))
    return study


def reconcile(study: optuna.Study, records: dict[str, RunRecord]) -> None:
    """Bring a study that was cut off in line with the table: no trial stays RUNNING, and none is lost.

    A trial whose run has ended is told its result; one whose run has not is closed and enqueued again with its
    parameters and its run's name, so that it goes on from its checkpoint.
    """
    trials = study.get_trials(deepcopy=False)
    waiting = {_run_name(trial) for trial in trials if trial.state == TrialState.WAITING}
    complete = {_run_name(trial) for trial in trials if trial.state == TrialState.COMPLETE}
    enqueued: set[str] = set()
    for trial in trials:
        name = _run_name(trial)
        record = records.get(name)
        if trial.state == TrialState.RUNNING:
            tell(study, trial.number, record)
        if record is None and trial.state != TrialState.WAITING and trial.params and name not in waiting | enqueued:
            enqueued.add(name)
            study.enqueue_trial(trial.params, user_attrs={_RUN_ATTRIBUTE: name})
    if lost := complete - records.keys():
        _log.warning("the results of %d finished trials are missing from the table; they are read again", len(lost))


def close_running(study: optuna.Study) -> None:
    """Tell FAIL for every trial that is RUNNING; `reconcile` takes them up again when the sweep goes on."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)


def tell(study: optuna.Study, number: int, record: RunRecord | None) -> None:
    """Tell the study how trial `number` ended: its values if its run is complete and they are finite, else FAIL."""
    values = None if record is None or record.state != "COMPLETE" else [record.val_accuracy, record.macs]
    if values is None or any(value is None or not math.isfinite(value) for value in values):
        study.tell(number, state=TrialState.FAIL)
    else:
        study.tell(number, values=[float(value) for value in values if value is not None])


def probe_search_space(space: "SearchSpace") -> list[Decomposition]:
    """Call the space on random draws; returns the decompositions it can choose, in order of first appearance.

    Raises ConfigError where it fails or gives a setting that does not exist or breaks a rule.
    """
    study = optuna.create_study(directions=DIRECTIONS, sampler=RandomSampler(seed=0))
    found: dict[Decomposition, None] = {}
    for _ in range(_PROBES):
        trial = study.ask()
        try:
            settings = space(trial)
            found[apply_settings(settings, TrainingConfig(), SVDTrainingConfig())[1].decomposition] = None
        except ConfigError as error:
            raise ConfigError([(f"search_space: {field}", text) for field, text in error.problems]) from error
        except Exception as error:  # a user's function may raise anything
            raise ConfigError(
                [("search_space", f"must return settings for any trial, but raised {error!r}")]
            ) from error
    return list(found)


class StudySearcher(Searcher):
    """Asks the study for each of Tune's trials. A suggestion is {"name", "number", "settings"} of a run."""

    def __init__(self, study: optuna.Study, space: "SearchSpace") -> None:
        super().__init__()
        self._study, self._space = study, space
        self._numbers: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its searcher for a restore that is not used."""
        return {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Accept Tune's call: objectives and directions are the study's."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """Ask for the next trial: one that was cut off, if any is enqueued, else a new one."""
        trial = self._study.ask()
        settings = self._space(trial)
        name = trial.user_attrs.get(_RUN_ATTRIBUTE) or _name(trial.number)
        trial.set_user_attr(_RUN_ATTRIBUTE, name)
        self._numbers[trial_id] = trial.number
        return {"name": name, "number": int(name.rpartition("-")[2]), "settings": settings}

    def finish(self, trial_id: str, record: RunRecord) -> None:
        """Tell the study how the run of `trial_id` ended."""
        tell(self._study, self._numbers.pop(trial_id), record)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tune's own call is not used: it comes without what is needed to tell a finished trial from a stopped one."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the study is in its journal."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: see `reconcile`."""


def _name(number: int) -> str:
    return f"trial-{number:04d}"


def _run_name(trial: optuna.trial.FrozenTrial) -> str:
    return str(trial.user_attrs.get(_RUN_ATTRIBUTE) or _name(trial.number))
