"""A submission is checked before anything is sent, and holds no secret. No Ray."""

import json
import shlex
import subprocess
import sys

import pytest

from orchestrator.remote.package import collect
from orchestrator.remote.submission import not_sent, prepare
from orchestrator.tracking.target import tracking_target, tracking_uri
from trainers.errors import ClusterError, ConfigError, SweepError

CONFIG = """
name: first
model: {name: tiny}
data: {name: digits}
search_space: %s
"""
SPACE = "def space(trial):\n    return {'energy': trial.suggest_float('energy', 0.01, 0.6)}\n"


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A working directory with a search space of its own, of a name that no other test uses."""
    module = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{module}.py").write_text(SPACE)
    (tmp_path / "sweep.yaml").write_text(CONFIG % f"{module}:space")
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_URI_FILE", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_the_job_gets_the_command_and_what_it_needs(work):
    found = prepare(work / "sweep.yaml", ["search.seed=3", "data.name=digits"], work, "~/my sweeps/a")
    assert found.job.startswith("first-")
    assert found.entrypoint == (
        "exec python -m orchestrator sweep sweep.yaml --set search.seed=3 --set data.name=digits --output '~/my sweeps/a'"
    )
    assert {name for name in found.package.files if name.endswith(".yaml")} == {"sweep.yaml"}
    assert len(found.package.files) == 2
    assert found.metadata["output"] == "~/my sweeps/a"
    assert found.env_vars["RANKFRONT_JOB"] == found.job
    assert not [name for name in found.env_vars if "TOKEN" in name or name.startswith("MLFLOW")]
    assert prepare(work / "sweep.yaml", [], work, None).metadata["output"] == "~/rankfront/first"


def test_the_commit_goes_with_the_job(work):
    git = ["git", "-C", str(work), "-c", "user.name=n", "-c", "user.email=e@example.org"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *arguments], check=True)
    state = json.loads(prepare(work / "sweep.yaml", [], work, None).env_vars["RANKFRONT_GIT"])
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert (state["commit"], state["dirty"]) == (head, False)


def test_an_output_that_would_go_with_the_job_is_refused(work):
    with pytest.raises(ClusterError, match=r"--output must be an absolute path.*the job's own copy"):
        prepare(work / "sweep.yaml", [], work, "runs/first")
    with pytest.raises(SweepError, match="must hold no user name and no key"):
        prepare(work / "sweep.yaml", [], work, "s3://me:secret@bucket/first")


@pytest.mark.parametrize(
    ("output", "known"),
    [("", "~/rankfront/first"), ("s3://bucket/a?region=eu-west-1", "s3://bucket/a?region=eu-west-1")],
)
def test_an_output_that_stays_is_taken(work, output, known):
    found = prepare(work / "sweep.yaml", [], work, output)
    assert found.metadata["output"] == known
    assert shlex.split(found.entrypoint)[-1] == known


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["search.num_trials=0"], r"search\.num_trials: must be >= 1"),
        (["nonsense=1"], "unknown key"),
        (["search_space=nowhere:space"], "must be importable"),
        (["data.name=mnist", "data.root=data"], r"data\.root: must be an absolute path on the cluster"),
        (["search.warm_start=runs/old"], r"search\.warm_start: must be an absolute path on the cluster"),
        (["search.first_points=[{energy: 5.0}]"], "energy"),
    ],
)
def test_the_configuration_is_checked_here(work, overrides, message):
    with pytest.raises(ConfigError, match=message):
        prepare(work / "sweep.yaml", overrides, work, None)


def test_data_on_the_cluster_need_not_be_here(work):
    assert prepare(work / "sweep.yaml", ["data.name=mnist", "data.root=/nowhere/here"], work, None).job


def test_what_the_job_would_miss_is_refused(work, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    with pytest.raises(ClusterError, match=r"sweep\.yaml must be in the working directory, which is .*name another"):
        prepare(work / "sweep.yaml", [], elsewhere, None)
    (elsewhere / "sweep.yaml").write_text((work / "sweep.yaml").read_text())
    with pytest.raises(ConfigError, match="must be importable"):
        prepare(elsewhere / "sweep.yaml", [], elsewhere, None)
    sys.path.insert(0, str(work))  # found here, not by the job
    with pytest.raises(ClusterError, match=r"must be in the working directory .* but its module is .*own_"):
        prepare(elsewhere / "sweep.yaml", [], elsewhere, None)
    module = next(work.glob("own_*.py")).name
    with pytest.raises(
        ClusterError, match=r"the module of the search space .* must be sent, but .*is left out \(--exclude\)"
    ):
        prepare(work / "sweep.yaml", [], work, None, ["own_*"])
    assert module not in collect(work, ["own_*"]).files
    with pytest.raises(ClusterError, match=r"the configuration sweep\.yaml must be sent, but sweep\.yaml is left out"):
        prepare(work / "sweep.yaml", [], work, None, ["*.yaml"])


@pytest.mark.parametrize(
    "uri",
    ["postgresql+psycopg://mlflow:hunter2@db/mlflow", "https://ci@host/mlflow?token=hunter2", "http://u:hunter2@h"],
)
def test_a_password_is_refused_and_shown_nowhere(work, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ClusterError, match=r"must hold no password or token.*set MLFLOW_TRACKING_URI_FILE") as caught:
        prepare(work / "sweep.yaml", [], work, None)
    assert "hunter2" not in str(caught.value)


def test_where_runs_are_recorded_goes_with_the_job(work, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    found = prepare(work / "sweep.yaml", [], work, None)
    assert found.env_vars["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert found.env_vars["MLFLOW_EXPERIMENT_NAME"] == "mine"
    assert not_sent() == ["MLFLOW_TRACKING_PASSWORD"]
    assert "hunter2" not in repr(found)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://u:hunter2@h")  # stays here: the file is the cluster's
    monkeypatch.setenv("MLFLOW_TRACKING_URI_FILE", "/run/secrets/mlflow")
    found = prepare(work / "sweep.yaml", [], work, None)
    assert found.env_vars["MLFLOW_TRACKING_URI_FILE"] == "/run/secrets/mlflow"
    assert found.env_vars["MLFLOW_TRACKING_URI"] == ""
    assert "hunter2" not in repr(found)
    monkeypatch.setenv("MLFLOW_TRACKING_URI_FILE", "secrets/mlflow")
    with pytest.raises(ClusterError, match="must be an absolute path on the cluster"):
        prepare(work / "sweep.yaml", [], work, None)


def test_the_uri_in_a_file_is_that_of_the_sweep(tmp_path, monkeypatch):
    path = tmp_path / "uri"
    path.write_text("postgresql://u:hunter2@db/mlflow\n")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI_FILE", str(path))
    target = tracking_target("name", tmp_path / "mlflow.db", tmp_path)
    assert (target.uri, target.key) == ("postgresql://u:hunter2@db/mlflow", "postgresql://db/mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert tracking_uri() == "http://mlflow:5000"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    path.write_text("\n")
    with pytest.raises(SweepError, match="must hold MLflow's tracking URI, but .* is empty"):
        tracking_uri()
    path.unlink()
    with pytest.raises(SweepError, match="must name a readable file"):
        tracking_uri()
