"""The verbs that take a finalist to where it is used."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator import terminal
from orchestrator.commands.options import DirectoryArgument, folder_here
from trainers.export.options import Format, Weights

verbs = typer.Typer()


class EngineName(StrEnum):
    """`trainers.config.Engine`, as an option that may be repeated needs it."""

    EAGER = "eager"
    COMPILE = "compile"
    ONNXRUNTIME = "onnxruntime"


@verbs.command()
def latency(
    directory: DirectoryArgument,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Images a batch [default: 1 and 64].")] = None,
    threads: Annotated[list[int] | None, typer.Option(min=1, help="Threads on the CPU [default: 1 and all].")] = None,
    engine: Annotated[
        list[EngineName] | None,
        typer.Option(help="What runs the networks; may be repeated. Layers are judged by the first [default: eager]."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    rounds: Annotated[int, typer.Option(min=2, help="Rounds, in each of which every network is timed once.")] = 15,
) -> None:
    """Time the finalists beside the dense network on this machine; layers that are faster dense are deployed dense."""
    from orchestrator.latency import Settings, latency_tables, measure

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    settings = Settings(
        batches=tuple(batch or (1, 64)),
        threads=tuple(threads or dict.fromkeys((1, cores))),
        engines=tuple(name.value for name in engine or (EngineName.EAGER,)),
        device=device,
        rounds=rounds,
    )
    terminal.console().print(latency_tables(measure(directory, settings)))


@verbs.command()
def register(
    directory: DirectoryArgument,
    name: Annotated[str, typer.Option(metavar="NAME", help="The registered model's name.")],
) -> None:
    """Register the finalists as versions of one model, with the aliases best, smallest and knee."""
    from orchestrator.models import register as register_finalists

    for version in register_finalists(directory, name):
        aliases = "".join(f"  models:/{name}@{alias}" for alias in version.aliases)
        print(f"models:/{name}/{version.version}  {version.run}{'' if version.new else ' (was there)'}{aliases}")


@verbs.command()
def export(
    run: Annotated[
        Any, typer.Argument(parser=folder_here, metavar="RUN", help="A sweep's output directory, or a model.pt.")
    ],
    name: Annotated[
        str | None, typer.Argument(help="In a sweep: a run, best, smallest or knee, or a cut such as trial-0003-cut-2.")
    ] = None,
    *,
    output: Annotated[Path, typer.Option(metavar="FILE", help="The file; its suffix names the format as well.")],
    format_: Annotated[Format | None, typer.Option("--format", help="Default: the suffix of FILE.")] = None,
    weights: Annotated[Weights, typer.Option(help="int8: with onnx, quantized after training.")] = "fp32",
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

    options = export_options(output, format_, weights, "normalized" if normalized else "pixels")
    from orchestrator.export import described, export_run

    print("\n".join(described(export_run(run, name, config, output, options))))
