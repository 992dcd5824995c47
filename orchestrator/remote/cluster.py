"""A cluster, by Ray's Jobs API."""

import logging
import os
import re
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from orchestrator.ray_session import prepare_environment
from orchestrator.remote.address import LOCAL_CLUSTER, find_address, host_and_port, require_token
from orchestrator.remote.package import write_archive
from trainers.errors import ClusterError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

T = TypeVar("T")

_CONNECT_S, _READ_S = 10, 60
_STREAM_S = 24 * 3600  # the longest that one file may take
_CHUNK_BYTES = 2**20
_POLL_S = 0.5
_REMEDY = "check --address, RAY_API_SERVER_ADDRESS and RAY_ADDRESS"


class Cluster:
    """A connection to the Jobs API of the cluster at `option` (None: where the environment says).

    Every method raises ClusterError where the cluster does not answer, or refuses. `address` is that of its dashboard.
    """

    def __init__(self, option: str | None) -> None:
        self._client = _connect(find_address(option))
        self.address = self._client.get_address()

    def submit(
        self, job: str, entrypoint: str, files: dict[str, Path], env_vars: dict[str, str], metadata: dict[str, str]
    ) -> None:
        """Send the files, which become the job's working directory, and start the job."""
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder) / "package.zip"
            write_archive(files, archive)
            self._ask(
                lambda: self._client.submit_job(
                    submission_id=job,
                    entrypoint=entrypoint,
                    runtime_env={"working_dir": str(archive), "env_vars": env_vars},
                    metadata=metadata,
                )
            )

    def info(self, job: str) -> "JobDetails":
        """Return what the cluster knows of a job; raises ClusterError where there is none of that id."""
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", job):  # it becomes a part of a URL
            raise ClusterError(f"a job's id must consist of letters, digits, '_', '.' and '-', but is {job!r}")
        with _missing(job):
            return self._ask(lambda: self._client.get_job_info(job))

    def jobs(self) -> "list[JobDetails]":
        """Return all jobs that were submitted, the newest last."""
        found = self._ask(self._client.list_jobs)
        return sorted((job for job in found if job.submission_id), key=lambda job: job.start_time or 0)

    def logs(self, job: str) -> str:
        """Return all that a job has printed so far."""
        return self._ask(lambda: self._client.get_job_logs(job))

    async def tail(self, job: str, write: Callable[[str], None]) -> None:
        """Give what the job prints, from its beginning to its end, to `write`; raises whatever a connection can end with."""
        async for text in self._client.tail_job_logs(job):
            write(text)

    def stop(self, job: str) -> None:
        """Ask a job to end, as SIGTERM does."""
        self._ask(lambda: self._client.stop_job(job))

    def ended(self, job: str, limit_s: float) -> "JobDetails":
        """Wait until a job has ended; raises ClusterError where it has not within the limit."""
        end = time.monotonic() + limit_s
        while not (info := self.info(job)).status.is_terminal():
            if time.monotonic() > end:
                raise ClusterError(f"job {job} must end within {limit_s:.0f} s, but is {info.status}; ask again later")
            time.sleep(_POLL_S)
        return info

    def read_log_file(self, node: str, name: str) -> Iterator[bytes]:
        """Yield the bytes of a file below the folder of a node's logs.

        The interface that shows logs streams any file of that folder as it is; a link in it may lead out of it. Raises
        FileNotFoundError where there is none of that name.
        """
        query = {"node_id": node, "filename": name, "lines": "-1", "timeout": str(_STREAM_S)}
        with self._ask(lambda: self._request("/api/v0/logs/file", query)) as answer:
            if answer.status_code != 200 and "file is not found" in answer.text:
                raise FileNotFoundError(name)
            if answer.status_code != 200:
                raise ClusterError(f"the cluster must have the file {name}, but says: {answer.text[:300]}")
            with _translated(self._client.get_address()):
                yield from answer.iter_content(_CHUNK_BYTES)

    def _request(self, path: str, query: dict[str, str]) -> Any:
        # the client's own way to ask, with the token; it has no public method for logs
        return self._client._do_request("GET", path, params=query, stream=True, timeout=_READ_S)

    def _ask(self, question: Callable[[], T]) -> T:
        with _translated(self._client.get_address()):
            return question()


def _connect(address: str) -> "JobSubmissionClient":
    require_token(address)
    if address != LOCAL_CLUSTER:
        _require_listener(address)
    prepare_environment()
    from ray.dashboard.utils import get_address_for_submission_client
    from ray.job_submission import JobSubmissionClient

    for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.WARNING)  # else it tells about each package
    with _translated(address):
        os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray lets its variables win over an argument
        found = get_address_for_submission_client(None if address == LOCAL_CLUSTER else address)
        require_token(found)
        os.environ["RAY_API_SERVER_ADDRESS"] = found
        return JobSubmissionClient(found)


def _require_listener(address: str) -> None:
    """Ray itself would wait for minutes."""
    try:
        socket.create_connection(host_and_port(address), _CONNECT_S).close()
    except OSError as error:
        raise ClusterError(f"a Ray cluster must answer at {address}, but: {error}; {_REMEDY}") from error


@contextmanager
def _translated(address: str) -> Iterator[None]:
    """What Ray's client raises, as an error for a user."""
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise ClusterError(
            f"the cluster at {address} must accept the token, but: {str(error).splitlines()[0]}; set RAY_AUTH_MODE=token, "
            "and RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN to that of the cluster (`ray get-auth-token` on its head node)"
        ) from error
    except (ConnectionError, RuntimeError, ValueError, KeyError, requests.RequestException) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ClusterError(f"Ray's Jobs API at {address} must answer, but: {why}; {_REMEDY}") from error


@contextmanager
def _missing(job: str) -> Iterator[None]:
    try:
        yield
    except ClusterError as error:
        if "status code 404" in str(error):
            raise ClusterError(
                f"job {job} must be known to the cluster, but is not; `rankfront jobs` lists them"
            ) from error
        raise
