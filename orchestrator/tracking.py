"""MLflow: the only module that imports it. One client, one writer thread, one batched call per run and tick.

Never the fluent API, whose active run differs from thread to thread. Metrics carry the time at which their epoch ended,
so that an epoch reported twice (after a retry or a resume) is stored once.
"""

import json
import logging
import os
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# before the import: both are read by it
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # seven would hold a sweep up for minutes

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS, MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME

from trainers.errors import SweepError

logging.getLogger("mlflow").setLevel(logging.WARNING)  # its notes on creating tables would break the live view
logging.getLogger("alembic").setLevel(logging.WARNING)

_log = logging.getLogger(__name__)
_TICK_S = 1.0
_MAX_BATCH = 500
_MAX_PARAM_LENGTH = 6000


@dataclass(frozen=True)
class TrackingTarget:
    """Where runs are recorded: MLflow's tracking URI, the experiment's name, and its artifact folder if it is new."""

    uri: str
    experiment: str
    artifacts: str | None = None


def tracking_target(name: str, database: Path, artifacts: Path) -> TrackingTarget:
    """Return the target that the environment asks for, by default SQLite in the output directory."""
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or name
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    return (
        TrackingTarget(uri, experiment)
        if uri
        else TrackingTarget(f"sqlite:///{database}", experiment, artifacts.as_uri())
    )


