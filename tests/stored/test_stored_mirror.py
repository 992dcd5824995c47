"""A folder's mirror under a URL, and whose it is: what a pass reads, sends and leaves alone; the lease."""

import contextlib
import hashlib
import sqlite3
import threading

import pytest
from buckets import at, files_of, objects, wait_for, write
from servers import Gate

from orchestrator.paths import SweepPaths
from orchestrator.stored import lease as leases
from orchestrator.stored import mirror as mirrors
from orchestrator.stored.lease import Lease, LeaseLostError
from orchestrator.stored.location import Location
from orchestrator.stored.manifest import Manifest, read_manifest
from orchestrator.stored.mirror import Mirror
from orchestrator.stored.snapshot import take
from trainers.errors import SweepError

pytestmark = pytest.mark.server


def test_what_rests_on_a_file_is_read_before_it_and_sent_after_it(tmp_path):
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


def test_what_belongs_to_this_machine_stays(tmp_path):
    write(tmp_path, tune__a=b"", reruns__b=b"", runs__t__kept=b"")
    for name in (".lock", ".mirror.json", "runs/t/.model.pt.x.partial", "mlflow.db-journal", "mlflow.db-wal"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "runs" / "link").symlink_to("/etc/passwd")
    assert take(tmp_path, {}).present == {"runs/t/kept"}


def test_only_changes_are_read(tmp_path):
    write(tmp_path, a=b"1", b=b"2")
    sent = {change.path: change.stamp for change in take(tmp_path, {}).changes}
    write(tmp_path, b=b"33")
    found = take(tmp_path, sent)
    assert [(change.path, change.content) for change in found.changes] == [("b", b"33")]
    assert found.present == {"a", "b"}


def test_a_database_is_copied_between_two_transactions(tmp_path):
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


def test_what_is_here_is_there_and_only_changes_are_sent(location, root, mirror):
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


def test_a_mirror_that_starts_anew_sends_only_what_is_not_there(folder, root):
    lease = Lease(folder, "here")
    lease.take(print)
    write(root, a=b"1", b=b"2")
    Mirror(root, folder, lease, Manifest("here")).send()
    folder.write("a", b"untouched")
    write(root, b=b"3")
    Mirror(root, folder, lease, read_manifest(folder)).send()
    assert objects(folder) == {"a": b"untouched", "b": b"3"}


def test_a_checkpoint_that_is_being_replaced_stays_there(folder, root):
    lease = Lease(folder, "here")
    lease.take(print)
    mirror = Mirror(root, folder, lease, Manifest("here"))
    write(root, runs__t__checkpoint_pt=b"1")
    mirror.send()
    (root / "runs/t/checkpoint.pt").rename(root / "runs/t/checkpoint.before.pt")
    mirror.send()
    assert objects(folder) == {"runs/t/checkpoint.pt": b"1"}


def test_a_network_that_a_worker_has_sent_is_not_sent_again(folder, root):
    lease = Lease(folder, "here")
    lease.take(print)
    folder.write("runs/t/model.pt", b"there")
    write(root, runs__t__model_pt=b"heree")
    Mirror(root, folder, lease, Manifest("here")).send()
    assert objects(folder) == {"runs/t/model.pt": b"there"}
    assert list(read_manifest(folder).files) == ["runs/t/model.pt"]


def test_an_outage_is_said_once_waited_out_and_nothing_is_missing(tmp_path, ports, root, monkeypatch, caplog):
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


def test_who_has_lost_the_lease_sends_nothing_more(folder, root):
    lease = Lease(folder, "here")
    lease.take(print)
    mirror = Mirror(root, folder, lease, Manifest("here"))
    write(root, a=b"1")
    Lease(folder, "here").take(print)  # of the same folder: taken over at once
    with pytest.raises(LeaseLostError, match="taken over by process"):
        mirror.send()
    assert objects(folder) == {}


def test_a_driver_that_lives_is_not_taken_over(location, monkeypatch):
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


def test_one_that_is_gone_is_after_a_while(folder, monkeypatch):
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


def test_one_that_has_ended_leaves_nothing(folder):
    first = Lease(folder, "a")
    first.take(print)
    first.release()
    assert folder.read(leases.FILE) is None


def test_who_was_away_while_another_took_over_and_finished_sends_nothing_more(folder, root, monkeypatch):
    monkeypatch.setattr(leases, "_POLL_S", 0.1)
    monkeypatch.setattr(leases, "_PATIENCE_S", 0.3)
    first = Lease(folder, "a")
    first.take(print)
    mirror = Mirror(root, folder, first, Manifest("a"))
    second = Lease(folder, "b")
    second.take(lambda text: None)
    folder.write("results.parquet", b"of the second")
    second.release()
    (root / "results.parquet").write_bytes(b"of the first")
    with pytest.raises(LeaseLostError, match="which has ended"):
        mirror.send()
    assert folder.read("results.parquet") == b"of the second"


def test_a_file_that_changes_while_it_is_sent_is_listed_as_it_was_sent(folder, root, monkeypatch):
    lease = Lease(folder, "here")
    lease.take(print)
    below = root / "mlartifacts"
    below.mkdir()
    (below / "front.json").write_bytes(b"old")
    looked_at = mirrors._entry

    def then_it_changes(change):
        entry = looked_at(change)
        (below / "front.json").write_bytes(b"newer")
        return entry

    monkeypatch.setattr(mirrors, "_entry", then_it_changes)
    Mirror(root, folder, lease, Manifest("here")).send()
    assert read_manifest(folder).files["mlartifacts/front.json"] == [(5, hashlib.sha256(b"newer").hexdigest())]
