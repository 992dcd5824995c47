"""What a sweep has found so far, for its readers: the front, the flat table, the picture, and the parent run in MLflow."""

import json
import logging
from typing import TYPE_CHECKING

from orchestrator.config import SweepConfig
from orchestrator.curves import trial_of
from orchestrator.front import SweepFront, sweep_front, write_front
from orchestrator.ledger import Ledger
from orchestrator.output import read_json, write_text
from orchestrator.paths import SweepPaths
from orchestrator.points import write_points
from orchestrator.records import RunRecord
from orchestrator.report.front_picture import front_png
from orchestrator.tracking.note import NOTE_TAG, sweep_note
from orchestrator.tracking.spool import PARENT
from orchestrator.tuned import on_trained_front
from trainers.atomic import atomic_file

if TYPE_CHECKING:
    from orchestrator.tracking.tracker import Tracker

_log = logging.getLogger(__name__)
_FLUSH_S = 30.0


def publish(ledger: Ledger, config: SweepConfig, paths: SweepPaths, tracker: "Tracker") -> None:
    """Write the front to the output directory and to MLflow, and tag its members."""
    tracker.flush(_FLUSH_S)  # so that the files name the runs by their ids
    ledger.save()
    records = ledger.records()
    front = sweep_front(records)
    write_front(front, paths)
    write_points(records, front, paths.points)
    with atomic_file(paths.front_picture) as file:
        file.write(front_png(records, config.finetune))
    _tag(front, records, paths, tracker)
    if values := _final_values(front):
        ended_at_s = max(record.ended_at_s or 0.0 for record in records)
        tracker.log_metrics(PARENT, values, len(ledger.records("trial")), ended_at_s, replaces=True)
    note = sweep_note(front, records, config, paths.front_picture.name, tracker.run_id(PARENT))
    picks = {f"pick_{name}": point.name for name, point in front.picks.items()}
    tracker.set_tags(PARENT, {NOTE_TAG: note, **picks})
    files = (
        paths.config,
        paths.layers,
        paths.environment,
        paths.front,
        paths.front_picture,
        paths.results,
        paths.points,
    )
    for path in files:
        if path.exists():
            tracker.log_artifact(PARENT, path)


def publish_report(paths: SweepPaths, tracker: "Tracker") -> None:
    """Write the report of a finished sweep into its directory, and store it with the parent run."""
    from orchestrator.report.write import write_report

    try:
        write_report(paths.root, paths.report)
    except Exception as error:  # noqa: BLE001  # a sweep of days does not fail for a page that can be made again
        _log.warning("the report was not written: %s; try `rankfront report %s`", error, paths.root)
    else:
        tracker.log_artifact(PARENT, paths.report)


def _tag(front: SweepFront, records: list[RunRecord], paths: SweepPaths, tracker: "Tracker") -> None:
    """Set `pareto` of trials with a cut on the search's front and of what is on the front of trained networks, and `pick`
    of the finalists that have a name.

    Runs begin with pareto "false", so that only changes need a call.
    """
    members = {trial_of(point.name) for point in front.front} | on_trained_front(records)
    picked = {point.name: ",".join(front.picked_as(point.name)) for point in front.finalists}
    before = read_json(paths.tagged, dict[str, dict[str, str]]())
    after = {
        name: {"pareto": str(name in members).lower(), "pick": picked.get(name, "")} for name in {*members, *picked}
    }
    for name in sorted({*before, *after}):
        tags = after.get(name, {"pareto": "false", "pick": ""})
        if tags != before.get(name):
            tracker.set_tags(name, tags)
    write_text(paths.tagged, json.dumps(after, indent=2, sort_keys=True) + "\n")


def _final_values(front: SweepFront) -> dict[str, float]:
    """The parent run's metrics at the end: what the finalists and the dense network reached."""
    values: dict[str, float] = {}
    for split in ("val", "test"):
        reached = [value for point in front.finalists if (value := getattr(point, f"{split}_accuracy")) is not None]
        if reached:
            values[f"best_{split}_accuracy"] = max(reached)
        if front.dense is not None and (dense := getattr(front.dense, f"{split}_accuracy")) is not None:
            values[f"dense_{split}_accuracy"] = dense
    return values
