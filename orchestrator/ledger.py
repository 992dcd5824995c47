"""The driver's book of a sweep: every run that starts, reports and ends is written down here, and nowhere else.

Each event goes to MLflow, to `results.parquet` (as soon as a run has ended) and, through `snapshot`, to the live view.
"""

import json
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.config import SweepConfig
from orchestrator.curves import curve_table
from orchestrator.jobs import Job, job_configs, job_epochs
from orchestrator.output import write_text
from orchestrator.paths import SweepPaths
from orchestrator.records import RunRecord, StageName, State, Table
from orchestrator.running_front import RunningFront
from orchestrator.scheduler import is_last
from orchestrator.tracking.spool import PARENT
from trainers.checkpoint import remove_checkpoints
from trainers.config import as_record
from trainers.methods import in_force
from trainers.recipe import CHECKPOINT_FILE

if TYPE_CHECKING:
    from orchestrator.tracking.tracker import Tracker

# metrics that are columns of the table under the same name
_SCORES = ("accuracy", "top5_accuracy", "macro_f1", "loss")
METRIC_COLUMNS = (
    *(f"{split}_{name}" for split in ("val", "test") for name in _SCORES),
    *(
        "train_loss",
        "orthogonality_error",
        "macs",
        "macs_ratio",
        "params",
        "params_ratio",
        "rank_ratio",
        "score",
        "predicted_latency_ms",
    ),
)
_COUNTS = ("macs", "params")


@dataclass
class OpenRun:
    """A run that has started and not ended."""

    job: Job
    node: str | None = None
    epoch: int = 0
    duration_s: float = 0.0
    cpu_s: float = 0.0
    ended_at_s: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    curve: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Snapshot:
    """What a view shows: ended and open runs at one moment, and the durations of the epochs trained since the start."""

    records: list[RunRecord]
    open_runs: list[OpenRun]
    epoch_durations_s: list[float]


