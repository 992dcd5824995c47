"""The tracker on real MLflow stores: SQLite, and a server that goes and comes back."""

import json
import logging
import sqlite3
import subprocess
import sys
import threading

import pytest
from mlflow import MlflowClient
from mlflow.tracking._tracking_service import utils as tracking_utils
from servers import postgres

from orchestrator.jobs import pretrain_job, trial_job
from orchestrator.ledger import Ledger
from orchestrator.paths import SweepPaths
from orchestrator.tracking.spool import PARENT
from orchestrator.tracking.target import TrackingTarget, redacted, tracking_target
from orchestrator.tracking.tracker import Tracker
from trainers.config import MethodConfig
from trainers.errors import SweepError


@pytest.fixture
def target(tmp_path):
    return TrackingTarget(f"sqlite:///{tmp_path}/mlflow.db", "experiment", (tmp_path / "artifacts").as_uri())


def opened(target, tmp_path, sweep="sweep-a"):
    return Tracker(target, sweep, tmp_path, tmp_path / "tracking")


def closed(tracker, status="FINISHED"):
    tracker.end_run(PARENT, status)
    tracker.close()


def test_runs_are_children_of_the_sweep_with_flat_tags(target, tmp_path):
    tracker = opened(target, tmp_path)
    tracker.start_run(PARENT, "sweep", {"search.num_trials": 2}, {})
    tracker.start_run("pretrain-channel", "pretrain", {}, {})
    tracker.start_run("trial-0000", "trial", {"energy": 0.1}, {"method": "svd_training"}, "pretrain-channel")
    for epoch in (1, 2):
        tracker.log_metrics("trial-0000", {"val_accuracy": epoch / 10, "rank/conv1": 3}, epoch, 1000.0 + epoch)
    tracker.set_tags("trial-0000", {"pareto": "true"})
    tracker.end_run("trial-0000", "FINISHED")
    artifact = tmp_path / "front.json"
    artifact.write_text("{}")
    tracker.log_artifact(PARENT, artifact)
    closed(tracker)

    client = MlflowClient(target.uri)
    run = client.get_run(tracker.run_id("trial-0000"))
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "trial-0000"
    assert run.data.params == {"energy": "0.1"}
    assert run.data.metrics == {"val_accuracy": 0.2, "rank/conv1": 3}
    wanted = {"sweep_id": "sweep-a", "stage": "trial", "method": "svd_training", "pareto": "true"}
    wanted |= {"source_run_id": tracker.run_id("pretrain-channel"), "mlflow.parentRunId": tracker.run_id(PARENT)}
    assert wanted.items() <= run.data.tags.items()
    history = client.get_metric_history(run.info.run_id, "val_accuracy")
    assert [(metric.step, metric.timestamp) for metric in history] == [(1, 1_001_000), (2, 1_002_000)]
    parent = client.get_run(tracker.run_id(PARENT))
    assert (parent.info.status, parent.info.run_name) == ("FINISHED", "experiment")
    assert parent.data.tags["stage"] == "sweep"
    assert parent.data.params == {"search.num_trials": "2"}
    assert [item.path for item in client.list_artifacts(parent.info.run_id)] == ["front.json"]


