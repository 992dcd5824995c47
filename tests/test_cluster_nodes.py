"""A sweep on a real Ray cluster of several nodes: spread over them, with one that joins and one that dies in the middle."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlflow
import pytest
from programs import RANKFRONT
from servers import end, free_port

from orchestrator.paths import SweepPaths
from orchestrator.records import read_records
from orchestrator.study import ADDED, open_study

# slow: a head, three nodes and their workers take minutes of processor time
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

TRIALS = 7
CONFIG = f"""
name: nodes
model: {{name: tiny}}
data: {{name: digits, validation_fraction: 0.2}}
training: {{batch_size: 16, pretrain_epochs: 1, epochs: 25, learning_rate: 2.0e-3}}
search: {{num_trials: {TRIALS}, max_concurrent: 4}}
curve: {{num_points: 2, recovery_steps: 2}}
scheduler: {{name: none}}
finetune: {{num_models: 1, epochs: 1}}
tracking: {{log_models: false, log_report: false}}
resources: {{cpus_per_trial: 1}}
"""
LIMIT_S = 900


class Cluster:
    """A head without processors of its own, and nodes that come and go; every node is a process group of its own."""

    def __init__(self, folder):
        self.folder, self.nodes = folder, {}
        self.address = f"127.0.0.1:{free_port()}"
        self.environment = {
            **os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "OMP_NUM_THREADS": "1",
            "RAY_ADDRESS": self.address, "RAY_USAGE_STATS_ENABLED": "0", "HOME": str(folder),
        }  # fmt: skip

    def start(self, name, cpus, inside=(), **options):
        """A node; returns when the cluster has it, for two that start at once may take the same port.

        `inside`: a command that runs the node's, such as one that shows it other files.
        """
        where = {"head": None, "port": self.address.rpartition(":")[2]} if name == "head" else {"address": self.address}
        options = {**where, "node-name": name, "num-cpus": cpus, "object-store-memory": 100_000_000, **options}
        parts = [f"--{key}" if value is None else f"--{key}={value}" for key, value in options.items()]
        command = [
            *inside,
            Path(sys.executable).parent / "ray",
            "start",
            "--block",
            "--include-log-monitor=false",
            *parts,
        ]
        own = {key: value for key, value in self.environment.items() if key != "RAY_ADDRESS"}
        with (self.folder / f"{name}.log").open("w") as log:
            self.nodes[name] = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=own)

        def there():
            assert self.nodes[name].poll() is None, Path(log.name).read_text()
            return name in self.alive()

        until(there, f"node {name}")

    def kill(self, name):
        """The machine is gone, in the middle of whatever it did."""
        os.killpg(self.nodes[name].pid, signal.SIGKILL)

    def alive(self):
        """The names of the nodes that answer."""
        code = "import ray; ray.init(log_to_driver=False); print(*[n['NodeName'] for n in ray.nodes() if n['Alive']])"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120, env=self.environment
        )
        return done.stdout.split()

    def close(self):
        for process in self.nodes.values():
            end(process)


@pytest.fixture
def cluster():
    folder = Path(tempfile.mkdtemp(prefix="rf", dir="/tmp"))  # short: Ray's sockets lie below it
    there = Cluster(folder)
    try:
        there.start("head", 0, **{"temp-dir": folder / "ray", "include-dashboard": "false"})
        yield there
    finally:
        there.close()
        shutil.rmtree(folder, ignore_errors=True)


def until(holds, what):
    limit = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < limit, f"{what} did not come within {LIMIT_S} s"
        time.sleep(1)


def runs_of(paths):
    """MLflow's runs by their names."""
    client = mlflow.MlflowClient(f"sqlite:///{paths.mlflow_db}")
    found = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    return {run.info.run_name: run for run in found}


def places(paths, stage="trial"):
    """The node that each run of a stage was last seen on, by its name."""
    if not paths.results.exists():  # before that there may be no database yet, and to look for it would make one
        return {}
    return {
        name: run.data.tags["node"]
        for name, run in runs_of(paths).items()
        if run.data.tags["stage"] == stage and "node" in run.data.tags
    }


def test_a_sweep_spreads_takes_a_new_node_and_outlives_a_lost_one(cluster, tmp_path):
    config, paths = tmp_path / "nodes.yaml", SweepPaths(tmp_path / "out")
    config.write_text(CONFIG)
    cluster.start("a", 1)
    cluster.start("b", 1)
    with (tmp_path / "sweep.log").open("w") as log:
        sweep = subprocess.Popen(
            [RANKFRONT, "sweep", config, "--output", paths.root], stdout=log, stderr=log, env=cluster.environment
        )
        try:
            until(lambda: set(places(paths).values()) == {"a", "b"} or sweep.poll() is not None, "trials on both nodes")
            cluster.start("c", 1)
            until(lambda: "c" in places(paths).values() or sweep.poll() is not None, "a trial on the new node")
            assert sweep.poll() is None, log.name
            before = {name for name, node in places(paths).items() if node == "a"}
            ended = {record.name for record in read_records(paths.results) if record.stage == "trial"}
            cluster.kill("a")
            assert sweep.wait(LIMIT_S) == 0, (tmp_path / "sweep.log").read_text()
        finally:
            sweep.terminate()
            sweep.wait(60)
    records = {record.name: record for record in read_records(paths.results)}
    assert {record.state for record in records.values()} == {"COMPLETE"}
    trials = [record for record in records.values() if record.stage == "trial"]
    assert len(trials) == TRIALS
    assert all(record.epochs == 25 for record in trials)
    moved = before - ended
    assert moved, "the node that was killed trained nothing at that moment"
    # they went on elsewhere, each epoch counted once
    runs, client = runs_of(paths), mlflow.MlflowClient(f"sqlite:///{paths.mlflow_db}")
    for name in moved:
        assert runs[name].data.tags["node"] in ("b", "c")
        steps = [metric.step for metric in client.get_metric_history(runs[name].info.run_id, "val_accuracy")]
        assert steps == list(range(1, 26)), name
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    study = open_study(paths.study, "nodes", 0)
    assert [trial.state.name for trial in study.trials if ADDED not in trial.user_attrs] == ["COMPLETE"] * TRIALS


def test_trials_go_only_where_they_fit(cluster, tmp_path):
    config, paths = tmp_path / "nodes.yaml", SweepPaths(tmp_path / "out")
    config.write_text(CONFIG.replace("epochs: 25", "epochs: 2").replace("num_trials: 7", "num_trials: 4"))
    cluster.start("small", 1)
    cluster.start("large", 2)
    done = subprocess.run(
        [RANKFRONT, "sweep", config, "--output", paths.root, "--set", "resources.cpus_per_trial=2"],
        capture_output=True, text=True, check=False, timeout=LIMIT_S, env=cluster.environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(places(paths).values()) == {"large"}
