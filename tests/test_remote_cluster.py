"""Sweeps on a real Ray cluster of this test's own, with tokens, by the command line as a user runs it."""

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from programs import RANKFRONT
from servers import fetch, free_port, running

from orchestrator.commands.cluster import exit_code
from orchestrator.paths import SweepPaths
from orchestrator.records import read_records

# slow: two minutes of processor time, and the suite is near its limit
pytestmark = [pytest.mark.ray, pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(1800)]

CONFIG = """
name: remote
model: {name: tiny}
data: {name: digits, validation_fraction: 0.2}
search_space: our_space:space
training: {batch_size: 64, pretrain_epochs: 1, epochs: 2, learning_rate: 2.0e-3}
search: {num_trials: 2, max_concurrent: 1}
curve: {num_points: 2, recovery_steps: 2}
scheduler: {name: none}
finetune: {num_models: 1, epochs: 1}
tracking: {log_models: false, log_report: false}
"""
SPACE = """
def space(trial):
    return {"regularizer": "l1", "strength": 0.01, "energy": trial.suggest_float("energy", 0.01, 0.6)}
"""
LIMIT_S = 900


class Head:
    """A cluster of one node: where it answers, its token, and where it keeps what `~/rankfront` is."""

    def __init__(self, folder):
        self.folder, self.port, self.token = folder, free_port(), secrets.token_hex(32)
        self.address = f"http://127.0.0.1:{self.port}"
        self.home = folder / "home"
        self.home.mkdir()

    def command(self):
        options = {
            "port": free_port(), "dashboard-host": "127.0.0.1", "dashboard-port": self.port, "num-cpus": 1,
            "dashboard-agent-listen-port": free_port(), "ray-client-server-port": free_port(),
            "temp-dir": self.folder / "ray", "object-store-memory": 100_000_000, "include-log-monitor": "false",
        }  # fmt: skip
        ray = Path(sys.executable).parent / "ray"
        return [str(ray), "start", "--head", "--block", *(f"--{name}={value}" for name, value in options.items())]

    def rankfront(self, *arguments, **options):
        environment = {**os.environ, "RAY_AUTH_TOKEN": self.token, "RAY_API_SERVER_ADDRESS": self.address}
        return subprocess.run(
            [RANKFRONT, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=LIMIT_S,
            **{"env": {**environment, **options.pop("env", {})}, **options},
        )  # fmt: skip


@pytest.fixture(scope="module")
def head():
    folder = Path(tempfile.mkdtemp(prefix="rf", dir="/tmp"))  # short: Ray's sockets lie below it
    there = Head(folder)
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": there.token, "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= {"HOME": str(there.home), "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    try:
        with running(there.command(), f"{there.address}/api/version", folder / "head.log", environment):
            yield there
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A working directory: a configuration, a search space of its own, and what is not to be sent."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "remote.yaml").write_text(CONFIG)
    (folder / "our_space.py").write_text(SPACE)
    (folder / "runs").mkdir()
    (folder / "runs" / "old.txt").write_text("a result")
    return folder


def job_of(done):
    return re.search(r"^Job (\S+)$", done.stdout, re.MULTILINE).group(1)


def test_a_sweep_is_submitted_watched_and_fetched(head, work, tmp_path):
    password = "hunter2"
    (head.folder / "uri").write_text(f"sqlite:///file:{head.folder}/runs.db?token={password}&uri=true\n")
    secret = {"MLFLOW_TRACKING_URI_FILE": str(head.folder / "uri"), "MLFLOW_TRACKING_PASSWORD": password}
    done = head.rankfront("submit", "remote.yaml", "--set", "search.seed=1", cwd=work, env=secret)
    assert done.returncode == 0, done.stdout + done.stderr
    job = job_of(done)
    assert re.search(
        r"Sends to http://127\.0\.0\.1:\d+: 2 files, \d+ B, of .* and rankfront \(\d+ files\)", done.stdout
    )
    assert "Not sent, results: runs\n" in done.stdout
    assert "Not sent, a secret: MLFLOW_TRACKING_PASSWORD; the job has the cluster's own\n" in done.stdout
    assert f"  rankfront fetch {job}\n" in done.stdout
    assert "trial-0000: val_accuracy" in done.stdout  # the job's log
    assert done.stdout.endswith(f"{job} SUCCEEDED\n")

    assert head.rankfront("logs", job).stdout.count("trial-0000: val_accuracy") == 1

    # what all users of the cluster can read
    known = fetch(f"{head.address}/api/jobs/{job}", headers=[("Authorization", f"Bearer {head.token}")])
    assert json.loads(known)["driver_exit_code"] == 0
    shown = known + done.stdout
    logs = [path.read_text(errors="replace") for path in head.folder.glob("ray/session_*/logs/**/*") if path.is_file()]
    assert any(job in text for text in logs)
    assert not [text for text in (shown, *logs) if password in text or head.token in text]

    target = tmp_path / "home"
    fetched = head.rankfront("fetch", job, "--output", target)
    assert fetched.returncode == 0, fetched.stdout + fetched.stderr
    assert "~/rankfront/remote on the cluster" in fetched.stdout  # through the dashboard: this machine's ~ is another
    origin = SweepPaths(head.home / "rankfront" / "remote")
    assert (target / "results.parquet").read_bytes() == origin.results.read_bytes()
    records = read_records(SweepPaths(target).results)
    assert {(record.stage, record.state) for record in records} == {
        ("pretrain", "COMPLETE"), ("trial", "COMPLETE"), ("finetune", "COMPLETE"), ("dense", "COMPLETE"),
    }  # fmt: skip
    environment = json.loads((target / "environment.json").read_text())
    assert (environment["job"], environment["command"].split()[:3]) == (job, ["rankfront", "sweep", "remote.yaml"])
    assert "Finalists" in head.rankfront("front", target).stdout
    assert not list(head.folder.glob("ray/session_*/logs/rankfront-fetch-*"))  # nothing is left to be read there
    listed = head.rankfront("jobs")
    assert re.search(rf"^{job}  SUCCEEDED .*  remote  ~/rankfront/remote$", listed.stdout, re.MULTILINE), (
        listed.stdout + listed.stderr
    )
    assert "rankfront-fetch" not in listed.stdout

    again = head.rankfront("fetch", job, "--output", target)
    assert re.search(r"^0 new, 0 replaced, \d+ were here$", again.stdout, re.MULTILINE), again.stdout + again.stderr


def seen_by_another_tenant(head):
    """What a job of somebody else prints of the environments and commands on the node, and what Ray tells of all jobs."""
    token = [("Authorization", f"Bearer {head.token}")]
    look = "env; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline | tr '\\0' '\\n'; true"
    fetch(f"{head.address}/api/jobs/", {"entrypoint": look, "submission_id": "tenant"}, token)
    end = time.monotonic() + LIMIT_S
    while json.loads(known := fetch(f"{head.address}/api/jobs/tenant", headers=token))["status"] != "SUCCEEDED":
        assert time.monotonic() < end, known
        time.sleep(0.2)
    return fetch(f"{head.address}/api/jobs/tenant/logs", headers=token) + fetch(
        f"{head.address}/api/jobs/", headers=token
    )


def test_a_job_is_stopped_in_order_and_another_tenants_job_sees_no_secret(head, work, tmp_path):
    shared = tmp_path / "shared" / "long"
    (head.folder / "uri").write_text(f"sqlite:///file:{head.folder}/other.db?token=hunter3&uri=true\n")
    command = ["submit", "remote.yaml", "--output", shared, "--set", "training.pretrain_epochs=5000", "--no-wait"]
    submitted = head.rankfront(*command, cwd=work, env={"MLFLOW_TRACKING_URI_FILE": str(head.folder / "uri")})
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    job = job_of(submitted)
    end = time.monotonic() + LIMIT_S
    while not list(shared.glob("runs/*/checkpoint.pt")):
        assert time.monotonic() < end, head.rankfront("logs", job).stdout
        time.sleep(0.5)
    status = head.rankfront("status", job).stdout
    assert re.search(r"^state\s+RUNNING$", status, re.MULTILINE), status
    assert re.search(rf"^output\s+{shared}$", status, re.MULTILINE), status
    seen = seen_by_another_tenant(head)
    assert f"RANKFRONT_JOB={job}" in seen  # it looked into the processes of the sweep
    assert "hunter3" not in seen
    stopped = head.rankfront("stop", job)
    assert stopped.stdout == f"{job} STOPPED\n", stopped.stdout + stopped.stderr
    followed = head.rankfront("logs", "-f", job)
    assert followed.returncode == 130
    assert "Stopped. Go on with" in followed.stdout  # it was not killed

    fetched = head.rankfront("fetch", job, "--output", tmp_path / "home")  # on storage that both see
    assert f"from {shared} to {tmp_path / 'home'}" in fetched.stdout, fetched.stdout + fetched.stderr
    assert (tmp_path / "home/runs/pretrain-channel/checkpoint.pt").exists()


@pytest.mark.parametrize(
    ("state", "code", "given"),
    [("SUCCEEDED", 0, 0), ("FAILED", 3, 3), ("FAILED", -9, 137), ("FAILED", None, 1), ("STOPPED", None, 130)],
)
def test_the_exit_code_is_the_jobs(state, code, given):
    from ray.job_submission import JobDetails

    assert exit_code(JobDetails(type="SUBMISSION", status=state, entrypoint="", driver_exit_code=code)) == given


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RAY_AUTH_TOKEN": "f" * 64}, "must accept the token, but: Authentication failed: Forbidden"),
        ({"RAY_AUTH_MODE": "disabled"}, "must accept the token, but: Authentication required"),
        ({"RAY_API_SERVER_ADDRESS": "http://192.0.2.1:8265", "RAY_AUTH_MODE": "disabled"}, "must be used with token"),
        ({"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"}, "a Ray cluster must answer at http://127.0.0.1:9, but:"),
    ],
)
def test_who_may_not_is_told_why(head, change, message):
    done = head.rankfront("jobs", env=change)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ("nothing-1", "job nothing-1 must be known to the cluster, but is not"),
        ("../version", "must consist of letters"),
    ],
)
def test_a_job_that_is_not_there(head, job, message):
    done = head.rankfront("fetch", job)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
