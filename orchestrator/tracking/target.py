"""Where runs are recorded."""

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from trainers.errors import SweepError

URI_VARIABLE = "MLFLOW_TRACKING_URI"
URI_FILE_VARIABLE = "MLFLOW_TRACKING_URI_FILE"  # a file that holds the URI: with a password it is for no other eyes
_SECRET_VARIABLES = (
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "RAY_AUTH_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
)
_SECRET_WORDS = ("pass", "pwd", "token", "secret", "key", "sig", "cred", "auth")
_SECRET_VALUES = re.compile(rf"[?&#][^=&]*(?:{'|'.join(_SECRET_WORDS)})[^=&]*=([^&#]+)", re.IGNORECASE)
_SHORTEST_SECRET = 3  # shorter ones would be replaced in words
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
    def own_database(self) -> Path | None:
        """The file of the default store; None for any other store."""
        return Path(self.uri.removeprefix("sqlite:///")) if self.in_output else None

    @property
    def shown(self) -> str:
        """The URI without user name and password: what messages and files hold."""
        return redacted(self.uri)

    def reach_database(self) -> None:
        """Connect to the database's port, if the store is a database server; raises OSError where nobody answers.

        MLflow itself tries for minutes.
        """
        usual = _DATABASE_PORTS.get(self.uri.partition(":")[0].partition("+")[0])
        parts = urlsplit(self.shown)
        if usual is not None and parts.hostname:
            socket.create_connection((parts.hostname, parts.port or usual), _DATABASE_TIMEOUT_S).close()

    def reason(self, error: Exception) -> str:
        """The first line of what the store's client says, without user name and password."""
        return concealed(str(error).split("\n")[0], self.uri)


def tracking_target(name: str, database: Path, artifacts: Path) -> TrackingTarget:
    """Return the target that the environment asks for, by default SQLite in the output directory."""
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or name
    default = f"sqlite:///{database}"
    if not tracking_uri() and set("?#%") & set(default):
        raise SweepError(
            f"the output directory of a sweep that is recorded in it must have no ?, # or % in its path, for the store's "
            f"URI would name another file, but is {str(database.parent)!r}; use another --output"
        )
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
    except (OSError, ValueError, RuntimeError) as error:
        raise SweepError(f"{URI_FILE_VARIABLE} must name a readable file on this machine, but: {error}") from error
    if not uri:
        raise SweepError(f"the file of {URI_FILE_VARIABLE} must hold MLflow's tracking URI, but {file} is empty")
    return uri


def redacted(uri: str) -> str:
    """Return the URI without user name and password, to be shown and stored.

    What is no well-formed URI is cut as well: a password may hold any character that should have been escaped.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return uri
    if not rest.startswith("/"):  # a path alone, as SQLite's, may have an @
        rest = rest.rpartition("@")[2]
    for mark in "?#":
        place, found, more = rest.partition(mark)
        if found and any(word in more.lower() for word in _SECRET_WORDS):
            rest = place
    return f"{scheme}://{rest}"


def concealed(text: str, uri: str = "", environment: Mapping[str, str] = os.environ) -> str:
    """Return a message without the secrets of `uri` and of the environment, which others' code may have put into it."""
    secrets = {environment.get(name, "") for name in _SECRET_VARIABLES}
    rest = uri.partition("://")[2]
    if not rest.startswith("/"):
        user_info = rest.rpartition("@")[0]
        secrets |= {user_info, user_info.partition(":")[2]}
    secrets |= set(_SECRET_VALUES.findall(uri))
    text = text.replace(uri, redacted(uri)) if uri else text
    for secret in sorted((part for each in secrets for part in (each, unquote(each))), key=len, reverse=True):
        text = text.replace(secret, "***") if len(secret) >= _SHORTEST_SECRET else text
    return text
