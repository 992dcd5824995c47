"""An output kept under a URL: servers that speak S3's and Google's protocols, and a folder, through the same code."""

import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
import threading
import time
from pathlib import Path

import pytest
from servers import S3_ENVIRONMENT, Gate, fetch, gcs_server, s3_server
from trial_records import record
from typer.testing import CliRunner

from orchestrator import doctor
from orchestrator.cli import app
from orchestrator.front import read_front
from orchestrator.paths import SweepPaths
from orchestrator.records import write_records
from orchestrator.remote.fetch import fetch_url
from orchestrator.resume import resume
from orchestrator.stored import lease as leases
from orchestrator.stored import location as locations
from orchestrator.stored import mirror as mirrors
from orchestrator.stored.lease import Lease, LeaseLostError
from orchestrator.stored.location import Location, is_url
from orchestrator.stored.manifest import FILE, Manifest, read_manifest, write_manifest
from orchestrator.stored.mirror import Mirror
from orchestrator.stored.opened import opened
from orchestrator.stored.snapshot import take
from orchestrator.stored.source import readable
from trainers.errors import ClusterError, StorageError, SweepError

pytestmark = pytest.mark.server

SECRET = "hunter2hunter2"


@pytest.fixture(scope="module")
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


def at(scheme, tmp_path, ports):
    if scheme == "file":
        return Location.of(f"file://{tmp_path}/bucket/sweep")
    user = "anonymous@" if scheme == "gs" else ""
    url = f"{scheme}://{user}bucket/{tmp_path.name}/sweep?endpoint_override=127.0.0.1:{ports[scheme]}&scheme=http"
    return Location.of(url)


@pytest.fixture
def folder(tmp_path):
    """A location that is a folder, for what does not depend on the server."""
    return Location.of(f"file://{tmp_path}/bucket/sweep")


