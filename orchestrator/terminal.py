"""How tables and numbers look on a terminal."""

import os

from rich import box
from rich.console import Console
from rich.table import Table

_PIPE_WIDTH = 160


def plain_table(title: str, first_column: str) -> Table:
    """Return a table with a title on the left, few lines, and one column so far."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column(first_column, overflow="fold")  # names fold where there is no room, never figures
    return table


def console() -> Console:
    """Return standard output: as wide as the terminal; in a pipe or file, where nobody can widen it, wide enough."""
    found = Console()
    return found if found.is_terminal or "COLUMNS" in os.environ else Console(width=_PIPE_WIDTH)


def duration(seconds: float) -> str:
    """Return seconds as a person says them: 48 s, 12.5 min, 3.2 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def count(value: float | None) -> str:
    """Return a count in three digits or more, with its unit: 903.8 k, 40.55 M; a dash for None."""
    if value is None:
        return "–"  # noqa: RUF001  # an en dash
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:.4g} {unit}"
    return f"{value:g}"


def percent(value: float | None) -> str:
    """Return a fraction of 1 in percent with two decimals; empty for None."""
    return "" if value is None else f"{100 * value:.2f}"
