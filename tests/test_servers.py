"""Sweeps beside real servers: MLflow with passwords over PostgreSQL, optuna-dashboard, Ray's dashboard."""

import base64
import json
import os
import secrets
import subprocess
import sys
import urllib.error

import psycopg
import pytest
from mlflow import MlflowClient
from programs import RANKFRONT
from servers import fetch, free_port, mlflow_server, postgres, running
from trial_records import point, record

from orchestrator.added_trials import CurveTrials, begin
from orchestrator.config import SearchConfig
from orchestrator.paths import SweepPaths
from orchestrator.records import read_records
from orchestrator.study import open_study, tell
from search_spaces import find_search_space

CONFIG = """
name: guarded
model: {name: tiny}
data: {name: digits, validation_fraction: 0.2}
search_space: spaces:quick
training: {batch_size: 64, pretrain_epochs: 1, epochs: 1, learning_rate: 2.0e-3}
search: {num_trials: 2, max_concurrent: 1}
curve: {num_points: 3, recovery_steps: 1}
scheduler: {name: none}
finetune: {num_models: 2, epochs: 1}
"""


def rankfront(*arguments, limit_s=300, **environment):
    return subprocess.run(
        [RANKFRONT, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=limit_s,
        env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.server
@pytest.mark.ray
def test_a_sweep_recorded_at_a_server_that_asks_for_a_password(tmp_path, monkeypatch):
    """Every run, file and model arrives in PostgreSQL and the server's folder; the password stays in the environment."""
    password, output, config = secrets.token_hex(12), tmp_path / "sweep", tmp_path / "sweep.yaml"
    (tmp_path / "server").mkdir()
    config.write_text(CONFIG)
    with postgres() as database, mlflow_server(database, tmp_path / "server", password) as address:
        login = {"MLFLOW_TRACKING_URI": address, "MLFLOW_TRACKING_USERNAME": "admin"}
        with pytest.raises(urllib.error.HTTPError, match="401"):
            fetch(f"{address}/api/2.0/mlflow/experiments/get?experiment_id=0")
        refused = rankfront("sweep", config, "--output", output, **login, MLFLOW_TRACKING_PASSWORD="guess")
        assert refused.returncode == 2
        assert f"the MLflow store '{address}' must be usable" in refused.stderr
        assert "Traceback" not in refused.stderr
        assert not list(output.glob("runs/*"))

        done = rankfront("sweep", config, "--output", output, **login, MLFLOW_TRACKING_PASSWORD=password)
        assert done.returncode == 0, done.stderr
        for name, value in {**login, "MLFLOW_TRACKING_PASSWORD": password}.items():
            monkeypatch.setenv(name, value)
        records = {run.name: run for run in read_records(SweepPaths(output).results)}
        client = MlflowClient(address)
        experiment = client.get_experiment_by_name("guarded").experiment_id
        runs = {run.data.tags["mlflow.runName"]: run for run in client.search_runs([experiment])}
        assert runs.keys() == records.keys() | {"guarded"}
        assert {run.info.status for run in runs.values()} == {"FINISHED"}
        assert {name: runs[name].info.run_id for name in records} == {name: run.run_id for name, run in records.items()}
        for name, run in records.items():
            history = client.get_metric_history(run.run_id, "val_accuracy")
            assert [metric.step for metric in history] == list(range(1, run.epochs + 1)), name
        files = {item.path for item in client.list_artifacts(runs["guarded"].info.run_id)}
        assert {"results.parquet", "points.parquet", "front.json"} <= files
        finalists = {name for name, run in records.items() if run.stage == "finetune"}
        assert {model.name for model in client.search_logged_models([experiment])} == finalists
        with psycopg.connect(database.replace("+psycopg", "")) as connection:
            assert connection.execute("SELECT count(*) FROM runs").fetchone() == (len(runs),)

        registered = rankfront("register", output, "--name", "guarded", **login, MLFLOW_TRACKING_PASSWORD=password)
        assert registered.returncode == 0, registered.stderr
        assert client.get_model_version_by_alias("guarded", "best").tags["run"] in finalists
        shown = rankfront("ui", output, MLFLOW_TRACKING_URI=address.replace("//", f"//admin:{password}@"))
        assert shown.stdout == f"The sweep is recorded at {address}\n"

    secret = {password.encode(), base64.b64encode(f"admin:{password}".encode())}
    written = [path for path in output.rglob("*") if path.is_file()]
    assert len(written) > 10
    assert not [path for path in written if any(text in path.read_bytes() for text in secret)]
    assert password not in done.stdout + done.stderr + registered.stdout + registered.stderr


@pytest.fixture
def study(tmp_path):
    """A sweep's study with a complete trial, two cuts of its curve, one that was stopped and one that failed."""
    space = find_search_space("spaces:quick")
    found = open_study(SweepPaths(tmp_path).study, "shown", seed=0)
    begin(found, space, SearchConfig())
    ends = [
        record("trial-0000", 0.9, 500, macs_ratio=0.5, params_ratio=0.5, epochs=2),
        record("trial-0001", 0.5, 300, "PRUNED", epochs=1),
        record("trial-0002", None, None, "FAIL"),
    ]
    for end in ends:
        trial = found.ask()
        space(trial)
        tell(found, trial.number, end)
    energies = [0.02, 0.3]
    CurveTrials(found).add(
        {0: [point("trial-0000", {}), *(point("trial-0000", {"energy": value}) for value in energies)]}
    )
    return found


@pytest.mark.server
def test_optuna_dashboard_shows_the_study_on_this_machine_alone(study, tmp_path):
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [RANKFRONT, "ui", str(tmp_path), "--optuna", "--port", str(port)]
    with running(command, f"{address}/api/studies", tmp_path / "dashboard.log"):
        assert "<title>Optuna Dashboard</title>" in fetch(f"{address}/dashboard/")
        (listed,) = json.loads(fetch(f"{address}/api/studies"))["study_summaries"]
        assert (listed["study_name"], listed["directions"]) == ("shown", ["maximize", "minimize"])
        shown = json.loads(fetch(f"{address}/api/studies/{listed['study_id']}?after=0"))["trials"]
        known = study.get_trials(deepcopy=False)
        states = {"Complete": "COMPLETE", "Pruned": "PRUNED", "Fail": "FAIL"}
        assert [(trial["number"], states[trial["state"]], trial.get("values")) for trial in shown] == [
            (trial.number, trial.state.name, trial.values) for trial in known
        ]
        assert len(known) == 5
        listening = subprocess.run(
            ["ss", "-Hltn", f"sport = :{port}"], capture_output=True, text=True, check=True
        ).stdout
        assert [line.split()[3] for line in listening.splitlines()] == [f"127.0.0.1:{port}"]


def test_a_dashboard_that_cannot_be_shown_is_one_clear_error(tmp_path):
    done = rankfront("ui", tmp_path, "--optuna")
    assert (done.returncode, "must hold a sweep with study.journal, but does not" in done.stderr) == (2, True)
    (tmp_path / "study.journal").write_text("")
    without = "import sys; sys.modules['optuna_dashboard'] = None; from orchestrator.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", without, "ui", str(tmp_path), "--optuna"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, "pip install 'rankfront[dashboard]'" in done.stderr) == (2, True)
    done = rankfront("ui", tmp_path, "--ray", RAY_ADDRESS="")
    assert (done.returncode, "RAY_ADDRESS must name the cluster" in done.stderr) == (2, True)
    done = rankfront("ui", tmp_path, "--ray", RAY_API_SERVER_ADDRESS="http://10.0.0.1:8265")
    assert done.stdout == "http://10.0.0.1:8265\n"
    assert rankfront("ui", tmp_path, "--ray", "--optuna").returncode == 2


CLUSTER = """
import sys
from orchestrator.ray_session import prepare_environment
prepare_environment()
import ray
found = ray.init(num_cpus=1, include_dashboard=sys.argv[1] == "yes", dashboard_port=int(sys.argv[2]), log_to_driver=False)
print(found.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""


@pytest.mark.ray
@pytest.mark.parametrize("dashboard", ["yes", "no"])
def test_the_address_of_rays_dashboard(dashboard, tmp_path):
    port = free_port()
    environment = {**os.environ, "RAY_AUTH_MODE": "token"}
    command = [sys.executable, "-c", CLUSTER, dashboard, str(port)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as cluster:
        try:
            address = next(line for line in cluster.stdout if ":" in line and " " not in line.strip()).strip()
            done = rankfront("ui", tmp_path, "--ray", RAY_ADDRESS=address, RAY_AUTH_MODE="token")
            assert done.returncode == 0, done.stderr
            if dashboard == "yes":
                assert done.stdout == f"http://127.0.0.1:{port}\n"
                assert "<title>Ray Dashboard</title>" in fetch(done.stdout.strip())
            else:
                assert done.stdout == "The cluster at RAY_ADDRESS runs without a dashboard\n"
        finally:
            cluster.stdin.close()
            cluster.wait(60)
