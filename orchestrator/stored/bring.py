"""All that a URL holds, brought into a new folder: what `rankfront resume URL` begins with on another machine."""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from orchestrator.paths import SweepPaths, stays_inside
from orchestrator.remote.listing import checksum
from orchestrator.remote.package import shown_names
from orchestrator.stored.location import Location, retried
from orchestrator.stored.manifest import ABSENT, Manifest
from orchestrator.stored.snapshot import Stamp, by_workers
from trainers.errors import StorageError

_DOWNLOADS = 8


def bring(location: Location, manifest: Manifest, root: Path, tell: Callable[[str], None]) -> dict[str, Stamp]:
    """Copy all that is at the URL into the folder; returns the stamps of what is there as it is here."""
    paths = [path for path in location.files() if path in manifest.files or by_workers(path)]
    if unsafe := [path for path in paths if not stays_inside(path)]:
        raise StorageError(f"each path must lie in the output directory, but {location} has {unsafe[0]!r:.200}")
    needed = {path for path, entries in manifest.files.items() if not by_workers(path) and ABSENT not in entries}
    if lost := sorted(needed - set(paths)):
        raise StorageError(
            f"{location} must hold all files of its sweep, but {shown_names(lost)} is missing; restore it"
        )
    tell(f"{len(paths)} files from {location} to {root}")
    with ThreadPoolExecutor(_DOWNLOADS, thread_name_prefix="download") as pool:
        for _ in pool.map(lambda path: retried(lambda: _bring_file(location, manifest, root, path)), paths):
            pass
    _drop_unknown_trials(location, manifest, root)
    stamps: dict[str, Stamp] = {}
    for path in paths:
        if len(manifest.files.get(path, ())) == 1 and not by_workers(path) and (root / path).exists():
            status = (root / path).stat()
            stamps[path] = status.st_size, status.st_mtime_ns
    return stamps


def _bring_file(location: Location, manifest: Manifest, root: Path, path: str) -> None:
    target = root / path
    if not location.download(path, target) or by_workers(path):  # the latter have checksums inside
        return
    if checksum(target) not in manifest.files[path]:
        target.unlink()
        raise StorageError(
            f"{location}/{path} must be as it was sent, but its checksum is another; restore it from an earlier version"
        )


def _drop_unknown_trials(location: Location, manifest: Manifest, root: Path) -> None:
    """Forget trials that the study does not know yet: workers were ahead of the driver when it was lost.

    Their numbers will be drawn again, with other settings perhaps, and are begun anew.
    """
    from orchestrator.study import recorded_trials, run_name

    journal = SweepPaths(root).study
    known = {run_name(trial) for trial in recorded_trials(journal)[1]} if journal.exists() else set[str]()
    for folder in sorted((root / "runs").glob("trial-*")):
        if folder.name not in known:
            for file in folder.rglob("*"):
                if file.is_file():
                    path = file.relative_to(root).as_posix()
                    location.delete(path)
                    manifest.files.pop(path, None)
            shutil.rmtree(folder)
