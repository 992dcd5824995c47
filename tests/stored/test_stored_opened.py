"""A sweep whose output is under a URL, from one machine to the next."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from buckets import files_of, objects, write
from trial_records import record
from typer.testing import CliRunner

from orchestrator import doctor
from orchestrator.cli import app
from orchestrator.front import read_front
from orchestrator.records import write_records
from orchestrator.remote.fetch import fetch_url
from orchestrator.resume import resume
from orchestrator.stored import location as locations
from orchestrator.stored import mirror as mirrors
from orchestrator.stored.location import Location
from orchestrator.stored.manifest import FILE, read_manifest, write_manifest
from orchestrator.stored.opened import opened
from orchestrator.stored.source import readable
from trainers.errors import ClusterError, StorageError, SweepError

pytestmark = pytest.mark.server


def run_in(place, sweep):
    with opened(place, print) as root:
        sweep(root)


def test_what_one_machine_left_is_on_the_next(location, elsewhere):
    with opened(location, print) as root:
        assert str(root) == "runs/sweep"
        write(root, config=b"c", runs__t__model_pt=b"w", deep__er__x=b"")
    before = files_of(root)
    elsewhere("second")
    with opened(location, print, begun=True) as root:
        assert files_of(root) == before
        write(root, more=b"x")
    assert objects(location) == {**before, "more": b"x"}
    elsewhere("first")
    with pytest.raises(SweepError, match="gone on from another folder since"), opened(location, print):
        pass


def test_a_folder_knows_its_url(folder, elsewhere):
    with opened(folder, print) as root:
        pass
    with opened(root, print) as again:
        write(again, more=b"x")
    assert objects(folder) == {"more": b"x"}
    other = Location.of(folder.url.replace("bucket", "other"))
    with pytest.raises(SweepError, match="but is that of file"), opened(other, print):
        pass


def test_a_folder_without_a_url_is_as_it_is(tmp_path):
    with opened(tmp_path / "new", print) as root:
        assert root == tmp_path / "new"
    assert not root.exists()


def test_other_files_are_left_alone_here_and_there(folder, elsewhere):
    write(Path("runs/sweep"), note=b"mine")
    with (
        pytest.raises(SweepError, match="holds other files; run the command in another directory"),
        opened(folder, print),
    ):
        pass
    elsewhere("second")
    folder.write("note", b"mine")
    with pytest.raises(SweepError, match="must be empty or hold a sweep"), opened(folder, print):
        pass
    assert objects(folder) == {"note": b"mine"}


def test_there_must_be_a_sweep_to_go_on_with(folder, elsewhere):
    with pytest.raises(SweepError, match="must hold a sweep, but has no"), opened(folder, print, begun=True):
        pass


def test_two_processes_do_not_share_a_folder(folder, elsewhere):
    with opened(folder, print), pytest.raises(SweepError, match="is in use by a sweep"), opened(folder, print):
        pass


def test_what_cannot_be_sent_in_the_end_is_said_and_sent_later(folder, elsewhere, tmp_path, monkeypatch):
    monkeypatch.setattr(mirrors, "_TRIES_AT_END", 1)
    bucket, aside = tmp_path / "bucket", tmp_path / "aside"

    def sweep(root):
        bucket.rename(aside)
        bucket.write_bytes(b"no folder")
        write(root, results=b"results")

    unsent = r"1 files, 7 B, could not be sent .* `rankfront sync .*/first/runs/sweep`"
    with pytest.raises(StorageError, match=unsent):
        run_in(folder, sweep)
    bucket.unlink()
    aside.rename(bucket)
    with opened(Path("runs/sweep"), print):
        pass
    assert objects(folder) == {"results": b"results"}


def test_an_error_of_the_sweep_comes_first(folder, elsewhere):
    def sweep(root):
        write(root, a=b"1")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_in(folder, sweep)
    assert objects(folder) == {"a": b"1"}


def test_a_bring_that_was_cut_off_begins_again(folder, elsewhere, monkeypatch):
    with opened(folder, print) as root:
        write(root, a=b"1", b=b"2")
    elsewhere("second")
    folder.write("b", b"damaged")
    monkeypatch.setattr(locations, "_FIRST_WAIT_S", 0.0)
    with (
        pytest.raises(StorageError, match="b must be as it was sent, but its checksum is another"),
        opened(folder, print),
    ):
        pass
    folder.write("b", b"2")
    with opened(folder, print) as root:
        assert files_of(root) == {"a": b"1", "b": b"2"}


def test_a_pass_that_was_cut_off_leaves_what_can_be_brought(folder, elsewhere):
    with opened(folder, print) as root:
        write(root, a=b"1", b=b"2")
    manifest = read_manifest(folder)
    manifest.files["a"].append((1, hashlib.sha256(b"2").hexdigest()))
    manifest.files["c"] = [(-1, ""), (1, "0" * 64)]
    write_manifest(folder, manifest)
    folder.write("a", b"2")
    elsewhere("second")
    with opened(folder, print) as root:
        assert files_of(root) == {"a": b"2", "b": b"2"}
    folder.delete("b")
    elsewhere("third")
    with (
        pytest.raises(StorageError, match="must hold all files of its sweep, but b is missing"),
        opened(folder, print),
    ):
        pass


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b'{"version": 2, "folder": "a", "files": {}}', b'{"version": 1, "folder": "../a", "files": {}}',
     b'{"version": 1, "folder": "a", "files": {"a": [[1]]}}', b'{"version": 1, "folder": "a", "files": {"a": 1}}',
     b'{"version": 1, "folder": "a", "files": {"../../a": [[1, "x"]]}}',
     b'{"version": 1, "folder": "a", "files": {".mirror.json": [[1, "x"]]}}', b"[" * 100_000],
)  # fmt: skip
def test_a_forged_manifest_is_refused(folder, elsewhere, content):
    folder.write(FILE, content)
    with pytest.raises(StorageError, match="must be the manifest|must lie in"), opened(folder, print):
        pass
    assert not [path for path in files_of(Path("runs")) if "lock" not in path]


def test_trials_that_the_study_does_not_know_are_begun_anew(folder, elsewhere):
    with opened(folder, print) as root:
        write(root, config=b"c", runs__dense__checkpoint_pt=b"kept")
    folder.write("runs/trial-0007/checkpoint.pt", b"ahead of the driver")
    elsewhere("second")
    with opened(folder, print) as root:
        assert set(files_of(root)) == {"config", "runs/dense/checkpoint.pt"}
    assert set(objects(folder)) == {"config", "runs/dense/checkpoint.pt"}


def test_doctor_tries_the_url_here_and_on_a_node(location, folder, tmp_path):
    assert "can be written" in doctor._kept(location)
    assert objects(location) == {}
    location.write(".mark", b".mark")
    assert doctor._look(".mark", location.url)["storage"] == ""
    assert "the driver's file is not there" in doctor._look(".other", location.url)["storage"]
    (tmp_path / "bucket").mkdir(exist_ok=True)
    (tmp_path / "bucket" / "taken").write_bytes(b"")
    taken = Location.of(f"file://{tmp_path}/bucket/taken/sweep")
    assert "must be reachable and writable" in doctor._look(".mark", taken.url)["storage"]
    assert doctor._tried("URL", lambda: doctor._kept(taken)).state == "problem"


def test_what_is_kept_is_fetched_and_its_front_is_read(location, elsewhere, tmp_path):
    with opened(location, print) as root:
        write(root, config=b"c", runs__t__model_pt=b"w", runs__t__checkpoint_pt=b"c")
        write_records([record("trial-0000", macs_ratio=0.5, params=10, params_ratio=0.5)], root / "results.parquet")
        before = files_of(root)
    with readable(location) as copy:
        assert read_front(copy) == read_front(root)
        assert list(files_of(copy)) == ["results.parquet"]
    assert not copy.exists()
    found = fetch_url(location.url, tmp_path / "home", [].append)
    assert (found.num_new, files_of(tmp_path / "home")) == (4, before)
    location.write("config", b"d")  # not what was sent
    with pytest.raises(ClusterError, match="config changed or broke on the way"):
        fetch_url(location.url, tmp_path / "again", [].append)
    empty = Location.of(location.url.replace("/sweep", "/empty"))
    with pytest.raises(SweepError, match="must hold a sweep"), readable(empty):
        pass
    with pytest.raises(SweepError, match="must hold a sweep"):
        fetch_url(empty.url, tmp_path / "empty", [].append)


@pytest.mark.parametrize("verb", ["report", "ui", "latency", "export", "compare"])
def test_verbs_that_need_a_folder_say_how_to_get_one(verb):
    found = CliRunner().invoke(
        app, [verb, "s3://bucket/x?region=a&scheme=http", *["--output", "x.pt2"][: 2 * (verb == "export")]]
    )
    assert found.exit_code == 2
    assert "rankfront fetch" in found.output


@pytest.mark.ray
def test_a_finished_sweep_is_finished_on_another_machine(finished, folder, elsewhere):
    output, _, _ = finished
    with opened(folder, print) as root:
        shutil.copytree(output, root, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".lock"))
    elsewhere("second")
    with opened(folder, print, begun=True) as root:
        found = resume(root, [], None)
        assert found.was_finished
        assert read_front(root) == read_front(output)
        assert (root / "runs/dense/model.pt").read_bytes() == (output / "runs/dense/model.pt").read_bytes()
    assert json.loads((root / ".mirror.json").read_text())["url"] == folder.url
