"""The driver's book of a sweep: every run that starts, reports and ends is written down here, and nowhere else.

Each event goes to MLflow, to `results.parquet` (as soon as a run has ended) and, through `snapshot`, to the live view.
"""

import json
import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.config import SweepConfig
from orchestrator.curves import curve_table
from orchestrator.jobs import Job, job_configs, job_epochs
from orchestrator.output import write_text
from orchestrator.paths import SweepPaths
from orchestrator.records import RunRecord, StageName, State, write_records
from trainers.config import as_record
from trainers.methods import in_force
from trainers.recipe import CHECKPOINT_FILE, MODEL_FILE
from trainers.saved_model import load_model

if TYPE_CHECKING:
    from orchestrator.tracking import Tracker

# metrics that are columns of the table under the same name
_SCORES = ("accuracy", "top5_accuracy", "macro_f1", "loss")
_TEST = tuple(f"test_{name}" for name in _SCORES)
_COLUMNS = (
    *(f"val_{name}" for name in _SCORES), *_TEST, "train_loss", "orthogonality_error", "macs", "macs_ratio", "params",
    "params_ratio", "rank_ratio", "score",
)  # fmt: skip
_COUNTS = ("macs", "params")


@dataclass
class OpenRun:
    """A run that has started and not ended."""

    job: Job
    run_id: str
    epoch: int = 0
    duration_s: float = 0.0
    cpu_s: float = 0.0
    ended_at_s: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    curve: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Snapshot:
    """What a view shows: ended and open runs at one moment, and the durations of the epochs trained in this session."""

    records: list[RunRecord]
    open_runs: list[OpenRun]
    epoch_durations_s: list[float]


class Ledger:
    """See the module's docstring; `records` are the runs that had ended before.

    Calls come from one thread; `snapshot` may come from another.
    """

    def __init__(self, config: SweepConfig, paths: SweepPaths, tracker: "Tracker", records: list[RunRecord]) -> None:
        self._config, self._paths, self._tracker = config, paths, tracker
        self._records = {record.name: record for record in records}
        self._open: dict[str, OpenRun] = {}
        self._epoch_durations: list[float] = []
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
        tags = {"method": "dense" if job.stage == "dense" else method.method, "state": "RUNNING"}
        if job.source is not None and (source := self._records.get(job.source)) is not None:
            tags["source_run_id"] = source.run_id
        run_id = self._tracker.start_run(job.name, job.stage, params, tags)
        with self._lock:
            self._open[job.name] = OpenRun(job, run_id)

    def reported(self, name: str, result: dict[str, Any]) -> None:
        """A run has finished an epoch (or repeats one that it had finished before)."""
        run = self._open[name]
        with self._lock:
            if result["epoch"] > run.epoch:
                run.epoch = result["epoch"]
                run.duration_s, run.cpu_s = run.duration_s + result["duration_s"], run.cpu_s + result["cpu_s"]
                run.curve += [{"epoch": run.epoch, **cut} for cut in result["curve"] or []]
                if not result["replayed"]:
                    self._epoch_durations.append(result["duration_s"])
            run.metrics, run.ended_at_s = result["metrics"], result["ended_at_s"]
        self._tracker.log_metrics(run.run_id, result["metrics"], result["epoch"], result["ended_at_s"])

    def ended(self, name: str, error: str | None, *, stopped: bool = False) -> RunRecord:
        """A run is over: complete, `stopped` early, or failed with `error`. One whose metrics are not finite has failed."""
        run = self._open[name]
        if error is None and not all(np.isfinite(value) for value in run.metrics.values()):
            bad = sorted(key for key, value in run.metrics.items() if not np.isfinite(value))
            error = f"NonFiniteError: metrics must be finite, but {', '.join(bad)} is not"
        record = self._record_of(run, "FAIL" if error else "PRUNED" if stopped else "COMPLETE", error)
        self._end_in_mlflow(record)
        with self._lock:
            del self._open[name]
            self._records[name] = record
        write_records(list(self._records.values()), self._paths.results)
        if record.state == "PRUNED":  # it never goes on, and weights with their optimizer's state fill disks
            (self._paths.run(name) / CHECKPOINT_FILE).unlink(missing_ok=True)
        return record

    def redeliver(self) -> None:
        """Tell MLflow again of ended runs that it holds open: a driver that is killed takes unsent records with it."""
        held_open = self._tracker.open_runs()
        for record in self._records.values():
            if record.run_id not in held_open:
                continue
            model_file = self._paths.run(record.name) / MODEL_FILE
            history = load_model(model_file).history if record.state == "COMPLETE" else []
            for result in history:
                self._tracker.log_metrics(record.run_id, result["metrics"], result["epoch"], result["ended_at_s"])
            test = {name: value for name in _TEST if (value := getattr(record, name)) is not None}
            if test and history:
                self._tracker.log_metrics(record.run_id, test, history[-1]["epoch"], history[-1]["ended_at_s"])
            self._end_in_mlflow(record)

    def interrupted(self) -> None:
        """The sweep stops here: open runs are marked as killed; the next start takes them up again."""
        for run in self._open.values():
            self._tracker.end_run(run.run_id, "KILLED")

    def snapshot(self) -> Snapshot:
        """Return a copy that another thread may read."""
        with self._lock:
            return Snapshot(
                list(self._records.values()), [replace(run) for run in self._open.values()], list(self._epoch_durations)
            )

    def _end_in_mlflow(self, record: RunRecord) -> None:
        error = {} if record.error is None else {"error": record.error[-2000:]}
        self._tracker.set_tags(record.run_id, {"state": record.state, **error})
        if record.curve is not None:
            table = self._paths.curve(record.name)
            write_text(table, json.dumps(curve_table(record.curve)) + "\n")
            self._tracker.log_table(table, record.run_id)
        self._tracker.end_run(record.run_id, "FAILED" if record.state == "FAIL" else "FINISHED")

    def _record_of(self, run: OpenRun, state: State, error: str | None) -> RunRecord:
        job, metrics = run.job, run.metrics
        training, method = job_configs(job, self._config)
        ranks = {key.removeprefix("rank/"): int(value) for key, value in metrics.items() if key.startswith("rank/")}
        columns: dict[str, Any] = {
            key: int(metrics[key]) if key in _COUNTS else metrics[key] for key in _COLUMNS if key in metrics
        }
        settings = dict(job.settings)
        if job.stage in ("trial", "finetune"):
            settings = in_force(method)
        return RunRecord(
            name=job.name,
            stage=job.stage,
            state=state,
            run_id=run.run_id,
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
