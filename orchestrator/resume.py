"""Go on with a sweep from nothing but its output directory, after any end, wherever the directory is now."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from orchestrator.choice import Choice
from orchestrator.config import SweepConfig, load_config
from orchestrator.data_type import with_recorded_dtype
from orchestrator.front import SweepFront, read_front
from orchestrator.output import read_state, require_ours_or_empty
from orchestrator.paths import SweepPaths
from orchestrator.pipeline import run_finetuning, run_sweep
from orchestrator.sync import recorded_store
from trainers.errors import SweepError


@dataclass(frozen=True)
class Resumed:
    """What the sweep has found, and whether nothing was left to do."""

    front: SweepFront
    was_finished: bool


def resume(directory: Path, overrides: Sequence[str], console: Console) -> Resumed:
    """Do what is left of the sweep in `directory`: its search, its final stage, what `finetune` was at.

    `overrides` are of settings that may change (`output.claimed`). Raises SweepError where there is no sweep or another
    process runs it, where the environment names another MLflow store than the one that it is recorded in, and as
    `run_sweep` does.
    """
    paths = SweepPaths.of(directory)
    if not paths.config.is_file():
        raise SweepError(f"{paths.root} must be the output directory of a sweep, but has no {paths.config.name}")
    return _what_is_left(load_config(paths.config, overrides), paths, console)


def begin_or_resume(config: SweepConfig, output: Path, console: Console) -> Resumed:
    """Run the sweep in `output`; of one that is there already do what is left, as `resume` does. Raises what that raises."""
    paths = SweepPaths.of(output)
    if not paths.config.is_file():
        return Resumed(run_sweep(config, output, console), was_finished=False)
    config = with_recorded_dtype(config, paths)
    require_ours_or_empty(paths, config)
    return _what_is_left(config, paths, console)


def _what_is_left(config: SweepConfig, paths: SweepPaths, console: Console) -> Resumed:
    state = read_state(paths)
    if paths.state.exists():
        recorded_store(paths, config.name)
    finished = state.finished and config == load_config(paths.config)
    if finished and state.finetuning is None:
        return Resumed(read_front(paths.root), was_finished=True)
    if not finished:
        front = run_sweep(config, paths.root, console)
    if state.finetuning is not None:
        choice = Choice(tuple(state.finetuning["names"]))
        front = run_finetuning(paths.root, choice, state.finetuning["repeats"], console)
    return Resumed(front, was_finished=False)
