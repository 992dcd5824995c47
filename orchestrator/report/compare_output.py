"""A comparison as tables for a terminal, as CSV and as JSON."""

import csv
import io
import json
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.report.compare import Comparison, SweepScore
from orchestrator.terminal import count, duration, percent, plain_table


def print_comparison(comparison: Comparison, form: str, console: Console) -> None:
    """Print a comparison as "table", "json" or "csv"; its warnings are in the JSON alone."""
    if form == "json":
        console.file.write(json.dumps(comparison.as_json(), indent=2) + "\n")
    elif form == "csv":
        console.file.write(_csv(comparison))
    else:
        console.print(comparison_tables(comparison))


def comparison_tables(comparison: Comparison) -> RenderableType:
    """Return two tables: cost and hypervolume; accuracies within the same budgets."""
    reference = Text(
        f"Reference point: accuracy 0, {count(comparison.reference_macs)} MACs (the largest dense network). "
        "Budgets are shares of these MACs."
    )
    return Group(reference, Text(), _cost_table(comparison.sweeps), _budget_table(comparison.sweeps))


def _cost_table(sweeps: Sequence[SweepScore]) -> Table:
    table = plain_table("Hypervolume and cost", "sweep")
    for heading in ("trials", "CPU time", "hypervolume\nsearch", "hypervolume\nfine-tuned", "dense\ntest %"):
        table.add_column(heading, justify="right", no_wrap=True)
    for score in sweeps:
        tuned = "" if score.finetuned_hypervolume is None else f"{score.finetuned_hypervolume:.4f}"
        volumes = f"{score.search_hypervolume:.4f}", tuned
        table.add_row(
            score.label, str(score.num_trials), duration(score.core_s), *volumes, percent(score.dense_test_accuracy)
        )
    return table


def _budget_table(sweeps: Sequence[SweepScore]) -> Table:
    table = plain_table("Best accuracy (%) within a budget of MACs", "sweep")
    table.add_column("of", no_wrap=True)
    for reached in sweeps[0].reached:
        table.add_column(f"{100 * reached.budget:g} %", justify="right", no_wrap=True)
    for score in sweeps:
        table.add_row(score.label, "search", *(percent(reached.score) for reached in score.reached))
        if score.finetuned_hypervolume is not None:
            table.add_row("", "tuned, test", *(percent(reached.test_accuracy) for reached in score.reached))
    return table


def _csv(comparison: Comparison) -> str:
    rows = comparison.rows()
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
