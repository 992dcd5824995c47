"""Bringing an output directory home: whole, checked, nothing lost. The other side is a folder, or a hostile one."""

import errno
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from orchestrator.remote import listing
from orchestrator.remote.fetch import bring
from orchestrator.remote.sources import RemoteFile, SharedFolder, shared_folder
from trainers.errors import ClusterError, SweepError

FILES = {"sweep.json": b"{}", "results.parquet": b"rows", "runs/trial-0000/model.pt": b"weights" * 1000, "empty": b""}


@pytest.fixture
def output(tmp_path):
    """An output directory as a sweep leaves it, with what is not to be fetched."""
    root = tmp_path / "output"
    for name, content in {**FILES, "tune/state.pkl": b"p", ".lock": b"process 1", "runs/tune/kept": b"k"}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    (root / "link").symlink_to("/etc/passwd")
    return root


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (".lock", ".fetched.json")
    }


def test_all_comes_once_and_again_only_what_changed(output, tmp_path):
    target, lines = tmp_path / "home", []
    found = bring(SharedFolder(output), target, lines.append)
    assert contents(target) == {**FILES, "runs/tune/kept": b"k"}
    assert (found.num_new, found.num_replaced, found.num_kept) == (5, 0, 0)
    assert lines == [f"5 of 5 files, 6.8 KiB, from {output} to {target}"]
    (output / "results.parquet").write_bytes(b"more rows")
    (output / "runs/trial-0001").mkdir()
    (output / "runs/trial-0001/model.pt").write_bytes(b"w")
    found = bring(SharedFolder(output), target, lines.append)
    assert (found.num_new, found.num_replaced, found.num_kept) == (1, 1, 4)
    assert contents(target)["results.parquet"] == b"more rows"


def test_what_changed_here_is_not_overwritten(output, tmp_path):
    target = tmp_path / "home"
    bring(SharedFolder(output), target, [].append)
    (target / "results.parquet").write_bytes(b"went on here")
    (output / "empty").write_bytes(b"no longer")
    with pytest.raises(ClusterError, match=r"nothing may be overwritten, but in .*home results\.parquet changed since"):
        bring(SharedFolder(output), target, [].append)
    assert (target / "results.parquet").read_bytes() == b"went on here"
    assert (target / "empty").read_bytes() == b""


def test_a_folder_of_something_else_is_left_alone(output, tmp_path):
    target = tmp_path / "home"
    target.mkdir()
    (target / "thesis.tex").write_text("t")
    with pytest.raises(
        ClusterError, match=r"must be new, empty or fetched before, but holds thesis\.tex; use another --output"
    ):
        bring(SharedFolder(output), target, [].append)
    assert contents(target) == {"thesis.tex": b"t"}


class Cluster(SharedFolder):
    """A folder whose connection breaks after some bytes, or that lists what it likes."""

    def __init__(self, folder, limit=None, files=None):
        super().__init__(folder)
        self.limit = limit
        self.files = self.files if files is None else files

    def read(self, path):
        for chunk in super().read(path):
            if self.limit is not None:
                self.limit -= len(chunk)
                if self.limit < 0:
                    yield chunk[:10]
                    raise ClusterError("the connection broke")
            yield chunk


def test_a_fetch_that_was_cut_off_goes_on(output, tmp_path):
    target = tmp_path / "home"
    with pytest.raises(ClusterError, match="broke"):
        bring(Cluster(output, limit=20), target, [].append)
    before = contents(target)
    assert 0 < len(before) < 5
    assert all((output / name).read_bytes() == content for name, content in before.items())  # none is half there
    there = next(name for name in before if name != "empty")
    (output / there).write_bytes(b"changed meanwhile")
    found = bring(SharedFolder(output), target, [].append)
    assert found.num_replaced == 1
    assert contents(target).items() <= contents(output).items()
    assert contents(target)[there] == b"changed meanwhile"
    assert len(contents(target)) == 5


def test_what_arrives_otherwise_than_listed_is_not_kept(output, tmp_path):
    source = SharedFolder(output)
    (output / "results.parquet").write_bytes(b"ROWS")
    (output / "empty").write_bytes(b"longer than listed")
    (output / "sweep.json").unlink()
    with pytest.raises(
        ClusterError, match=r"empty, results\.parquet, sweep\.json changed or broke.*repeat the command"
    ):
        bring(source, tmp_path / "home", [].append)
    assert sorted(contents(tmp_path / "home")) == ["runs/trial-0000/model.pt", "runs/tune/kept"]
    assert {path.name for path in (tmp_path / "home").glob(".*")} == {".lock", ".fetched.json"}  # nothing half


