"""Train what was recorded once more, into a folder of its own, and compare."""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from orchestrator.config import SweepConfig, dump_config
from orchestrator.jobs import Job, run_job
from orchestrator.ledger import Ledger
from orchestrator.output import SweepState, write_state, write_text
from orchestrator.paths import SweepPaths, absolute
from orchestrator.pipeline import run_sweep
from orchestrator.records import RunRecord
from orchestrator.report.sweep import Sweep, read_sweep
from orchestrator.rerun.compare import Comparison, Run, compare_runs, compare_sweeps
from orchestrator.rerun.prepare import Prepared
from orchestrator.rerun.recorded import record_of, recorded_job, saved_run, start_files
from orchestrator.sync import recorded_store
from trainers.errors import StorageError, SweepError
from trainers.recipe import MODEL_FILE

if TYPE_CHECKING:
    from orchestrator.tracking.tracker import Tracker

REPORT_FILE = "rerun.json"
_FLUSH_S = 30.0


@dataclass(frozen=True)
class Repetition:
    """What a repetition has found, and the output directory where it is."""

    root: Path
    comparison: Comparison
    records: list[RunRecord]


def _alone(config: SweepConfig) -> SweepConfig:
    """Nothing is taken from other sweeps: their stage 1 would be copied, not repeated."""
    return replace(config, resources=replace(config.resources, share_stage_one=False))


def repeat(prepared: Prepared, output: Path | None, console: Console) -> Repetition:
    """Train again, in `output` or a new folder below the sweep's `reruns`, and compare with the record."""
    whole = prepared.name is None
    found = _repeat_sweep(prepared, output, console) if whole else repeat_run(prepared, output)
    report = {
        "rerun_of": str(prepared.sweep.paths.root),
        "run": prepared.name,
        "exact": prepared.inexact is None,
        "changes": [asdict(change) for change in prepared.changes],
        "compared": found.comparison.compared,
        "differences": [asdict(difference) for difference in found.comparison.differences],
        "not_compared": found.comparison.others,
    }
    write_text(found.root / REPORT_FILE, json.dumps(report, indent=2, default=str) + "\n")
    return found


def _repeat_sweep(prepared: Prepared, output: Path | None, console: Console) -> Repetition:
    from orchestrator.tracking.spool import PARENT
    from orchestrator.tracking.store import read_ids
    from orchestrator.tracking.tracker import IDS_FILE

    sweep = prepared.sweep
    root = _new_folder(sweep, "sweep", None) if output is None else absolute(output)
    if root.exists() and root.samefile(sweep.paths.root):
        raise SweepError(f"a rerun must not go on in the directory of its record {output}; use another --output")
    ids = read_ids(sweep.paths.tracking / IDS_FILE, sweep.identity.get("store", ""))
    run_sweep(_alone(prepared.config), root, console, ids.get(PARENT))
    again = read_sweep(root)
    comparison = compare_sweeps(_runs(sweep), _runs(again), exact=prepared.inexact is None)
    return Repetition(root, comparison, again.records)


def _runs(sweep: Sweep) -> list[Run]:
    return [Run(record, saved_run(sweep.paths, record.name)) for record in sweep.records]


def repeat_run(prepared: Prepared, output: Path | None = None, seed: int | None = None) -> Repetition:
    """Train one recorded run again in this process, by default with its own seed, and record it in the sweep's store."""
    sweep, name = prepared.sweep, prepared.name
    assert name is not None
    record = record_of(sweep, name)
    job, config = recorded_job(record), _alone(prepared.config)
    if config.resources.gpus_per_trial == "auto":  # how many share a GPU: here it has one alone
        config = replace(config, resources=replace(config.resources, gpus_per_trial=1.0))
    if seed is not None:
        job, config = replace(job, repeat=0), replace(config, training=replace(config.training, seed=seed))
    starts = start_files(sweep, job, config)
    root = _new_folder(sweep, name, output)
    paths, new_name = SweepPaths(root), f"{name}-rerun-{uuid.uuid4().hex[:6]}"  # a name that MLflow has not seen
    for source, file in starts.items():
        _link(file, paths.run(source) / MODEL_FILE)
    write_text(paths.config, dump_config(config))
    if sweep.paths.latency_table.exists():
        shutil.copyfile(sweep.paths.latency_table, paths.latency_table)
    write_text(paths.environment, json.dumps(prepared.environment, indent=2) + "\n")
    with _tracker(sweep, paths) as tracker:
        again = _train(replace(job, name=new_name), record, prepared, config, paths, tracker)
    recorded = Run(record, saved_run(sweep.paths, name))
    comparison = compare_runs(recorded, Run(again, saved_run(paths, new_name)), exact=prepared.inexact is None)
    return Repetition(root, comparison, [again])


def _train(
    job: Job, record: RunRecord, prepared: Prepared, config: SweepConfig, paths: SweepPaths, tracker: "Tracker"
) -> RunRecord:
    ledger = Ledger(config, paths, tracker, [], alone=True)
    ledger.started(job)
    source = prepared.sweep.by_name.get(record.source or "")
    tags = {"rerun_of": record.run_id or record.name}
    tracker.set_tags(job.name, tags if source is None else {**tags, "source_run_id": source.run_id})
    test = prepared.test.arrays() if prepared.test is not None and record.state == "COMPLETE" else None
    error, stopped = None, False
    try:
        for result in run_job(job, config, str(paths.root), prepared.data.arrays(), test):
            if "storage" in result:
                raise StorageError(result["storage"])
            if "error" in result:
                error = result["error"]
                break
            ledger.reported(job.name, result)
            if stopped := record.state == "PRUNED" and result["epoch"] == record.epochs:
                break
        ended = ledger.ended(job.name, error, stopped=stopped)
    except KeyboardInterrupt:
        ledger.interrupted()
        raise
    tracker.flush(_FLUSH_S)  # so that the table names the run by its id
    ledger.save()
    return ended


def _new_folder(sweep: Sweep, name: str, output: Path | None) -> Path:
    """Make `output`, which must be new or empty, or the first `reruns/<name>-<n>` that is not there yet."""
    if output is not None:
        root = absolute(output)
        root.mkdir(parents=True, exist_ok=True)
        if any(root.iterdir()):
            raise SweepError(f"{output} must be new or empty, but holds files; use another --output")
        return root
    number = 1
    while True:
        root = sweep.paths.reruns / f"{name}-{number}"
        try:
            root.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return root


def _link(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True)
    try:
        os.link(file, target)  # model files are replaced, never written into
    except OSError:  # another file system
        shutil.copyfile(file, target)


@contextmanager
def _tracker(sweep: Sweep, paths: SweepPaths) -> "Iterator[Tracker]":
    """A tracker whose runs are children of the recorded sweep's parent run, in its store."""
    from orchestrator.tracking.target import TrackingTarget
    from orchestrator.tracking.tracker import Tracker

    sweep_id, store = recorded_store(sweep.paths, sweep.config.name)
    target = TrackingTarget(store.uri, store.experiment, store.artifacts)
    write_state(paths, SweepState(sweep_id, target.key))
    tracker = Tracker(target, sweep_id, paths.root, paths.tracking)
    try:
        yield tracker
    finally:
        tracker.close()
