"""Colours of all pictures: those of Okabe and Ito (2008), told apart by colour-blind readers; shapes differ as well.

They are those of light pages. A dark page puts the colours of DARK in their places, by their values (`templates/plots.js`):
no colour that is to stay may equal one of them.
"""

from typing import Any

COLOURS = {
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "green": "#009E73",
    "orange": "#E69F00",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "yellow": "#F0E442",
}
GREY = "#808080"  # reads on white and on black
INK, PAPER, GRID = "#1B1B1A", "#FDFDFC", "#E4E4E2"
# what a dark page puts in their places; blue is too dark there
DARK = {INK: "#E8E8E6", PAPER: "#16181A", GRID: "#34383B", COLOURS["blue"]: "#3D9BDB"}
# one of each for lines that stand side by side: hue, dash and marker all differ
SERIES = [
    ("#0072B2", "solid", "circle"),
    ("#D55E00", "dash", "diamond"),
    ("#009E73", "dot", "square"),
    ("#CC79A7", "dashdot", "triangle-up"),
    ("#E69F00", "longdash", "cross"),
    ("#56B4E9", "longdashdot", "star"),
    ("#1B1B1A", "solid", "x"),
]
# one hue from light to dark, in even steps of lightness: it keeps its order in greyscale
SEQUENTIAL = [[0.0, "#EAF3FA"], [0.25, "#A9D0EA"], [0.5, "#56A5D6"], [0.75, "#0D70AE"], [1.0, "#00304D"]]
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

_AXIS = {
    "color": INK,
    "gridcolor": GRID,
    "linecolor": INK,
    "showline": True,
    "ticks": "outside",
    "ticklen": 4,
    "zeroline": False,
    "automargin": True,
    "title": {"standoff": 8},
}


def layout(height: int, min_width: int = 480, **more: Any) -> dict[str, Any]:
    """Return the layout that all pictures share, `height` pixels high, with `more` in it.

    A page lets the reader scroll sideways where it has less than `min_width` pixels.
    """
    margin = {"l": 60, "r": 16, "t": 24, "b": 56, **more.get("margin", {})}
    below = -56 / (height - margin["t"] - margin["b"])  # the legend: under the axis and its title, by plotly's measure
    return {
        "font": {"family": FONT, "size": 13, "color": INK},
        "paper_bgcolor": PAPER,
        "plot_bgcolor": PAPER,
        "height": height,
        "meta": {"min_width": min_width},
        "hoverlabel": {"bgcolor": PAPER, "bordercolor": GREY, "font": {"color": INK, "size": 12}, "align": "left"},
        "legend": {"orientation": "h", "x": 0, "y": below, "yanchor": "top", "font": {"size": 12}, "itemwidth": 36},
        **more,
        "margin": margin,
    }


def axis(title: str, **more: Any) -> dict[str, Any]:
    """Return an axis with its title and unit."""
    return {**_AXIS, **more, "title": {**_AXIS["title"], "text": title}}  # type: ignore[dict-item]