@pytest.mark.parametrize(
    "path", ["../x", "/etc/x", "a/../../x", "", ".", "a//b", "./a", "a\\..\\x", "a\0b", ".lock", ".fetched.json", "a/"]
)
def test_a_path_that_leads_out_is_refused_before_anything_is_written(output, tmp_path, path):
    files = [RemoteFile("fine", 1, hashlib.sha256(b"x").hexdigest()), RemoteFile(path, 1, "0" * 64)]
    with pytest.raises(ClusterError, match="each path must lie in the output directory"):
        bring(Cluster(output, files=files), tmp_path / "home", [].append)
    assert not (tmp_path / "home").exists()


def test_a_link_in_the_target_leads_nowhere(output, tmp_path):
    target, outside = tmp_path / "home", tmp_path / "outside"
    bring(SharedFolder(output), target, [].append)
    (outside / "trial-0000").mkdir(parents=True)
    (target / "runs").rename(tmp_path / "moved")
    (target / "runs").symlink_to(outside)
    with pytest.raises(ClusterError, match="nothing may be overwritten"):
        bring(SharedFolder(output), target, [].append)
    assert contents(outside) == {}


def test_more_than_the_disk_holds_is_refused(output, tmp_path):
    files = [RemoteFile("big", 2**60, "0" * 64)]
    with pytest.raises(ClusterError, match=r"1073741824\.0 GiB must fit, but .* free; use --output"):
        bring(Cluster(output, files=files), tmp_path / "home", [].append)


def test_a_target_in_use_and_an_empty_source_are_refused(output, tmp_path):
    target = tmp_path / "home"
    target.mkdir()
    with (target / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SweepError, match="in use"):
            bring(SharedFolder(output), target, [].append)
    with pytest.raises(ClusterError, match="must hold a sweep, but is empty"):
        bring(Cluster(output, files=[]), target, [].append)


def test_a_sweep_is_not_fetched_into_itself(output, tmp_path):
    (tmp_path / "link").symlink_to(output)
    with pytest.raises(ClusterError, match="is the sweep's output directory itself: there is nothing to fetch"):
        bring(SharedFolder(output), tmp_path / "link", [].append)


def test_a_damaged_record_is_an_error(output, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".fetched.json").write_text("[1]")
    with pytest.raises(ClusterError, match=r"\.fetched\.json must be readable"):
        bring(SharedFolder(output), tmp_path / "home", [].append)


@pytest.mark.parametrize(
    ("content", "same"),
    [('{"job": "a-1"}', True), ('{"job": "a-2"}', False), ("[]", False), ("{", False), (None, False)],
)
def test_storage_is_shared_where_the_directory_is_the_jobs_own(output, content, same):
    if content is not None:
        (output / "environment.json").write_text(content)
    assert shared_folder(str(output), "a-1") == (output if same else None)


def test_the_program_on_the_cluster_lists_serves_and_cleans_up(output, tmp_path):
    """It is run as Ray runs it: what it prints goes into a file in the folder of logs."""
    logs = tmp_path / "logs"
    logs.mkdir()
    log = logs / "job-driver.log"
    with log.open("w") as file:
        command = [sys.executable, "-S", listing.__file__, str(output), "served"]
        process = subprocess.Popen(command, stdout=file, stderr=file)
        try:
            end = time.monotonic() + 300
            while listing.READY not in log.read_text():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < end
                time.sleep(0.05)
            assert [tuple(entry) for entry in json.loads((logs / "served.json").read_text())] == listing.listing(output)
            assert (logs / "served" / "results.parquet").read_bytes() == b"rows"
            os.kill(process.pid, signal.SIGTERM)
            assert process.wait(300) == 0
        finally:
            process.kill()
    assert sorted(path.name for path in logs.iterdir()) == ["job-driver.log"]
    done = subprocess.run(
        [*command[:3], tmp_path / "gone", "x"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 3
    assert f"rankfront: {tmp_path / 'gone'} must be a folder on the head node" in done.stdout


def test_a_disk_that_is_full_leaves_no_half_file(output, tmp_path):
    class Full(SharedFolder):
        def read(self, path):
            raise OSError(errno.ENOSPC, "No space left on device")
            yield

    with pytest.raises(OSError, match="No space left"):
        bring(Full(output), tmp_path / "home", [].append)
    assert contents(tmp_path / "home") == {}
