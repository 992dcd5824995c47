"""Where runs are recorded."""

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit


@dataclass(frozen=True)
class TrackingTarget:
    """MLflow's tracking URI, the experiment's name, and its artifact folder if the experiment is new."""

    uri: str
    experiment: str
    artifacts: str | None = None

    @property
    def shown(self) -> str:
        """The URI without user name and password: what messages and files hold."""
        return redacted(self.uri)

    def reason(self, error: Exception) -> str:
        """The first line of what the store's client says, without user name and password."""
        return str(error).split("\n")[0].replace(self.uri, self.shown)


def tracking_target(name: str, database: Path, artifacts: Path) -> TrackingTarget:
    """Return the target that the environment asks for, by default SQLite in the output directory."""
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or name
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    return (
        TrackingTarget(uri, experiment)
        if uri
        else TrackingTarget(f"sqlite:///{database}", experiment, artifacts.as_uri())
    )


def redacted(uri: str) -> str:
    """Return the URI without user name and password, to be shown and stored."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri
