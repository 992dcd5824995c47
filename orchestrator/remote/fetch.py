"""Bring a sweep's output directory home: what is missing or has changed there, checked, each file whole or not at all."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from orchestrator.output import locked, write_text
from orchestrator.paths import SweepPaths, absolute, stays_inside
from orchestrator.remote.cluster import Cluster
from orchestrator.remote.listing import checksum
from orchestrator.remote.package import shown_names, shown_size
from orchestrator.remote.sources import RemoteFile, SharedFolder, Source, served, shared_folder
from orchestrator.remote.submission import OUTPUT, SWEEP
from orchestrator.stored.location import Location, is_url
from trainers.atomic import atomic_file
from trainers.errors import ClusterError

_RECORD = ".fetched.json"


@dataclass(frozen=True)
class Fetched:
    """Where the output directory is now, and how many files came, replacing how many, beside how many that were there."""

    target: Path
    num_new: int
    num_replaced: int
    num_kept: int


def fetch(cluster: Cluster, job: str, target: Path | None, tell: Callable[[str], None]) -> Fetched:
    """Bring the output directory of a job into `target`, by default runs/<name>; `tell` is given lines for a person.

    Raises ClusterError where that cannot be, and before anything is written where a file that is there would be lost.
    """
    output, name = _output_of(cluster, job)
    if is_url(output):
        return fetch_url(output, target, tell)
    target = absolute(target or Path("runs") / name)
    with _source(cluster, job, output) as source:
        return bring(source, target, tell)


def fetch_url(url: str, target: Path | None, tell: Callable[[str], None]) -> Fetched:
    """Bring what is kept under a URL into `target`, by default runs/<name>; raises as `fetch` does, and StorageError."""
    from orchestrator.stored.source import StoredFolder

    location = Location.of(url)
    return bring(StoredFolder(location), absolute(target or Path("runs") / location.name), tell)


def bring(source: Source, target: Path, tell: Callable[[str], None]) -> Fetched:
    """Copy what `target` lacks of the source into it; raises as `fetch` does."""
    if isinstance(source, SharedFolder) and source.folder.resolve() == target.resolve():
        raise ClusterError(f"{target} is the sweep's output directory itself: there is nothing to fetch")
    for file in source.files:
        _require_safe(file.path)
    _require_one_tree(source.files)
    if not source.files:
        raise ClusterError(f"{source.shown} must hold a sweep, but is empty")
    target.mkdir(parents=True, exist_ok=True)
    with locked(SweepPaths(target)):
        record = _read_record(target)
        missing, replaced = _compare(source, target, record)
        num_bytes = sum(file.size for file in missing)
        free = shutil.disk_usage(target).free
        if num_bytes > free:
            raise ClusterError(
                f"{shown_size(num_bytes)} must fit, but {target} has {shown_size(free)} free; use --output"
            )
        tell(f"{len(missing)} of {len(source.files)} files, {shown_size(num_bytes)}, from {source.shown} to {target}")
        # before any is written, so that a fetch that is cut off knows its own files again
        planned = {file.path: file.digest for file in source.files}
        both = {
            path: [*record.get(path, []), planned[path]] if path in planned else record[path]
            for path in {**record, **planned}
        }
        _write_record(target, both)
        changed = [file.path for file in missing if not _copy(source, file, target)]
        if changed:
            raise ClusterError(
                f"what is fetched must stay as it is listed, but {shown_names(changed)} changed or broke on the way; all "
                "else is there: repeat the command, when the sweep has ended where it is still running"
            )
        _write_record(target, {path: [digest] for path, digest in planned.items()})
    return Fetched(target, len(missing) - len(replaced), len(replaced), len(source.files) - len(missing))


def _output_of(cluster: Cluster, job: str) -> tuple[str, str]:
    metadata = cluster.info(job).metadata or {}
    output, name = metadata.get(OUTPUT), metadata.get(SWEEP)
    if not output or not name or not re.fullmatch(r"[\w-][\w.-]*", name):
        raise ClusterError(f"job {job} must be one of `rankfront submit`, which names its output, but is not")
    return output, name


@contextmanager
def _source(cluster: Cluster, job: str, output: str) -> Iterator[Source]:
    folder = shared_folder(output, job)
    if folder is not None:
        yield SharedFolder(folder)
        return
    with served(cluster, output) as source:
        yield source


def _require_safe(path: str) -> None:
    """The list comes from the network: no path in it may lead out of the target, or to our own records."""
    ours = path in (_RECORD, SweepPaths(Path()).lock.name)
    if not stays_inside(path) or ours:
        raise ClusterError(
            f"each path must lie in the output directory, but the cluster names {path!r:.200}; nothing was fetched"
        )


def _require_one_tree(files: list[RemoteFile]) -> None:
    """No file twice, and none where another has a folder."""
    paths = {file.path for file in files}
    folders = {str(folder) for path in paths for folder in PurePosixPath(path).parents}
    if len(paths) < len(files) or paths & folders:
        raise ClusterError(
            "each file must be listed once, and be no folder of another, but some are; nothing was fetched"
        )


def _compare(source: Source, target: Path, record: dict[str, list[str]]) -> tuple[list[RemoteFile], list[str]]:
    """Return the files to copy, and the paths of those among them that replace what an earlier fetch left.

    Raises ClusterError where `target` holds something else.
    """
    missing: list[RemoteFile] = []
    replaced: list[str] = []
    foreign: list[str] = []
    for file in source.files:
        path = target / file.path
        if not path.parent.resolve().is_relative_to(target.resolve()) or path.is_symlink() or path.is_dir():
            foreign.append(file.path)
        elif not path.exists():
            missing.append(file)
        elif (digest := checksum(path)[1]) != file.digest:
            missing.append(file)
            (replaced if digest in record.get(file.path, []) else foreign).append(file.path)
    others = {path.name for path in target.iterdir()} - {_RECORD, SweepPaths(target).lock.name}
    if others and not record:
        raise ClusterError(
            f"{target} must be new, empty or fetched before, but holds {shown_names(sorted(others))}; use another --output"
        )
    if foreign:
        raise ClusterError(
            f"nothing may be overwritten, but in {target} {shown_names(foreign)} changed since the fetch; use another "
            "--output"
        )
    return missing, replaced


def _copy(source: Source, file: RemoteFile, target: Path) -> bool:
    """Copy one file; false, and nothing changed, where it is not what was listed."""
    digest, size = hashlib.sha256(), 0
    try:
        with atomic_file(target / file.path) as copy:
            for chunk in source.read(file.path):
                size += len(chunk)
                if size > file.size:
                    break
                digest.update(chunk)
                copy.write(chunk)
            if size != file.size or digest.hexdigest() != file.digest:
                raise _NotAsListedError
    except (_NotAsListedError, FileNotFoundError):
        return False
    return True


class _NotAsListedError(Exception):
    """Takes the temporary file away."""


def _read_record(target: Path) -> dict[str, list[str]]:
    """Return the checksums that an earlier fetch may have left for each path; nothing where there was none."""
    path = target / _RECORD
    try:
        return {str(name): [*map(str, digests)] for name, digests in json.loads(path.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ClusterError(f"{path} must be readable, but: {error}; use another --output") from error


def _write_record(target: Path, record: dict[str, list[str]]) -> None:
    write_text(target / _RECORD, json.dumps(record, indent=1) + "\n")
