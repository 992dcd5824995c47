"""`points.parquet`, the flat table of a sweep: one row for each network that was measured, in whatever way it came to be.

`results.parquet` has one row a run, with all cuts of a trial in one cell; this table is made from it, for those who plot.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.curves import candidates, dense_costs
from orchestrator.front import SweepFront
from orchestrator.records import SCHEMA, RunRecord
from orchestrator.tuned import on_trained_front
from trainers.atomic import atomic_file

_SHARED = (
    "trial_number", "method", "decomposition", "regularizer", "rank_rule", "settings", "score", "val_accuracy",
    "test_accuracy", "macs", "macs_ratio", "params", "params_ratio", "predicted_latency_ms",
)  # fmt: skip
POINTS_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("kind", pa.string()),
        ("run", pa.string()),
        ("epoch", pa.int64()),
        *(SCHEMA.field(name) for name in _SHARED),
        ("on_front", pa.bool_()),
        ("picks", pa.string()),
    ]
)


def write_points(records: Sequence[RunRecord], front: SweepFront, path: Path) -> None:
    """Replace the table atomically; columns and units are in docs/tables.md."""
    table = pa.Table.from_pylist(list(_points(records, front)), schema=POINTS_SCHEMA)
    with atomic_file(path) as file:
        pq.write_table(table, file, write_page_checksum=True)


def _points(records: Sequence[RunRecord], front: SweepFront) -> Iterator[dict[str, Any]]:
    trained = [record for record in records if record.stage in ("finetune", "dense") and record.state == "COMPLETE"]
    members = {point.name for point in front.front} | on_trained_front(records)
    for trial in records:
        if trial.stage == "trial":
            yield from _rungs(trial)
            for cut in candidates([trial]):
                kind = "trial" if cut.name == trial.name else "cut"
                yield _row(cut, kind, trial.name, front, on_front=cut.name in members)
    for record in trained:
        kind = "finalist" if record.stage == "finetune" else "dense"
        yield _row(record, kind, record.name, front, on_front=record.name in members)


def _row(record: RunRecord, kind: str, run: str, front: SweepFront, *, on_front: bool) -> dict[str, Any]:
    shared = {name: getattr(record, name) for name in _SHARED}
    picks = " ".join(front.picked_as(record.name)) or None
    return {
        "name": record.name, "kind": kind, "run": run, "epoch": record.epochs, **shared, "on_front": on_front,
        "picks": picks,
    }  # fmt: skip


def _rungs(trial: RunRecord) -> Iterator[dict[str, Any]]:
    """The cuts that were scored before the end of a trial, or of one that was stopped."""
    cuts = json.loads(trial.curve or "[]")
    if trial.state == "COMPLETE":
        cuts = [cut for cut in cuts if cut["epoch"] != trial.epochs]
    if not cuts or not trial.macs or not trial.macs_ratio or not trial.params or not trial.params_ratio:
        return
    dense_macs, dense_params = dense_costs(trial)
    settings, places = json.loads(trial.settings or "{}"), dict[int, int]()
    for cut in cuts:
        place = places[cut["epoch"]] = places.get(cut["epoch"], -1) + 1
        yield {
            **{name: getattr(trial, name) for name in _SHARED},
            "name": f"{trial.name}-cut-{place}" if place else trial.name,
            "kind": "rung",
            "run": trial.name,
            "epoch": cut["epoch"],
            "settings": json.dumps({**settings, **cut["settings"]}),
            "score": cut["score"],
            "val_accuracy": None,
            "macs": cut["macs"],
            "macs_ratio": cut["macs"] / dense_macs,
            "params": cut["params"],
            "params_ratio": cut["params"] / dense_params,
            "predicted_latency_ms": cut.get("latency_ms"),
            "on_front": False,
        }