def files_of(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def write(root, **files):
    for name, content in files.items():
        path = root / name.replace("__", "/")
        path = path.with_name(path.name.replace("_pt", ".pt").replace("_json", ".json"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def objects(location):
    return {path: location.read(path) for path in location.files()}


class TestLocations:
    def test_objects_are_written_read_replaced_listed_and_removed(self, location, tmp_path):
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
    def test_a_bad_url_is_one_clear_error(self, url):
        assert is_url(url)
        with pytest.raises(SweepError, match="the URL of an output must"):
            Location.of(url)

    @pytest.mark.parametrize(
        "url",
        [f"s3://key:{SECRET}@bucket/x", f"gs://{SECRET}@bucket/x", f"s3://key:a/{SECRET}@bucket/x",
         f"s3://bucket/x y?secret_access_key={SECRET}"],
    )  # fmt: skip
    def test_a_secret_in_a_url_is_refused_and_not_repeated(self, url):
        with pytest.raises(SweepError, match="must") as caught:
            Location.of(url)
        assert SECRET not in str(caught.value)

    @pytest.mark.parametrize("url", ["s3://bucket/x?nonsense=1", f"s3://bucket/x?secret_key={SECRET}"])
    def test_what_pyarrow_refuses_of_a_url_is_said(self, url):
        with pytest.raises(StorageError, match="Unexpected query parameter") as caught:
            Location.of(url).files()
        assert SECRET not in str(caught.value)

    @pytest.mark.parametrize("text", ["runs/x", "/a/b", "a:b", "~/x", ".", "runs/s3"])
    def test_a_path_is_no_url(self, text):
        assert not is_url(text)

    def test_a_bucket_that_is_not_there_is_said_at_once(self, tmp_path, ports):
        for scheme in ("s3", "gs"):
            there = at(scheme, tmp_path, ports)
            missing = Location.of(there.url.replace("bucket", "nobucket"))
            with pytest.raises(StorageError, match="check the bucket's name, the network, and the credentials"):
                missing.write("a", b"x")

    def test_a_key_that_is_refused_is_said_and_not_repeated(self, tmp_path, ports, monkeypatch):
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


class TestSnapshots:
    def test_what_rests_on_a_file_is_read_before_it_and_sent_after_it(self, tmp_path):
        write(
            tmp_path, sweep_json=b"s", config=b"c", tracking__delivered_json=b"d", tracking__models_json=b"m",
            runs__t__model_pt=b"w", mlartifacts__x=b"a", front_json=b"f",
        )  # fmt: skip
        paths = SweepPaths(tmp_path)
        for path in (
            paths.results,
            paths.study,
            paths.config,
            paths.tracking / "events.jsonl",
            paths.tracking / "runs.jsonl",
        ):
            path.write_bytes(b"x")
        with contextlib.closing(sqlite3.connect(paths.mlflow_db)) as database, database:
            database.execute("CREATE TABLE a (b)")
        order = [change.path for change in take(tmp_path, {}).changes]
        chain = ["results.parquet", "tracking/delivered.json", "tracking/events.jsonl", "mlflow.db", "runs/t/model.pt"]
        chain = ["sweep.json", *chain, "study.journal", "config.yaml"]
        assert [path for path in order if path in chain] == chain
        assert order.index("tracking/models.json") < order.index("tracking/events.jsonl")
        assert order.index("tracking/delivered.json") < order.index("mlartifacts/x")

    def test_what_belongs_to_this_machine_stays(self, tmp_path):
        write(tmp_path, tune__a=b"", reruns__b=b"", runs__t__kept=b"")
        for name in (".lock", ".mirror.json", "runs/t/.model.pt.x.partial", "mlflow.db-journal", "mlflow.db-wal"):
            (tmp_path / name).write_bytes(b"")
        (tmp_path / "runs" / "link").symlink_to("/etc/passwd")
        assert take(tmp_path, {}).present == {"runs/t/kept"}

    def test_only_changes_are_read(self, tmp_path):
        write(tmp_path, a=b"1", b=b"2")
        sent = {change.path: change.stamp for change in take(tmp_path, {}).changes}
        write(tmp_path, b=b"33")
        found = take(tmp_path, sent)
        assert [(change.path, change.content) for change in found.changes] == [("b", b"33")]
        assert found.present == {"a", "b"}

    def test_a_database_is_copied_between_two_transactions(self, tmp_path):
        with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)) as database:
            database.execute("CREATE TABLE a (b)")
            database.execute("BEGIN")
            database.executemany("INSERT INTO a VALUES (?)", [(number,) for number in range(1000)])
            (change,) = take(tmp_path, {}).changes
            database.execute("COMMIT")
        for content, rows in ((change.content, 0), (take(tmp_path, {}).changes[0].content, 1000)):
            with contextlib.closing(sqlite3.connect(":memory:")) as copy:
                copy.deserialize(content)
                assert copy.execute("SELECT count(*) FROM a").fetchone() == (rows,)


@pytest.fixture
def root(tmp_path):
    path = tmp_path / "here"
    path.mkdir()
    return path


@pytest.fixture
def mirror(location, root):
    lease = Lease(location, "here")
    lease.take(print)
    return Mirror(root, location, lease, Manifest("here"))


class TestMirrors:
    def test_what_is_here_is_there_and_only_changes_are_sent(self, location, root, mirror):
        write(root, a=b"1", runs__t__checkpoint_pt=b"old", runs__t__curve_json=b"{}")
        mirror.send()
        assert objects(location) == files_of(root)
        before = objects(location)
        write(root, a=b"2")
        (root / "runs/t/checkpoint.pt").unlink()
        mirror.send()
        assert objects(location) == files_of(root) != before
        assert read_manifest(location).files["a"] == [(1, hashlib.sha256(b"2").hexdigest())]
        location.write("a", b"untouched")  # a pass without changes writes nothing
        mirror.send()
        assert location.read("a") == b"untouched"

    def test_a_mirror_that_starts_anew_sends_only_what_is_not_there(self, folder, root):
        lease = Lease(folder, "here")
        lease.take(print)
        write(root, a=b"1", b=b"2")
        Mirror(root, folder, lease, Manifest("here")).send()
        folder.write("a", b"untouched")
        write(root, b=b"3")
        Mirror(root, folder, lease, read_manifest(folder)).send()
        assert objects(folder) == {"a": b"untouched", "b": b"3"}

    def test_a_checkpoint_that_is_being_replaced_stays_there(self, folder, root):
        lease = Lease(folder, "here")
        lease.take(print)
        mirror = Mirror(root, folder, lease, Manifest("here"))
        write(root, runs__t__checkpoint_pt=b"1")
        mirror.send()
        (root / "runs/t/checkpoint.pt").rename(root / "runs/t/checkpoint.before.pt")
        mirror.send()
        assert objects(folder) == {"runs/t/checkpoint.pt": b"1"}

    def test_a_network_that_a_worker_has_sent_is_not_sent_again(self, folder, root):
        lease = Lease(folder, "here")
        lease.take(print)
        folder.write("runs/t/model.pt", b"there")
        write(root, runs__t__model_pt=b"heree")
        Mirror(root, folder, lease, Manifest("here")).send()
        assert objects(folder) == {"runs/t/model.pt": b"there"}
        assert list(read_manifest(folder).files) == ["runs/t/model.pt"]

    def test_an_outage_is_said_once_waited_out_and_nothing_is_missing(self, tmp_path, ports, root, monkeypatch, caplog):
        monkeypatch.setattr(mirrors, "_INTERVAL_S", 0.1)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        gate = Gate(ports["s3"])
        location = Location.of(at("s3", tmp_path, ports).url.replace(str(ports["s3"]), str(gate.port)))
        lease = Lease(location, "here")
        lease.take(print)
        mirror = Mirror(root, location, lease, Manifest("here"))
        gate.close()
        write(root, a=b"1")
        mirror.start()
        wait_for(lambda: "is tried again" in caplog.text)
        gate.open()
        wait_for(lambda: "takes files again" in caplog.text)
        write(root, b=b"2")
        assert mirror.close() is None
        assert objects(location) == {"a": b"1", "b": b"2"}
        assert caplog.text.count("is tried again") == 1

    def test_who_has_lost_the_lease_sends_nothing_more(self, folder, root):
        lease = Lease(folder, "here")
        lease.take(print)
        mirror = Mirror(root, folder, lease, Manifest("here"))
        write(root, a=b"1")
        Lease(folder, "here").take(print)  # of the same folder: taken over at once
        with pytest.raises(LeaseLostError, match="taken over by process"):
            mirror.send()
        assert objects(folder) == {}


def wait_for(holds, limit_s=60):
    end = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


class TestLeases:
    def test_a_driver_that_lives_is_not_taken_over(self, location, monkeypatch):
        monkeypatch.setattr(leases, "_POLL_S", 0.1)
        first = Lease(location, "a")
        first.take(print)
        ended = threading.Event()

        def live():
            while not ended.wait(0.2):
                first.renew(force=True)

        thread = threading.Thread(target=live)
        thread.start()
        said = []
        try:
            with pytest.raises(SweepError, match="is in use by a sweep \\(process"):
                Lease(location, "b").take(said.append)
        finally:
            ended.set()
            thread.join()
        assert "was in use by process" in said[0]

    def test_one_that_is_gone_is_after_a_while(self, folder, monkeypatch):
        monkeypatch.setattr(leases, "_POLL_S", 0.1)
        monkeypatch.setattr(leases, "_PATIENCE_S", 0.5)
        first = Lease(folder, "a")
        first.take(print)
        second = Lease(folder, "b")
        second.take(lambda text: None)
        with pytest.raises(LeaseLostError):
            first.renew(force=True)
        first.release()  # not its own any more
        second.renew(force=True)

    def test_one_that_has_ended_leaves_nothing(self, folder):
        first = Lease(folder, "a")
        first.take(print)
        first.release()
        assert folder.read(leases.FILE) is None


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Go to another machine: a working directory in which nothing is."""

    def go(name):
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / name)

    go("first")
    return go


def run_in(place, sweep):
    with opened(place, print) as root:
        sweep(root)


class TestOpened:
    def test_what_one_machine_left_is_on_the_next(self, location, elsewhere):
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

    def test_a_folder_knows_its_url(self, folder, elsewhere):
        with opened(folder, print) as root:
            pass
        with opened(root, print) as again:
            write(again, more=b"x")
        assert objects(folder) == {"more": b"x"}
        other = Location.of(folder.url.replace("bucket", "other"))
        with pytest.raises(SweepError, match="but is that of file"), opened(other, print):
            pass

    def test_a_folder_without_a_url_is_as_it_is(self, tmp_path):
        with opened(tmp_path / "new", print) as root:
            assert root == tmp_path / "new"
        assert not root.exists()

    def test_other_files_are_left_alone_here_and_there(self, folder, elsewhere):
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

    def test_there_must_be_a_sweep_to_go_on_with(self, folder, elsewhere):
        with pytest.raises(SweepError, match="must hold a sweep, but has no"), opened(folder, print, begun=True):
            pass

    def test_two_processes_do_not_share_a_folder(self, folder, elsewhere):
        with opened(folder, print), pytest.raises(SweepError, match="is in use by a sweep"), opened(folder, print):
            pass

    def test_what_cannot_be_sent_in_the_end_is_said_and_sent_later(self, folder, elsewhere, tmp_path, monkeypatch):
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

    def test_an_error_of_the_sweep_comes_first(self, folder, elsewhere):
        def sweep(root):
            write(root, a=b"1")
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            run_in(folder, sweep)
        assert objects(folder) == {"a": b"1"}

    def test_a_bring_that_was_cut_off_begins_again(self, folder, elsewhere, monkeypatch):
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

    def test_a_pass_that_was_cut_off_leaves_what_can_be_brought(self, folder, elsewhere):
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
    def test_a_forged_manifest_is_refused(self, folder, elsewhere, content):
        folder.write(FILE, content)
        with pytest.raises(StorageError, match="must be the manifest|must lie in"), opened(folder, print):
            pass
        assert not [path for path in files_of(Path("runs")) if "lock" not in path]

    def test_trials_that_the_study_does_not_know_are_begun_anew(self, folder, elsewhere):
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
