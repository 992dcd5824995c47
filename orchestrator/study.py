"""Optuna's study: opened in its journal, told the truth about each run, and put right after any end.

COMPLETE are trials that ran to their end, PRUNED those that the scheduler stopped, FAIL those that crashed or whose values
are not finite. A trial is known by its run's name, made from the number of the trial that first drew it; trials that were
added without a run of their own (`orchestrator.added_trials`) carry the attribute ADDED and are never mistaken for runs.
"""

import logging
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from orchestrator.config import ConstraintsConfig
from orchestrator.constraints import violations_of
from orchestrator.objectives import accuracy_of
from orchestrator.pareto import Points
from orchestrator.records import RunRecord
from orchestrator.samplers import make_sampler
from trainers.errors import SweepError

OBJECTIVES = ("score", "macs")
DIRECTIONS = (StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE)
RUN = "run"
START = "start"  # the trial whose network it went on from, for one that did not start from stage 1
ADDED = "added"
CURVE = "curve"
REFUSED = "refused"
MACS_RATIO = "macs_ratio"
PARAMS_RATIO = "params_ratio"
LATENCY = "predicted_latency_ms"
_CONSTRAINTS = "constraints"

optuna.logging.set_verbosity(optuna.logging.WARNING)
_log = logging.getLogger(__name__)


class FeasibleTrials:
    """The complete trials that exceed no constraint. Each is read once: one that has ended stays as it is."""

    def __init__(self) -> None:
        self.trials: list[FrozenTrial] = []
        self.points: Points = np.empty((0, 2))  # (-score, MACs) of each
        self._read: set[int] = set()

    def read(self, trials: Iterable[FrozenTrial]) -> None:
        """Take in those of `trials` that have ended since."""
        new = [trial for trial in trials if trial.number not in self._read and trial.state == TrialState.COMPLETE]
        self._read.update(trial.number for trial in new)
        kept = [trial for trial in new if all(excess <= 0 for excess in trial.constraints.values())]
        values = np.array([trial.values for trial in kept], dtype=np.float64).reshape(-1, 2)
        self.trials += kept
        self.points = np.concatenate((self.points, values * (-1.0, 1.0)))


def open_study(
    journal: Path, name: str, seed: int, sampler: str = "tpe", constraints: ConstraintsConfig | None = None
) -> optuna.Study:
    """Open the journal's study, or create it, with a sampler of SAMPLERS.

    The constraints are kept in the study, so that all that is told and added obeys the same; None leaves them as they are.
    Raises SweepError for a journal that is damaged, or of another study.
    """
    drop_torn_line(journal)
    # left by a process that was killed while it wrote: the caller has the output directory to itself
    journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)
    try:
        storage = JournalStorage(JournalFileBackend(str(journal)))
        study = optuna.create_study(storage=storage, study_name=name, directions=DIRECTIONS, load_if_exists=True)
        study.get_trials(deepcopy=False)
    except OSError:  # a full or failing disk
        raise
    except Exception as error:  # Optuna raises what it meets in a damaged file
        raise SweepError(
            f"{journal} must be the journal of the study {name!r}, but is not readable: {error!r:.200}; restore it, or use "
            "another --output"
        ) from error
    study.sampler = make_sampler(sampler, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(list(OBJECTIVES))
    if constraints is not None and constraints != constraints_of(study):
        study.set_user_attr(_CONSTRAINTS, asdict(constraints))
    return study


def recorded_trials(journal: Path) -> tuple[str, list[FrozenTrial]]:
    """Return the name and all trials of the study in a journal, of which nothing is changed.

    Optuna raises what it meets in a damaged file; ValueError where the objectives are not those of a sweep.
    """
    content = journal.read_bytes()
    with tempfile.TemporaryDirectory() as folder:  # a copy: the sweep may be writing its last line right now
        copy = Path(folder) / journal.name
        copy.write_bytes(content[: content.rfind(b"\n") + 1])
        study = optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(str(copy))))
        if tuple(study.directions) != DIRECTIONS:
            raise ValueError(f"its objectives are {[direction.name for direction in study.directions]}")
        return study.study_name, study.get_trials(deepcopy=False)


def drop_torn_line(journal: Path) -> None:
    """Cut off a last line that was not written to its end (power loss, full disk): the journal could not be read."""
    if journal.exists():
        content = journal.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(journal, whole)


def constraints_of(study: optuna.Study) -> ConstraintsConfig:
    """Return the constraints that the study was opened with, none where it had none."""
    return ConstraintsConfig(**study.user_attrs.get(_CONSTRAINTS, {}))


