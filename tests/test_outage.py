"""An MLflow server that goes away: nothing stops, nothing is lost, all is there once it is back."""

import json
import os
import subprocess
import time

import pytest
from mlflow import MlflowClient
from servers import free_port, mlflow_server
from test_cli import CONFIG, RANKFRONT

from orchestrator.front import read_front
from orchestrator.paths import SweepPaths
from orchestrator.records import read_records
from orchestrator.tracking.spool import PARENT
from orchestrator.tracking.target import TrackingTarget
from orchestrator.tracking.tracker import Tracker

LIMIT_S = 240


class Server:
    """An MLflow server on SQLite that comes back at its address with all that it had."""

    def __init__(self, folder):
        self._folder, self._port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self._port}"

    def running(self):
        return mlflow_server(f"sqlite:///{self._folder}/server.db", self._folder, port=self._port)


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "server"
    folder.mkdir()
    return Server(folder)


@pytest.mark.server
def test_a_server_that_is_away_for_a_while_gets_everything_in_order_and_once(server, tmp_path, caplog):
    with server.running():
        tracker = Tracker(TrackingTarget(server.uri, "outage"), "sweep", tmp_path, tmp_path / "tracking")
        tracker.start_run(PARENT, "sweep", {}, {})
        tracker.start_run("trial-0000", "trial", {"energy": 0.1}, {})
        tracker.log_metrics("trial-0000", {"val_accuracy": 0.1}, 1, 1.0)
        assert tracker.flush(60) == 0
    for epoch in range(2, 8):  # the server is down
        started = time.perf_counter()
        tracker.log_metrics("trial-0000", {"val_accuracy": epoch / 10}, epoch, float(epoch))
        assert time.perf_counter() - started < 0.5
        time.sleep(0.5)
    tracker.end_run("trial-0000", "FINISHED")
    end = time.monotonic() + LIMIT_S
    while "does not take records (will retry)" not in caplog.text:
        assert time.monotonic() < end, "the tracker has not tried"
        time.sleep(0.1)
    with server.running():
        tracker.end_run(PARENT, "FINISHED")
        tracker.close()
        client = MlflowClient(server.uri)
        history = client.get_metric_history(tracker.run_id("trial-0000"), "val_accuracy")
        assert [(metric.step, metric.value) for metric in history] == [(epoch, epoch / 10) for epoch in range(1, 8)]
        found = client.search_runs([client.get_experiment_by_name("outage").experiment_id])
        assert {run.info.status for run in found} == {"FINISHED"}
        assert len(found) == 2
    assert caplog.text.count("does not take records") == 1


@pytest.mark.ray
@pytest.mark.server
def test_a_sweep_whose_server_never_comes_back_ends_and_is_sent_later(server, tmp_path):
    config, output = tmp_path / "cli.yaml", tmp_path / "out"
    config.write_text(CONFIG.replace("epochs: 30", "epochs: 6"))
    environment = {**os.environ, "MLFLOW_TRACKING_URI": server.uri}
    with (tmp_path / "log").open("w") as log:
        with server.running():
            sweep = subprocess.Popen(
                [RANKFRONT, "sweep", str(config), "--output", str(output)],
                stdout=log, stderr=log, env=environment,
            )  # fmt: skip
            end = time.monotonic() + LIMIT_S
            while not list(output.glob("runs/trial-*/model.pt")):
                assert sweep.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < end, (tmp_path / "log").read_text()
                time.sleep(0.1)
        assert sweep.wait(LIMIT_S) == 0, (tmp_path / "log").read_text()
    printed = (tmp_path / "log").read_text()
    assert f"send them with `rankfront sync {output}`" in printed
    assert "Traceback" not in printed

    def sync(**changes):
        command = [RANKFRONT, "sync", str(output)]
        return subprocess.run(
            command, env={**environment, **changes}, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )

    unreachable, elsewhere = sync(), sync(MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path}/other.db")
    assert (unreachable.returncode, elsewhere.returncode) == (2, 2)
    assert "must be usable" in unreachable.stderr
    assert f"must be the sweep's store '{server.uri}'" in elsewhere.stderr
    with server.running():
        done = sync()
        assert done.returncode == 0, done.stderr
        again = sync()
        assert again.stdout.startswith("0 of 0 records sent")
        client = MlflowClient(server.uri)
        records = read_records(SweepPaths(output).results)
        runs = client.search_runs([client.get_experiment_by_name("cli").experiment_id])
        found = {run.data.tags["mlflow.runName"]: run for run in runs}
        assert found.keys() == {record.name for record in records} | {"cli"}
        assert {run.info.status for run in runs} == {"FINISHED"}
        front = read_front(output).as_json()
        assert json.loads(SweepPaths(output).front.read_text()) == front
        assert all(point["run_id"] for point in front["finalists"])
        for record in records:
            run = found[record.name]
            assert run.info.run_id == record.run_id
            for name in ("val_accuracy", "val_loss", "macs", "params", "test_accuracy", "score"):
                assert run.data.metrics.get(name) == getattr(record, name)
            history = client.get_metric_history(record.run_id, "val_accuracy")
            assert [metric.step for metric in history] == list(range(1, record.epochs + 1))
