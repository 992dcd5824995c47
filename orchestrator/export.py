"""`rankfront export`: a run of a sweep, by its name or a pick, or a model file, to a file for production."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from orchestrator.config import SweepConfig, dump_config, load_config
from orchestrator.curves import candidates, trial_of
from orchestrator.front import read_front
from orchestrator.jobs import finetune_job, job_configs
from orchestrator.output import read_json
from orchestrator.paths import SweepPaths
from orchestrator.picks import PICKS
from orchestrator.records import RunRecord, read_records
from trainers.errors import SweepError
from trainers.export.options import ExportOptions
from trainers.export.write import ExportReport, export_model
from trainers.recipe import MODEL_FILE

if TYPE_CHECKING:
    from trainers.data import ImageData
    from trainers.saved_model import SavedModel

_MADE_DENSE = "made_dense"  # in a run's metadata
_FACTS = ("stage", "source", "method", "decomposition", "rank_rule", "seed", "epochs")
_SCORES = ("score", "val_accuracy", "val_top5_accuracy", "test_accuracy", "test_top5_accuracy", "test_macro_f1")


@dataclass(frozen=True)
class Source:
    """What is exported: a model file, the configuration it was trained with, and its row in the sweep's table.

    `candidate`: the file holds a trial's network, and this cut of it is meant.
    """

    model_file: Path
    config: Path
    record: dict[str, Any]
    candidate: RunRecord | None = None


def export_run(run: Path, name: str | None, config: Path | None, output: Path, options: ExportOptions) -> ExportReport:
    """Export `name`, a run or a pick of the sweep in `run`, or, without it, the model file `run`; returns what was written.

    A run whose layers `rankfront latency` has timed is exported in the form that it found the fastest. A trial, or a cut of
    one such as `trial-0003-cut-2`, is exported as it was scored, without fine-tuning.

    `config` is the sweep's file where a model file lies outside a sweep's output directory. Raises SweepError where there is
    no such run, and what `trainers.export.write.export_model` raises.
    """
    from trainers.data import load_train_validation
    from trainers.saved_model import load_model

    source = find_source(run, name, config)
    loaded = load_config(source.config)
    saved = load_model(source.model_file)
    data = load_train_validation(loaded.data)
    if source.candidate is not None:
        saved = _cut(saved, source.candidate, loaded, data)
    facts = {"run": source.record, "config": yaml.safe_load(dump_config(loaded))}
    return export_model(saved, data, output, options, facts)


def find_source(run: Path, name: str | None, config: Path | None = None) -> Source:
    """Return what `run` and `name` stand for; see `export_run`."""
    if name is not None:
        return _named(SweepPaths.of(run), name)
    if (run / SweepPaths(run).config.name).exists():
        return _named(SweepPaths.of(run), "")
    model_file = (run / MODEL_FILE if run.is_dir() else run).absolute()
    if not model_file.is_file():
        raise SweepError(f"{run} must be a sweep's output directory or a model file ({MODEL_FILE}), but there is none")
    paths = SweepPaths(model_file.parents[2]) if len(model_file.parents) > 2 else None
    if paths is not None and paths.config.exists() and paths.run(model_file.parent.name) == model_file.parent:
        return Source(model_file, config or paths.config, _record(paths, model_file.parent.name))
    if config is None:
        raise SweepError(
            f"{model_file} lies in no sweep's output directory, and says nothing about its images; give --config with the "
            "sweep's file, whose `data` it was trained on"
        )
    return Source(model_file, config, {})


def _named(paths: SweepPaths, name: str) -> Source:
    front = read_front(paths.root)
    picks = {pick: point.name for pick, point in front.picks.items()} if front.finalists else {}
    run = picks.get(name, name)  # type: ignore[call-overload]  # any name may be asked for
    found = _candidate(paths, run)
    model_file = paths.run(run if found is None else trial_of(run)) / MODEL_FILE
    if not name or not model_file.is_file():
        finalists = ", ".join(point.name for point in front.finalists) or "none yet"
        known = ", ".join(picks) or f"none yet ({', '.join(PICKS)} are among finalists)"
        raise SweepError(
            f"a run of {paths.root} must be named that has a {MODEL_FILE}, but got {name!r}; picks: "
            f"{known}; finalists: {finalists}; cuts without fine-tuning are named as trial-0003-cut-2"
        )
    if found is not None:
        return Source(model_file, paths.config, _facts_of(run, found), found)
    deployed = paths.deployed(run)  # where `rankfront latency` found layers that are faster dense
    if not deployed.exists():
        return Source(model_file, paths.config, _record(paths, run))
    return Source(deployed, paths.config, {**_record(paths, run), _MADE_DENSE: _made_dense(paths, run)})


def _made_dense(paths: SweepPaths, run: str) -> dict[str, Any]:
    """Which layers were timed to be faster dense, and by what."""
    found = read_json(paths.latency, dict[str, Any]())
    timed: dict[str, Any] = next((row for row in found.get("networks", ()) if row["name"] == run), {})
    layers = found.get("made_dense", {}).get(run, [])
    return {"layers": layers, **{key: timed[key] for key in ("engine", "batch", "threads") if key in timed}}


def _candidate(paths: SweepPaths, name: str) -> RunRecord | None:
    """The cut of a complete trial that has this name: `trial-0003` stands for the trial's own."""
    trials = [
        record for record in read_records(paths.results) if record.stage == "trial" and record.name == trial_of(name)
    ]
    return next((cut for cut in candidates(trials) if cut.name == name), None)


