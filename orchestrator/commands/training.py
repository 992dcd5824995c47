"""The verbs that train, or check what would be trained."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from orchestrator import terminal
from orchestrator.commands.options import (
    INTERRUPTED,
    ConfigArgument,
    DirectoryArgument,
    MaxMacs,
    MaxParams,
    MinAccuracy,
    OutputOption,
    PlaceArgument,
    SetOption,
)

if TYPE_CHECKING:
    from orchestrator.resume import Resumed
    from orchestrator.stored.location import Location

NOT_VERIFIED = 1
PROBLEMS = 1

verbs = typer.Typer()


@verbs.command()
def sweep(
    config: ConfigArgument,
    set_: SetOption = None,
    output: OutputOption = None,
) -> None:
    """Run a sweep: train, search, fine-tune the Pareto-optimal models. Goes on with one that was interrupted."""
    from orchestrator.config import load_config

    loaded = load_config(config, set_ or [])
    from orchestrator.resume import begin_or_resume  # seconds: what is wrong with the configuration is said before

    place: Path | Location = output or Path("runs") / loaded.name
    console = terminal.console()
    with _opened(place) as folder:
        found = begin_or_resume(loaded, folder, console)
    _print_results(found, place, folder, console)


@verbs.command()
def resume(directory: PlaceArgument, set_: SetOption = None) -> None:
    """Go on with a sweep after any end, from its output directory or URL alone, also where that was moved or copied.

    Its search, its final stage, what `finetune` was at. Settings that results do not depend on may be changed.
    """
    from orchestrator.resume import resume as resume_sweep

    console = terminal.console()
    with _opened(directory, begun=True) as folder:
        found = resume_sweep(folder, set_ or [], console)
    _print_results(found, directory, folder, console)


@contextmanager
def _opened(place: "Path | Location", *, begun: bool = False) -> "Iterator[Path]":
    """The folder to work in, mirrored where it has a URL; Ctrl-C ends the block with the command that goes on."""
    from orchestrator.stored.opened import opened

    try:
        with opened(place, lambda text: print(text, flush=True), begun=begun) as folder:
            yield folder
    except KeyboardInterrupt:
        command = shlex.join(["rankfront", "resume", str(place) if isinstance(place, Path) else place.url])
        print(f"\nStopped. Go on with:\n  {command}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


def _print_results(found: "Resumed", place: "Path | Location", folder: Path, console: Console) -> None:
    from orchestrator.front import front_tables
    from orchestrator.paths import SweepPaths

    if found.was_finished:
        print(f"The sweep in {place} is finished: nothing is left to do")
    console.print(front_tables(found.front))
    if place != folder:
        print(f"Kept at  {place}")
    print(f"Table    {folder}/results.parquet\nModels   {folder}/runs/<run>/model.pt")
    if (report := SweepPaths(folder).report).exists():
        print(f"Report   {report}")
    print(f"MLflow   rankfront ui {folder}")


@verbs.command()
def validate(config: ConfigArgument, set_: SetOption = None) -> None:
    """Check a configuration, its search space and its data without training anything."""
    from orchestrator.config import dump_config, load_config

    loaded = load_config(config, set_ or [])  # before torch is imported: errors of the file are told at once
    from orchestrator.jobs import pretrain_job
    from orchestrator.plan import plan_sweep

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


@verbs.command()
def doctor(
    config: ConfigArgument,
    set_: SetOption = None,
    output: OutputOption = None,
) -> None:
    """Try all that a sweep needs, on the cluster too, before it runs: data, storage, MLflow, nodes, resources, cost.

    Exit code 1 where something is missing.
    """
    from orchestrator.config import load_config
    from orchestrator.doctor import examine

    loaded = load_config(config, set_ or [])
    missing = False
    for finding in examine(loaded, output or Path("runs") / loaded.name):
        print(f"{finding.state:<8} {finding.what}: {finding.text}", flush=True)
        missing = missing or finding.state == "problem"
    if missing:
        raise typer.Exit(PROBLEMS)


@verbs.command()
def finetune(
    directory: PlaceArgument,
    pick: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A candidate, e.g. trial-0003-cut-2; may be repeated.")
    ] = None,
    num: Annotated[
        int | None, typer.Option(min=1, help="At most so many [default: the sweep's finetune.num_models].")
    ] = None,
    max_macs: MaxMacs = None,
    max_params: MaxParams = None,
    min_accuracy: MinAccuracy = None,
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
    console = terminal.console()
    with _opened(directory, begun=True) as folder:
        front = run_finetuning(folder, choice, repeats, console)
    console.print(front_tables(front))


@verbs.command()
def rerun(
    directory: DirectoryArgument,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A run of it, such as trial-0003 [default: the whole sweep].")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Exit code 1 where a metric is not the record's.")] = False,
    set_: SetOption = None,
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
    console = terminal.console()
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
