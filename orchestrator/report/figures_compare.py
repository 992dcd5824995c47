"""The fronts of several sweeps in one picture, and how their hypervolumes grew."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from orchestrator.objectives import accuracy_of
from orchestrator.records import RunRecord
from orchestrator.report.compare import share_of
from orchestrator.report.progress import search_progress
from orchestrator.report.series import visible_accuracies
from orchestrator.report.style import PAPER, SERIES, axis, layout
from orchestrator.report.sweep import Sweep


def fronts_figure(sweeps: Sequence[Sweep], labels: Sequence[str], reference_macs: int) -> go.Figure:
    """Accuracy (%) against MACs (% of the reference): each sweep's front of the search, thin; after fine-tuning, thick."""
    figure = go.Figure(layout=layout(height=560, hovermode="closest"))
    for number, (sweep, label) in enumerate(zip(sweeps, labels, strict=True)):
        colour, dash, symbol = SERIES[number % len(SERIES)]
        thin, thick = ({"color": colour, "width": width, "dash": dash, "shape": "hv"} for width in (1, 2.5))
        hollow = {"symbol": symbol, "size": 6, "color": PAPER, "line": {"color": colour, "width": 1.2}}
        for records, name, line, marker in (
            (sweep.series.front, f"{label}, search", thin, hollow),
            (sweep.series.final_front, f"{label}, fine-tuned", thick, {"symbol": symbol, "size": 10, "color": colour}),
        ):
            if records:
                style = {"mode": "lines+markers", "name": name, "line": line, "marker": marker}
                figure.add_scatter(**_points(records, reference_macs), **style)
    ranges = [visible_accuracies(sweep.series, sweep.config.finetune) for sweep in sweeps]
    figure.update_layout(
        xaxis=axis("MACs (% of the largest dense network)", range=[0, 105]),
        yaxis=axis("validation accuracy (%)", range=[min(low for low, _ in ranges), max(high for _, high in ranges)]),
    )
    return figure


def courses_figure(sweeps: Sequence[Sweep], labels: Sequence[str]) -> go.Figure:
    """Hypervolume of each search, to its own dense network, over the CPU time of its runs."""
    figure = go.Figure(layout=layout(height=400, hovermode="closest"))
    for number, (sweep, label) in enumerate(zip(sweeps, labels, strict=True)):
        colour, dash, symbol = SERIES[number % len(SERIES)]
        progress = search_progress(sweep.records)
        figure.add_scatter(
            x=progress.core_s,
            y=progress.hypervolume,
            mode="lines+markers",
            name=label,
            line={"color": colour, "dash": dash, "shape": "hv"},
            marker={"symbol": symbol, "size": 5, "color": colour},
            hovertemplate="%{x:.4g} core-s: %{y:.4f}<extra>%{fullData.name}</extra>",
        )
    figure.update_layout(xaxis=axis("CPU time of all runs (core-s)", rangemode="tozero"), yaxis=axis("hypervolume"))
    return figure


def _points(records: Sequence[RunRecord], reference_macs: int) -> dict[str, Any]:
    return {
        "x": [100 * share_of(record, reference_macs) for record in records],
        "y": [100 * (accuracy_of(record) or 0) for record in records],
        "customdata": [[record.name, record.macs] for record in records],
        "hovertemplate": "<b>%{customdata[0]}</b><br>%{y:.2f} %<br>%{customdata[1]:,} MACs<extra>%{fullData.name}</extra>",
    }
