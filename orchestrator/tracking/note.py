"""The note of a sweep's parent run: what MLflow's UI shows first, in Markdown."""

from collections import Counter
from collections.abc import Sequence

from orchestrator.config import SweepConfig
from orchestrator.front import FrontPoint, SweepFront
from orchestrator.records import RunRecord

NOTE_TAG = "mlflow.note.content"
_MAX_LENGTH = 8000  # of a tag's value, in MLflow
_MAX_ROWS = 20


def sweep_note(
    front: SweepFront, records: Sequence[RunRecord], config: SweepConfig, picture: str | None, run_id: str
) -> str:
    """Return a summary with the front's picture (the artifact called `picture`) and table."""
    parts = [_summary(front, records, config)]
    if picture is not None and run_id:
        parts.append(f"![Accuracy against MACs](get-artifact?path={picture}&run_uuid={run_id})")
    if front.finalists:
        parts.append("### Finalists, after fine-tuning\n\n" + _table(front.finalists, front.dense, test=True))
    if front.front:
        parts.append("### Front before fine-tuning\n\n" + _table(front.front[:_MAX_ROWS], None, test=False))
        if len(front.front) > _MAX_ROWS:
            parts.append(f"and {len(front.front) - _MAX_ROWS} more: see the artifact `front.json`.")
    parts.append(_reading())
    return "\n\n".join(parts)[:_MAX_LENGTH]


def _summary(front: SweepFront, records: Sequence[RunRecord], config: SweepConfig) -> str:
    states = Counter(record.state for record in records if record.stage == "trial")
    core_s = sum(record.cpu_s or 0.0 for record in records)
    lines = [
        f"**{config.model.name}** on **{config.data.name}**, search space `{config.search_space}`: "
        f"{states['COMPLETE']} trials complete, {states['PRUNED']} stopped early, {states['FAIL']} failed; "
        f"{core_s:,.0f} core-seconds; hypervolume {front.hypervolume:.4f}."
    ]
    if front.dense is not None and front.dense.test_accuracy is not None:
        lines.append(f"Dense network: test accuracy {front.dense.test_accuracy:.2%}, {front.dense.macs:,} MACs.")
    return " ".join(lines)


def _table(points: Sequence[FrontPoint], dense: FrontPoint | None, *, test: bool) -> str:
    names = ["run", "MACs", "MACs removed", "parameters removed", "val accuracy", *(["test accuracy"] if test else [])]
    rows = [[point.name, *_cells(point, test=test)] for point in points]
    if dense is not None:
        rows.append(["dense", *_cells(dense, test=test)])
    lines = [names, ["---"] + ["---:"] * (len(names) - 1), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _cells(point: FrontPoint, *, test: bool) -> list[str]:
    seen = point.val_accuracy if point.score is None or test else point.score
    cells = [f"{point.macs:,}", f"{1 - point.macs_ratio:.1%}", f"{1 - point.params_ratio:.1%}", _percent(seen)]
    return [*cells, _percent(point.test_accuracy)] if test else cells


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _reading() -> str:
    return (
        "Filter the runs by `tags.pareto = 'true'` for the front, by `tags.stage = 'finetune'` for the finalists. A trial's "
        "cuts are in its artifact `curve.json`; a name such as `trial-0003-cut-2` is the second of them."
    )
