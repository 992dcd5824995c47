"""Send to MLflow what a sweep could not: its store was away, or its driver was killed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from orchestrator.config import load_config
from orchestrator.front import sweep_front, write_front
from orchestrator.output import locked, read_state
from orchestrator.paths import SweepPaths
from orchestrator.records import read_records, write_records
from trainers.errors import SweepError

if TYPE_CHECKING:
    from orchestrator.tracking.target import TrackingTarget
    from orchestrator.tracking.tracker import Tracker

PATIENCE_S = 600.0
_NO_SWEEP = "{} must be the output directory of a sweep, but has no sweep.json"


@dataclass(frozen=True)
class SyncResult:
    """How many records were waiting, how many still are, and the store, without credentials."""

    waiting: int
    left: int
    store: str


def sync(paths: SweepPaths) -> SyncResult:
    """Deliver what waits in the output directory, and write the ids of runs into `results.parquet` and `front.json`.

    Raises SweepError as `opened_tracker` does.
    """
    with opened_tracker(paths) as tracker:
        waiting = tracker.waiting
        left = tracker.flush(PATIENCE_S)
        if not left:  # a sweep that was killed could not say so
            tracker.end_open_runs()
            left = tracker.flush(PATIENCE_S)
        if paths.results.exists():
            records = [
                record if record.run_id else replace(record, run_id=tracker.run_id(record.name))
                for record in read_records(paths.results)
            ]
            write_records(records, paths.results)
            write_front(sweep_front(records), paths)
    return SyncResult(waiting, left, tracker.target.shown)


@contextmanager
def opened_tracker(paths: SweepPaths) -> "Iterator[Tracker]":
    """Take up a recorded sweep's tracker, and the directory with it, until the block ends.

    Raises SweepError where the directory is not a sweep's or is in use, and where the store cannot be used or is not the
    one that the sweep was recorded in.
    """
    from orchestrator.tracking.tracker import Tracker

    if not paths.config.exists():
        raise SweepError(_NO_SWEEP.format(paths.root))
    with locked(paths):
        sweep_id, target = recorded_store(paths, load_config(paths.config).name)
        tracker = Tracker(target, sweep_id, paths.root, paths.tracking)
        try:
            yield tracker
        finally:
            tracker.close()


def recorded_store(paths: SweepPaths, name: str) -> "tuple[str, TrackingTarget]":
    """Return the identity of the recorded sweep called `name`, and its MLflow store.

    Raises SweepError where the directory is not a sweep's, and where the environment names another store.
    """
    from orchestrator.tracking.target import tracking_target

    if not paths.state.exists():
        raise SweepError(_NO_SWEEP.format(paths.root))
    state = read_state(paths)
    target = tracking_target(name, paths.mlflow_db, paths.mlflow_artifacts)
    if target.key != state.store:
        raise SweepError(
            f"MLFLOW_TRACKING_URI must be the sweep's store {state.store!r}, but is {target.key!r}; "
            f"{'unset it' if state.store == 'mlflow.db' else 'set it to that'}"
        )
    return state.sweep_id, target
