"""Objects under a URL: written, read, listed and removed by the same code, whoever keeps them."""

import os

import pytest
from buckets import at
from servers import fetch

from orchestrator.stored.location import Location, is_url
from trainers.errors import StorageError, SweepError

pytestmark = pytest.mark.server

SECRET = "hunter2hunter2"


def test_objects_are_written_read_replaced_listed_and_removed(location, tmp_path):
    assert location.read("a") is None
    assert location.files() == []
    assert not location.download("runs/x/a.bin", tmp_path / "there")
    assert location.size("a") is None
    location.delete("a")
    big = os.urandom(9 * 2**20)
    (tmp_path / "big").write_bytes(big)
    ticks = []
    location.write("runs/x/a.bin", tmp_path / "big", lambda: ticks.append(1))
    for content in (b"old", b"", b"new"):
        location.write("a", content)
        assert location.read("a") == content
    location.write(".hidden", b"x")
    assert len(ticks) == 2
    assert location.files() == ["a", "runs/x/a.bin"]
    assert location.size("runs/x/a.bin") == len(big)
    assert -60 < location.age_s("a") < 60
    assert location.download("runs/x/a.bin", tmp_path / "deep" / "there")
    assert (tmp_path / "deep" / "there").read_bytes() == big
    location.delete("a")
    assert location.files() == ["runs/x/a.bin"]


@pytest.mark.parametrize(
    "url",
    [
        "http://host/x", "s3:/bucket/x", "hdfs://host/x", "ftp://x/y", "s3://bucket", "s3://bucket/", "s3:///x/y",
        "gs://bucket", "file:///a/b?x=y", "file://host/x", "file://", "file:///", "s3://bucket/../x",
        "s3://bucket/a/./x", "s3://bucket/x#y",
        "s3://bucket/name with spaces", "s3://bucket/a\nb", "s3://bucket/ä", "s3://bucket/.hidden",
    ],
)  # fmt: skip
def test_a_bad_url_is_one_clear_error(url):
    assert is_url(url)
    with pytest.raises(SweepError, match="the URL of an output must"):
        Location.of(url)


@pytest.mark.parametrize(
    "url",
    [f"s3://key:{SECRET}@bucket/x", f"gs://{SECRET}@bucket/x", f"s3://key:a/{SECRET}@bucket/x",
     f"s3://bucket/x y?secret_access_key={SECRET}"],
)  # fmt: skip
def test_a_secret_in_a_url_is_refused_and_not_repeated(url):
    with pytest.raises(SweepError, match="must") as caught:
        Location.of(url)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("url", ["s3://bucket/x?nonsense=1", f"s3://bucket/x?secret_key={SECRET}"])
def test_what_pyarrow_refuses_of_a_url_is_said(url):
    with pytest.raises(StorageError, match="Unexpected query parameter") as caught:
        Location.of(url).files()
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("text", ["runs/x", "/a/b", "a:b", "~/x", ".", "runs/s3"])
def test_a_path_is_no_url(text):
    assert not is_url(text)


def test_a_bucket_that_is_not_there_is_said_at_once(tmp_path, ports):
    for scheme in ("s3", "gs"):
        there = at(scheme, tmp_path, ports)
        missing = Location.of(there.url.replace("bucket", "nobucket"))
        with pytest.raises(StorageError, match="check the bucket's name, the network, and the credentials"):
            missing.write("a", b"x")


def test_a_key_that_is_refused_is_said_and_not_repeated(tmp_path, ports, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    address = f"http://127.0.0.1:{ports['s3']}/moto-api/reset-auth"
    fetch(address, 0)
    try:
        with pytest.raises(StorageError, match="must be reachable and writable, but: .*(ACCESS|403)") as caught:
            at("s3", tmp_path, ports).write("a", b"x")
    finally:
        monkeypatch.undo()
        fetch(address, 10**9)
    assert SECRET not in str(caught.value)
