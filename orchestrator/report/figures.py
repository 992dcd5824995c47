"""The front, and how it came about: one pure function a picture, from typed data to a plotly figure.

Points carry their run's name as the first of their `customdata`: a page finds the run's row by it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from orchestrator.config import FinetuneConfig
from orchestrator.objectives import accuracy_of
from orchestrator.records import RunRecord
from orchestrator.report.progress import Progress
from orchestrator.report.series import (
    FrontSeries,
    all_points,
    hidden_cuts,
    short_name,
    spread_out,
    visible_accuracies,
)
from orchestrator.report.style import COLOURS, GREY, INK, PAPER, axis, layout

_X_LIMIT = 105.0  # percent of the dense network's MACs
_LABEL_GAP = 3.4  # percent of the axis between two slanted labels
Cost = Callable[[RunRecord], float | None]


def front_figure(series: FrontSeries, finetune: FinetuneConfig) -> go.Figure:
    """Accuracy (%) against MACs (% of the dense network): all cuts, the front before and after fine-tuning, the picks.

    The axis of accuracy begins where cuts could still be picked; what lies lower is counted, and double-clicking shows it.
    """
    figure = go.Figure(layout=layout(height=560, margin={"t": 96}, hovermode="closest"))
    _draw(figure, series, macs_percent, "%{x:.1f} % of dense, %{customdata[1]:,} MACs")
    figure.update_layout(
        xaxis=axis("MACs (% of the dense network)", range=[0, _X_LIMIT]), yaxis=_accuracy_axis(series, finetune)
    )
    _name_finalists(figure, series.finalists, macs_percent, _X_LIMIT)
    _count_hidden(figure, series)
    return figure


def latency_figure(series: FrontSeries, finetune: FinetuneConfig) -> go.Figure:
    """Accuracy (%) against measured latency (ms): the same points as the front's, those that have been timed."""
    timed = [record for record in all_points(series) if latency_ms(record) is not None]
    highest = max((latency_ms(record) or 0.0 for record in timed), default=1.0) * 1.08
    figure = go.Figure(layout=layout(height=500, margin={"t": 96}, hovermode="closest"))
    _draw(figure, series, latency_ms, "%{x:.3g} ms, %{customdata[1]:,} MACs")
    figure.update_layout(xaxis=axis("latency (ms)", range=[0, highest]), yaxis=_accuracy_axis(series, finetune))
    _name_finalists(figure, [record for record in series.finalists if record in timed], latency_ms, highest)
    return figure


def latency_ms(record: RunRecord) -> float | None:
    """Return the latency that was measured of a run's network, None where none was."""
    return record.latency_ms


def has_latency(series: FrontSeries) -> bool:
    """Whether any point of a sweep's picture has been timed."""
    return any(latency_ms(record) is not None for record in all_points(series))


def macs_percent(record: RunRecord) -> float | None:
    """Return a network's MACs in percent of the dense one's."""
    return None if record.macs_ratio is None else 100 * record.macs_ratio


def progress_figure(progress: Progress) -> go.Figure:
    """Hypervolume (share of the rectangle up to accuracy 0 and the dense network's MACs) over time and over computing."""
    figure = make_subplots(cols=2, shared_yaxes=True, horizontal_spacing=0.06)
    minutes = max(progress.wall_s, default=0.0) > 300
    for column, values in ((1, progress.wall_s), (2, progress.core_s)):
        figure.add_scatter(
            x=[value / 60 for value in values] if minutes else values,
            y=progress.hypervolume,
            customdata=[[name] for name in progress.names],
            mode="lines+markers",
            line={"color": COLOURS["blue"], "shape": "hv", "width": 2},
            marker={"size": 5},
            showlegend=False,
            hovertemplate="after %{customdata[0]}<br>%{x:.4g}: hypervolume %{y:.4f}<extra></extra>",
            row=1,
            col=column,
        )
    unit = "min" if minutes else "s"
    figure.update_layout(
        layout(height=360, min_width=560),
        xaxis=axis(f"wall time ({unit})", rangemode="tozero"),
        xaxis2=axis(f"CPU time of all runs (core-{unit})", rangemode="tozero"),
        yaxis=axis("hypervolume"),
        yaxis2=axis("", showticklabels=False),
    )
    return figure