def reconcile(study: optuna.Study, records: dict[str, RunRecord]) -> None:
    """Bring a study that was cut off in line with the table: no trial stays RUNNING, and none is lost.

    A trial whose run has ended is told its result; one whose run has not waits to be taken up, as the same trial, with its
    parameters, from its run's checkpoint. One that has ended here and is not in the table is enqueued again.
    """
    close_running(study, records)
    trials = [trial for trial in study.get_trials(deepcopy=False) if ADDED not in trial.user_attrs]
    there = {run_name(trial) for trial in trials if trial.state == TrialState.WAITING} | records.keys()
    complete = {run_name(trial) for trial in trials if trial.state == TrialState.COMPLETE}
    for trial in trials:
        name = run_name(trial)
        params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        if name not in there and params and REFUSED not in trial.user_attrs:
            there.add(name)
            start = {START: trial.user_attrs[START]} if START in trial.user_attrs else {}
            study.enqueue_trial(params, user_attrs={RUN: name, **start})
    if lost := complete - records.keys():
        _log.warning("the results of %d finished trials are missing from the table; they are read again", len(lost))


def begun_trials(study: optuna.Study, has_begun: Callable[[str], bool]) -> list[FrozenTrial]:
    """Return the trials that wait to be taken up and whose runs, by their names, have begun, by their numbers."""
    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    return [trial for trial in waiting if RUN in trial.user_attrs and has_begun(run_name(trial))]


def take_up(study: optuna.Study, waiting: FrozenTrial) -> optuna.Trial:
    """Return a waiting trial as one that runs; `study.ask` takes the first that waits, whichever it is."""
    study._storage.set_trial_state_values(waiting._trial_id, TrialState.RUNNING)
    return optuna.Trial(study, waiting._trial_id)


def close_running(study: optuna.Study, records: dict[str, RunRecord]) -> None:
    """Leave no trial RUNNING: one whose run has ended is told its result, one that the search space refused has failed, and
    any other waits to be taken up again, whether it was started or only asked for.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        record = records.get(run_name(trial))
        if record is not None or REFUSED in trial.user_attrs:
            tell(study, trial.number, record)
        else:
            study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)


def tell(study: optuna.Study, number: int, record: RunRecord | None) -> None:
    """Tell the study how trial `number` ended; None means that its run was lost.

    A complete run's values are its accuracy (`objectives.accuracy_of`) and MACs, FAIL where one of them, or a figure that
    is limited, is missing or not finite. A pruned run has no values, and Optuna has no intermediate ones for two objectives
    (`Trial.report` raises NotImplementedError): the last ones are its attributes `last_accuracy` and `last_macs`, beside
    `epochs`. No constraint is set on it either: the accuracy of half a training would make it infeasible, and TPE ranks
    infeasible trials behind pruned ones.
    """
    limits = None if record is None else violations_of(record, constraints_of(study))
    state = TrialState.FAIL if record is None else _true_state(record, limits)
    if record is None or state == TrialState.FAIL:
        study.tell(number, state=TrialState.FAIL)
        return
    storage = study._storage  # to list all trials takes as long as the study is large
    trial = optuna.Trial(study, storage.get_trial_id_from_study_id_trial_number(study._study_id, number))
    for key, value in _attributes(record, state).items():
        trial.set_user_attr(key, value)
    if state == TrialState.PRUNED:
        study.tell(number, state=TrialState.PRUNED)
        return
    for name, excess in (limits or {}).items():
        if name not in trial.constraints:  # else a driver was killed right after setting it
            trial.set_constraint(name, excess)
    study.tell(number, values=[float(value) for value in _values(record) if value is not None])


def _values(record: RunRecord) -> list[float | None]:
    return [accuracy_of(record), record.macs]


def _true_state(record: RunRecord, limits: dict[str, float] | None) -> TrialState:
    values = _values(record)
    if record.state == "FAIL" or not all(math.isfinite(value) for value in values if value is not None):
        return TrialState.FAIL
    if record.state == "PRUNED":
        return TrialState.PRUNED
    return TrialState.FAIL if None in values or limits is None else TrialState.COMPLETE


def _attributes(record: RunRecord, state: TrialState) -> dict[str, float]:
    """What is worth knowing beside the values; the ratios are what the constraints of a later sweep need."""
    found: dict[str, float | None] = {"epochs": record.epochs}
    if state == TrialState.PRUNED:
        found |= {"last_accuracy": accuracy_of(record), "last_macs": record.macs}
    else:
        found |= {
            MACS_RATIO: record.macs_ratio,
            PARAMS_RATIO: record.params_ratio,
            LATENCY: record.predicted_latency_ms,
        }
    return {key: value for key, value in found.items() if value is not None}


def name_of(number: int) -> str:
    """Return the run's name of the trial that was asked for as `number`."""
    return f"trial-{number:04d}"


def run_name(trial: FrozenTrial) -> str:
    """Return the name of the trial's run: for one that was cut off and enqueued again, that of its first draw."""
    return str(trial.user_attrs.get(RUN) or name_of(trial.number))
