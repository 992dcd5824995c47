"""What of a running sweep's folder is sent to its URL, and in which order.

The files of a sweep rest on each other: the table names models that must be there, an epoch that is recorded must be in its
run's checkpoint, that belongs to a trial which the study must know, and what is delivered must be in MLflow's database. They
are read while the sweep writes them: from the last in such a chain to the first. They are sent in the opposite order. So
what is at the URL is at any moment what a killed driver might have left, which `rankfront resume` puts right.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from orchestrator.paths import SweepPaths
from trainers.recipe import CHECKPOINT_FILE, MODEL_FILE

Stamp = tuple[int, int]  # size in bytes, and time of the last change in ns

_LAYOUT = SweepPaths(Path())
_NOT_SENT = {path.name for path in (_LAYOUT.tune, _LAYOUT.reruns)}  # at the top
_STATE = _LAYOUT.state.name
_TRACKING = _LAYOUT.tracking.name
_DELIVERED = f"{_TRACKING}/delivered.json"
_EVENTS = (f"{_TRACKING}/events.jsonl", f"{_TRACKING}/runs.jsonl")
_DATABASE = _LAYOUT.mlflow_db.name
_FIRST_SENT = (_LAYOUT.study.name, _LAYOUT.config.name)
_SINGLE = {_DELIVERED, *_EVENTS, _DATABASE, *_FIRST_SENT}
_SQLITE_PARTS = ("-journal", "-wal", "-shm")
_EARLIER = f"{Path(CHECKPOINT_FILE).stem}.before"  # `trainers.checkpoint`
_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Change:
    """A file that is not as it was sent: its path in the folder, its stamp when it was read, its content or its file."""

    path: str
    stamp: Stamp
    content: bytes | Path


@dataclass(frozen=True)
class Snapshot:
    """What has changed, in the order in which it was read: to be sent from the last to the first. `present`: all files."""

    changes: list[Change]
    present: set[str]


def by_workers(path: str) -> bool:
    """Whether workers on other nodes write this file to the URL themselves; both kinds have checksums of their own."""
    parts = path.split("/")
    return len(parts) == 3 and parts[0] == "runs" and parts[2] in (CHECKPOINT_FILE, MODEL_FILE)


def take(root: Path, sent: dict[str, Stamp]) -> Snapshot:
    """Read what has changed since `sent`, the stamps of what was sent before."""
    changes: list[Change] = []
    present: set[str] = set()

    def add(path: str, *, whole: bool = True) -> None:
        file = root / path
        with suppress(FileNotFoundError):  # removed at this moment
            status = file.stat()
            present.add(path)
            stamp = status.st_size, status.st_mtime_ns
            if sent.get(path) != stamp:
                changes.append(Change(path, stamp, _content(file) if whole else file))

    for path in (_STATE, *_files_in(root, ("", _TRACKING))):
        if path not in (*_SINGLE, *present):
            add(path)
    for path in (_DELIVERED, *_EVENTS, _DATABASE):
        add(path)
    for path in _files_below(root):  # after what was told of epochs, before the study that knows their trials
        folder, _, name = path.rpartition("/")
        if name.startswith(_EARLIER):  # the newest is enough; while it is renamed and written anew, it is there
            present.add(f"{folder}/{CHECKPOINT_FILE}")
        else:
            add(path, whole=False)
    for path in _FIRST_SENT:
        add(path)
    return Snapshot(changes, present)


def _files_in(root: Path, folders: tuple[str, ...]) -> Iterator[str]:
    """Yield the files that lie in these folders themselves."""
    for folder in folders:
        if (root / folder).is_dir():
            yield from sorted(path.relative_to(root).as_posix() for path in (root / folder).iterdir() if _is_sent(path))


def _files_below(root: Path) -> Iterator[str]:
    """Yield the files in all other folders, at any depth."""
    for top in sorted(path for path in root.iterdir() if path.is_dir() and path.name not in (*_NOT_SENT, _TRACKING)):
        for here, folders, names in os.walk(top):
            folders.sort()
            yield from (
                (Path(here) / name).relative_to(root).as_posix() for name in names if _is_sent(Path(here) / name)
            )


def _is_sent(path: Path) -> bool:
    """Not what is half written, belongs to this machine, or is a part of a database that is copied as a whole."""
    return (
        not path.name.startswith(".")
        and not path.name.endswith(tuple(f"{_DATABASE}{part}" for part in _SQLITE_PARTS))
        and path.is_file()
        and not path.is_symlink()
    )


def _content(file: Path) -> bytes:
    if file.name != _DATABASE:
        return file.read_bytes()
    with (
        closing(sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, timeout=_PATIENCE_S)) as database,
        closing(sqlite3.connect(":memory:")) as copy,
    ):
        database.backup(copy)  # MLflow may be writing
        return copy.serialize()
