"""Storage that is full or cannot be written: told apart from a bug, since no retry and no other run would get further."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainers.errors import StorageError

_FULL_OR_REFUSED = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE}
)


def storage_problem(error: BaseException | None) -> str | None:
    """Return what an exception, or one that it came from, says of storage that is full or cannot be written; else None.

    Libraries hide it: PyTorch and Ray Tune raise an error of their own on its way.
    """
    for cause in causes(error):
        if isinstance(cause, StorageError) or (isinstance(cause, OSError) and cause.errno in _FULL_OR_REFUSED):
            return str(cause)
    return None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception, what it came from, what that came from, ..., each once: such chains can be circles."""
    seen = set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


@contextmanager
def storage_errors(root: Path) -> Iterator[None]:
    """Raise StorageError, in words for a person, for what the block raises because storage of `root` failed."""
    try:
        yield
    except Exception as error:
        if (problem := storage_problem(error)) is None:
            raise
        raise StorageError(
            f"the output directory must be writable and have room, but: {problem}; every run that had ended is kept, the "
            f"others go on from their checkpoints: mend it, then `rankfront resume {root}`"
        ) from error
