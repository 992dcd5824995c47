"""The user interfaces that a sweep can be looked at with: MLflow's, optuna-dashboard, Ray's dashboard."""

import importlib.util
import os
import sys

from orchestrator.paths import SweepPaths
from orchestrator.tracking.relocation import follow_move
from orchestrator.tracking.target import redacted, tracking_uri
from trainers.errors import SweepError

MLFLOW_PORT, OPTUNA_PORT = 5000, 8080  # their own defaults


def mlflow_server() -> str | None:
    """Return the MLflow server that the environment names, without user name and password; None where it names none."""
    uri = tracking_uri()
    return redacted(uri) if uri.startswith("http") else None


def mlflow_command(paths: SweepPaths, port: int) -> tuple[list[str], dict[str, str]]:
    """Return the command that serves the sweep's MLflow store on this machine only, and what it needs in its environment:
    the store's URI, whose password a command line would show to all.

    Raises SweepError where the directory holds no store.
    """
    uri = tracking_uri() or f"sqlite:///{paths.mlflow_db}"
    if uri.endswith(str(paths.mlflow_db)):
        if not paths.mlflow_db.exists():
            raise SweepError(f"{paths.root} must hold a sweep recorded in mlflow.db, but does not")
        follow_move(paths.mlflow_db, paths.mlflow_artifacts.as_uri())
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return command, {"MLFLOW_BACKEND_STORE_URI": uri}


def optuna_command(paths: SweepPaths, port: int) -> tuple[list[str], dict[str, str]]:
    """Return the command that serves the sweep's study in optuna-dashboard, on this machine only: it asks for no password.

    Raises SweepError where the directory holds no study, or optuna-dashboard is not installed.
    """
    if not paths.study.exists():
        raise SweepError(f"{paths.root} must hold a sweep with {paths.study.name}, but does not")
    if importlib.util.find_spec("optuna_dashboard") is None:
        raise SweepError(
            "optuna-dashboard must be installed for --optuna, but is not; pip install 'rankfront[dashboard]'"
        )
    server = [sys.executable, "-m", "optuna_dashboard._cli", str(paths.study), "--host", "127.0.0.1"]
    return [*server, "--port", str(port), "--storage-class", "JournalFileStorage", "--server", "wsgiref"], {}


def ray_dashboard() -> str | None:
    """Return the address of the dashboard of the cluster at RAY_ADDRESS, None where the cluster runs without one.

    Raises SweepError where no cluster is named, or none is there.
    """
    if address := os.environ.get("RAY_API_SERVER_ADDRESS"):
        return redacted(address)
    if not os.environ.get("RAY_ADDRESS"):
        raise SweepError(
            "RAY_ADDRESS must name the cluster that the sweep runs on, but is not set: without it a sweep starts Ray for "
            "itself alone, without a dashboard; `ray start --head` starts a cluster that has one"
        )
    from orchestrator.ray_session import connect

    with connect() as context:
        url = context.dashboard_url
    return f"http://{url}" if url else None
