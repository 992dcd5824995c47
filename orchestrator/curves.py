"""The curve of a trial: one training evaluated at many pruning thresholds, each point a candidate of the final stage.

`results.parquet` holds a trial's curves, one for each rung it reached and one for its end, as JSON in the column `curve`:
a list of {"epoch", "settings", "macs", "params", "score", "latency_ms"}, as `trainers.curve.Cut` names them.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.records import RunRecord


@dataclass(frozen=True)
class CurvePoint:
    """One cut of one trial's network.

    `trial` is the name of the run whose model is cut, `settings` are those of the search space's choice that this cut
    changes ({"energy": 0.02}); none for the trial's own. `latency_ms` is foreseen, None without a table of times. Ratios are
    to the dense network. `score` is the validation accuracy after the recovery (`trainers.recovery`).
    """

    trial: str
    settings: dict[str, Any]
    macs: int
    macs_ratio: float
    params: int
    params_ratio: float
    score: float
    latency_ms: float | None = None


def final_curve(record: RunRecord) -> list[CurvePoint]:
    """Return the curve at the end of a complete trial, its own cut first; empty for a run that has none."""
    if record.curve is None or record.state != "COMPLETE" or not record.macs or not record.params:
        return []
    dense_macs, dense_params = dense_costs(record)
    return [
        CurvePoint(
            record.name,
            cut["settings"],
            cut["macs"],
            cut["macs"] / dense_macs,
            cut["params"],
            cut["params"] / dense_params,
            cut["score"],
            cut.get("latency_ms"),
        )
        for cut in json.loads(record.curve)
        if cut["epoch"] == record.epochs
    ]


def dense_costs(record: RunRecord) -> tuple[int, int]:
    """Return MACs and parameters of the dense network, which a record with costs has its ratios to.

    Whole numbers: a quotient is off by its rounding, and the network uncut would be a little cheaper than itself.
    """
    assert record.macs
    assert record.params
    assert record.macs_ratio
    assert record.params_ratio
    return round(record.macs / record.macs_ratio), round(record.params / record.params_ratio)


def candidates(trials: Sequence[RunRecord]) -> list[RunRecord]:
    """Return all that the final stage can choose from: each complete trial, and a row for each other cut of its network.

    Such a row has the trial's settings with those of the cut, its costs and scores, and the trial as its `source`; it is
    named after the trial and the cut's place on the curve, `trial-0003-cut-2`.
    """
    found = []
    for trial in trials:
        if trial.state == "COMPLETE":
            found.append(trial)
            settings = json.loads(trial.settings or "{}")
            points = list(enumerate(final_curve(trial)))[1:]
            found += [_candidate(trial, settings, place, point) for place, point in points]
    return found


def _candidate(trial: RunRecord, settings: dict[str, Any], place: int, point: CurvePoint) -> RunRecord:
    columns = {key: value for key, value in point.settings.items() if key in RunRecord.__dataclass_fields__}
    return replace(
        trial,
        name=f"{trial.name}-cut-{place}",
        source=trial.name,
        settings=json.dumps({**settings, **point.settings}),
        macs=point.macs,
        macs_ratio=point.macs_ratio,
        params=point.params,
        params_ratio=point.params_ratio,
        score=point.score,
        predicted_latency_ms=point.latency_ms,
        **columns,
        # measured for the trial's own cut alone
        val_accuracy=None,
        val_top5_accuracy=None,
        val_macro_f1=None,
        val_loss=None,
        rank_ratio=None,
        layers=None,
        ranks=None,
        curve=None,
    )


def trial_of(name: str) -> str:
    """Return the name of the trial whose network a candidate is a cut of."""
    return name.partition("-cut-")[0]


def curve_table(curve: str) -> dict[str, Any]:
    """Return a trial's curves as MLflow shows tables: {"columns", "data"}."""
    cuts = json.loads(curve)
    columns = ["epoch", "settings", "macs", "params", "score", "latency_ms"]
    return {"columns": columns, "data": [[_cell(cut.get(column)) for column in columns] for cut in cuts]}


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict) else value
