"""A sweep's output directory: whose it is, and the small files of it that are rewritten whole."""

import fcntl
import json
import os
import platform
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO, TypeVar

from orchestrator.config import SweepConfig, dump_config, load_config
from orchestrator.paths import SweepPaths
from trainers.atomic import atomic_file, leftovers, remove_leftovers
from trainers.config import as_record
from trainers.errors import SweepError

T = TypeVar("T")


@contextmanager
def claimed(paths: SweepPaths, config: SweepConfig) -> Iterator[None]:
    """Make the directory this sweep's and keep it for this process until the block ends.

    Changes of a sweep that has begun are written down by `keep_config`, when all is checked that they could be refused for.

    Raises SweepError where it is another sweep's, in use, or not writable.
    """
    try:
        paths.root.mkdir(parents=True, exist_ok=True)
    except PermissionError as error:
        raise SweepError(f"the output directory must be writable, but: {error}; use another --output") from error
    with locked(paths):
        require_ours_or_empty(paths, config)
        remove_leftovers(paths.root)
        if not paths.config.exists():
            keep_config(paths, config)
        yield


def keep_config(paths: SweepPaths, config: SweepConfig) -> None:
    """Write down what the sweep runs with, for the next start."""
    write_text(paths.config, dump_config(config))


@contextmanager
def locked(paths: SweepPaths, file: Path | None = None) -> Iterator[None]:
    """Keep the directory, which exists, for this process until the block ends, by its lock or by another `file` in it.

    Raises SweepError where it is in use or not writable.
    """
    try:
        lock = (file or paths.lock).open("a+")
    except PermissionError as error:
        raise SweepError(f"the output directory must be writable, but: {error}; use another --output") from error
    with lock:
        _take(lock, paths)
        yield


def require_ours_or_empty(paths: SweepPaths, config: SweepConfig) -> None:
    """Check that the output directory is new or holds this sweep; only where and how much it runs may have changed."""
    if paths.config.exists():
        there, here = _fixed_settings(load_config(paths.config)), _fixed_settings(config)
        differ = differences(there, here)
        changed = [f"{key}: {theirs!r} there, {ours!r} here" for key, (theirs, ours) in differ.items()]
        if changed:
            raise SweepError(
                f"{paths.root} holds a sweep of another configuration ({'; '.join(changed)}); use another --output"
            )
    elif paths.root.exists() and (
        not paths.root.is_dir()
        or set(paths.root.iterdir()) - {paths.lock, paths.mirror, paths.mirror_lock, *leftovers(paths.root)}
    ):
        raise SweepError(f"{paths.root} must be empty or hold a sweep, but holds other files; use another --output")


def _take(file: TextIO, paths: SweepPaths) -> None:
    """Lock the open lock file; the lock goes with the process, however it ends."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        owner = file.read().strip() or "another process"
        age = timedelta(seconds=max(0, round(time.time() - os.fstat(file.fileno()).st_mtime)))
        raise SweepError(
            f"{paths.root} is in use by a sweep ({owner}, for {age} h); wait for it, or use another --output"
        ) from error
    except OSError as error:
        raise SweepError(
            f"{paths.root} must be on storage that can be locked, so that no two drivers write to it, but: {error}; use "
            "another --output"
        ) from error
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}\n")
    file.flush()


def flat_settings(config: SweepConfig) -> dict[str, object]:
    """Return the settings by their path, `training.epochs`."""
    return flatten(as_record(config))


def flatten(record: dict[str, object], prefix: str = "") -> dict[str, object]:
    """Return nested mappings as one, its keys joined by dots."""
    flat: dict[str, object] = {}
    for key, value in record.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def differences(there: dict[str, object], here: dict[str, object]) -> dict[str, tuple[object, object]]:
    """Return the values of both by the keys of flat settings that differ, None where one has not the key."""
    pairs = {key: (there.get(key), here.get(key)) for key in there | here}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


_FREE_SEARCH_SETTINGS = ("num_trials", "max_concurrent", "ask_batch", "warm_start")


def _fixed_settings(config: SweepConfig) -> dict[str, object]:
    """The settings that results depend on: not when it ends, nor where data and processors are."""
    flat = flat_settings(config)
    free = {"data.root", "data.download", *(f"search.{name}" for name in _FREE_SEARCH_SETTINGS)}
    return {
        key: value
        for key, value in flat.items()
        if key not in free and not key.startswith(("resources.", "stop.", "tracking."))
    }


@dataclass(frozen=True)
class SweepState:
    """What one start of a sweep tells the next.

    `sweep_id`: its identity. `store`: the key of its MLflow store. `finished`: the last start ended with nothing left to do.
    `search_over`: the settings of when to end with which the search was over, though it has fewer trials than they allow.
    `finetuning`: the candidates that `rankfront finetune` is at, and how often each: {"names", "repeats"}.
    `baseline_trials`: the trials in a row after which the dense baseline that has begun is measured.
    """

    sweep_id: str
    store: str = ""
    finished: bool = False
    search_over: dict[str, Any] | None = None
    finetuning: dict[str, Any] | None = None
    baseline_trials: int | None = None


def read_state(paths: SweepPaths) -> SweepState:
    """Return the sweep's state, with a new identity where there is none."""
    try:
        if not paths.state.exists():
            return SweepState(uuid.uuid4().hex)
        found: dict[str, Any] = json.loads(paths.state.read_text())
        if not re.fullmatch(r"\w{1,64}", found["sweep_id"]):  # it becomes a part of queries
            raise ValueError("its sweep_id is none")
        return SweepState(**found)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SweepError(f"{paths.state} must be readable JSON, but: {error}; use another --output") from error


def write_state(paths: SweepPaths, state: SweepState) -> None:
    """Keep the sweep's state for the next start."""
    write_text(paths.state, json.dumps(asdict(state), indent=2) + "\n")


def change_state(paths: SweepPaths, **changes: Any) -> None:
    """Replace fields of the sweep's state."""
    write_state(paths, replace(read_state(paths), **changes))


def read_json(path: Path, missing: T) -> T:
    """Return what a file of JSON holds, `missing` where there is none; raises SweepError where it is of another type."""
    if not path.is_file():
        return missing
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise SweepError(f"{path} must be readable JSON, but: {error}; run the sweep's command again") from error
    if not isinstance(found, type(missing)):
        raise SweepError(
            f"{path} must hold a {type(missing).__name__}, but holds a {type(found).__name__}; run the sweep's command again"
        )
    return found


def write_text(path: Path, text: str) -> None:
    """Replace a text file atomically."""
    with atomic_file(path) as file:
        file.write(text.encode())
