"""All pictures of a sweep in the order of a report: each with its figure, or with the reason why there is none."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial

from orchestrator.curves import trial_of
from orchestrator.report.figures import front_figure, has_latency, latency_figure, progress_figure
from orchestrator.report.figures_networks import (
    has_orthogonality,
    orthogonality_figure,
    rank_figure,
    spectra_figure,
    training_figure,
)
from orchestrator.report.figures_settings import importance_figure, parallel_figure
from orchestrator.report.networks import History, histories, rank_table, spectra
from orchestrator.report.progress import search_progress
from orchestrator.report.settings import importances, settings_axes
from orchestrator.report.sweep import Sweep

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Picture:
    """One picture: `key` names its file and its place in the page; `figure` is None where `reason` says why."""

    key: str
    title: str
    caption: str
    figure: "go.Figure | None"
    reason: str


def pictures(sweep: Sweep, study: Sequence[FrozenTrial]) -> list[Picture]:
    """Draw all pictures of a sweep; `study` holds the trials of its Optuna study."""
    trained = histories(sweep)
    makers: dict[str, Callable[[], go.Figure | str]] = {
        "front": lambda: _front(sweep),
        "latency": lambda: latency_figure(sweep.series, sweep.config.finetune),
        "hypervolume": lambda: _hypervolume(sweep),
        "importances": lambda: _importances(study),
        "settings": lambda: _settings(sweep),
        "ranks": lambda: _ranks(sweep),
        "spectra": lambda: _spectra(sweep),
        "training": lambda: _training(trained),
        "orthogonality": lambda: _orthogonality(trained),
    }
    if not has_latency(sweep.series):  # not every sweep measures it: no picture, and no word about it
        del makers["latency"]
    return [_picture(key, make()) for key, make in makers.items()]


def _picture(key: str, made: "go.Figure | str") -> Picture:
    title, caption = TEXTS[key]
    return Picture(key, title, caption, None, made) if isinstance(made, str) else Picture(key, title, caption, made, "")


def _front(sweep: Sweep) -> "go.Figure | str":
    series = sweep.series
    if not (series.trials or series.stopped or series.finalists):
        return "no trial has finished with an accuracy yet"
    return front_figure(series, sweep.config.finetune)


def _hypervolume(sweep: Sweep) -> "go.Figure | str":
    progress = search_progress(sweep.records)
    return progress_figure(progress) if any(progress.hypervolume) else "no trial is complete yet"


def _settings(sweep: Sweep) -> "go.Figure | str":
    trials = [trial for trial in sweep.trials if trial.state != "FAIL"]
    if len(trials) < 2:
        return "at least two trials are needed that have not failed"
    tuned = {trial_of(cut.name) for cut in sweep.series.before.values()}
    front = {trial_of(cut.name) for cut in sweep.series.front}

    def group(name: str, state: str) -> str:
        if state == "PRUNED":
            return "stopped"
        return "finalist" if name in tuned else "front" if name in front else "complete"

    groups = [group(trial.name, trial.state) for trial in trials]
    return parallel_figure(settings_axes(trials), [trial.name for trial in trials], groups)


def _importances(study: Sequence[FrozenTrial]) -> "go.Figure | str":
    found = importances(study)
    return found if isinstance(found, str) else importance_figure(found)


def _ranks(sweep: Sweep) -> "go.Figure | str":
    table = rank_table(sweep)
    return "no trial on the front has ranks and a model file yet" if table is None else rank_figure(table)


def _spectra(sweep: Sweep) -> "go.Figure | str":
    found = spectra(sweep)
    return spectra_figure(found) if found else "nothing has been fine-tuned yet, or the model files are not there"


def _training(trained: Sequence[History]) -> "go.Figure | str":
    return training_figure(trained) if trained else "no trial is complete yet, or the model files are not there"


def _orthogonality(trained: Sequence[History]) -> "go.Figure | str":
    if not has_orthogonality(trained):
        return (
            "none of the networks on the front was trained with orthonormal factors, or the model files are not there"
        )
    return orthogonality_figure(trained)


TEXTS = {
    "fronts": (
        "The fronts",
        "Each sweep's front of the search, thin, by scores after a short recovery, and after fine-tuning, thick. All on "
        "validation data.",
    ),
    "courses": (
        "Hypervolume",
        "Of each search as it went on, up to accuracy 0 and its own dense network's MACs, over the CPU time of its runs.",
    ),
    "front": (
        "The front",
        "Each faint line is one trial, cut at many budgets. Dashed: the front of the search, by scores after a short "
        "recovery. Solid: after fine-tuning; dotted lines join each pick to what it was before. Validation data throughout.",
    ),
    "latency": (
        "Accuracy against latency",
        "The same networks by the time that one batch was measured to take. MACs that are cut do not always cut time.",
    ),
    "hypervolume": (
        "Hypervolume",
        "The area between the front of the search and the point (accuracy 0, MACs of the dense network), as a share of 1: "
        "over wall time since the first run began, and over the CPU time of all runs. Flat: the search no longer finds "
        "better networks.",
    ),
    "settings": (
        "Settings",
        "Each line is a trial, through what it chose to what came out. Numbers that span a factor of 30 or more are on "
        'logarithmic axes; "not set" are settings that its method does not have. MACs and accuracy are of the trial\'s '
        "own cut; another of its curve may be on the front.",
    ),
    "importances": (
        "What mattered",
        "How much each parameter decides whether a trial is among the best tenth, for each objective alone (conditional "
        "PED-ANOVA, over the complete trials of the study and the points of their curves).",
    ),
    "ranks": (
        "Ranks",
        "The rank of each layer as a share of its full rank; the number is the rank. A layer at its full rank stays dense: "
        "two thin layers would not be cheaper.",
    ),
    "spectra": (
        "Singular values",
        "Of each layer's weight, relative to the largest. Grey: stage 1, the network at full rank. Coloured: finalists; "
        "each ends in its mark, at its rank.",
    ),
    "training": (
        "Training",
        "Validation accuracy through all stages. During the search it is that of the network right after the cut, without "
        "recovery: it can fall far, and fine-tuning brings it back.",
    ),
    "orthogonality": (
        "Orthogonality",
        "How far the factors U and V are from orthonormal while they are trained. The cut takes an exact SVD first, so that "
        "this error costs no accuracy there.",
    ),
}
