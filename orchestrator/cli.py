"""The console script `rankfront`."""

import sys
from pathlib import Path

import typer

from orchestrator.commands import cluster, exploring, shipping, training
from trainers.errors import ConfigError, RankfrontError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for module in (training, exploring, shipping, cluster):  # in the order in which --help lists them
    app.add_typer(module.verbs)


@app.callback()
def rankfront() -> None:
    """Find the best accuracy-versus-compute trade-offs of a neural network by low-rank training."""


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
        sys.exit(2)
