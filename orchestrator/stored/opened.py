"""An output directory for as long as a verb works in it: brought here from its URL, and sent there, where it has one."""

import json
import logging
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.output import locked, read_json, write_text
from orchestrator.paths import SweepPaths
from orchestrator.provenance import JOB_VARIABLE
from orchestrator.remote.package import shown_size
from orchestrator.stored.lease import Lease, LeaseLostError
from orchestrator.stored.location import Location
from orchestrator.stored.manifest import FILE as MANIFEST
from orchestrator.stored.manifest import Manifest, read_manifest, write_manifest
from trainers.errors import StorageError, SweepError

if TYPE_CHECKING:
    from orchestrator.stored.mirror import Mirror

_log = logging.getLogger(__name__)


def working_folder(place: "Path | Location") -> Path:
    """Return the folder of this machine that a sweep with this output runs in."""
    if isinstance(place, Path):
        return place
    # a job's own folder goes with the job
    return (Path("~/rankfront").expanduser() if JOB_VARIABLE in os.environ else Path("runs")) / place.name


def url_of(paths: SweepPaths) -> str | None:
    """Return the URL that an output directory is sent to, None where it has none."""
    url = read_json(paths.mirror, dict[str, object]()).get("url")
    return None if url is None else Location.of(str(url)).url


@contextmanager
def opened(place: "Path | Location", tell: Callable[[str], None], *, begun: bool = False) -> Iterator[Path]:
    """Yield the output directory. With a URL it is this process's until the block ends, and all of it is sent by then.

    A folder that has run for a URL before goes on with that. `begun`: there must be a sweep at the URL already.

    Raises SweepError where the URL is in use or holds something else, or the folder is that of another sweep, and
    StorageError where it cannot be reached, or at the end something could not be sent: it is all in the folder.
    """
    given = working_folder(place)
    paths = SweepPaths.of(given)
    if isinstance(place, Path):
        url = url_of(paths)
        if url is None:
            yield place
            return
        place = Location(url)
    from orchestrator.stored.bring import bring  # torch: only where there is a URL
    from orchestrator.stored.mirror import Mirror

    paths.root.mkdir(parents=True, exist_ok=True)
    with locked(paths, paths.mirror_lock):
        folder, complete = _identity(paths, place)
        manifest = read_manifest(place)
        _require_usable(paths, place, manifest, folder if complete else None, begun=begun)
        lease = Lease(place, folder)
        lease.take(tell)
        try:
            sent: dict[str, tuple[int, int]] = {}
            if not complete:
                write_record(paths, place, folder, complete=False)
                if manifest is not None:
                    sent = bring(place, manifest, paths.root, tell)
                write_record(paths, place, folder, complete=True)
            manifest = Manifest(folder, {} if manifest is None else manifest.files)
            write_manifest(place, manifest)
            with _mirrored(Mirror(paths.root, place, lease, manifest, sent), paths, place):
                yield given
        finally:
            with suppress(StorageError):  # it ends by itself
                lease.release()


@contextmanager
def _mirrored(mirror: "Mirror", paths: SweepPaths, location: Location) -> Iterator[None]:
    mirror.start()
    try:
        yield
    except BaseException as error:
        problem = mirror.close()
        if isinstance(problem, LeaseLostError):
            raise problem from error
        if problem is not None:
            _log.warning("%s", _unsent(mirror, paths, location, problem))
        raise
    if (problem := mirror.close()) is not None:
        raise StorageError(_unsent(mirror, paths, location, problem)) from problem


def _unsent(mirror: "Mirror", paths: SweepPaths, location: Location, problem: Exception) -> str:
    num_files, num_bytes = mirror.waiting()
    return (
        f"{num_files} files, {shown_size(num_bytes)}, could not be sent to {location}: {problem}; nothing is lost, they are "
        f"in {paths.root}: send them with `rankfront sync {paths.root}`"
    )


def write_record(paths: SweepPaths, location: Location, folder: str, *, complete: bool) -> None:
    """Note in the folder where it is sent to; `complete`: all that was there has been brought here."""
    write_text(paths.mirror, json.dumps({"url": location.url, "folder": folder, "complete": complete}) + "\n")


def _identity(paths: SweepPaths, location: Location) -> tuple[str, bool]:
    """Return the folder's identity, a new one where it has none, and whether it holds all that was at the URL once."""
    found = read_json(paths.mirror, dict[str, object]())
    if not found:
        if set(paths.root.iterdir()) - {paths.lock, paths.mirror_lock}:
            raise SweepError(
                f"{paths.root}, where the sweep of {location} runs, must be empty or that sweep's, but holds other files; "
                "run the command in another directory"
            )
        return uuid.uuid4().hex, False
    there = Location.of(str(found.get("url")))
    if there.place != location.place:
        raise SweepError(
            f"{paths.root}, where the sweep of {location} runs, must be empty or that sweep's, but is that of {there}; run "
            "the command in another directory"
        )
    return str(found.get("folder")), bool(found.get("complete"))


def _require_usable(
    paths: SweepPaths, location: Location, manifest: Manifest | None, folder: str | None, *, begun: bool
) -> None:
    """`folder` is the identity of the folder here if a sweep of this URL has run in it."""
    if manifest is None and folder is None:
        if begun:
            raise SweepError(f"{location} must hold a sweep, but has no {MANIFEST}")
        if location.files():
            raise SweepError(f"{location} must be empty or hold a sweep, but holds other files; use another --output")
    if manifest is not None and folder is not None and manifest.folder != folder:
        raise SweepError(
            f"{paths.root} must hold the newest state of {location}, but the sweep has gone on from another folder since; "
            "remove or rename it, and the same command brings that here"
        )
