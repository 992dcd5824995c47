"""One sweep's runs in an MLflow store, by their names: every call may be repeated, and changes nothing then.

Never the fluent API, whose active run differs from thread to thread. Metrics carry the time at which their epoch ended,
so that an epoch reported twice (after a retry or a resume) is stored once.
"""

import fcntl
import getpass
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# before the import: these are read by it
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # the spool tries again, for as long as it takes
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

import mlflow
from alembic.util.exc import CommandError
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking._tracking_service import utils as tracking_utils
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME, MLFLOW_SOURCE_NAME, MLFLOW_USER
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.tracking.models import log_model
from orchestrator.tracking.relocation import follow_move
from orchestrator.tracking.spool import PARENT, Event
from orchestrator.tracking.target import TrackingTarget
from trainers.errors import SweepError

logging.getLogger("mlflow").setLevel(logging.WARNING)  # its notes on creating tables would break the live view
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # prints tracebacks of what is tried again
logging.getLogger("alembic").setLevel(logging.WARNING)

_MAX_BATCH = 500
_MAX_PARAMS = 100  # a server's limit for one call
_MAX_PARAM_LENGTH = 6000
_REFUSALS = {"INVALID_PARAMETER_VALUE", "MALFORMED_REQUEST", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST"}


def refused(error: Exception) -> bool:
    """Whether the store will never take this, however often it is sent: a deleted run, a value against its rules."""
    return isinstance(error, FileNotFoundError | PermissionError) or (
        isinstance(error, MlflowException) and error.error_code in _REFUSALS
    )


@contextmanager
def opened(target: TrackingTarget) -> Iterator[mlflow.MlflowClient]:
    """Yield a client of the store, which is created or migrated where that is due; no other sweep of this machine connects
    to a database meanwhile: two that create its tables at once fail or ruin it.

    Raises SweepError for what MLflow, or its database, raises in the block too.
    """
    try:
        target.reach_database()
        with _alone_with(target):
            yield mlflow.MlflowClient(tracking_uri=target.uri)
    except (MlflowException, SQLAlchemyError, CommandError, OSError, ValueError, ModuleNotFoundError) as error:
        raise SweepError(
            f"the MLflow store {target.shown!r} must be usable, but: {target.reason(error)}; check MLFLOW_TRACKING_URI, "
            "or unset it to record in the output directory"
        ) from error


@contextmanager
def _alone_with(target: TrackingTarget) -> Iterator[None]:
    if target.uri.startswith(("http:", "https:")):
        yield
        return
    name = hashlib.sha256(target.uri.encode()).hexdigest()[:16]
    # "a": others may write into that folder, and what a link of theirs leads to is not to be emptied
    with (Path(tempfile.gettempdir()) / f"rankfront-{_user()}-{name}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class _Recorded:
    """What a run holds that another process has begun: the metrics' names, and the time of each step of those looked up."""

    keys: frozenset[str]
    times: dict[str, dict[int, int]] = field(default_factory=dict)


class RunStore:
    """The client of one sweep; `root` is the output directory, `ids` a file of the runs that exist (name and id)."""

    def __init__(self, target: TrackingTarget, sweep_id: str, root: Path, ids: Path) -> None:
        """Connect, and create or migrate the store and the experiment where that is due.

        Raises SweepError where the store cannot be used.
        """
        self._target, self._sweep_id, self._root, self._ids_file = target, sweep_id, root, ids
        with opened(target) as self.client:
            if target.own_database is not None and target.artifacts is not None:
                follow_move(target.own_database, target.artifacts)
            self._experiment_id = self._find_experiment()
        _drop_torn_line(ids)
        self._ids = read_ids(ids, target.key)
        self._recorded: dict[str, _Recorded] = {}  # by run, for those that another process has begun
        # whether no run can exist that is not in the file: its parent was created here, and no call has failed since
        self._new = False

    def run_id(self, name: str) -> str:
        """Return the id of a run, "" as long as it has none."""
        return self._ids.get(name, "")

    def deliver(self, events: Iterable[Event]) -> None:
        """Record one run's events, in order, in as few calls as there can be."""
        metrics: list[Metric] = []
        tags: dict[str, str] = {}
        artifacts: list[str] = []
        name = ""
        for event in events:
            name, value, time_ms = event.run, event.value, int(event.time_s * 1000)
            if event.kind == "start":
                self._flush(name, metrics, tags, artifacts)
                self._start(name, value, time_ms)
            elif event.kind == "metrics":
                values = value["values"]
                if not value.get("replaces", False):
                    values = self._not_recorded(name, values, value["step"], time_ms)
                metrics += [Metric(key, number, time_ms, value["step"]) for key, number in values.items()]
            elif event.kind == "tags":
                tags |= value
            elif event.kind == "artifact":
                artifacts.append(value["path"])
            elif event.kind == "model":
                self._flush(name, metrics, tags, artifacts)
                folder = self._root / value["path"]
                log_model(self.client, self._known(name), name, folder, value, time_ms)
                shutil.rmtree(folder, ignore_errors=True)  # the store has it now
            elif event.kind == "end":
                self._flush(name, metrics, tags, artifacts)
                self.client.set_terminated(self._known(name), status=value["status"], end_time=time_ms)
                # of the last thousand runs with a file MLflow keeps a place with a pool of threads and two queues each
                getattr(tracking_utils, "_artifact_repos_cache", {}).pop(self._known(name), None)
        self._flush(name, metrics, tags, artifacts)

    def failed(self) -> None:
        """A call has failed: what it was to do may have been done."""
        self._new = False

    def open_runs(self) -> list[str]:
        """Return the names of the runs that the store holds for running."""
        names = {run_id: name for name, run_id in self._ids.items()}
        query = f"tags.sweep_id = '{self._sweep_id}' AND attributes.status = 'RUNNING'"
        found = self.client.search_runs([self._experiment_id], query)
        return [names[run.info.run_id] for run in found if run.info.run_id in names]

    def _flush(self, name: str, metrics: list[Metric], tags: dict[str, str], artifacts: list[str]) -> None:
        if metrics or tags:
            run_id = self._known(name)
            for start in range(0, max(len(metrics), 1), _MAX_BATCH):
                now = [RunTag(*item) for item in tags.items()] if start == 0 else []
                self.client.log_batch(run_id, metrics=metrics[start : start + _MAX_BATCH], tags=now)
        for path in artifacts:
            self.client.log_artifact(self._known(name), str(self._root / path))
        metrics.clear()
        tags.clear()
        artifacts.clear()

    def _start(self, name: str, value: Mapping[str, Any], time_ms: int) -> None:
        created = False
        if name not in self._ids:
            tags = dict(value["tags"])
            if (source := value["source"]) is not None and self.run_id(source):
                tags["source_run_id"] = self.run_id(source)
            created = self._create(name, value["stage"], tags, time_ms)
        run_id, known = self._ids[name], dict[str, str]()
        if not created:
            self.client.update_run(run_id, status="RUNNING")
            data = self.client.get_run(run_id).data
            known, self._recorded[run_id] = data.params, _Recorded(frozenset(data.metrics))
        self._log_params(run_id, value["params"], known)

    def _log_params(self, run_id: str, params: Mapping[str, str], known: Mapping[str, str]) -> None:
        """Record those that are new: MLflow's params never change, and a sweep that goes on with more trials has its
        sizes in the artifact config.yaml.
        """
        new = [Param(key, value[:_MAX_PARAM_LENGTH]) for key, value in params.items() if key not in known]
        for start in range(0, len(new), _MAX_PARAMS):
            self.client.log_batch(run_id, params=new[start : start + _MAX_PARAMS])

    def _not_recorded(self, name: str, values: Mapping[str, float], step: int, time_ms: int) -> Mapping[str, float]:
        """Leave out what an earlier process has recorded of this step at another time: it was trained again."""
        recorded = self._recorded.get(self._ids.get(name, ""))
        if recorded is None:
            return values
        for key in values:
            if key in recorded.keys and key not in recorded.times:
                history = self.client.get_metric_history(self._ids[name], key)
                recorded.times[key] = {metric.step: metric.timestamp for metric in history}
        return {
            key: value for key, value in values.items() if recorded.times.get(key, {}).get(step, time_ms) == time_ms
        }

    def _known(self, name: str) -> str:
        """Return the run's id; a run that was recorded in another store gets one in this that has ended, without params."""
        if name not in self._ids:
            created = self._create(name, PARENT if name == PARENT else "unknown", {}, None)
            if created and name != PARENT:
                self.client.set_terminated(self._ids[name])
        return self._ids[name]

    def _create(self, name: str, stage: str, tags: Mapping[str, str], time_ms: int | None) -> bool:
        """Note the id of the run, which is created if the store has none of that name; returns whether it was."""
        found = None if self._new else self._find(name)
        created = found is None
        if found is None:
            shown = self._target.experiment if name == PARENT else name
            flat = {**tags, "sweep_id": self._sweep_id, "stage": stage, MLFLOW_SOURCE_NAME: "rankfront"}
            flat |= {MLFLOW_USER: _user()}
            if name != PARENT:
                flat[MLFLOW_PARENT_RUN_ID] = self._known(PARENT)
            found = self.client.create_run(self._experiment_id, time_ms, flat, shown)
            self._new = self._new or name == PARENT
        run_id = str(found.info.run_id)
        with self._ids_file.open("a") as file:
            file.write(json.dumps({"run": name, "id": run_id, "store": self._target.key}) + "\n")
        self._ids[name] = run_id
        return created

    def _find(self, name: str) -> Run | None:
        which = "tags.stage = 'sweep'" if name == PARENT else f"tags.`{MLFLOW_RUN_NAME}` = '{name}'"
        query = f"tags.sweep_id = '{self._sweep_id}' AND {which}"
        found = self.client.search_runs([self._experiment_id], query, max_results=1)
        return found[0] if found else None

    def _find_experiment(self) -> str:
        name = self._target.experiment
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            return str(self.client.create_experiment(name, artifact_location=self._target.artifacts))
        if experiment.lifecycle_stage != "active":
            raise ValueError(
                f"experiment {name!r} is deleted; restore it, or set MLFLOW_EXPERIMENT_NAME to another name"
            )
        return str(experiment.experiment_id)


def read_ids(file: Path, store: str) -> dict[str, str]:
    """Return the ids of the runs in `store` (`TrackingTarget.key`) by their names; raises SweepError for a damaged file."""
    if not file.exists():
        return {}
    try:
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        return {line["run"]: line["id"] for line in lines if line["store"] == store}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SweepError(
            f"{file} must be lines of JSON, but: {error}; remove it, and the runs are searched for by name"
        ) from error


def _drop_torn_line(file: Path) -> None:
    """Cut off a last line that a full disk left unfinished: its run is found by name."""
    if file.exists():
        content = file.read_bytes()
        if content and not content.endswith(b"\n"):
            os.truncate(file, content.rfind(b"\n") + 1)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "unknown"