@pytest.mark.parametrize("ids", ["known", "torn", "gone"])
def test_a_run_taken_up_again_is_the_same_run_and_repeated_epochs_are_stored_once(target, tmp_path, ids):
    first = opened(target, tmp_path)
    first.start_run(PARENT, "sweep", {"search.num_trials": 2}, {})
    first.start_run("trial-0003", "trial", {"energy": 0.1}, {})
    first.log_metrics("trial-0003", {"val_accuracy": 0.5}, 1, 1000.5)
    first.end_run("trial-0003", "KILLED")
    closed(first, "KILLED")
    file = tmp_path / "tracking" / "runs.jsonl"
    if ids == "torn":  # a full disk
        file.write_bytes(file.read_bytes()[:-20])
    elif ids == "gone":
        file.unlink()

    second = opened(target, tmp_path)
    assert second.flush(30) == 0
    second._thread.join(1.5)  # it has looked, and found nothing to send
    second.start_run(PARENT, "sweep", {"search.num_trials": 3, "search.seed": 0}, {})
    second.set_tags(PARENT, {"git_commit": "abc"})
    second.start_run("trial-0003", "trial", {"energy": 0.1}, {})
    second.log_metrics("trial-0003", {"val_accuracy": 0.5}, 1, 1000.5)
    second.log_metrics("trial-0003", {"val_accuracy": 0.6}, 2, 1001.5)
    second.end_run("trial-0003", "FINISHED")
    closed(second)
    assert second.run_id("trial-0003") == first.run_id("trial-0003")
    assert second.run_id(PARENT) == first.run_id(PARENT)
    client = MlflowClient(target.uri)
    history = client.get_metric_history(second.run_id("trial-0003"), "val_accuracy")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.5), (2, 0.6)]
    assert client.get_run(first.run_id(PARENT)).info.status == "FINISHED"
    parent = client.get_run(first.run_id(PARENT)).data
    assert parent.params == {"search.num_trials": "2", "search.seed": "0"}  # a param keeps its first value
    assert parent.tags["git_commit"] == "abc"
    assert not (tmp_path / "tracking" / "refused.jsonl").exists()
    assert len(client.search_runs(["1"])) == 2


UNUSABLE = (
    "sqlite:////proc/nothing/mlflow.db",
    "nonsense://x",
    "http://user:secret@127.0.0.1:9",
    "postgresql+psycopg://user:secret@127.0.0.1:9/none",
)


@pytest.mark.parametrize("uri", UNUSABLE)
def test_a_store_that_cannot_be_used_is_one_clear_error(uri, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(SweepError, match="MLflow store .* must be usable") as caught:
        opened(TrackingTarget(uri, "experiment"), tmp_path)
    assert "secret" not in str(caught.value)


def test_an_epoch_that_is_trained_again_is_told_once(target, tmp_path, small_sweep):
    tracker, paths, job = opened(target, tmp_path), SweepPaths(tmp_path), pretrain_job(MethodConfig())
    ledger = Ledger(small_sweep, paths, tracker, [])
    ledger.started(job)
    result = {"duration_s": 1.0, "cpu_s": 1.0, "curve": None, "replayed": False}
    for moment, epoch in enumerate([1, 2, 2, 3]):  # a node was lost with the second epoch's checkpoint
        metrics = {"val_accuracy": (epoch + moment) / 10}
        ledger.reported(job.name, {**result, "epoch": epoch, "metrics": metrics, "ended_at_s": 1000.0 + moment})
    record = ledger.ended(job.name, None)
    closed(tracker)
    history = MlflowClient(target.uri).get_metric_history(tracker.run_id(job.name), "val_accuracy")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.1), (2, 0.3), (3, 0.6)]
    assert (record.epochs, record.duration_s, record.val_accuracy) == (3, 3.0, 0.6)


def test_what_comes_with_the_last_epoch_once_more_is_told_as_well(target, tmp_path, small_sweep):
    tracker, job = opened(target, tmp_path), pretrain_job(MethodConfig())
    ledger = Ledger(small_sweep, SweepPaths(tmp_path), tracker, [])
    ledger.started(job)
    result = {"duration_s": 1.0, "cpu_s": 1.0, "curve": None, "replayed": False, "epoch": 1, "ended_at_s": 1000.0}
    first = {"val_accuracy": 0.5}
    for metrics in (first, {**first, "test_accuracy": 0.4}):  # it ended early, and was tested
        ledger.reported(job.name, {**result, "metrics": metrics, "finished": "test_accuracy" in metrics})
    ledger.ended(job.name, None)
    closed(tracker)
    client, run_id = MlflowClient(target.uri), tracker.run_id(job.name)
    assert client.get_run(run_id).data.metrics == {"val_accuracy": 0.5, "test_accuracy": 0.4}
    assert len(client.get_metric_history(run_id, "val_accuracy")) == 1