class Ledger:
    """See the module's docstring; `records` are the runs that had ended before.

    Calls come from one thread; `snapshot` may come from another. With `alone` its runs are no part of a search: MLflow's
    parent run hears nothing of their front.
    """

    def __init__(
        self,
        config: SweepConfig,
        paths: SweepPaths,
        tracker: "Tracker",
        records: list[RunRecord],
        *,
        alone: bool = False,
    ) -> None:
        self._alone = alone
        self._config, self._paths, self._tracker = config, paths, tracker
        self._table = Table(paths.results)
        self._records = {record.name: record for record in records}
        self._without_id = {record.name for record in records if not record.run_id}
        self._open: dict[str, OpenRun] = {}
        self._epoch_durations: list[float] = []
        self._front = RunningFront(self.records("trial"))
        self._lock = threading.Lock()

    def record(self, name: str) -> RunRecord | None:
        """The ended run of that name, if there is one."""
        return self._records.get(name)

    def records(self, stage: StageName | None = None) -> list[RunRecord]:
        """The ended runs, of one stage or of all, in the order in which they ended."""
        return [record for record in self._records.values() if stage in (None, record.stage)]

    def started(self, job: Job) -> None:
        """A run starts, or starts again after its worker was lost."""
        if job.name in self._open:
            return
        training, method = job_configs(job, self._config)
        params = {**as_record(training), "epochs": job_epochs(job, self._config), **job.settings}
        if job.stage in ("trial", "finetune"):
            params |= in_force(method)
        tags = {"method": "dense" if job.stage == "dense" else method.method, "pareto": "false"}
        self._tracker.start_run(job.name, job.stage, params, tags, job.source)
        self._tracker.set_tags(job.name, {"state": "RUNNING"})
        with suppress(FileExistsError):  # a file: the run says so
            self._paths.run(job.name).mkdir(parents=True, exist_ok=True)  # the next start knows that it has begun
        with self._lock:
            self._open[job.name] = OpenRun(job)

    def reported(self, name: str, result: dict[str, Any]) -> None:
        """A run has finished an epoch (or repeats one that it had finished before), on the node that its result names."""
        run = self._open[name]
        if (node := result.get("node")) is not None and node != run.node:
            run.node = node
            self._tracker.set_tags(name, {"node": node})
        with self._lock:
            if is_new := result["epoch"] > run.epoch:
                run.epoch = result["epoch"]
                run.duration_s, run.cpu_s = run.duration_s + result["duration_s"], run.cpu_s + result["cpu_s"]
                run.curve += [{"epoch": run.epoch, **cut} for cut in result["curve"] or []]
                if not result["replayed"]:
                    self._epoch_durations.append(result["duration_s"])
            # one that is trained again, for its checkpoint was lost with a node, has another time: MLflow would have it
            # twice. A run that ended early has told of its last epoch, and tells of it again with the test metrics
            new = {
                key: value
                for key, value in result["metrics"].items()
                if is_new or (is_last(result) and key not in run.metrics)
            }
            run.metrics, run.ended_at_s = result["metrics"], result["ended_at_s"]
        if new:
            self._tracker.log_metrics(name, new, result["epoch"], result["ended_at_s"])

    def ended(self, name: str, error: str | None, *, stopped: bool = False) -> RunRecord:
        """A run is over: complete, `stopped` early, or failed with `error`. One whose metrics are not finite has failed."""
        run = self._open[name]
        if error is None and not all(np.isfinite(value) for value in run.metrics.values()):
            bad = sorted(key for key, value in run.metrics.items() if not np.isfinite(value))
            error = f"NonFiniteError: metrics must be finite, but {', '.join(bad)} is not"
        record = self._record_of(run, "FAIL" if error else "PRUNED" if stopped else "COMPLETE", error)
        # before the table: a run that is in it has told MLflow all
        if record.stage == "trial" and not self._alone:
            self._progress(record)
        self._end_in_mlflow(record)
        with self._lock:
            del self._open[name]
            self._records[name] = record
            if not record.run_id:
                self._without_id.add(name)
        self.save()
        # it never goes on, and weights with their optimizer's state fill disks
        is_over = record.state == "PRUNED" or (record.state == "FAIL" and record.stage == "trial")
        if is_over and self._paths.has_begun(name):
            remove_checkpoints(self._paths.run(name) / CHECKPOINT_FILE)
        return record

    def save(self) -> None:
        """Write the table, with the ids that MLflow has given to runs since."""
        with self._lock:
            for name in list(self._without_id):
                if run_id := self._tracker.run_id(name):
                    self._records[name] = replace(self._records[name], run_id=run_id)
                    self._without_id.remove(name)
        self._table.write(list(self._records.values()))

    def interrupted(self) -> None:
        """The sweep stops here: open runs are marked as killed; the next start takes them up again."""
        for name in list(self._open):
            self._tracker.end_run(name, "KILLED")

    def snapshot(self) -> Snapshot:
        """Return a copy that another thread may read."""
        with self._lock:
            return Snapshot(
                list(self._records.values()), [replace(run) for run in self._open.values()], list(self._epoch_durations)
            )

    def _end_in_mlflow(self, record: RunRecord) -> None:
        error = {} if record.error is None else {"error": record.error[-2000:]}
        if record.error is None and (earlier := self._records.get(record.name)) is not None and earlier.error:
            error = {"error": ""}  # of an earlier start
        self._tracker.set_tags(record.name, {"state": record.state, **error})
        if record.curve is not None:
            table = self._paths.curve(record.name)
            write_text(table, json.dumps(curve_table(record.curve)) + "\n")
            self._tracker.log_table(record.name, table)
        self._tracker.end_run(record.name, "FAILED" if record.state == "FAIL" else "FINISHED")

    def _progress(self, trial: RunRecord) -> None:
        """Tell the parent run how far the front has come with this trial, which is not in the table yet."""
        front = self._front
        front.add([trial])
        if (best := front.best_accuracy) is not None:
            values = {"hypervolume": front.hypervolume, "front_size": len(front.cuts), "best_score": best}
            self._tracker.log_metrics(PARENT, values, front.num_trials, trial.ended_at_s or time.time())

    def _record_of(self, run: OpenRun, state: State, error: str | None) -> RunRecord:
        job, metrics = run.job, run.metrics
        training, method = job_configs(job, self._config)
        ranks = {key.removeprefix("rank/"): int(value) for key, value in metrics.items() if key.startswith("rank/")}
        columns: dict[str, Any] = {
            key: int(metrics[key]) if key in _COUNTS else metrics[key] for key in METRIC_COLUMNS if key in metrics
        }
        settings = dict(job.settings)
        if job.stage in ("trial", "finetune"):
            settings = in_force(method)
        return RunRecord(
            name=job.name,
            stage=job.stage,
            state=state,
            run_id=self._tracker.run_id(job.name),
            source=job.source,
            trial_number=job.trial_number,
            settings=json.dumps(job.settings),
            **{key: value for key, value in settings.items() if key in RunRecord.__dataclass_fields__},
            learning_rate=training.learning_rate,
            seed=training.seed,
            epochs=run.epoch,
            layers=list(ranks) or None,
            ranks=list(ranks.values()) or None,
            curve=json.dumps(run.curve) if run.curve else None,
            duration_s=run.duration_s,
            cpu_s=run.cpu_s,
            ended_at_s=run.ended_at_s,
            error=error,
            **columns,
        )
