"""The command line: verbs only. Heavy imports happen inside the verbs."""

import json
import os
import shlex
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console

from trainers.errors import ConfigError, RankfrontError

if TYPE_CHECKING:
    from orchestrator.selection import Bound

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

_Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="The sweep's YAML file.")]
_Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. search.seed=1.")
]
_Dir = Annotated[Path, typer.Argument(metavar="DIR", help="A sweep's output directory.")]

_BOUND = "The most {}: a count (1.2e6, 900k, 40M) or a share of the dense network (50%)."

INTERRUPTED = 130  # the shell's code for a process ended by Ctrl-C
NOTHING_MATCHES = 1  # as grep's
NOT_VERIFIED = 1

T = TypeVar("T")


class ExportFormat(StrEnum):
    """The files of `rankfront export`."""

    PT2 = "pt2"
    ONNX = "onnx"
    SAFETENSORS = "safetensors"


class Weights(StrEnum):
    """The numbers in them."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"


class Format(StrEnum):
    """How a front, or a comparison of fronts, is printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


@app.callback()
def rankfront() -> None:
    """Find the best accuracy-versus-compute trade-offs of a neural network by low-rank training."""


@app.command()
def sweep(
    config: _Config,
    set_: _Set = None,
    output: Annotated[Path | None, typer.Option(help="Output directory [default: runs/<name>].")] = None,
) -> None:
    """Run a sweep: train, search, fine-tune the Pareto-optimal models. Goes on with one that was interrupted."""
    from orchestrator.config import load_config
    from orchestrator.front import front_tables
    from orchestrator.pipeline import run_sweep

    loaded = load_config(config, set_ or [])
    folder = output or Path("runs") / loaded.name
    console = Console()
    try:
        front = run_sweep(loaded, folder, console)
    except KeyboardInterrupt:
        overrides = [part for text in set_ or [] for part in ("--set", text)]
        command = shlex.join(["rankfront", "sweep", str(config), *overrides, "--output", str(folder)])
        print(f"\nStopped. Go on with:\n  {command}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    console.print(front_tables(front))
    print(f"Table    {folder}/results.parquet\nModels   {folder}/runs/<run>/model.pt")
    print(f"Report   {folder}/report.html\nMLflow   rankfront ui {folder}")


@app.command()
def validate(config: _Config, set_: _Set = None) -> None:
    """Check a configuration, its search space and its data without training anything."""
    from orchestrator.config import dump_config, load_config
    from orchestrator.jobs import pretrain_job
    from orchestrator.plan import plan_sweep

    loaded = load_config(config, set_ or [])
    plan = plan_sweep(loaded)
    cost = plan.dense_cost
    print(dump_config(loaded), end="")
    print(f"# valid. Dense network: {cost.macs:,} MACs ({cost.flops:,} FLOPs), {cost.params:,} parameters")
    print(f"# counted by {cost.counter}; operators not counted: {', '.join(cost.uncounted) or 'none'}")
    print(
        f"# runs of stage 1 that the search space needs: {', '.join(pretrain_job(start).name for start in plan.starts)}"
    )
    for layer in plan.layers:
        print(
            f"#   {layer.name} ({layer.kind}, {layer.params:,}): {layer.status}{layer.reason and ', ' + layer.reason}"
        )


def _bound(text: str) -> "Bound":
    from orchestrator.selection import parse_bound

    return _parsed(parse_bound, text)


def _accuracy(text: str) -> float:
    from orchestrator.selection import parse_accuracy

    return _parsed(parse_accuracy, text)


def _parsed(parse: "Callable[[str], T]", text: str) -> "T":
    try:
        return parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


_MaxMacs = Annotated[Any, typer.Option(parser=_bound, metavar="N", help=_BOUND.format("MACs"))]
_MaxParams = Annotated[Any, typer.Option(parser=_bound, metavar="N", help=_BOUND.format("parameters"))]
_MinAccuracy = Annotated[
    Any, typer.Option(parser=_accuracy, metavar="A", help="The least validation accuracy: 0.97 or 97%.")
]


@app.command()
def front(
    directory: _Dir,
    max_macs: _MaxMacs = None,
    max_params: _MaxParams = None,
    min_accuracy: _MinAccuracy = None,
    max_latency: Annotated[
        float | None, typer.Option(metavar="MS", help="The longest latency that was measured (`rankfront latency`).")
    ] = None,
    knee: Annotated[bool, typer.Option("--knee", help="The front's knee alone, within the limits.")] = False,
    format_: Annotated[Format, typer.Option("--format", help="csv: one line a model.")] = Format.TABLE,
) -> None:
    """Print a sweep's front before and after fine-tuning, beside the dense baseline.

    With a limit or --knee: the finalists, or before there are any the cuts on the search's front, that match. Exit code 1
    where none does.
    """
    from orchestrator.front import front_tables, read_front
    from orchestrator.selection import Limits, NothingMatchesError, as_csv, select

    found, limits = read_front(directory), Limits(max_macs, max_params, min_accuracy, max_latency)
    if knee or limits != Limits():
        try:
            found = select(found, limits, knee=knee)
        except NothingMatchesError as error:
            print(f"Nothing matches: {error}", file=sys.stderr)
            raise typer.Exit(NOTHING_MATCHES) from None
    if format_ is Format.TABLE:
        Console().print(front_tables(found))
    else:
        print(as_csv(found) if format_ is Format.CSV else json.dumps(found.as_json(), indent=2) + "\n", end="")


@app.command()
def finetune(
    directory: _Dir,
    pick: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A candidate, e.g. trial-0003-cut-2; may be repeated.")
    ] = None,
    num: Annotated[
        int | None, typer.Option(min=1, help="At most so many [default: the sweep's finetune.num_models].")
    ] = None,
    max_macs: _MaxMacs = None,
    max_params: _MaxParams = None,
    min_accuracy: _MinAccuracy = None,
    knee: Annotated[bool, typer.Option("--knee", help="The knee of the candidates within the limits.")] = False,
    repeats: Annotated[int | None, typer.Option(min=1, help="Seeds for each [default: the sweep's].")] = None,
) -> None:
    """Fine-tune more of a sweep's candidates: any cut of any trial. What is fine-tuned already is not run again.

    Without --pick: those that add most to the front of all cuts within the limits, by their scores before fine-tuning.
    """
    from orchestrator.choice import Choice
    from orchestrator.front import front_tables
    from orchestrator.pipeline import run_finetuning
    from orchestrator.selection import Limits

    if pick and (num or knee or any(limit is not None for limit in (max_macs, max_params, min_accuracy))):
        raise typer.BadParameter("--pick says which; it excludes --num, --knee and limits")
    choice = Choice(tuple(pick or ()), num, Limits(max_macs, max_params, min_accuracy), knee)
    console = Console()
    console.print(front_tables(run_finetuning(directory, choice, repeats, console)))