def test_an_epoch_that_a_driver_of_another_folder_recorded_is_not_recorded_again(target, tmp_path):
    first = opened(target, tmp_path)
    first.start_run("trial-0000", "trial", {}, {})
    for epoch in (1, 2, 3):
        first.log_metrics("trial-0000", {"val_accuracy": epoch / 10}, epoch, 1000.0 + epoch)
    closed(first)
    again = opened(target, tmp_path / "elsewhere")  # what the URL had when the first machine was lost: one epoch
    again.start_run("trial-0000", "trial", {}, {})
    for epoch, time_s in ((1, 1001.0), (2, 2002.0), (3, 2003.0), (4, 2004.0)):
        again.log_metrics("trial-0000", {"val_accuracy": epoch / 10, "test_accuracy": 0.1}, epoch, time_s)
    closed(again)
    client, run_id = MlflowClient(target.uri), again.run_id("trial-0000")
    assert run_id == first.run_id("trial-0000")
    history = client.get_metric_history(run_id, "val_accuracy")
    assert [(metric.step, metric.timestamp) for metric in history] == [
        (1, 1_001_000), (2, 1_002_000), (3, 1_003_000), (4, 2_004_000)
    ]  # fmt: skip
    assert len(client.get_metric_history(run_id, "test_accuracy")) == 4


def test_what_the_parent_run_has_reached_may_change_at_the_same_step(target, tmp_path):
    for time_s, best in ((1000.0, 0.8), (2000.0, 0.9)):  # `rankfront finetune` trained more finalists
        tracker = opened(target, tmp_path)
        tracker.start_run(PARENT, "sweep", {}, {})
        tracker.log_metrics(PARENT, {"best_val_accuracy": best}, 12, time_s, replaces=True)
        closed(tracker)
    assert MlflowClient(target.uri).get_run(tracker.run_id(PARENT)).data.metrics == {"best_val_accuracy": 0.9}


def test_a_run_that_failed_and_succeeds_at_the_next_start_has_no_error_any_more(target, tmp_path, small_sweep):
    records, job = [], pretrain_job(MethodConfig())
    for error in ("RuntimeError: CUDA error", None):
        tracker = opened(target, tmp_path)
        ledger = Ledger(small_sweep, SweepPaths(tmp_path), tracker, records)
        ledger.started(job)
        ledger.ended(job.name, error)
        records = ledger.records()
        closed(tracker)
        tags = MlflowClient(target.uri).get_run(tracker.run_id(job.name)).data.tags
        assert (tags["state"], tags["error"]) == (("FAIL", error) if error else ("COMPLETE", ""))


@pytest.mark.parametrize(("error", "stopped"), [("NonFiniteError: nan", False), (None, True)])
def test_a_trial_that_never_goes_on_leaves_no_checkpoint(target, tmp_path, small_sweep, error, stopped):
    tracker, paths = opened(target, tmp_path), SweepPaths(tmp_path)
    ledger, job = Ledger(small_sweep, paths, tracker, []), trial_job("trial-0000", 0, {"decomposition": "channel"})
    ledger.started(job)
    (paths.run(job.name) / "checkpoint.pt").write_bytes(b"weights")
    ledger.ended(job.name, error, stopped=stopped)
    closed(tracker)
    assert not list(paths.run(job.name).iterdir())


