"""Where runs are recorded."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from trainers.errors import SweepError

URI_VARIABLE = "MLFLOW_TRACKING_URI"
URI_FILE_VARIABLE = "MLFLOW_TRACKING_URI_FILE"  # a file that holds the URI: with a password it is for no other eyes
_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_DATABASE_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class TrackingTarget:
    """MLflow's tracking URI, the experiment's name, and its artifact folder if the experiment is new.

    `in_output`: the store is the default one, SQLite in the output directory.
    """

    uri: str
    experiment: str
    artifacts: str | None = None
    in_output: bool = False

    @property
    def key(self) -> str:
        """What files name the store by: for the default one no path, since an output directory can be moved."""
        return "mlflow.db" if self.in_output else self.shown

    @property
    def shown(self) -> str:
        """The URI without user name and password: what messages and files hold."""
        return redacted(self.uri)

    def reach_database(self) -> None:
        """Connect to the database's port, if the store is a database server; raises OSError where nobody answers.

        MLflow itself tries for minutes.
        """
        parts = urlsplit(self.uri)
        usual = _DATABASE_PORTS.get(parts.scheme.partition("+")[0])
        if usual is not None and parts.hostname:
            socket.create_connection((parts.hostname, parts.port or usual), _DATABASE_TIMEOUT_S).close()

    def reason(self, error: Exception) -> str:
        """The first line of what the store's client says, without user name and password."""
        return str(error).split("\n")[0].replace(self.uri, self.shown)


def tracking_target(name: str, database: Path, artifacts: Path) -> TrackingTarget:
    """Return the target that the environment asks for, by default SQLite in the output directory."""
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or name
    default = f"sqlite:///{database}"
    uri = tracking_uri() or default
    return (
        TrackingTarget(uri, experiment, artifacts.as_uri(), in_output=True)
        if uri == default
        else TrackingTarget(uri, experiment)
    )


def tracking_uri() -> str:
    """Return what MLFLOW_TRACKING_URI says, else what the file MLFLOW_TRACKING_URI_FILE holds; empty where neither is set.

    Raises SweepError where the file cannot be read or is empty.
    """
    file = os.environ.get(URI_FILE_VARIABLE)
    if os.environ.get(URI_VARIABLE) or not file:
        return os.environ.get(URI_VARIABLE, "")
    try:
        uri = Path(file).expanduser().read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SweepError(f"{URI_FILE_VARIABLE} must name a readable file on this machine, but: {error}") from error
    if not uri:
        raise SweepError(f"the file of {URI_FILE_VARIABLE} must hold MLflow's tracking URI, but {file} is empty")
    return uri


def redacted(uri: str) -> str:
    """Return the URI without user name and password, to be shown and stored."""
    parts = urlsplit(uri)
    secret = any(name in parts.query.lower() for name in ("password", "token", "secret"))
    if "@" not in parts.netloc and not secret:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="" if secret else parts.query))
