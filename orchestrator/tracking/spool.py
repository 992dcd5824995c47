"""Events on their way to MLflow: a file of JSON lines that only grows, and how far it has been delivered.

Writing one is a single append, so that an event is in the file whole or not at all, whatever ends the process.
"""

import errno
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from orchestrator.paths import SweepPaths
from trainers.atomic import atomic_file
from trainers.errors import SweepError

Kind = Literal["start", "metrics", "tags", "artifact", "model", "end"]
PARENT = "sweep"  # the parent run in events; in MLflow it is called after the sweep
_MAX_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Event:
    """Something that happened to the run called `run` at `time_s`, seconds since 1970.

    `value` by `kind`: start {"stage", "params", "tags", "source"}, metrics {"step", "values"}, tags {key: text},
    artifact {"path"} relative to the output directory, model {"path", "metrics", "step",
    "params", "tags"} (`models.log_model`), end {"status"}.
    """

    run: str
    kind: Kind
    value: dict[str, Any]
    time_s: float


class Spool:
    """One writer and one reader, which may be different threads; `folder` is made where it is missing."""

    def __init__(self, folder: Path) -> None:
        """Open it; a line that a killed process left half written is cut off.

        Raises SweepError where what is there is damaged.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._position = folder / "events.jsonl", folder / "delivered.json"
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        content = self._path.read_bytes()
        if content and not content.endswith(b"\n"):
            os.ftruncate(self._file, content.rfind(b"\n") + 1)
        self._offset = self._read_position()
        try:
            self.read()
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise SweepError(
                f"{self._path} must be lines of JSON, but: {error}; mend or remove the line that is none"
            ) from error

    def append(self, event: Event) -> None:
        """Add an event behind all others; raises OSError where the disk is full, and leaves no part of it."""
        line = json.dumps(asdict(event)).encode() + b"\n"
        end = os.fstat(self._file).st_size
        if os.write(self._file, line) < len(line):
            os.ftruncate(self._file, end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def read(self) -> tuple[list[Event], int, bool]:
        """Return the next events that are not delivered, where they end, and whether more follow: a megabyte is read."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            lines = file.readlines(_MAX_READ_BYTES)
        if lines and not lines[-1].endswith(b"\n"):  # still being written
            lines.pop()
        size = sum(map(len, lines))
        return [_event(line) for line in lines], self._offset + size, size >= _MAX_READ_BYTES

    def delivered(self, offset: int) -> None:
        """Everything before `offset` has arrived and is not read again."""
        self._offset = offset
        with atomic_file(self._position) as file:
            file.write(json.dumps({"offset": offset}).encode())

    def count(self) -> int:
        """Return how many events are not delivered."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            return sum(1 for _ in file)

    def close(self) -> None:
        """Close the file; if everything has arrived it is emptied."""
        if self._offset == os.fstat(self._file).st_size:
            self.delivered(0)
            os.ftruncate(self._file, 0)
        os.close(self._file)

    def _read_position(self) -> int:
        if not self._position.exists():
            return 0
        try:
            offset = int(json.loads(self._position.read_text())["offset"])
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise SweepError(
                f"{self._position} must be readable JSON, but: {error}; remove it, and all is sent to MLflow again"
            ) from error
        return max(0, min(offset, os.fstat(self._file).st_size))


def _event(line: bytes) -> Event:
    """The event of one line; raises ValueError where its file is not in the output directory, which may have come from
    elsewhere: what an event names is sent to the store, and a model's folder removed then.
    """
    event = Event(**json.loads(line))
    if event.kind in ("artifact", "model"):
        path = PurePosixPath(event.value["path"])
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise ValueError(f"the path {str(path)!r} of {event.run!r} leads out of the output directory")
        if event.kind == "model" and path != PurePosixPath(SweepPaths(Path()).packed_model(event.run)):
            raise ValueError(f"the path {str(path)!r} is not that of a model of {event.run!r}")
    return event
