"""What `rankfront report` and `rankfront compare` write: pages, and pictures as files."""

from collections.abc import Sequence
from pathlib import Path

from orchestrator.report.compare import Comparison
from orchestrator.report.figures_compare import courses_figure, fronts_figure
from orchestrator.report.images import write_images
from orchestrator.report.page import comparison_page, report_page
from orchestrator.report.pictures import TEXTS, Picture, pictures
from orchestrator.report.settings import study_trials
from orchestrator.report.sweep import Sweep, read_sweep


def write_report(directory: Path, output: Path, png: Path | None = None) -> list[Path]:
    """Write the report of the sweep in `directory` to the file `output`, and its pictures into the folder `png` if given.

    Returns the files written. Raises SweepError where there is nothing to report, or pictures cannot be made into files.
    """
    sweep = read_sweep(directory)
    drawn = pictures(sweep, study_trials(sweep.paths.study))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(report_page(sweep, drawn), encoding="utf-8")
    written = [output]
    if png is not None:
        written += write_images({each.key: each.figure for each in drawn if each.figure is not None}, png)
    return written


def write_comparison(sweeps: Sequence[Sweep], comparison: Comparison, output: Path) -> None:
    """Write the page of a comparison to the file `output`."""
    names = [score.label for score in comparison.sweeps]
    figures = {
        "fronts": fronts_figure(sweeps, names, comparison.reference_macs),
        "courses": courses_figure(sweeps, names),
    }
    drawn = [Picture(key, *TEXTS[key], figure, "") for key, figure in figures.items()]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(comparison_page(comparison, drawn), encoding="utf-8")
