"""Real servers on free ports of this machine, each ended with its block."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from glob import glob
from importlib.util import find_spec
from pathlib import Path

import pytest

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


class Postgres:
    """An empty PostgreSQL of our own; `uri` has its password in it. Skips where PostgreSQL is not installed."""

    def __init__(self):
        found = [
            Path(name).parent for name in (shutil.which("initdb"), *glob("/usr/lib/postgresql/*/bin/initdb")) if name
        ]
        if not found:
            pytest.skip("needs PostgreSQL's initdb and pg_ctl")
        as_user = ["runuser", "-u", "nobody", "--"] if os.geteuid() == 0 else []  # PostgreSQL refuses to run as root
        if as_user and shutil.which("runuser") is None:
            pytest.skip("needs runuser, for PostgreSQL does not run as root")
        self._folder = Path(
            tempfile.mkdtemp(prefix="pg-", dir="/tmp")
        )  # short, and open to its user: not below pytest's
        self._port, password = free_port(), secrets.token_hex(16)
        self.uri = f"postgresql+psycopg://mlflow:{password}@127.0.0.1:{self._port}/postgres"
        (self._folder / "password").write_text(password)
        if as_user:
            shutil.chown(self._folder, "nobody")
            shutil.chown(self._folder / "password", "nobody")
        self._data = self._folder / "data"
        initdb = [found[-1] / "initdb", "-D", self._data, "-U", "mlflow", "--auth=scram-sha-256"]
        self._control = [*as_user, found[-1] / "pg_ctl", "-D", self._data, "-w", "-l", self._folder / "log"]
        quietly([*as_user, *initdb, "--pwfile", self._folder / "password", "--no-sync"], self._folder)

    def start(self):
        options = (
            f"-p {self._port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self._folder} -c fsync=off"
        )
        quietly([*self._control, "-o", options, "start"], self._folder)

    def kill(self):
        """As the kernel does when memory is short; the server's other processes end with their first."""
        os.kill(int((self._data / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)

    def close(self):
        try:
            quietly([*self._control, "-m", "immediate", "stop"], self._folder)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def postgres():
    """A running `Postgres`; yields its URI."""
    server = Postgres()
    server.start()
    try:
        yield server.uri
    finally:
        server.close()


def quietly(command, cwd):
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@contextmanager
def mlflow_server(store, folder, password=None, port=None):
    """An MLflow server with its artifacts in `folder`; yields its address. A password is asked of the user `admin`."""
    port = port or free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", store, "--artifacts-destination", str(folder / "artifacts")]
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    if password is not None:
        settings = Path(find_spec("mlflow").origin).parent.joinpath("server/auth", "basic_auth.ini").read_text()
        (folder / "auth.ini").write_text(
            settings.replace(
                "# auth_cache_ttl_seconds = 0", "auth_cache_ttl_seconds = 60"
            )  # else a third of a second each
        )
        command += ["--app-name", "basic-auth"]
        environment |= {
            "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
            "MLFLOW_AUTH_ADMIN_PASSWORD": password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
        }
    address = f"http://127.0.0.1:{port}"
    with running(command, f"{address}/health", folder / "server.log", environment, cwd=folder):
        yield address


# what pyarrow finds in the environment to speak to `s3_server`
S3_ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}


@contextmanager
def s3_server(folder):
    """A server that speaks S3's protocol, with an empty bucket `bucket`; yields its port."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
    address = f"http://127.0.0.1:{port}"
    with running(command, f"{address}/moto-api/data.json", folder / "s3.log"):
        with urllib.request.urlopen(urllib.request.Request(f"{address}/bucket", method="PUT"), timeout=30) as answer:
            assert answer.status == 200
        yield port


@contextmanager
def gcs_server(folder):
    """A server that speaks the protocol of Google Cloud Storage, with an empty bucket `bucket`; yields its port."""
    port = free_port()
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--in-memory", "--default-bucket=bucket"]
    command += ["--host=127.0.0.1", f"--port={port}"]
    with running(command, f"http://127.0.0.1:{port}/storage/v1/b/bucket", folder / "gcs.log"):
        yield port


class Gate:
    """A port that leads to another one of this machine while it is open, and refuses all while it is closed."""

    def __init__(self, port):
        self._to, self._pairs = port, []
        self.port = free_port()
        self.open()

    def open(self):
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end_ in self._pairs:
            with contextlib.suppress(OSError):
                end_.shutdown(socket.SHUT_RDWR)
            end_.close()
        self._pairs.clear()

    def _accept(self, listener):
        while True:
            try:
                here, _ = listener.accept()
                there = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                return
            self._pairs += [here, there]
            for source, target in ((here, there), (there, here)):
                threading.Thread(target=self._copy, args=(source, target), daemon=True).start()

    @staticmethod
    def _copy(source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@contextmanager
def served_model(uri, store, tmp_path):
    """`mlflow models serve`; yields a function that asks it."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", uri, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--env-manager", "local", "--workers", "1"]
    address = f"http://127.0.0.1:{port}"
    with running(command, f"{address}/ping", tmp_path / "serve.log", {"MLFLOW_TRACKING_URI": store}):
        yield lambda payload: json.loads(fetch(f"{address}/invocations", payload))
