"""What several verbs of the command line have in common: arguments, options and exit codes."""

import shlex
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from orchestrator.selection import Bound
    from orchestrator.stored.location import Location

INTERRUPTED = 130  # the shell's code for a process ended by Ctrl-C

ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="The sweep's YAML file.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. search.seed=1.")
]


def _place(text: str) -> "Path | Location":
    from orchestrator.stored.location import Location, is_url

    return Location.of(text) if is_url(text) else Path(text)


def folder_here(text: str) -> Path:
    """A path as an argument; raises BadParameter for a URL."""
    place = _place(text)
    if not isinstance(place, Path):
        raise typer.BadParameter(
            f"must be a folder of this machine; bring it here with: rankfront fetch {shlex.quote(place.url)}"
        )
    return place


DirectoryArgument = Annotated[
    Any, typer.Argument(parser=folder_here, metavar="DIR", help="A sweep's output directory.")
]
PlaceArgument = Annotated[
    Any, typer.Argument(parser=_place, metavar="DIR", help="A sweep's output directory, or the URL where it is kept.")
]
OutputOption = Annotated[
    Any,
    typer.Option(
        parser=_place,
        metavar="DIR",
        help="Output directory, or a URL where it is kept: file://, s3://, gs:// [default: runs/<name>].",
    ),
]

_BOUND = "The most {}: a count (1.2e6, 900k, 40M) or a share of the dense network (50%)."

T = TypeVar("T")


class Format(StrEnum):
    """How a front, or a comparison of fronts, is printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


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


MaxMacs = Annotated[Any, typer.Option(parser=_bound, metavar="N", help=_BOUND.format("MACs"))]
MaxParams = Annotated[Any, typer.Option(parser=_bound, metavar="N", help=_BOUND.format("parameters"))]
MinAccuracy = Annotated[
    Any, typer.Option(parser=_accuracy, metavar="A", help="The least validation accuracy: 0.97 or 97%.")
]
