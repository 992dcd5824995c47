"""Files that are whole or not there."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_SUFFIX = ".partial"


def leftovers(folder: Path) -> list[Path]:
    """Return the temporary files in `folder`: of processes that were killed, where nobody is writing into it."""
    return list(folder.glob(f".*{_SUFFIX}"))


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files in `folder`, which nobody may be writing into."""
    for left in leftovers(folder):
        left.unlink(missing_ok=True)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` for writing; at the end it is synced to disk and takes the name `path`.

    If the block raises, the temporary file is removed and what was at `path` stays. A process that is killed leaves its
    temporary file, for `remove_leftovers`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_SUFFIX)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