@app.command()
def latency(
    directory: _Dir,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Images a batch [default: 1 and 64].")] = None,
    threads: Annotated[list[int] | None, typer.Option(min=1, help="Threads on the CPU [default: 1 and all].")] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Also by torch.compile.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    rounds: Annotated[int, typer.Option(min=2, help="Rounds, in each of which every network is timed once.")] = 15,
) -> None:
    """Time the finalists beside the dense network on this machine; layers that are faster dense are deployed dense."""
    from orchestrator.latency import Settings, latency_tables, measure

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    settings = Settings(
        batches=tuple(batch or (1, 64)),
        threads=tuple(threads or dict.fromkeys((1, cores))),
        engines=("eager", "compile") if compiled else ("eager",),
        device=device,
        rounds=rounds,
    )
    Console().print(latency_tables(measure(directory, settings)))


@app.command()
def rerun(
    directory: _Dir,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A run of it, such as trial-0003 [default: the whole sweep].")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Exit code 1 where a metric is not the record's.")] = False,
    set_: _Set = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Train with N other seeds instead: mean and spread.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="A new folder for it [default: DIR/reruns/<name>-<n>].")] = None,
) -> None:
    """Train a recorded run, or the whole sweep, again, and compare every metric with the record."""
    from orchestrator.rerun.prepare import prepare
    from orchestrator.rerun.repeat import repeat
    from orchestrator.rerun.seeds import repeat_with_seeds
    from orchestrator.rerun.show import print_changes, print_comparison, print_spread

    if seeds is not None and (name is None or verify or output is not None):
        raise typer.BadParameter("--seeds needs a NAME, and neither --verify nor --output")
    console = Console()
    prepared = prepare(directory, name, set_ or [])
    print_changes(prepared, console)
    try:
        if seeds is not None:
            print_spread(repeat_with_seeds(prepared, seeds), console)
            return
        if verify and prepared.input_changes:
            print("Not verified: with the changes above nothing can agree; nothing was trained", file=sys.stderr)
            raise typer.Exit(NOT_VERIFIED)
        found = repeat(prepared, output, console)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    print_comparison(prepared, found, console)
    if verify and found.comparison.differences:
        raise typer.Exit(NOT_VERIFIED)


@app.command()
def sync(directory: _Dir) -> None:
    """Send to MLflow what a sweep could not: its store was away, or the sweep was killed."""
    from orchestrator.paths import SweepPaths
    from orchestrator.sync import sync as send

    found = send(SweepPaths(directory.absolute()))
    print(f"{found.waiting - found.left} of {found.waiting} records sent to {found.store}")
    if found.left:
        raise typer.Exit(1)


