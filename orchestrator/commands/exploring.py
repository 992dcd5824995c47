"""The verbs that show what a sweep found."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator import terminal
from orchestrator.commands.options import (
    DirectoryArgument,
    Format,
    MaxMacs,
    MaxParams,
    MinAccuracy,
    PlaceArgument,
    folder_here,
)

NOTHING_MATCHES = 1  # as grep's

verbs = typer.Typer()


@verbs.command()
def front(
    directory: PlaceArgument,
    max_macs: MaxMacs = None,
    max_params: MaxParams = None,
    min_accuracy: MinAccuracy = None,
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
    from orchestrator.stored.source import readable

    with readable(directory) as folder:
        found = read_front(folder)
    limits = Limits(max_macs, max_params, min_accuracy, max_latency)
    if knee or limits != Limits():
        try:
            found = select(found, limits, knee=knee)
        except NothingMatchesError as error:
            print(f"Nothing matches: {error}", file=sys.stderr)
            raise typer.Exit(NOTHING_MATCHES) from None
    if format_ is Format.TABLE:
        terminal.console().print(front_tables(found))
    else:
        print(as_csv(found) if format_ is Format.CSV else json.dumps(found.as_json(), indent=2) + "\n", end="")


@verbs.command()
def report(
    directory: DirectoryArgument,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="The page [default: DIR/report.html].")] = None,
    png: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Also write each picture as PNG.")] = None,
) -> None:
    """Write a sweep's report, finished or running: one HTML file with its pictures, its table and where it comes from."""
    from orchestrator.paths import SweepPaths
    from orchestrator.report.write import write_report

    for path in write_report(directory, output or SweepPaths(directory).report, png):
        print(path)


@verbs.command()
def compare(
    directories: Annotated[
        list[Any], typer.Argument(parser=folder_here, metavar="DIR DIR...", help="Output directories of sweeps.")
    ],
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a page with the fronts.")] = None,
    format_: Annotated[Format, typer.Option("--format", help="csv: one line a sweep.")] = Format.TABLE,
) -> None:
    """Compare sweeps: fronts, hypervolumes by one reference point, cost, accuracies within the same budgets."""
    from orchestrator.report.compare import compare_sweeps, read_sweeps
    from orchestrator.report.compare_output import print_comparison

    sweeps = read_sweeps(directories)
    comparison = compare_sweeps(sweeps)
    print_comparison(comparison, format_.value, terminal.console())
    for text in comparison.warnings:
        print(f"Warning: {text}", file=sys.stderr)
    if output is not None:
        from orchestrator.report.write import write_comparison

        write_comparison(sweeps, comparison, output)


@verbs.command()
def sync(directory: DirectoryArgument) -> None:
    """Send to MLflow, and to the URL of its output, what a sweep could not: they were away, or the sweep was killed."""
    from orchestrator.paths import SweepPaths
    from orchestrator.stored.opened import opened
    from orchestrator.sync import sync as send

    with opened(directory, lambda text: print(text, flush=True)) as folder:
        found = send(SweepPaths.of(folder))
    print(f"{found.waiting - found.left} of {found.waiting} records sent to {found.store}")
    if found.left:
        raise typer.Exit(1)


@verbs.command()
def ui(
    directory: DirectoryArgument,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Default: 5000, for --optuna 8080.")] = None,
    optuna: Annotated[bool, typer.Option("--optuna", help="The study in optuna-dashboard.")] = False,
    ray: Annotated[bool, typer.Option("--ray", help="Print the address of the cluster's Ray dashboard.")] = False,
) -> None:
    """Open the sweep's MLflow store in MLflow's UI, on this machine only; or its study, or the cluster it runs on."""
    from orchestrator.paths import SweepPaths
    from orchestrator.ui import MLFLOW_PORT, OPTUNA_PORT, mlflow_command, mlflow_server, optuna_command, ray_dashboard

    paths = SweepPaths.of(directory)
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
