"""The points of a sweep as the report's table holds them: plain values, small enough for tens of thousands of rows."""

import json
import math
from typing import Any

from orchestrator.curves import candidates, trial_of
from orchestrator.objectives import accuracy_of
from orchestrator.records import RunRecord
from orchestrator.report.figures import latency_ms
from orchestrator.report.settings import setting_names, settings_of
from orchestrator.report.sweep import Sweep

# what each row holds, in this order; `owner` is the run whose settings count, `changed` those settings that a cut replaces
ROW = ("name", "kind", "front", "accuracy", "test_accuracy", "macs", "macs_ratio", "params", "params_ratio", "latency_ms", "owner", "changed")  # fmt: skip  # noqa: E501
# what is known of a run beside that
_RUN = (
    "state", "run_id", "source", "method", "learning_rate", "seed", "epochs", "val_accuracy", "score", "val_loss",
    "test_loss", "orthogonality_error", "rank_ratio", "duration_s", "cpu_s", "error",
)  # fmt: skip


def table_data(sweep: Sweep) -> dict[str, Any]:
    """Return the report's table: {"columns", "rows", "settings", "runs"}, without NaN or infinity.

    There is a row for each run, and for each cut of a complete trial beside its own; `runs` maps a run's name to
    what else is known of it, with its settings and ranks.
    """
    series = sweep.series
    on_front = {record.name for record in (*series.front, *series.final_front)}
    rows = [_row(record, _kind(record), record.name in on_front) for record in sweep.records]
    cuts = [cut for cut in candidates(sweep.trials) if cut.name != trial_of(cut.name)]
    for cut in cuts:
        own = settings_of(sweep.by_name[trial_of(cut.name)])
        changed = {key: _plain(value) for key, value in settings_of(cut).items() if own.get(key) != value}
        rows.append(_row(cut, "cut", cut.name in on_front, changed))
    return {
        "columns": ROW,
        "rows": rows,
        "settings": setting_names(sweep.trials),
        "runs": {record.name: _run(record) for record in sweep.records},
    }


def _kind(record: RunRecord) -> str:
    if record.state == "FAIL":
        return "failed"
    if record.stage == "trial":
        return "stopped" if record.state == "PRUNED" else "trial"
    if record.stage == "finetune":
        return "fine-tuned"
    return "stage 1" if record.stage == "pretrain" else "dense"


def _row(record: RunRecord, kind: str, front: bool, changed: dict[str, Any] | None = None) -> list[Any]:
    values = (
        accuracy_of(record),
        record.test_accuracy,
        record.macs,
        record.macs_ratio,
        record.params,
        record.params_ratio,
        latency_ms(record),
    )
    owner = trial_of(record.name) if kind == "cut" else record.name
    return [record.name, kind, front, *map(_plain, values), owner, changed]


def _run(record: RunRecord) -> dict[str, Any]:
    known = {key: _plain(value) for key in _RUN if (value := getattr(record, key)) is not None}
    known["settings"] = {key: _plain(value) for key, value in settings_of(record).items()}
    if record.layers and record.ranks:
        known["ranks"] = dict(zip(record.layers, record.ranks, strict=True))
    return known


def _plain(value: Any) -> Any:
    """Floats to six digits, which is more than any of them is known to; JSON has no NaN."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    return value if isinstance(value, str | int | bool | None) else json.dumps(value)
