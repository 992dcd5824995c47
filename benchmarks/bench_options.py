"""The options that benchmarks have in common, and where their figures go."""

import argparse
import json
from pathlib import Path
from typing import Any

_DATA = {
    "mnist": ("~/data", "folder of torchvision's MNIST"),
    "cifar10": ("~/data/cifar10", "folder of CIFAR-10's train.parquet and test.parquet"),
}


def benchmark_parser(description: str | None, *data: str) -> argparse.ArgumentParser:
    """Return a parser with --json, --markdown and the folders of the named data sets."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in data:
        default, text = _DATA[name]
        parser.add_argument(f"--{name}", default=default, help=text)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--markdown", type=Path, help="file for the table")
    return parser


def write(options: argparse.Namespace, figures: Any, table: str | None) -> None:
    """Print the table, or the figures where there is none, and write both to the files that the options name."""
    text = json.dumps(figures, indent=1) + "\n"
    print(text if table is None else table)
    if options.json is not None:
        options.json.write_text(text)
    if options.markdown is not None and table is not None:
        options.markdown.write_text(table)