class Tracker:
    """The runs of one sweep. Calls return at once, except `start_run`, which returns the new run's id.

    A store that fails in the middle of a sweep does not stop it: what could not be written is tried again at each tick,
    and what is left at the end is said in a warning. A run that cannot be created is not recorded, with a warning; its
    results are in `results.parquet` all the same.
    """

    def __init__(self, target: TrackingTarget, sweep_id: str, parent_run_id: str | None = None) -> None:
        """Connect, create the store and the experiment where they are missing, and open the parent run.

        Raises SweepError where the store cannot be used: before any training.
        """
        self.target = target
        self._sweep_id = sweep_id
        try:
            self._client = mlflow.MlflowClient(tracking_uri=target.uri)
            self.experiment_id = self._experiment_id()
            self.parent_run_id = parent_run_id or self._create(target.experiment, "sweep", {}, {})
            self._client.update_run(self.parent_run_id, status="RUNNING")
        except (MlflowException, OSError, ValueError) as error:
            raise SweepError(
                f"the MLflow store {target.uri!r} must be usable, but: {error}; check MLFLOW_TRACKING_URI, or unset it to "
                "record in the output directory"
            ) from error
        self._queue: queue.Queue[tuple[str, str, Any] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._write_until_closed, name="mlflow-writer", daemon=True)
        self._thread.start()

    def start_run(self, name: str, stage: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> str:
        """Return the id of the run called `name`: the one this sweep already has, or a new one; "" if MLflow fails."""
        try:
            found = self._client.search_runs(
                [self.experiment_id],
                f"tags.sweep_id = '{self._sweep_id}' AND tags.`{MLFLOW_RUN_NAME}` = '{name}'",
                max_results=1,
            )
            if found:
                run_id: str = found[0].info.run_id
                self._client.update_run(run_id, status="RUNNING")
                return run_id
            return self._create(name, stage, params, {**tags, MLFLOW_PARENT_RUN_ID: self.parent_run_id})
        except (MlflowException, OSError) as error:
            _log.warning("MLflow has no run for %s: %s", name, error)
            return ""

    def open_runs(self) -> set[str]:
        """Return the ids of this sweep's runs that MLflow still holds for running."""
        query = f"tags.sweep_id = '{self._sweep_id}' AND attributes.status = 'RUNNING'"
        return {run.info.run_id for run in self._client.search_runs([self.experiment_id], query)}

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int, ended_at_s: float) -> None:
        """Record one epoch's metrics."""
        time_ms = int(ended_at_s * 1000)
        for key, value in metrics.items():
            self._put(run_id, "metric", Metric(key, float(value), time_ms, step))

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set or replace tags of a run."""
        for key, value in tags.items():
            self._put(run_id, "tag", RunTag(key, value))

    def end_run(self, run_id: str, status: str) -> None:
        """End a run as FINISHED, FAILED or KILLED, after everything recorded before."""
        self._put(run_id, "status", status)

    def log_artifact(self, path: Path) -> None:
        """Store a file with the parent run."""
        self._put(self.parent_run_id, "artifact", path)

    def log_table(self, path: Path, run_id: str) -> None:
        """Store a file {"columns", "data"} with a run; MLflow's UI shows it as a table."""
        self._put(run_id, "artifact", path)
        self.set_tags(run_id, {MLFLOW_LOGGED_ARTIFACTS: json.dumps([{"path": path.name, "type": "table"}])})

    def close(self, status: str) -> None:
        """End the parent run, write what is left, and stop the writer; waits at most a minute."""
        self.end_run(self.parent_run_id, status)
        self._queue.put(None)
        self._thread.join(timeout=60)
        if self._thread.is_alive():
            _log.warning("MLflow at %s did not take all records within a minute", self.target.uri)

    def _experiment_id(self) -> str:
        name = self.target.experiment
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            return str(self._client.create_experiment(name, artifact_location=self.target.artifacts))
        if experiment.lifecycle_stage != "active":
            raise ValueError(
                f"experiment {name!r} is deleted; restore it, or set MLFLOW_EXPERIMENT_NAME to another name"
            )
        return str(experiment.experiment_id)

    def _create(self, name: str, stage: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> str:
        flat = {**tags, "sweep_id": self._sweep_id, "stage": stage}
        run = self._client.create_run(self.experiment_id, run_name=name, tags=flat)
        self._client.log_batch(run.info.run_id, params=_params(params))
        return str(run.info.run_id)

    def describe_sweep(self, settings: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Record the sweep's settings and tags with the parent run.

        A setting that was recorded with another value keeps it, for MLflow's params never change: a sweep that goes on
        with more trials has its sizes in the artifact config.yaml.
        """
        known = self._client.get_run(self.parent_run_id).data.params
        new = {key: value for key, value in settings.items() if key not in known}
        self._client.log_batch(self.parent_run_id, params=_params(new), tags=[RunTag(*item) for item in tags.items()])

    def _put(self, run_id: str, kind: str, value: Any) -> None:
        if run_id:
            self._queue.put((run_id, kind, value))

    def _write_until_closed(self) -> None:
        waiting: list[tuple[str, str, Any]] = []
        closing = False
        while not closing:
            time.sleep(_TICK_S)
            while not self._queue.empty():
                item = self._queue.get()
                if item is None:
                    closing = True
                else:
                    waiting.append(item)
            waiting = self._write(waiting)
        for _ in range(3):  # a store that is back within seconds loses nothing
            if not waiting:
                return
            time.sleep(_TICK_S)
            waiting = self._write(waiting)
        if waiting:
            _log.warning("MLflow at %s did not take %d records", self.target.uri, len(waiting))

    def _write(self, items: list[tuple[str, str, Any]]) -> list[tuple[str, str, Any]]:
        """Write what there is, one batch a run; returns what could not be written."""
        by_run: dict[str, list[tuple[str, str, Any]]] = defaultdict(list)
        for item in items:
            by_run[item[0]].append(item)
        failed = []
        for run_id, entries in by_run.items():
            try:
                self._write_run(run_id, entries)
            except Exception as error:  # noqa: BLE001  # whatever the store raises, the sweep goes on and the records wait
                _log.warning("MLflow did not take %d records (will retry): %s", len(entries), str(error).split("\n")[0])
                failed += entries
        return failed

    def _write_run(self, run_id: str, entries: list[tuple[str, str, Any]]) -> None:
        metrics = [value for _, kind, value in entries if kind == "metric"]
        tags = [value for _, kind, value in entries if kind == "tag"]
        for start in range(0, max(len(metrics), 1), _MAX_BATCH):
            self._client.log_batch(run_id, metrics=metrics[start : start + _MAX_BATCH], tags=tags if start == 0 else [])
        for _, kind, value in entries:
            if kind == "artifact":
                self._client.log_artifact(run_id, str(value))
        for _, kind, value in entries:
            if kind == "status":
                self._client.set_terminated(run_id, status=value)


def _params(values: Mapping[str, Any]) -> list[Param]:
    return [Param(key, str(value)[:_MAX_PARAM_LENGTH]) for key, value in values.items()]
