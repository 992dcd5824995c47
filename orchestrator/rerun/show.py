"""What `rankfront rerun` prints."""

import json
import re
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.rerun.compare import TOLERANCE_TEXT, Difference
from orchestrator.rerun.prepare import Prepared
from orchestrator.rerun.repeat import REPORT_FILE, Repetition
from orchestrator.rerun.seeds import Spread

_MOST_ROWS = 20
_COMMIT = re.compile("[0-9a-f]{40}")


def print_changes(prepared: Prepared, console: Console) -> None:
    """Print what is otherwise here than in the record, and how the two will be compared."""
    what = prepared.name or "the sweep"
    if prepared.changes:
        rows = [(change.what, _text(change.recorded), _text(change.here)) for change in prepared.changes]
        console.print(_table(("differs", "recorded", "here"), rows))
    else:
        console.print("Settings, data, start, versions and hardware are those of the record")
    if prepared.inexact is None:
        console.print(f"{what} is compared bit for bit", markup=False)
    else:
        console.print(f"{what} is compared {TOLERANCE_TEXT}: {prepared.inexact}", markup=False)


def print_comparison(prepared: Prepared, found: Repetition, console: Console) -> None:
    """Print each difference, of many the first ones, and where all of them are."""
    what, comparison = prepared.name or "the sweep", found.comparison
    for record in found.records if prepared.name else ():
        if record.error:
            console.print(f"{what} failed: {record.error.strip().splitlines()[-1]}", markup=False, soft_wrap=True)
    for text in comparison.others:
        console.print(f"Not compared: {text}", markup=False)
    if comparison.differences:
        rows = [_row(difference) for difference in comparison.differences[:_MOST_ROWS]]
        console.print(_table(("run", "epoch", "metric", "recorded", "here"), rows))
        if (more := len(comparison.differences) - _MOST_ROWS) > 0:
            console.print(f"... and {more} more, in {found.root / REPORT_FILE}", markup=False, soft_wrap=True)
        console.print(f"{what} differs in {len(comparison.differences)} of {comparison.compared} values", markup=False)
    else:
        how = "are equal, bit for bit" if prepared.inexact is None else "agree within the tolerance"
        console.print(f"{what} agrees: {comparison.compared} values {how}", markup=False)
    console.print(f"Rerun  {found.root}", markup=False, soft_wrap=True)


def print_spread(spreads: list[Spread], console: Console) -> None:
    """Print mean and standard deviation of each metric, and where the recorded value lies among the seeds'."""
    rows = [
        (
            spread.metric,
            f"{spread.recorded:.6g}",
            f"{spread.mean:.6g}",
            f"{spread.std:.3g}",
            f"{(spread.recorded - spread.mean) / spread.std:+.2f} std" if spread.std > 0 else "",
            f"above {spread.below} of {len(spread.values)}",
        )
        for spread in spreads
    ]
    console.print(_table(("metric", "recorded", "mean", "std", "recorded - mean", "it lies"), rows))


def _row(difference: Difference) -> tuple[str, ...]:
    epoch = str(difference.epoch) if difference.epoch else ""
    return difference.run, epoch, difference.metric, _text(difference.recorded), _text(difference.found)


def _text(value: Any) -> str:
    if isinstance(value, str) and _COMMIT.fullmatch(value):
        return value[:12]
    if isinstance(value, dict | list | tuple):
        return json.dumps(value)
    return "-" if value is None else repr(value) if isinstance(value, float) else str(value)


def _table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    return table
