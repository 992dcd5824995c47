"""Whole sweeps that are kept in a bucket: the driver's machine is lost, and nodes that see nothing of its folder are."""

import os
import shutil
import subprocess
import time

import mlflow
import pytest
from chaos import CONFIG, Sweep, below, found, processes, undisturbed
from programs import RANKFRONT
from servers import S3_ENVIRONMENT, s3_server
from test_cluster_nodes import CONFIG as NODES
from test_cluster_nodes import LIMIT_S, TRIALS, cluster, places, runs_of, until  # noqa: F401  # a fixture

from orchestrator.paths import SweepPaths
from orchestrator.records import read_records
from orchestrator.stored.location import Location
from trainers.recipe import CHECKPOINT_FILE, MODEL_FILE

# slow: whole sweeps as processes of the command line
pytestmark = [pytest.mark.ray, pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def location(tmp_path, monkeypatch):
    for name, value in S3_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with s3_server(tmp_path) as port:
        yield Location.of(f"s3://bucket/runs/sweep?endpoint_override=127.0.0.1:{port}&scheme=http")


def start(folder, *arguments, environment=None):
    """A command that runs in a folder of its own, as on a machine of its own."""
    folder.mkdir(exist_ok=True)
    with (folder / "log").open("a") as log:
        return subprocess.Popen(
            [RANKFRONT, *map(str, arguments)], cwd=folder, stdout=log, stderr=log, start_new_session=True,
            env=environment or Sweep(folder / "unused")._environment,
        )  # fmt: skip


def records_at(location, tmp_path):
    if not location.download("results.parquet", tmp_path / "there.parquet"):
        return {}
    return {record.name: record for record in read_records(tmp_path / "there.parquet")}


def test_a_driver_that_is_lost_with_its_machine_is_resumed_from_the_bucket(location, tmp_path):
    config = tmp_path / "sweep.yaml"
    config.write_text(CONFIG.replace("epochs: 4, ", "epochs: 15, ").replace("num_trials: 12", "num_trials: 8"))
    expected, _ = undisturbed(tmp_path / "undisturbed", config.read_text())
    first = start(tmp_path / "a", "sweep", config, "--output", location.url)
    until(lambda: len(records_at(location, tmp_path)) > 3 or first.poll() is not None, "ended trials in the bucket")
    assert first.poll() is None, (tmp_path / "a" / "log").read_text()
    workers = below(first.pid)
    first.kill()
    first.wait()
    while workers.keys() & processes().keys():
        time.sleep(0.05)
    before = records_at(location, tmp_path)
    assert 3 < len(before) < len(expected["runs"])
    shutil.rmtree(tmp_path / "a" / "runs")
    second = start(tmp_path / "b", "resume", location.url)
    assert second.wait(LIMIT_S) == 0, (tmp_path / "b" / "log").read_text()
    output = tmp_path / "b" / "runs" / "sweep"
    outcome = found(output)
    for what, value in expected.items():
        assert outcome[what] == value, what
    after = {record.name: record for record in read_records(SweepPaths(output).results)}
    assert {name: after[name] for name in before} == before  # with their times: none was run again
    third = start(tmp_path / "c", "resume", location.url)
    assert third.wait(LIMIT_S) == 0
    assert "nothing is left to do" in (tmp_path / "c" / "log").read_text()
    assert found(tmp_path / "c" / "runs" / "sweep") == outcome


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare")
def test_nodes_that_do_not_see_the_drivers_folder_train_and_are_lost(location, cluster, tmp_path):  # noqa: F811
    driver = tmp_path / "driver"
    driver.mkdir()
    blind = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none "{driver}" && exec "$@"', "sh"]
    cluster.environment |= S3_ENVIRONMENT
    config = tmp_path / "nodes.yaml"
    config.write_text(NODES)
    cluster.start("a", 1, blind)
    cluster.start("b", 1, blind)
    sweep = start(driver, "sweep", config, "--output", location.url, environment=cluster.environment)
    paths = SweepPaths(driver / "runs" / "sweep")
    until(lambda: set(places(paths).values()) == {"a", "b"} or sweep.poll() is not None, "trials on both nodes")
    until(lambda: any(CHECKPOINT_FILE in path for path in location.files()) or sweep.poll() is not None, "a checkpoint")
    assert sweep.poll() is None, (driver / "log").read_text()
    before = {name for name, node in places(paths).items() if node == "a"}
    ended = {record.name for record in read_records(paths.results) if record.stage == "trial"}
    cluster.kill("a")
    assert sweep.wait(LIMIT_S) == 0, (driver / "log").read_text()
    records = {record.name: record for record in read_records(paths.results)}
    assert {record.state for record in records.values()} == {"COMPLETE"}
    assert len([record for record in records.values() if record.stage == "trial"]) == TRIALS
    moved = before - ended
    assert moved, "the node that was killed trained nothing at that moment"
    runs, client = runs_of(paths), mlflow.MlflowClient(f"sqlite:///{paths.mlflow_db}")
    for name in moved:  # each epoch counted once: those before the kill were not trained again
        assert runs[name].data.tags["node"] == "b"
        steps = [metric.step for metric in client.get_metric_history(runs[name].info.run_id, "val_accuracy")]
        assert steps == list(range(1, 26)), name
    models = {f"runs/{name}/{MODEL_FILE}" for name in records}
    assert {path for path in location.files() if path.endswith(".pt")} == models
    for path in models:
        assert (paths.root / path).read_bytes() == location.read(path)