def _cut(saved: "SavedModel", candidate: RunRecord, config: SweepConfig, data: "ImageData") -> "SavedModel":
    """Return the network that was scored: the final stage would begin with it."""
    from trainers.evaluation import evaluate_split
    from trainers.latency import threads
    from trainers.recipe import Setting, cut_network

    training, method = job_configs(finetune_job(candidate), config)
    setting = Setting(saved.spec, data, training, config.factorization)
    with threads(config.resources.cpus_per_trial):  # on other numbers of threads sums are rounded otherwise
        pruned, form = cut_network(setting, method, saved, config.curve)
        scores = evaluate_split(pruned.model, data, saved.training.dtype)
    metrics = {f"val_{name}": value for name, value in scores.items()}
    return replace(saved, model=pruned.model, form=form, history=[{"epoch": 0, "metrics": metrics}])


def _record(paths: SweepPaths, name: str) -> dict[str, Any]:
    """What the sweep's table says of a run, for the file's metadata."""
    return _facts_of(name, next((record for record in read_records(paths.results) if record.name == name), None))


def _facts_of(name: str, found: RunRecord | None) -> dict[str, Any]:
    values = {key: getattr(found, key, None) for key in (*_FACTS, *_SCORES)}
    return {"name": name, **{key: value for key, value in values.items() if value is not None}}


def described(report: ExportReport) -> list[str]:
    """Return what was written, line by line, for a terminal."""
    found, cost, weights = report.measured, report.metadata["cost"], report.metadata["weights"]
    batch_norm = f"{report.folded} BatchNorm folded" + (f", {report.left} left" if report.left else "")
    low_rank = sum(layer["form"] == "low_rank" for layer in report.metadata["layers"])
    made_dense = report.metadata.get("run", {}).get(_MADE_DENSE, {})
    dense = []
    if made_dense.get("layers"):
        timed = ", ".join(f"{key} {made_dense[key]}" for key in ("engine", "batch", "threads") if key in made_dense)
        dense.append(
            f"Dense    {', '.join(made_dense['layers'])}: faster so, as `rankfront latency` measured ({timed}); time them "
            "with what the file is for"
        )
    lines = [
        f"{report.path}: {report.size_bytes:,} bytes, {report.nodes} nodes, weights {weights}, {batch_norm}",
        f"Network  {cost['macs']:,} MACs ({100 * cost['macs_ratio']:.1f}% of the dense network's), {low_rank} low-rank "
        f"layers, {cost['params']:,} parameters ({100 * cost['params_ratio']:.1f}%)",
        *dense,
        f"Parity   on {found.images} validation images: logits differ by {found.max_abs_error:.2e} at most (the largest is "
        f"{found.max_abs_logit:.3g}), the first class agrees on {100 * found.top1_agreement:.2f}%",
    ]
    if found.val_accuracy is not None:
        before = report.metadata["accuracy"].get("val_accuracy")
        was = "" if before is None else f" (as trained {100 * before:.2f}%)"
        lines.append(f"Accuracy {100 * found.val_accuracy:.2f}% on validation data{was}")
    return lines
