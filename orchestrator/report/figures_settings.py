"""What trials chose and what mattered: parallel coordinates, and importances of parameters."""

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from orchestrator.report.settings import ABSENT, Axis, Importances
from orchestrator.report.style import COLOURS, GREY, INK, PAPER, axis, layout


def parallel_figure(axes: Sequence[Axis], names: Sequence[str], groups: Sequence[str]) -> go.Figure:
    """Each trial as a line through its settings, MACs and accuracy.

    `groups` puts each of `names` into "stopped", "complete", "front" (some cut is on the front of the search) or
    "finalist" (some cut was fine-tuned).
    """
    figure = go.Figure(
        layout=layout(
            height=460, min_width=90 * len(axes), margin={"l": 40, "r": 40, "t": 40, "b": 40}, hovermode="closest"
        )
    )
    for group, label, line, marker in (
        ("stopped", "stopped early", {"color": GREY, "width": 0.8, "dash": "dot"}, None),
        ("complete", "complete", {"color": GREY, "width": 0.8}, None),
        ("front", "on the front", {"color": COLOURS["blue"], "width": 1.8, "dash": "dash"}, ("square", PAPER)),
        ("finalist", "fine-tuned", {"color": COLOURS["vermillion"], "width": 2.4}, ("diamond", COLOURS["vermillion"])),
    ):
        members = [i for i, member in enumerate(groups) if member == group]
        if not members:
            continue
        shape = {"symbol": marker[0], "color": marker[1], "size": 7, "line": {"color": line["color"], "width": 1.5}} if marker else {}  # fmt: skip  # noqa: E501
        figure.add_scatter(
            x=[x for _ in members for x in (*range(len(axes)), None)],
            y=[y for i in members for y in (*(round(each.places[i], 4) for each in axes), None)],
            customdata=[row for i in members for row in (*([names[i]] for _ in axes), None)],
            mode="lines+markers" if marker else "lines",
            line=line,
            marker=shape,
            opacity=1 if marker else 0.5,
            name=label,
            hovertemplate="%{customdata[0]}<extra></extra>",
        )
    for x, each in enumerate(axes):
        figure.add_shape(type="line", x0=x, x1=x, y0=0, y1=1, line={"color": INK, "width": 1}, layer="below")
        for place, text in each.ticks:
            figure.add_annotation(text=_short(text), x=x, y=place, xanchor="left", xshift=4, showarrow=False, bgcolor=PAPER, opacity=0.9, font={"size": 10})  # fmt: skip  # noqa: E501
    if any(place == ABSENT for each in axes for place in each.places):
        figure.add_annotation(text="not set", x=0, y=ABSENT, xanchor="right", xshift=-4, showarrow=False, font={"size": 10, "color": GREY})  # fmt: skip  # noqa: E501
    bare = {"showgrid": False, "showline": False, "ticks": ""}
    figure.update_layout(
        xaxis=axis(
            "",
            **bare,
            tickvals=list(range(len(axes))),
            ticktext=[_wrapped(each.name) for each in axes],
            side="top",
            tickangle=0,
            range=[-0.35, len(axes) - 0.4],
        ),
        yaxis=axis("", **bare, showticklabels=False, range=[ABSENT - 0.06, 1.05]),
        legend={"y": 0},
    )
    return figure


def importance_figure(found: Importances) -> go.Figure:
    """Shares of the parameters in being among the best tenth of trials, in accuracy and in MACs."""
    order = sorted(found.accuracy, key=lambda name: found.accuracy[name] + found.macs.get(name, 0.0))
    figure = make_subplots(cols=2, shared_yaxes=True, horizontal_spacing=0.05)
    for column, values, colour, pattern in (
        (1, found.accuracy, COLOURS["blue"], ""),
        (2, found.macs, COLOURS["orange"], "/"),
    ):
        shares = [100 * values.get(name, 0.0) for name in order]
        figure.add_bar(
            x=shares,
            y=order,
            orientation="h",
            marker={"color": colour, "pattern": {"shape": pattern, "fgcolor": PAPER}},
            text=[f"{share:.0f}" if share >= 0.5 else "< 1" for share in shares],
            textposition="outside",
            cliponaxis=False,
            showlegend=False,
            hovertemplate="%{y}: %{x:.1f} %<extra></extra>",
            row=1,
            col=column,
        )
    figure.update_layout(
        layout(height=110 + 26 * len(order), min_width=600, bargap=0.3),
        xaxis=axis("importance for accuracy (%)", range=[0, 112]),
        xaxis2=axis("importance for MACs (%)", range=[0, 112]),
        yaxis=axis("", showgrid=False),
        yaxis2=axis("", showgrid=False, showticklabels=False),
    )
    return figure


def _wrapped(name: str) -> str:
    return name.replace("_", "<br>") if len(name) > 8 else name


def _short(text: str) -> str:
    return text if len(text) <= 16 else f"{text[:15]}…"
