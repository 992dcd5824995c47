"""The tracker on a real MLflow store."""

import logging
import sqlite3

import pytest
from mlflow import MlflowClient

from orchestrator.tracking import Tracker, TrackingTarget, tracking_target
from trainers.errors import SweepError


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlflow")
    return TrackingTarget(f"sqlite:///{folder}/mlflow.db", "experiment", (folder / "artifacts").as_uri())


def test_runs_are_children_of_the_sweep_with_flat_tags(target, tmp_path):
    tracker = Tracker(target, "sweep-a")
    run_id = tracker.start_run("trial-0000", "trial", {"energy": 0.1}, {"method": "svd_training"})
    for epoch in (1, 2):
        tracker.log_metrics(run_id, {"val_accuracy": epoch / 10, "rank/conv1": 3}, epoch, 1000.0 + epoch)
    tracker.set_tags(run_id, {"pareto": "true"})
    tracker.end_run(run_id, "FINISHED")
    artifact = tmp_path / "front.json"
    artifact.write_text("{}")
    tracker.log_artifact(artifact)
    tracker.close("FINISHED")

    client = MlflowClient(target.uri)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"energy": "0.1"}
    assert run.data.metrics == {"val_accuracy": 0.2, "rank/conv1": 3}
    wanted = {"sweep_id": "sweep-a", "stage": "trial", "method": "svd_training", "pareto": "true"}
    assert wanted.items() <= run.data.tags.items()
    assert run.data.tags["mlflow.parentRunId"] == tracker.parent_run_id
    assert [metric.step for metric in client.get_metric_history(run_id, "val_accuracy")] == [1, 2]
    parent = client.get_run(tracker.parent_run_id)
    assert (parent.info.status, parent.data.tags["stage"]) == ("FINISHED", "sweep")
    assert [item.path for item in client.list_artifacts(parent.info.run_id)] == ["front.json"]


def test_a_run_taken_up_again_is_the_same_run_and_repeated_epochs_are_stored_once(target):
    first = Tracker(target, "sweep-b")
    run_id = first.start_run("trial-0003", "trial", {"energy": 0.1}, {})
    first.log_metrics(run_id, {"val_accuracy": 0.5}, 1, 1000.5)
    first.end_run(run_id, "KILLED")
    first.close("KILLED")

    second = Tracker(target, "sweep-b", first.parent_run_id)
    assert second.start_run("trial-0003", "trial", {"energy": 0.1}, {}) == run_id
    second.log_metrics(run_id, {"val_accuracy": 0.5}, 1, 1000.5)
    second.log_metrics(run_id, {"val_accuracy": 0.6}, 2, 1001.5)
    second.end_run(run_id, "FINISHED")
    second.close("FINISHED")
    client = MlflowClient(target.uri)
    history = client.get_metric_history(run_id, "val_accuracy")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.5), (2, 0.6)]
    assert client.get_run(first.parent_run_id).info.status == "FINISHED"


@pytest.mark.parametrize("uri", ["sqlite:////proc/nothing/mlflow.db", "nonsense://x", "http://127.0.0.1:9"])
def test_a_store_that_cannot_be_used_is_one_clear_error(uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(SweepError, match="MLflow store .* must be usable"):
        Tracker(TrackingTarget(uri, "experiment"), "sweep-c")


def test_a_store_that_fails_meanwhile_stops_nothing_and_gets_its_records_later(tmp_path, caplog):
    database = tmp_path / "mlflow.db"
    target = TrackingTarget(f"sqlite:///{database}", "experiment", (tmp_path / "artifacts").as_uri())
    tracker = Tracker(target, "sweep-d")
    run_id = tracker.start_run("trial-0000", "trial", {}, {})
    with sqlite3.connect(database) as connection:
        connection.execute("ALTER TABLE metrics RENAME TO gone")
    connection.close()
    with caplog.at_level(logging.WARNING, logger="orchestrator.tracking"):
        tracker.log_metrics(run_id, {"val_accuracy": 0.5}, 1, 1.0)
        for _ in range(100):
            if "will retry" in caplog.text:
                break
            tracker._thread.join(0.1)
    assert "will retry" in caplog.text
    with sqlite3.connect(database) as connection:
        connection.execute("ALTER TABLE gone RENAME TO metrics")
    connection.close()
    tracker.close("FINISHED")
    assert MlflowClient(target.uri).get_run(run_id).data.metrics == {"val_accuracy": 0.5}


def test_the_environment_names_store_and_experiment(monkeypatch, tmp_path):
    default = tracking_target("name", tmp_path / "mlflow.db", tmp_path / "artifacts")
    assert (default.uri, default.experiment) == (f"sqlite:///{tmp_path}/mlflow.db", "name")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    assert tracking_target("name", tmp_path / "x", tmp_path) == TrackingTarget("http://127.0.0.1:5000", "mine")