@app.command()
def report(
    directory: _Dir,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="The page [default: DIR/report.html].")] = None,
    png: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Also write each picture as PNG.")] = None,
) -> None:
    """Write a sweep's report, finished or running: one HTML file with its pictures, its table and where it comes from."""
    from orchestrator.paths import SweepPaths
    from orchestrator.report.write import write_report

    for path in write_report(directory, output or SweepPaths(directory).report, png):
        print(path)


@app.command()
def compare(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR DIR...", help="Output directories of sweeps.")],
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a page with the fronts.")] = None,
    format_: Annotated[Format, typer.Option("--format", help="csv: one line a sweep.")] = Format.TABLE,
) -> None:
    """Compare sweeps: fronts, hypervolumes by one reference point, cost, accuracies within the same budgets."""
    from orchestrator.report.compare import compare_sweeps, read_sweeps
    from orchestrator.report.compare_output import print_comparison

    sweeps = read_sweeps(directories)
    comparison = compare_sweeps(sweeps)
    print_comparison(comparison, format_.value, Console())
    for text in comparison.warnings:
        print(f"Warning: {text}", file=sys.stderr)
    if output is not None:
        from orchestrator.report.write import write_comparison

        write_comparison(sweeps, comparison, output)


@app.command()
def register(
    directory: _Dir, name: Annotated[str, typer.Option(metavar="NAME", help="The registered model's name.")]
) -> None:
    """Register the finalists as versions of one model, with the aliases best, smallest and knee."""
    from orchestrator.models import register as register_finalists

    for version in register_finalists(directory, name):
        aliases = "".join(f"  models:/{name}@{alias}" for alias in version.aliases)
        print(f"models:/{name}/{version.version}  {version.run}{'' if version.new else ' (was there)'}{aliases}")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A sweep's output directory, or a model.pt.")],
    name: Annotated[str | None, typer.Argument(help="In a sweep: a run, or best, smallest or knee.")] = None,
    *,
    output: Annotated[Path, typer.Option(metavar="FILE", help="The file; its suffix names the format as well.")],
    format_: Annotated[ExportFormat | None, typer.Option("--format", help="Default: the suffix of FILE.")] = None,
    weights: Annotated[Weights, typer.Option(help="int8: with onnx, quantized after training.")] = Weights.FP32,
    normalized: Annotated[
        bool, typer.Option("--normalized", help="Take normalised float32 images instead of uint8 ones.")
    ] = False,
    config: Annotated[
        Path | None, typer.Option(metavar="CONFIG", help="The sweep's file, for a model.pt outside its directory.")
    ] = None,
) -> None:
    """Write a network for production as pt2, ONNX or safetensors: low-rank, BatchNorm folded, compared with the trained one.

    Nothing is written where it does not give what the trained network gives.
    """
    from trainers.export.options import export_options

    options = export_options(output, format_, weights.value, "normalized" if normalized else "pixels")
    from orchestrator.export import described, export_run

    print("\n".join(described(export_run(run, name, config, output, options))))


@app.command()
def ui(
    directory: _Dir,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Default: 5000, for --optuna 8080.")] = None,
    optuna: Annotated[bool, typer.Option("--optuna", help="The study in optuna-dashboard.")] = False,
    ray: Annotated[bool, typer.Option("--ray", help="Print the address of the cluster's Ray dashboard.")] = False,
) -> None:
    """Open the sweep's MLflow store in MLflow's UI, on this machine only; or its study, or the cluster it runs on."""
    from orchestrator.paths import SweepPaths
    from orchestrator.ui import MLFLOW_PORT, OPTUNA_PORT, mlflow_command, mlflow_server, optuna_command, ray_dashboard

    paths = SweepPaths(directory.absolute())
    if optuna and ray:
        raise typer.BadParameter("--optuna and --ray exclude each other")
    if ray:
        print(ray_dashboard() or "The cluster at RAY_ADDRESS runs without a dashboard")
        return
    if not optuna and (server := mlflow_server()) is not None:
        print(f"The sweep is recorded at {server}")
        return
    port = port or (OPTUNA_PORT if optuna else MLFLOW_PORT)
    command, needed = (optuna_command if optuna else mlflow_command)(paths, port)
    print(f"{'optuna-dashboard' if optuna else 'MLflow'} at http://127.0.0.1:{port} (Ctrl-C ends it)", flush=True)
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    os.execvpe(command[0], command, {**quiet, **os.environ, **needed})  # noqa: S606  # a fixed command, its values checked above


def main() -> None:
    """The console script: errors that are the user's to mend are printed without a traceback."""
    sys.path.insert(0, str(Path.cwd()))  # search spaces of the user's own, as `python -m` would find them
    try:
        app()
    except ConfigError as error:
        print("The configuration is not valid:", file=sys.stderr)
        for place, text in error.problems:
            print(f"  {place}: {text}", file=sys.stderr)
        sys.exit(2)
    except RankfrontError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a full or failing disk; every finished run is in its files
        print(f"Error: {error}; when that is mended, the same command goes on", file=sys.stderr)
        sys.exit(1)
