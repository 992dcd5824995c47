"""An object that says what a URL holds: each file's size and checksum, and which driver's folder it comes from."""

import json
import re
from dataclasses import dataclass, field
from typing import Any

from orchestrator.paths import stays_inside
from orchestrator.stored.location import Location
from trainers.errors import StorageError

Entry = tuple[int, str]  # size in bytes, SHA-256
ABSENT: Entry = (-1, "")  # the file may also be missing
FILE = ".rankfront.json"
_VERSION = 1


@dataclass
class Manifest:
    """`folder` is the identity of the folder that was sent last. `files` holds for each path what it may be: one entry, or
    while it is being replaced the old one and the new one. Workers on other nodes replace checkpoints without it.
    """

    folder: str
    files: dict[str, list[Entry]] = field(default_factory=dict)

    def holds(self, path: str, entry: Entry) -> bool:
        """Whether the file at the URL is this one, for certain."""
        return self.files.get(path) == [entry]


def read_manifest(location: Location) -> Manifest | None:
    """Return the manifest, None where there is none; raises StorageError for a damaged one.

    Paths come from the network: none may lead out of a folder.
    """
    content = location.read(FILE)
    if content is None:
        return None
    try:
        found: dict[str, Any] = json.loads(content)
        if found["version"] != _VERSION or not re.fullmatch(r"\w{1,64}", found["folder"]):
            raise ValueError("its version or folder is another")
        files = {path: [_entry(*entry) for entry in entries] for path, entries in found["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StorageError(
            f"{location}/{FILE} must be the manifest of a sweep, but: {error!r:.200}; restore it, or use another "
            "--output"
        ) from error
    if unsafe := [path for path in files if not stays_inside(path) or path.split("/")[0].startswith(".")]:
        raise StorageError(f"each path must lie in the output directory, but {location} names {unsafe[0]!r:.200}")
    return Manifest(found["folder"], files)


def write_manifest(location: Location, manifest: Manifest) -> None:
    """Replace the manifest."""
    content = {"version": _VERSION, "folder": manifest.folder, "files": manifest.files}
    location.write(FILE, json.dumps(content).encode())


def _entry(size: object, digest: object) -> Entry:
    if not isinstance(size, int) or not isinstance(digest, str):
        raise TypeError("an entry is a size and a checksum")
    return size, digest
