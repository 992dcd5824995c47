"""What `rankfront report` does: read the directory, draw, write the page and the pictures."""

from pathlib import Path

from orchestrator.report.images import write_images
from orchestrator.report.page import report_page
from orchestrator.report.pictures import pictures
from orchestrator.report.settings import study_trials
from orchestrator.report.sweep import read_sweep


def write_report(directory: Path, output: Path, png: Path | None = None) -> list[Path]:
    """Write the report of the sweep in `directory` to the file `output`, and its pictures into the folder `png` if given.

    Returns the files written. Raises SweepError where there is nothing to report, or pictures cannot be made into files.
    """
    sweep = read_sweep(directory)
    study = study_trials(sweep.paths.study)
    drawn = pictures(sweep, study)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(report_page(sweep, study, drawn), encoding="utf-8")
    written = [output]
    if png is not None:
        written += write_images({each.key: each.figure for each in drawn if each.figure is not None}, png)
    return written
