"""Servers that speak S3's and Google's protocols, and a folder: the same tests for each."""

import pytest
from buckets import at
from servers import S3_ENVIRONMENT, gcs_server, s3_server

from orchestrator.stored.location import Location


@pytest.fixture(scope="session")
def ports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("servers")
    with s3_server(folder) as s3, gcs_server(folder) as gcs:
        yield {"s3": s3, "gs": gcs}


@pytest.fixture(autouse=True)
def _credentials(monkeypatch):
    for name, value in S3_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(params=["file", "s3", "gs"])
def location(request, tmp_path, ports):
    return at(request.param, tmp_path, ports)


@pytest.fixture
def folder(tmp_path):
    """A location that is a folder, for what does not depend on the server."""
    return Location.of(f"file://{tmp_path}/bucket/sweep")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Go to another machine: a working directory in which nothing is."""

    def go(name):
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / name)

    go("first")
    return go