def test_a_store_that_fails_meanwhile_stops_nothing_and_gets_its_records_later(target, tmp_path, caplog):
    tracker = opened(target, tmp_path)
    tracker.start_run("trial-0000", "trial", {}, {})
    assert tracker.flush(30) == 0
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        connection.execute("ALTER TABLE metrics RENAME TO gone")
    connection.close()
    with caplog.at_level(logging.WARNING, logger="orchestrator.tracking"):
        tracker.log_metrics("trial-0000", {"val_accuracy": 0.5}, 1, 1.0)
        for _ in range(300):
            if "will retry" in caplog.text:
                break
            tracker._thread.join(0.1)
    assert "will retry" in caplog.text
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        connection.execute("ALTER TABLE gone RENAME TO metrics")
    connection.close()
    closed(tracker)
    assert MlflowClient(target.uri).get_run(tracker.run_id("trial-0000")).data.metrics == {"val_accuracy": 0.5}


def test_what_a_store_refuses_is_kept_aside_and_holds_nothing_up(target, tmp_path, caplog):
    tracker = opened(target, tmp_path)
    tracker.start_run("trial-0000", "trial", {}, {})
    tracker.start_run("trial-0001", "trial", {}, {})
    assert tracker.flush(30) == 0
    MlflowClient(target.uri).delete_run(tracker.run_id("trial-0000"))  # by a person, in the UI
    for name in ("trial-0000", "trial-0001"):
        tracker.log_metrics(name, {"val_accuracy": 0.5}, 1, 1.0)
    closed(tracker)
    assert "MLflow refuses a record of trial-0000 (metrics)" in caplog.text
    (line,) = (tmp_path / "tracking" / "refused.jsonl").read_text().splitlines()
    assert json.loads(line)["value"] == {"step": 1, "values": {"val_accuracy": 0.5}, "replaces": False}
    assert MlflowClient(target.uri).get_run(tracker.run_id("trial-0001")).data.metrics == {"val_accuracy": 0.5}


def test_a_file_that_is_gone_keeps_nothing_else_of_its_run_back(target, tmp_path):
    tracker = opened(target, tmp_path)
    tracker.start_run("trial-0000", "trial", {}, {})
    tracker.log_artifact("trial-0000", tmp_path / "gone.json")
    tracker.log_metrics("trial-0000", {"val_accuracy": 0.5}, 1, 1.0)
    tracker.end_run("trial-0000", "FINISHED")
    closed(tracker)
    run = MlflowClient(target.uri).get_run(tracker.run_id("trial-0000"))
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"val_accuracy": 0.5})
    (line,) = (tmp_path / "tracking" / "refused.jsonl").read_text().splitlines()
    assert json.loads(line)["value"] == {"path": "gone.json"}


def test_nothing_is_held_of_a_run_that_has_ended_whose_files_mlflow_has(target, tmp_path):
    tracker, repositories = opened(target, tmp_path), tracking_utils._artifact_repos_cache
    (tmp_path / "curve.json").write_text("{}")
    before = set(repositories)
    for name in ("trial-0000", "trial-0001"):
        tracker.start_run(name, "trial", {}, {})
        tracker.log_artifact(name, tmp_path / "curve.json")
    tracker.end_run("trial-0000", "FINISHED")
    closed(tracker)
    ended, open_run = (tracker.run_id(name) for name in ("trial-0000", "trial-0001"))
    assert repositories.keys() - before == {open_run}
    assert [item.path for item in MlflowClient(target.uri).list_artifacts(ended)] == ["curve.json"]


def test_what_a_killed_driver_left_open_is_found_open(target, tmp_path):
    tracker = opened(target, tmp_path)
    for name in (PARENT, "trial-0000", "trial-0001"):
        tracker.start_run(name, "sweep" if name == PARENT else "trial", {}, {})
    tracker.end_run("trial-0000", "FINISHED")
    assert tracker.flush(30) == 0
    tracker.end_open_runs()
    tracker.close()
    client = MlflowClient(target.uri)
    statuses = {name: client.get_run(tracker.run_id(name)).info.status for name in (PARENT, "trial-0000", "trial-0001")}
    assert statuses == {PARENT: "KILLED", "trial-0000": "FINISHED", "trial-0001": "KILLED"}


