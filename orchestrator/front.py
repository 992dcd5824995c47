"""What a sweep found: the dense baseline, the search's front and the fine-tuned finalists, as data and as tables."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.curves import candidates
from orchestrator.objectives import accuracy_of, front_hypervolume, front_of, saves
from orchestrator.paths import SweepPaths
from orchestrator.picks import PickName, pick
from orchestrator.records import RunRecord, read_records
from orchestrator.terminal import count, percent, plain_table
from orchestrator.tuned import Finalist, fine_tuned


@dataclass(frozen=True)
class FrontPoint:
    """One model. Accuracies and ratios are fractions of 1, ratios to the dense network; MACs are of one sample.

    `score`: of a network that was cut, the validation accuracy after a cheap recovery. Of a finalist that was fine-tuned
    `num_runs` times, accuracies are means, `val_std` and `test_std` standard deviations; all three are None for one run.
    `latency_ms`: what `rankfront latency` measured.
    """

    name: str
    run_id: str
    val_accuracy: float | None
    score: float | None
    test_accuracy: float | None
    macs: int
    macs_ratio: float
    params: int
    params_ratio: float
    num_runs: int | None = None
    val_std: float | None = None
    test_std: float | None = None
    latency_ms: float | None = None

    @property
    def accuracy(self) -> float | None:
        """The validation accuracy that counts: the score where there is one, else `val_accuracy`."""
        return self.val_accuracy if self.score is None else self.score


@dataclass(frozen=True)
class SweepFront:
    """`front`: the search's non-dominated cuts, before fine-tuning. `finalists`: those that were fine-tuned.

    Both run from the fewest MACs to the most; `dense` is None until the baseline has ended. `picks`: the named models
    (`picks.pick`) among the finalists, as long as there are none among the front.
    """

    dense: FrontPoint | None
    front: list[FrontPoint]
    finalists: list[FrontPoint]
    before: dict[str, RunRecord]
    hypervolume: float
    picks: dict[PickName, FrontPoint] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The points as plain values; `test_accuracy` only where it was measured."""
        return {
            "dense": None if self.dense is None else _plain(self.dense),
            "front": [_plain(point) for point in self.front],
            "finalists": [_plain(point) for point in self.finalists],
            "picks": {name: point.name for name, point in self.picks.items()},
        }

    def picked_as(self, name: str) -> list[PickName]:
        """The names that the model of the run or cut called `name` has."""
        return [pick_name for pick_name, point in self.picks.items() if point.name == name]


def read_front(directory: Path) -> SweepFront:
    """Return the front of the sweep in `directory`; raises SweepError where there is none to be read."""
    paths = SweepPaths(directory)
    return sweep_front(read_records(paths.results))


def write_front(front: SweepFront, paths: SweepPaths) -> None:
    """Write `front.json`."""
    from orchestrator.output import write_text  # its configuration takes longer to import than a front to show

    write_text(paths.front, json.dumps(front.as_json(), indent=2) + "\n")


def sweep_front(records: list[RunRecord]) -> SweepFront:
    """Return the front of a sweep's table; a finalist is every network that was fine-tuned, whenever it was picked."""
    trials = [record for record in records if record.stage == "trial"]
    cuts = candidates(trials)
    tuned = sorted(fine_tuned(records), key=lambda finalist: finalist.record.macs or 0)
    by_name = {cut.name: cut for cut in cuts}
    dense = next((point_of(r) for r in records if r.stage == "dense" and r.state == "COMPLETE"), None)
    on_front = front_of(cuts)
    front = [point_of(record) for record in on_front]
    cheaper = [point_of(record) for record in on_front if saves(record)] or front
    finalists = [_finalist_point(finalist) for finalist in tuned]
    return SweepFront(
        dense,
        front,
        finalists,
        {finalist.record.name: by_name[finalist.candidate] for finalist in tuned if finalist.candidate in by_name},
        front_hypervolume(cuts),
        pick(finalists or cheaper, None if dense is None else dense.accuracy),
    )


def front_tables(front: SweepFront) -> RenderableType:
    """Return the two fronts, before and after fine-tuning, beside the dense baseline, for a terminal."""
    parts: list[RenderableType] = [_search_table(front)] if front.front or not front.finalists else []
    if front.finalists or front.dense:
        parts += [*([Text()] if parts else []), _finalist_table(front)]
    return Group(*parts)


def _search_table(front: SweepFront) -> Table:
    table = _table(f"Front before fine-tuning (hypervolume {front.hypervolume:.4f})")
    for point in front.front:
        table.add_row(
            _named(point, front), *_costs(point), percent(point.val_accuracy if point.score is None else point.score)
        )
    return table


def _finalist_table(front: SweepFront) -> Table:
    table = _table("Finalists, after fine-tuning")
    table.add_column("before\n%", justify="right", no_wrap=True)
    table.add_column("test\n%", justify="right", no_wrap=True, style="bold")
    table.add_column("to dense\npp", justify="right", no_wrap=True)
    dense_test = None if front.dense is None else front.dense.test_accuracy
    for point in front.finalists:
        before = front.before.get(point.name)
        table.add_row(
            _named(point, front),
            *_costs(point),
            _spread(point.val_accuracy, point.val_std),
            percent(accuracy_of(before) if before else None),
            _spread(point.test_accuracy, point.test_std),
            _difference(point.test_accuracy, dense_test),
        )
    if front.dense is not None:
        table.add_section()
        table.add_row("dense", *_costs(front.dense), percent(front.dense.val_accuracy), "", percent(dense_test), "")
    return table


def _named(point: FrontPoint, front: SweepFront) -> Text:
    """The model's name, and below it those it is picked under."""
    text = Text(point.name)
    if names := front.picked_as(point.name):
        text.append(f"\n  {', '.join(names)}", style="italic")
    return text


def _table(title: str) -> Table:
    table = plain_table(title, "run")
    for heading in ("MACs", "MACs\ncut %", "params\ncut %", "val\n%"):
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _costs(point: FrontPoint) -> tuple[str, str, str]:
    return (
        count(point.macs),
        percent(1 - point.macs_ratio),
        percent(1 - point.params_ratio),
    )


def _spread(mean: float | None, std: float | None) -> str:
    return percent(mean) if std is None else f"{percent(mean)} ± {100 * std:.2f}"


def _difference(value: float | None, base: float | None) -> str:
    return "" if value is None or base is None else f"{100 * (value - base):+.2f}"


def point_of(record: RunRecord) -> FrontPoint:
    """Return a complete run, or a cut of one, as a point."""
    costs = (record.macs, record.macs_ratio, record.params, record.params_ratio)
    assert None not in costs, record.name
    accuracies = (record.val_accuracy, record.score, record.test_accuracy)
    return FrontPoint(record.name, record.run_id, *accuracies, *costs, latency_ms=record.latency_ms)  # type: ignore[arg-type]


def _finalist_point(finalist: Finalist) -> FrontPoint:
    point = point_of(finalist.record)
    if finalist.num_runs == 1:
        return point
    return replace(point, num_runs=finalist.num_runs, val_std=finalist.val_std, test_std=finalist.test_std)


def _plain(point: FrontPoint) -> dict[str, Any]:
    return {key: value for key, value in asdict(point).items() if value is not None}
