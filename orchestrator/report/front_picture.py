"""The front as a PNG without a browser: for MLflow's notes and for clusters, drawn by matplotlib's object API."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.config import FinetuneConfig
from orchestrator.objectives import accuracy_of
from orchestrator.records import RunRecord
from orchestrator.report.series import (
    FrontSeries,
    all_points,
    front_series,
    hidden_cuts,
    short_name,
    spread_out,
    visible_accuracies,
)
from orchestrator.report.style import COLOURS, GREY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INCHES = (7.2, 4.6)
_DPI = 100  # the description in MLflow's UI is about 740 pixels wide and shows pictures in their own size
_X_LIMIT = 105.0  # percent of the dense network's MACs
_LABEL_GAP = 4.2  # percent of MACs between two slanted labels


def front_png(records: Sequence[RunRecord], finetune: FinetuneConfig) -> bytes:
    """Return the front of a sweep's table as a PNG of 720 x 460 pixels; the same points as `front.sweep_front`.

    Accuracies are validation accuracies in percent, before fine-tuning the scores of cuts; MACs are in percent of the dense
    network's. A table without any finished trial gives empty axes that say so.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    series = front_series(records)
    figure = Figure(figsize=_INCHES, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _draw(axes, series)
    _limits(axes, series, finetune)
    _name_finalists(axes, series.finalists)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw(axes: "Axes", series: FrontSeries) -> None:
    from matplotlib.collections import LineCollection

    lines = LineCollection([list(zip(*_xy(curve), strict=True)) for curve in series.curves], linewidths=0.6)
    lines.set(color=GREY, alpha=min(0.35, max(0.03, 12 / (1 + len(series.curves)))), zorder=1)  # thousands: a haze
    axes.add_collection(lines, autolim=False)
    _points(axes, series.stopped, "stopped early", marker="x", color=GREY, s=22, alpha=0.7, linewidths=1)
    _points(
        axes, series.trials, "trials, with their curves", marker="o", color=COLOURS["sky"], s=9, alpha=0.8, linewidths=0
    )
    _line(axes, series.front, "front of the search", color=COLOURS["blue"], marker="s", mfc="white", ls="--")
    for finalist in series.finalists:
        before = series.before[finalist.name]
        axes.plot(*_xy([before, finalist]), color=COLOURS["vermillion"], linewidth=0.8, linestyle=":", zorder=3)
    _line(axes, series.final_front, "front after fine-tuning", color=COLOURS["vermillion"], marker="", ls="-")
    _points(axes, series.finalists, "fine-tuned", marker="D", color=COLOURS["vermillion"], s=34, edgecolors="white")
    if series.dense is not None:
        accuracy = 100 * (accuracy_of(series.dense) or 0)
        axes.axhline(accuracy, color="black", linewidth=0.7, linestyle=(0, (1, 3)), zorder=1)
        _points(axes, [series.dense], "dense baseline", marker="*", color="black", s=110)


def _limits(axes: "Axes", series: FrontSeries, finetune: FinetuneConfig) -> None:
    axes.set_xlabel("MACs (% of the dense network)")
    axes.set_ylabel("validation accuracy (%)")
    axes.set_xlim(0, _X_LIMIT)
    axes.grid(color=GREY, alpha=0.2, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    if not all_points(series):
        axes.text(0.5, 0.5, "no trial has finished yet", ha="center", va="center", transform=axes.transAxes)
        return
    low, high = visible_accuracies(series, finetune)
    axes.set_ylim(low, high)
    hidden, total = hidden_cuts(series, low)
    if hidden:
        text = f"{hidden} of {total} cuts lie lower"
        axes.text(0.99, 0.02, text, ha="right", color="#555555", fontsize=8, transform=axes.transAxes)


def _name_finalists(axes: "Axes", finalists: list[RunRecord]) -> None:
    """Names in a row above the axes, each with a thin line down to its point: they never cover each other."""
    places = spread_out([100 * (record.macs_ratio or 0) for record in finalists], _LABEL_GAP, 0.0, _X_LIMIT)
    top = axes.get_ylim()[1]
    for record, place in zip(finalists, places, strict=True):
        axes.annotate(
            short_name(record),
            xy=(100 * (record.macs_ratio or 0), 100 * (accuracy_of(record) or 0)),
            xytext=(place, top),
            textcoords="data",
            rotation=40,
            rotation_mode="anchor",
            ha="left",
            va="bottom",
            fontsize=8,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": GREY, "shrinkB": 3, "relpos": (0, 0)},
        )


def _points(axes: "Axes", records: list[RunRecord], label: str, **style: Any) -> None:
    if records:
        axes.scatter(*_xy(records), label=label, zorder=4 if style["marker"] in "D*" else 2, **style)


def _line(axes: "Axes", records: list[RunRecord], label: str, **style: Any) -> None:
    if records:
        axes.plot(*_xy(records), drawstyle="steps-post", label=label, linewidth=1.4, markersize=4, zorder=3, **style)


def _xy(records: list[RunRecord]) -> tuple[list[float], list[float]]:
    return (
        [100 * (record.macs_ratio or 0) for record in records],
        [100 * (accuracy_of(record) or 0) for record in records],
    )
