"""cluster/slurm/sweep.sbatch with real Ray: two nodes, both on this machine, in place of those that Slurm would give."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # a minute and a half of starting and ending Ray

SCRIPT = Path(__file__).parent.parent / "cluster" / "slurm" / "sweep.sbatch"
JOB = str(900_000 + os.getpid() % 100_000)

# Slurm's commands as far as the script uses them: a test cannot install Slurm. cluster/README.md says what it has run.
SLURM = {
    "srun": """while [[ $1 == --* ]]; do echo "srun $1" >>"$FAKE/calls"; shift; done; echo $$ >>"$FAKE/steps"; exec "$@" """,
    "scontrol": """echo "scontrol $*" >>"$FAKE/calls"; if [[ $1 == show ]]; then printf 'node-1\\nnode-2\\n'; fi""",
    "scancel": """echo "scancel $*" >>"$FAKE/calls"; kill -TERM $(cat "$FAKE/steps")""",
}

# In place of `rankfront sweep`: a job of Ray's that says what it found, then waits for the signal if it is told to.
SWEEP = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
import ray

token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
wrong = {**os.environ, "RAY_AUTH_TOKEN": "0" * 64}
refused = subprocess.run([sys.executable, "-c", "import ray; ray.init()"], env=wrong, capture_output=True, text=True)
ray.init(log_to_driver=False)

@ray.remote(num_cpus=1, scheduling_strategy="SPREAD")
def where():
    time.sleep(0.5)
    return ray.get_runtime_context().get_node_id()

found = {
    "arguments": sys.argv[1:],
    "ran_on": len(set(ray.get([where.remote() for _ in range(4)]))),
    "cpus": ray.cluster_resources()["CPU"],
    "modes": [oct(path.stat().st_mode & 0o777) for path in (token, token.parent)],
    "token": str(token),
    "refused": refused.returncode != 0,
    "files": sorted(os.listdir("/tmp")),
}
ray.shutdown()
Path(os.environ["FAKE"], "found").write_text(json.dumps(found))
if os.environ["STAY"] == "yes":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    Path(os.environ["FAKE"], "waiting").touch()
    try:
        time.sleep(600)
    finally:
        Path(os.environ["FAKE"], "ended").touch()
"""


@pytest.fixture
def job(tmp_path):
    """Start the script as Slurm would; returns its process."""
    slurm, venv = tmp_path / "slurm", tmp_path / "venv" / "bin"
    for name, body in SLURM.items():
        program(slurm / name, f"#!/usr/bin/env bash\n{body}\n")
    own = Path(sys.executable).parent
    for name in ("python", "ray"):  # not links: Python finds its packages by its own path
        program(venv / name, f'#!/bin/sh\nexec {own / name} "$@"\n')
    program(venv / "rankfront", f"#!{sys.executable}\n{SWEEP}")
    started = []

    def start(*arguments, stay="no", **environment):
        settings = {
            "PATH": os.pathsep.join([str(slurm), os.environ["PATH"]]),
            "FAKE": str(tmp_path), "STAY": stay, "RANKFRONT_VENV": str(venv.parent),
            "SLURM_JOB_ID": JOB, "SLURM_JOB_NODELIST": "node-[1-2]", "SLURM_CPUS_PER_TASK": "2",
        }  # fmt: skip
        settings = {**os.environ, **settings, **environment}
        with (tmp_path / "log").open("w") as log:
            command = ["bash", SCRIPT, *arguments]
            process = subprocess.Popen(
                command, env=settings, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True
            )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(120)


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def left_over():
    """Processes and files of this job's Ray."""
    shown = subprocess.run(["ps", "-eww", "-o", "args"], capture_output=True, text=True, check=True).stdout
    mine = [line for line in shown.splitlines() if f"/tmp/ray-{JOB}-" in line]
    return [*mine, *Path("/tmp").glob(f"ray-{JOB}-*")]


def wait_for(path, process, log):
    end = time.monotonic() + 500
    while not path.exists():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.2)


@pytest.mark.ray
@pytest.mark.parametrize("ending", ["by itself", "USR1"])
def test_a_cluster_of_two_nodes_with_a_token_comes_runs_the_sweep_and_goes(ending, job, tmp_path):
    log, shared = tmp_path / "log", tmp_path / "shared"
    process = job("sweep.yaml", shared / "first", "--set", "a=b c", stay="no" if ending == "by itself" else "yes")
    if ending == "USR1":  # what Slurm sends when the time is nearly up
        wait_for(tmp_path / "waiting", process, log)
        process.send_signal(signal.SIGUSR1)
    code = process.wait(900)
    found = json.loads((tmp_path / "found").read_text())
    assert found["arguments"] == ["sweep", "sweep.yaml", "--output", str(shared / "first"), "--set", "a=b c"]
    assert (found["ran_on"], found["cpus"]) == (2, 4), log.read_text()
    assert found["refused"]
    assert found["modes"] == ["0o600", "0o700"]
    assert found["token"].startswith(str(shared))  # every node must see it
    assert {f"ray-{JOB}-0", f"ray-{JOB}-1"} <= set(found["files"])
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call for call in calls if "nodelist" in call] == ["srun --nodelist=node-1", "srun --nodelist=node-2"]
    assert (tmp_path / "ended").exists() == (ending == "USR1")  # it was asked, not killed
    assert (code == 0) == (ending == "by itself"), log.read_text()
    assert (f"scontrol requeue {JOB}" in calls) == (ending == "USR1")
    assert not list(shared.iterdir())
    assert not left_over()


def test_what_it_needs_is_said_at_once(job, tmp_path):
    for arguments in ((), ("sweep.yaml",)):
        assert job(*arguments).wait(60) == 1
        assert "usage: RANKFRONT_VENV=DIR sbatch sweep.sbatch CONFIG OUTPUT" in (tmp_path / "log").read_text()
    assert job("sweep.yaml", tmp_path / "first", RANKFRONT_VENV="").wait(60) == 1
    assert not (tmp_path / "calls").exists()


def test_a_node_that_fails_ends_the_job_with_nothing_left(job, tmp_path):
    program(tmp_path / "venv" / "bin" / "ray", "#!/bin/sh\necho no Ray here >&2\nexit 3\n")
    assert job("sweep.yaml", tmp_path / "shared" / "first").wait(200) != 0
    log = (tmp_path / "log").read_text()
    assert log.count("no Ray here") == 3  # tries
    assert "every node must join Ray" in log
    assert "node-2" not in (tmp_path / "calls").read_text().replace("node-[1-2]", "")  # workers wait for the head
    assert not (tmp_path / "found").exists()
    assert not list((tmp_path / "shared").iterdir())
    assert not left_over()