def test_a_late_record_of_a_run_that_is_found_by_name_leaves_it_ended(target, tmp_path):
    first = opened(target, tmp_path)
    first.start_run("trial-0000", "trial", {}, {})
    first.end_run("trial-0000", "FINISHED")
    closed(first)
    (tmp_path / "tracking" / "runs.jsonl").unlink()
    second = opened(target, tmp_path)
    second.set_tags("trial-0000", {"pareto": "true"})
    closed(second)
    run = MlflowClient(target.uri).get_run(first.run_id("trial-0000"))
    assert (run.info.status, run.data.tags["pareto"]) == ("FINISHED", "true")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.server)])
def shared_store(request, tmp_path):
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/mlflow.db"
    else:
        with postgres() as uri:
            yield uri


def test_sweeps_that_share_a_store_lose_nothing(shared_store, tmp_path, caplog):
    """Four drivers write to one database at once."""
    target = TrackingTarget(shared_store, "shared", (tmp_path / "artifacts").as_uri())
    trackers = []
    for number in range(4):
        (tmp_path / str(number)).mkdir()
        trackers.append(Tracker(target, f"sweep-{number}", tmp_path / str(number), tmp_path / str(number) / "tracking"))

    def record(tracker):
        tracker.start_run(PARENT, "sweep", {}, {})
        for trial in range(5):
            tracker.start_run(f"trial-{trial:04d}", "trial", {}, {})
            for epoch in range(1, 21):
                values = {f"rank/{layer}": epoch + layer for layer in range(5)}
                tracker.log_metrics(f"trial-{trial:04d}", values, epoch, float(epoch))
                tracker._thread.join(0.002)
            tracker.end_run(f"trial-{trial:04d}", "FINISHED")
        closed(tracker)

    threads = [threading.Thread(target=record, args=(tracker,)) for tracker in trackers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    client = MlflowClient(target.uri)
    for tracker in trackers:
        for trial in range(5):
            run_id = tracker.run_id(f"trial-{trial:04d}")
            for layer in range(5):
                history = client.get_metric_history(run_id, f"rank/{layer}")
                assert [(metric.step, metric.value) for metric in history] == [(e, e + layer) for e in range(1, 21)]
            assert client.get_run(run_id).info.status == "FINISHED"
    assert "locked" not in caplog.text


def test_the_environment_names_store_and_experiment(monkeypatch, tmp_path):
    default = tracking_target("name", tmp_path / "mlflow.db", tmp_path / "artifacts")
    assert (default.uri, default.experiment) == (f"sqlite:///{tmp_path}/mlflow.db", "name")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    assert tracking_target("name", tmp_path / "x", tmp_path) == TrackingTarget("http://127.0.0.1:5000", "mine")


def test_a_uri_is_shown_without_its_credentials():
    assert redacted("postgresql+psycopg://me:secret@host:5432/db") == "postgresql+psycopg://host:5432/db"
    assert redacted("sqlite:////a/b@c/mlflow.db") == "sqlite:////a/b@c/mlflow.db"
    assert redacted("postgresql://host/db?user=me&password=secret") == "postgresql://host/db"


def test_sweeps_that_start_at_once_on_a_new_store_create_it_once(shared_store, tmp_path):
    code = """
import sys
from pathlib import Path
from orchestrator.tracking.store import RunStore
from orchestrator.tracking.target import TrackingTarget
uri, root, number = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
RunStore(TrackingTarget(uri, f"sweep-{number}"), number, root, root / f"{number}.jsonl")
"""
    command = [sys.executable, "-c", code, shared_store, str(tmp_path)]
    started = [subprocess.Popen([*command, str(number)], stderr=subprocess.PIPE, text=True) for number in range(3)]
    errors = [process.communicate(timeout=240)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], errors
    client = MlflowClient(shared_store)
    assert {one.name for one in client.search_experiments()} >= {"sweep-0", "sweep-1", "sweep-2"}
