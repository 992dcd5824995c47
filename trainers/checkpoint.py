"""Files that hold tensors: written atomically, read without unpickling code, with a format and a version inside."""

import io
import logging
import warnings
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from trainers.archives import require_whole
from trainers.atomic import atomic_file, remove_leftovers
from trainers.errors import CheckpointError

FORMAT = "rankfront"
VERSION = 2
_CHECKPOINT = "checkpoint"

_log = logging.getLogger(__name__)


def write_payload(path: Path, kind: str, content: dict[str, Any]) -> None:
    """Write `content` (tensors, numbers, strings, lists, dicts) to `path`, atomically."""
    with atomic_file(path) as file:
        torch.save({"format": FORMAT, "version": VERSION, "kind": kind, **content}, file)


def read_payload(source: Path | bytes, kind: str) -> dict[str, Any]:
    """Return what `write_payload` wrote, with tensors on the CPU; `source` is the file or its content.

    Raises CheckpointError where the file is missing, damaged, not ours, of another version or of another kind.
    """
    path = named(source)
    if isinstance(source, Path) and not source.is_file():
        raise CheckpointError(f"{path} must be a {kind} file, but there is none")
    file = source if isinstance(source, Path) else io.BytesIO(source)
    try:
        require_whole(file)
        if isinstance(file, io.BytesIO):
            file.seek(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of pickles that are not its own before it refuses them
            payload = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes of another kind make an unpickler raise whatever their first ones stand for
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} must be a readable {kind} file, but it is damaged or foreign: {reason}"
        ) from error
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        raise CheckpointError(f"{path} must be a {FORMAT} {kind} file, but it was written by something else")
    if payload.get("version") != VERSION:
        raise CheckpointError(
            f"{path} must have format version {VERSION}, but has {payload.get('version')}; use the rankfront that wrote it"
        )
    if payload.get("kind") != kind:
        raise CheckpointError(f"{path} must be a {kind} file, but is a {payload.get('kind')} file")
    return payload


def save_checkpoint(path: Path, content: dict[str, Any], keep: int = 2) -> None:
    """Write `content` as the newest checkpoint at `path`; those that were there stay beside it, `keep` in all."""
    places = [path, *(path.with_name(_name_before(path, age)) for age in range(1, keep))]
    for newer, older in reversed(list(pairwise(places))):
        if newer.exists():
            with suppress(FileNotFoundError):  # a worker whose driver was killed may end its last epoch beside ours
                newer.replace(older)
    remove = [there for there in _earlier(path) if there not in places]
    write_payload(path, _CHECKPOINT, content)
    for there in remove:
        there.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest checkpoint that can be read, at `path` or beside it, and where it is; None where there is none.

    A damaged one is passed over with a warning. Raises CheckpointError where each is damaged.
    """
    errors = []
    for candidate in (path, *_earlier(path)):
        if candidate.exists():
            try:
                return candidate, read_payload(candidate, _CHECKPOINT)
            except CheckpointError as error:
                errors.append(error)
                _log.warning("passed over: %s", error)
    if errors:
        raise errors[0]
    return None


def remove_checkpoints(path: Path) -> None:
    """Remove what `save_checkpoint` has written, to its end or not."""
    for kept in (path, *_earlier(path)):
        kept.unlink(missing_ok=True)
    remove_leftovers(path.parent)


def _name_before(path: Path, age: int) -> str:
    return f"{path.stem}.before{age if age > 1 else ''}{path.suffix}"


def _earlier(path: Path) -> list[Path]:
    """Return the checkpoints beside the newest, from the latest to the earliest, however many were kept."""
    found = path.parent.glob(f"{path.stem}.before*{path.suffix}")
    return sorted(found, key=lambda there: (len(there.name), there.name))


def named(source: Path | bytes) -> str:
    """Return what messages call a file, or the content of one."""
    return str(source) if isinstance(source, Path) else "the given content"


def require_same_config(path: Path, found: Any, wanted: dict[str, Any]) -> None:
    """Raise CheckpointError, naming the settings, unless a file's config is the one that the caller runs with."""
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} must say with which configuration it was made, but does not; remove it")
    differing = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
    if differing:
        changes = ", ".join(f"{key}: {found.get(key)!r} there, {wanted.get(key)!r} here" for key in differing)
        raise CheckpointError(f"{path} belongs to another configuration ({changes}); use another output directory")
