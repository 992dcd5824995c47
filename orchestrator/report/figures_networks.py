"""What became of the networks: ranks, singular values, and the course of training."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from orchestrator.report.networks import History, RankTable, Spectrum
from orchestrator.report.style import GREY, INK, SEQUENTIAL, SERIES, axis, layout

_COLUMNS = 4  # panels in a row
_STAGES = {"pretrain": "full rank", "trial": "search", "finetune": "fine-tuning", "dense": ""}
_NUMBERS_UP_TO = 400  # cells whose ranks are written in them


def rank_figure(table: RankTable) -> go.Figure:
    """Rank by layer and network, as a share of the full rank; the columns go from the fewest MACs to the most."""
    percent = [[None if share is None else 100 * share for share in row] for row in table.shares]
    labels = [_bold_if_tuned(name) for name in table.names]
    small = len(table.layers) * len(table.names) <= _NUMBERS_UP_TO
    hover = [
        [[name, rank, 100 * ratio] for name, rank, ratio in zip(table.names, row, table.macs_ratios, strict=True)]
        for row in table.ranks
    ]
    figure = go.Figure(
        go.Heatmap(
            z=percent,
            x=labels,
            y=table.layers,
            customdata=hover,
            text=[["" if rank is None else str(rank) for rank in row] for row in table.ranks] if small else None,
            texttemplate="%{text}" if small else None,
            textfont={"size": 10},
            colorscale=SEQUENTIAL,
            zmin=0,
            zmax=100,
            xgap=1,
            ygap=1,
            colorbar={"title": {"text": "% of full rank", "side": "right"}, "thickness": 12, "outlinewidth": 0},
            hovertemplate="<b>%{customdata[0]}</b><br>%{customdata[2]:.1f} % of MACs<br>layer %{y}: rank %{customdata[1]} "
            "(%{z:.0f} % of full)<extra></extra>",
        )
    )
    figure.update_layout(
        layout(height=170 + 26 * min(len(table.layers), 40), min_width=160 + 36 * len(table.names)),
        xaxis=axis(
            "network, from the fewest MACs to the most (bold: fine-tuned)",
            type="category",
            tickangle=-50,
            showgrid=False,
        ),
        yaxis=axis("layer", type="category", autorange="reversed", showgrid=False),
    )
    return figure


def spectra_figure(spectra: Sequence[Spectrum]) -> go.Figure:
    """Singular values by layer, relative to the largest, of stage 1 and of each finalist after fine-tuning.

    A finalist's line ends at its rank: the mark there is where its spectrum was cut.
    """
    layers = list(dict.fromkeys(spectrum.layer for spectrum in spectra))
    columns = min(_COLUMNS, len(layers))
    rows = -(-len(layers) // columns)
    figure = make_subplots(rows, columns, subplot_titles=layers, shared_yaxes=True, horizontal_spacing=0.03, vertical_spacing=0.3 / rows)  # fmt: skip  # noqa: E501
    names = {role: list(dict.fromkeys(s.name for s in spectra if s.role == role)) for role in ("stage 1", "finalist")}
    for spectrum in spectra:
        place = layers.index(spectrum.layer)
        number = names[spectrum.role].index(spectrum.name)
        colour, dash, symbol = SERIES[number % len(SERIES)]
        before = spectrum.role == "stage 1"
        ends = [0] * (len(spectrum.values) - 1) + [9]
        figure.add_scatter(
            x=list(range(1, len(spectrum.values) + 1)),
            y=[float(f"{value:.4g}") for value in spectrum.values],
            customdata=[[spectrum.name]] * len(spectrum.values),
            mode="lines" if before else "lines+markers",
            line={"color": GREY, "width": 3 if number == 0 else 1.5} if before else {"color": colour, "dash": dash},
            marker={} if before else {"color": colour, "symbol": symbol, "size": ends},
            name=_label(spectrum.name),
            legendgroup=spectrum.name,
            showlegend=spectrum.layer == layers[0],
            hovertemplate="<b>%{customdata[0]}</b><br>value %{x}: %{y:.3g} of the largest<extra></extra>",
            row=place // columns + 1,
            col=place % columns + 1,
        )
    lowest = min(min(spectrum.values) for spectrum in spectra)
    figure.update_layout(layout(height=180 + 220 * rows, min_width=80 + 160 * columns, margin={"t": 40, "b": 100}))
    figure.update_xaxes(**axis("", rangemode="tozero"))
    figure.update_xaxes(title_text="singular value", row=rows)
    figure.update_yaxes(
        **axis("", type="log", range=[math.log10(max(lowest, 1e-6)) - 0.1, 0.1], dtick=1, exponentformat="power")
    )
    figure.update_yaxes(title_text="relative size", col=1)
    figure.update_annotations(font={"size": 12})
    return figure


def training_figure(histories: Sequence[History]) -> go.Figure:
    """Validation accuracy (%) by epoch, through all stages, of finalists, trials on the front and the dense baseline."""
    return _by_epoch(
        histories,
        lambda metrics: 100 * metrics["val_accuracy"] if "val_accuracy" in metrics else None,
        axis("validation accuracy (%)"),
        "%{y:.2f} %",
    )


def orthogonality_figure(histories: Sequence[History]) -> go.Figure:
    """How far U and V are from orthonormal by epoch: the mean of ||A^T A - I||_F, while they are trained."""
    measured = [history for history in histories if any("orthogonality_error" in m for m in history.metrics)]
    logarithmic = axis("orthogonality error", type="log", exponentformat="power")
    return _by_epoch(measured, lambda metrics: metrics.get("orthogonality_error"), logarithmic, "%{y:.3g}")


def has_orthogonality(histories: Sequence[History]) -> bool:
    """Whether any of the trainings measured its orthogonality error."""
    return any("orthogonality_error" in metrics for history in histories for metrics in history.metrics)


def _by_epoch(
    histories: Sequence[History],
    value: Callable[[dict[str, float]], float | None],
    y_axis: dict[str, Any],
    value_text: str,
) -> go.Figure:
    figure = go.Figure(layout=layout(height=440, margin={"t": 40}, hovermode="closest"))
    number = 0
    labelled = set()
    for history in sorted(histories, key=lambda each: ("front", "dense", "finalist").index(each.role)):
        style: dict[str, Any] = {"line": {"color": GREY, "width": 1}, "opacity": 0.6}
        name = "on the front, not fine-tuned"
        if history.role == "dense":
            style, name = {"line": {"color": INK, "width": 2, "dash": "dot"}}, "dense baseline"
        elif history.role == "finalist":
            colour, dash, symbol = SERIES[number % len(SERIES)]
            style = {"line": {"color": colour, "dash": dash, "width": 2}, "marker": {"color": colour, "symbol": symbol}}  # fmt: skip  # noqa: E501
            name, number = _label(history.name), number + 1
        points = [(x, y) for x, m in zip(history.epochs, history.metrics, strict=True) if (y := value(m)) is not None]
        if "marker" in style:
            style["marker"]["size"] = [0] * (len(points) - 1) + [9]
        figure.add_scatter(
            x=[x for x, _ in points],
            y=[y for _, y in points],
            customdata=[[history.name]] * len(points),
            mode="lines+markers" if "marker" in style else "lines",
            name=name,
            showlegend=name not in labelled,
            hovertemplate=f"<b>%{{customdata[0]}}</b><br>epoch %{{x}}: {value_text}<extra></extra>",
            **style,
        )
        labelled.add(name)
    _mark_stages(figure, histories)
    figure.update_layout(xaxis=axis("epoch, in all stages", rangemode="tozero"), yaxis=y_axis)
    return figure


def _mark_stages(figure: go.Figure, histories: Sequence[History]) -> None:
    """A line where each stage of the longest chain begins, and its name above."""
    longest = max(histories, key=lambda history: (len(history.stages), len(history.epochs)), default=None)
    end = max((x for trace in figure.data for x in trace.x), default=0)
    for stage, first in longest.stages if longest else ():
        if first > end:
            continue
        if first > 1:
            figure.add_vline(first - 0.5, line={"color": GREY, "width": 1, "dash": "dash"})
        figure.add_annotation(text=_STAGES[stage], x=first - 0.5, y=1, yref="paper", xanchor="left", yanchor="bottom", showarrow=False, font={"size": 12})  # fmt: skip  # noqa: E501


def _label(name: str) -> str:
    """A network's name where there is little room: `0003-cut-2`, `stage 1, spatial`."""
    return name.replace("pretrain-", "stage 1, ", 1).removeprefix("finetune-").removeprefix("trial-")


def _bold_if_tuned(name: str) -> str:
    return f"<b>{_label(name)}</b>" if name.startswith("finetune-") else _label(name)
