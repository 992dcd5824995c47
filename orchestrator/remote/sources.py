"""Where a sweep's output directory is read from: storage that this machine sees, or the cluster."""

import json
import secrets
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from orchestrator.paths import SweepPaths
from orchestrator.provenance import JOB_KEY
from orchestrator.remote import listing
from trainers.errors import ClusterError

if TYPE_CHECKING:
    from orchestrator.remote.cluster import Cluster

FETCH = "fetch"  # the key in the metadata of jobs that only serve a fetch
_CHUNK_BYTES = 2**20
_POLL_S = 1.0
_STOP_S = 30.0


@dataclass(frozen=True)
class RemoteFile:
    """A file of the output directory: its path within, its size in bytes, its SHA-256."""

    path: str
    size: int
    digest: str


class Source(Protocol):
    """An output directory that can be read."""

    shown: str
    files: list[RemoteFile]

    def read(self, path: str) -> Iterator[bytes]:
        """Yield a file's bytes."""


class SharedFolder:
    """The output directory on storage that this machine sees too."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.shown = folder, str(folder)
        self.files = [RemoteFile(*entry) for entry in listing.listing(folder)]

    def read(self, path: str) -> Iterator[bytes]:
        """Yield a file's bytes."""
        with (self.folder / path).open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk


class ClusterFolder:
    """The output directory as a job on the cluster's head node serves it."""

    def __init__(self, cluster: "Cluster", node: str, name: str, shown: str) -> None:
        self._cluster, self._node, self._name, self.shown = cluster, node, name, shown
        text = b"".join(cluster.read_log_file(node, f"{name}.json"))
        try:
            self.files = [RemoteFile(str(path), int(size), str(digest)) for path, size, digest in json.loads(text)]
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise ClusterError(f"the cluster must list {shown}, but sent {text[:100]!r}") from error

    def read(self, path: str) -> Iterator[bytes]:
        """Yield a file's bytes."""
        return self._cluster.read_log_file(self._node, f"{self._name}/{path}")


def shared_folder(output: str, job: str) -> Path | None:
    """Return the path where this machine sees the job's output directory itself, not another one of that name."""
    try:
        folder = Path(output).expanduser().absolute()
        found = json.loads(SweepPaths(folder).environment.read_text())
    except (OSError, ValueError, RuntimeError):
        return None
    return folder if isinstance(found, dict) and found.get(JOB_KEY) == job else None


@contextmanager
def served(cluster: "Cluster", output: str) -> Iterator[ClusterFolder]:
    """Run the job that lists and serves the folder; it ends with the block."""
    name = f"rankfront-fetch-{secrets.token_hex(8)}"
    program = Path(listing.__file__)
    entrypoint = f"exec {shlex.join(['python', program.name, output, name])}"
    cluster.submit(name, entrypoint, {program.name: program}, {}, {FETCH: output})
    try:
        yield ClusterFolder(cluster, _node_when_ready(cluster, name), name, f"{output} on the cluster")
    finally:
        with suppress(ClusterError):  # the connection may be what broke; the job ends by itself within a day
            cluster.stop(name)
            cluster.ended(name, _STOP_S)  # it stays on Ray's list: one that is deleted at once comes back as failed


def _node_when_ready(cluster: "Cluster", job: str) -> str:
    while True:
        info, log = cluster.info(job), cluster.logs(job)
        if listing.READY in log and info.driver_node_id:
            return info.driver_node_id
        if info.status.is_terminal():
            said = [line.removeprefix(listing.FAILED) for line in log.splitlines() if line.startswith(listing.FAILED)]
            why = (said or [info.message or "it ended"])[-1]
            raise ClusterError(f"the output directory must be readable on the cluster, but: {why}")
        time.sleep(_POLL_S)
