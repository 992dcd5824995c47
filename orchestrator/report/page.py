"""Pages, of a sweep and of a comparison: one HTML file that holds all it needs, and asks the network for nothing."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import plotly.offline
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from orchestrator.curves import trial_of
from orchestrator.objectives import accuracy_of
from orchestrator.records import RunRecord
from orchestrator.report.compare import Comparison
from orchestrator.report.pictures import Picture
from orchestrator.report.rows import table_data
from orchestrator.report.style import DARK
from orchestrator.report.sweep import Sweep
from orchestrator.terminal import count, duration


@dataclass(frozen=True)
class Pick:
    """A finalist as the page shows it; `names` are those of `picks.pick`."""

    record: RunRecord
    names: Sequence[str]
    before: float | None
    load: str
    rerun: str


def report_page(sweep: Sweep, pictures: Sequence[Picture]) -> str:
    """Return the page. It is meant for a browser, opened as a file."""
    series = sweep.series
    trials = sweep.trials
    return page(
        "report.html",
        pictures,
        title=sweep.config.name,
        sweep=sweep,
        series=series,
        states={state: sum(trial.state == state for trial in trials) for state in ("COMPLETE", "PRUNED", "FAIL")},
        best=sweep.front.picks["best"] if series.finalists else None,
        best_cut=max((accuracy_of(cut) or 0.0 for cut in series.front), default=None),
        hypervolume=sweep.front.hypervolume,
        wall_s=wall_s(sweep.records),
        core_s=core_s(sweep.records),
        picks=[_pick(sweep, record) for record in series.finalists],
        config_text=sweep.paths.config.read_text(),
        versions={name: version(name) for name in ("rankfront", "plotly", "optuna", "torch")},
        table=embedded(json.dumps(table_data(sweep), separators=(",", ":"), allow_nan=False)),
    )


def comparison_page(comparison: Comparison, pictures: Sequence[Picture]) -> str:
    """Return the page of a comparison of sweeps."""
    return page("compare.html", pictures, comparison=comparison)


def page(template: str, pictures: Sequence[Picture], **values: Any) -> str:
    """Fill a template of this package; every value is escaped, except Markup. plotly.js, scripts and styles are put in."""
    loader = PackageLoader("orchestrator.report")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": percent, "duration": duration, "count": count}

    def source(name: str) -> Markup:
        return Markup(loader.get_source(environment, name)[0])  # noqa: S704  # the package's own file

    return environment.get_template(template).render(
        source=source,
        plotly_js=Markup(plotly.offline.get_plotlyjs().replace("</script", "<\\/script")),  # noqa: S704  # plotly's own
        theme=embedded(json.dumps(DARK)),
        pictures=pictures,
        figures={each.key: embedded(each.figure.to_json()) for each in pictures if each.figure is not None},
        **values,
    )


def embedded(text: str) -> Markup:
    """Return JSON as it may stand in a <script> element: no content can end it, or open a comment."""
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704  # made harmless right above


def wall_s(records: Sequence[RunRecord]) -> float:
    """Return the seconds from the start of the first run to the end of the last, pauses included."""
    ended = [record for record in records if record.ended_at_s is not None]
    if not ended:
        return 0.0
    begin = min((record.ended_at_s or 0) - (record.duration_s or 0) for record in ended)
    return max(record.ended_at_s or 0 for record in ended) - begin


def core_s(records: Sequence[RunRecord]) -> float:
    """Return the CPU time of all runs, in seconds."""
    return sum(record.cpu_s or 0.0 for record in records)


def percent(value: float | None, digits: int = 2) -> str:
    """Return a fraction of 1 in percent, a dash for None."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"  # noqa: RUF001  # an en dash


def _pick(sweep: Sweep, record: RunRecord) -> Pick:
    before = sweep.series.before[record.name]
    model = (sweep.directory / "runs" / record.name / "model.pt").as_posix()
    load = (
        "from pathlib import Path\n\nfrom trainers import load_model\n\n"
        f"model = load_model(Path({model!r})).model  # on the CPU"
    )
    directory = shlex.quote(sweep.directory.as_posix())
    rerun = "\n".join(f"rankfront rerun {directory} {name}" for name in (trial_of(before.name), record.name))
    return Pick(record, sweep.front.picked_as(record.name), accuracy_of(before), load, rerun)
