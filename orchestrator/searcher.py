"""Optuna's study as a Ray Tune searcher that tells it the truth: COMPLETE for finished trials, FAIL for the others.

Ray's own OptunaSearch leaves a trial with NaN values RUNNING for ever and tells a stopped one COMPLETE. The study lives
in a journal file, so that it outlives the driver and can be opened with optuna-dashboard.
"""

import json
import logging
import math
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.samplers import RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import TrialState
from pydantic import TypeAdapter, ValidationError
from ray.tune.search import Searcher

from orchestrator.records import RunRecord
from trainers.config import MethodConfig, TrainingConfig, apply_settings, as_record
from trainers.errors import ConfigError, SweepError
from trainers.methods import pretraining

if TYPE_CHECKING:
    from search_spaces import SearchSpace

OBJECTIVES = ("val_accuracy", "macs")
DIRECTIONS = (StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE)
_RUN_ATTRIBUTE = "run"
_REFUSED_ATTRIBUTE = "refused"
_MAX_REFUSALS = 100
_PROBES = 200

optuna.logging.set_verbosity(optuna.logging.WARNING)
_log = logging.getLogger(__name__)


def open_study(journal: Path, name: str, seed: int) -> optuna.Study:
    """Open the journal's study, or create it. The sampler is TPE, seeded with `seed` plus the number of trials there:
    the same seed on a study that goes on would draw its first points again.
    """
    _drop_torn_line(journal)
    storage = JournalStorage(JournalFileBackend(str(journal)))
    study = optuna.create_study(storage=storage, study_name=name, directions=DIRECTIONS, load_if_exists=True)
    study.sampler = TPESampler(seed=(seed + len(study.trials)) % 2**32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(list(OBJECTIVES))
    return study


def _drop_torn_line(journal: Path) -> None:
    """Cut off a last line that was not written to its end (power loss, full disk): the journal could not be read."""
    if journal.exists():
        content = journal.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(journal, whole)


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
        refused = _REFUSED_ATTRIBUTE in trial.user_attrs
        cut_off = record is None and trial.state != TrialState.WAITING and trial.params and not refused
        if cut_off and name not in waiting | enqueued:
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


def probe_search_space(space: "SearchSpace") -> list[MethodConfig]:
    """Call the space on random draws; returns the forms of stage 1 that its choices start from, in order of appearance.

    Raises ConfigError where it fails or gives a setting that does not exist or breaks a rule.
    """
    study = optuna.create_study(directions=DIRECTIONS, sampler=RandomSampler(seed=0))
    found: dict[MethodConfig, None] = {}
    for _ in range(_PROBES):
        found[pretraining(_choose(space, study.ask())[1])] = None
    return list(found)


def _choose(space: "SearchSpace", trial: optuna.Trial) -> tuple[dict[str, Any], MethodConfig]:
    """Call the space; returns its settings as plain values and the method they make. Raises ConfigError."""
    try:
        settings = json.loads(json.dumps(space(trial), default=_plain_number))
        training, method = apply_settings(settings, TrainingConfig(), MethodConfig())
        for section in (training, method):  # types too: a batch size of 64.0 would fail in the worker
            TypeAdapter(type(section)).validate_json(json.dumps(as_record(section)), strict=True)
    except ConfigError as error:
        raise ConfigError([(f"search_space: {field}", text) for field, text in error.problems]) from error
    except ValidationError as error:
        wrong = [
            (f"search_space: {item['loc'][0]}", f"{item['msg']}, but got {item['input']!r}") for item in error.errors()
        ]
        raise ConfigError(wrong) from error
    except Exception as error:  # a user's function may raise anything
        raise ConfigError([("search_space", f"must return settings for any trial, but raised {error!r}")]) from error
    return settings, method


def _plain_number(value: Any) -> Any:
    """Return a numpy number as Python's, for JSON."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"a setting must be a number, string or boolean, but is {value!r}")


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
        """Ask for the next trial: one that was cut off, if any is enqueued, else a new one.

        A draw for which the space raises is told FAIL and another one is asked for; SweepError after a hundred in a row.
        """
        trial, settings = self._ask()
        name = trial.user_attrs.get(_RUN_ATTRIBUTE) or _name(trial.number)
        trial.set_user_attr(_RUN_ATTRIBUTE, name)
        self._numbers[trial_id] = trial.number
        return {"name": name, "number": int(name.rpartition("-")[2]), "settings": settings}

    def _ask(self) -> tuple[optuna.Trial, dict[str, Any]]:
        refusal = None
        for _ in range(_MAX_REFUSALS):
            trial = self._study.ask()
            try:
                return trial, _choose(self._space, trial)[0]
            except ConfigError as error:
                refusal = error
                _log.warning("trial %d is left out: %s", trial.number, error)
                trial.set_user_attr(_REFUSED_ATTRIBUTE, str(error))
                self._study.tell(trial.number, state=TrialState.FAIL)
        raise SweepError(f"the search space must return settings, but refused {_MAX_REFUSALS} draws: {refusal}")

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
