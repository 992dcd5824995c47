"""A job's log as it is written."""

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from orchestrator.remote.cluster import Cluster
from trainers.errors import ClusterError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

_ATTEMPTS, _PAUSE_S = 10, 3.0
_SETTLE_S = 60.0


def follow(cluster: Cluster, job: str, write: Callable[[str], None]) -> "JobDetails":
    """Write a job's log from its beginning until the job has ended; returns how it ended.

    A connection that breaks is made again, and what was written is not repeated. Raises ClusterError where that fails
    for half a minute: the job itself goes on.
    """
    log = _Log(write)
    failures = 0
    while True:
        seen = log.num_seen
        try:
            asyncio.run(_tail(cluster, job, log))
            return cluster.ended(job, _SETTLE_S)
        except (ClusterError, RuntimeError, OSError, _client_error()) as error:
            failures = 0 if log.num_seen > seen else failures + 1
            if failures >= _ATTEMPTS:
                raise ClusterError(
                    f"the log of job {job} must be readable, but: {error}; the job goes on: rankfront logs -f {job}"
                ) from error
            time.sleep(_PAUSE_S)


class _Log:
    """Writes text that is given from its beginning again and again, each part once."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write, self.num_seen, self._place = write, 0, 0

    def again(self) -> None:
        self._place = 0

    def add(self, text: str) -> None:
        new = text[max(0, self.num_seen - self._place) :]
        self._place += len(text)
        self.num_seen = max(self.num_seen, self._place)
        if new:
            self._write(new)


async def _tail(cluster: Cluster, job: str, log: _Log) -> None:
    log.again()
    await cluster.tail(job, log.add)


def _client_error() -> type[Exception]:
    import aiohttp

    return aiohttp.ClientError
