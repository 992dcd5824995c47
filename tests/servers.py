"""Real servers on free ports of this machine, each ended with its block."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

LIMIT_S = 120


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def fetch(url, payload=None, headers=()):
    """The body of an answer as text; raises urllib's errors for any code but 200."""
    data = None if payload is None else json.dumps(payload).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **dict(headers)})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read().decode()


@contextmanager
def running(command, ready_url, log, environment=None, cwd=None):
    """A server as a process group of its own, from when `ready_url` answers to the end of the block."""
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, start_new_session=True, cwd=cwd, env=_environment(environment or {})
        )
    try:
        wait_until_ready(process, ready_url, log)
        yield process
    finally:
        end(process)


def end(process):
    for kind in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, kind)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
            return


def _environment(own):
    """Commands that a server starts by their names are those of this environment."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, **own}


def wait_until_ready(process, url, log):
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        try:
            fetch(url)
            return
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):  # it is there, and asks who we are
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"{url} did not answer within {LIMIT_S} s:\n{log.read_text()}")


@contextmanager
def served_model(uri, store, tmp_path):
    """`mlflow models serve`; yields a function that asks it."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", uri, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--env-manager", "local", "--workers", "1"]
    address = f"http://127.0.0.1:{port}"
    with running(command, f"{address}/ping", tmp_path / "serve.log", {"MLFLOW_TRACKING_URI": store}):
        yield lambda payload: json.loads(fetch(f"{address}/invocations", payload))