def _draw(figure: go.Figure, series: FrontSeries, cost: Cost, cost_text: str) -> None:
    hover = f"<b>%{{customdata[0]}}</b><br>%{{y:.2f}} %<br>{cost_text}<extra></extra>"

    def add(records: Sequence[RunRecord | None], name: str, **style: Any) -> None:
        if any(record is not None and cost(record) is not None for record in records):
            figure.add_scatter(**_points(records, cost), name=name, hovertemplate=hover, **style)

    curves = [cut for curve in series.curves for cut in (*curve, None)]  # None: a gap between two curves
    add(curves, "curves of cuts", mode="lines", line={"color": GREY, "width": 0.7}, opacity=0.45)
    add(series.stopped, "stopped early", mode="markers", marker={"symbol": "x-thin", "size": 7, "line": {"color": GREY, "width": 1.3}}, opacity=0.7)  # fmt: skip  # noqa: E501
    add(series.trials, "trials", mode="markers", marker={"color": COLOURS["sky"], "size": 6})
    add(
        series.front,
        "front of the search",
        mode="lines+markers",
        line={"color": COLOURS["blue"], "dash": "dash", "shape": "hv", "width": 2},
        marker={"symbol": "square", "size": 8, "color": PAPER, "line": {"color": COLOURS["blue"], "width": 1.8}},
    )
    gains = [record for tuned in series.finalists for record in (series.before[tuned.name], tuned, None)]
    add(gains, "gain", mode="lines", line={"color": COLOURS["vermillion"], "dash": "dot", "width": 1}, showlegend=False)
    add(series.final_front, "front after fine-tuning", mode="lines", line={"color": COLOURS["vermillion"], "shape": "hv", "width": 2.2})  # fmt: skip  # noqa: E501
    add(
        series.finalists,
        "fine-tuned",
        mode="markers",
        marker={"symbol": "diamond", "size": 11, "color": COLOURS["vermillion"], "line": {"color": PAPER, "width": 1}},
    )
    if series.dense is not None:
        figure.add_hline(100 * (accuracy_of(series.dense) or 0), line={"color": INK, "width": 1, "dash": "dot"})
        add([series.dense], "dense baseline", mode="markers", marker={"symbol": "star", "size": 15, "color": INK})


def _points(records: Sequence[RunRecord | None], cost: Cost) -> dict[str, Any]:
    known = [record if record is None or cost(record) is not None else None for record in records]
    return {
        "x": [None if record is None else round(cost(record) or 0, 4) for record in known],
        "y": [None if record is None else round(100 * (accuracy_of(record) or 0), 4) for record in known],
        "customdata": [None if record is None else [record.name, record.macs] for record in known],
    }


def _accuracy_axis(series: FrontSeries, finetune: FinetuneConfig) -> dict[str, Any]:
    low, high = visible_accuracies(series, finetune)
    return axis("validation accuracy (%)", range=[low, high])


def _count_hidden(figure: go.Figure, series: FrontSeries) -> None:
    hidden, total = hidden_cuts(series, figure.layout.yaxis.range[0])
    if hidden:
        text = f"{hidden} of {total} cuts lie lower"
        figure.add_annotation(text=text, x=1, y=0, xref="paper", yref="paper", xanchor="right", yanchor="bottom", showarrow=False, font={"size": 11, "color": GREY})  # fmt: skip  # noqa: E501


def _name_finalists(figure: go.Figure, finalists: Sequence[RunRecord], cost: Cost, limit: float) -> None:
    """Names in a row above the axes, each with a thin line down to its point: they never cover each other."""
    gap = limit * _LABEL_GAP / 100
    ordered = sorted(finalists, key=lambda record: cost(record) or 0)
    places = spread_out([cost(record) or 0 for record in ordered], gap, 0.0, limit)
    for record, place in zip(ordered, places, strict=True):
        figure.add_annotation(
            text=short_name(record),
            x=place,
            y=1,
            yref="paper",
            xanchor="left",
            yanchor="bottom",
            textangle=-40,
            showarrow=False,
            font={"size": 11},
            name=record.name,
        )
        figure.add_shape(
            type="line",
            x0=place,
            x1=cost(record) or 0,
            y0=figure.layout.yaxis.range[1],
            y1=100 * (accuracy_of(record) or 0),
            line={"color": GREY, "width": 0.7},
        )
