"""Pictures as PNG files, by kaleido, which drives an installed Chrome or Chromium."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.errors import SweepError

if TYPE_CHECKING:
    import plotly.graph_objects as go

_WIDTH = 1000  # px; the height is the figure's own
_SCALE = 2  # pixels of the file for one of the figure: 300 dpi at 17 cm


def write_images(figures: Mapping[str, "go.Figure"], folder: Path) -> list[Path]:
    """Write each figure to `folder/<key>.png`, 2000 pixels wide or what it needs; returns the files.

    Raises SweepError where kaleido is not installed, or finds no Chrome.
    """
    try:
        import plotly.io
        from kaleido.errors import ChromeNotFoundError
    except ImportError as error:
        raise SweepError("--png must have kaleido, but it is not installed; pip install 'rankfront[png]'") from error
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{key}.png" for key in figures]
    try:
        widths = [max(_WIDTH, figure.layout.meta["min_width"]) for figure in figures.values()]
        plotly.io.write_images(list(figures.values()), files, width=widths, scale=_SCALE)
    except RuntimeError as error:  # plotly's word for kaleido's ChromeNotFoundError
        if not isinstance(error.__context__, ChromeNotFoundError):
            raise
        raise SweepError(
            "--png must find Chrome or Chromium, but there is none; install one, or name it in BROWSER_PATH"
        ) from error
    return files
