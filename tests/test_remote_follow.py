"""A log that is followed through connections that break."""

import asyncio
from types import SimpleNamespace

import aiohttp
import pytest

from orchestrator.remote import follow as follow_module
from orchestrator.remote.follow import follow
from trainers.errors import ClusterError

ENDED = SimpleNamespace(status="SUCCEEDED")


class Cluster:
    """Gives a log from its beginning each time; each connection but the last breaks after so many parts of it."""

    def __init__(self, parts, breaks):
        self.parts, self.breaks = parts, list(breaks)

    async def tail(self, job, write):
        limit = self.breaks.pop(0) if self.breaks else None
        for part in self.parts[:limit]:
            write(part)
            await asyncio.sleep(0)
        if limit is not None:
            raise aiohttp.ClientConnectionError("gone")

    def ended(self, job, limit_s):
        return ENDED


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(follow_module, "_PAUSE_S", 0)


@pytest.mark.parametrize("breaks", [[], [0], [2], [1, 1, 3], [3, 0, 2]])
def test_nothing_is_missed_or_repeated(breaks):
    written = []
    assert follow(Cluster(["a\n", "bc", "d\n", "e"], breaks), "job", written.append) is ENDED
    assert "".join(written) == "a\nbcd\ne"


def test_parts_may_be_cut_otherwise_the_second_time():
    written = []
    cluster = Cluster(["ab", "cd"], [2])
    original = cluster.tail

    async def tail(job, write):
        await original(job, write) if cluster.breaks else write("abcdef")

    cluster.tail = tail
    follow(cluster, "job", written.append)
    assert written == ["ab", "cd", "ef"]


def test_a_cluster_that_stays_away_is_an_error_and_the_job_goes_on():
    with pytest.raises(
        ClusterError, match="log of job job must be readable, but: gone; the job goes on: rankfront logs -f job"
    ):
        follow(Cluster(["a"], [1] + [0] * 20), "job", [].append)


def test_failures_count_only_while_nothing_comes():
    written = []
    parts = [str(number) for number in range(30)]
    follow(Cluster(parts, range(1, 30)), "job", written.append)
    assert written == parts
