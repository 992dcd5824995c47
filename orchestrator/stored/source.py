"""What a URL holds, for reading alone: for `rankfront fetch`, and for the verbs that show what a sweep found."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.paths import SweepPaths
from orchestrator.remote.sources import RemoteFile
from orchestrator.stored.location import Location
from orchestrator.stored.manifest import ABSENT, FILE, read_manifest
from trainers.errors import SweepError


class StoredFolder:
    """An output directory that is kept under a URL, as `remote.fetch.bring` reads it, as of its last pass."""

    def __init__(self, location: Location) -> None:
        self._location, self.shown = location, str(location)
        manifest = read_manifest(location)
        if manifest is None:
            raise SweepError(f"{location} must hold a sweep, but has no {FILE}")
        newest = {path: entries[-1] for path, entries in manifest.files.items()}
        self.files = [RemoteFile(path, *entry) for path, entry in sorted(newest.items()) if entry != ABSENT]

    def read(self, path: str) -> Iterator[bytes]:
        """Yield a file's bytes."""
        return self._location.chunks(path)


@contextmanager
def readable(place: "Path | Location") -> Iterator[Path]:
    """Yield the directory; of a URL a copy of the table alone, which goes with the block."""
    if isinstance(place, Path):
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="rankfront-") as folder:
        paths = SweepPaths(Path(folder))
        if not place.download(paths.results.name, paths.results):
            raise SweepError(f"{place} must hold a sweep that has ended runs, but has no {paths.results.name}")
        yield paths.root
