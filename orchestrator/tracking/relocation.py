"""The default MLflow store, in an output directory that was moved or copied: it names artifacts by absolute paths."""

import sqlite3
from contextlib import closing
from pathlib import Path

from trainers.errors import SweepError

_PATIENCE_S = 60.0  # for another process that writes
# wherever MLflow's schema has the address of an artifact
_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def follow_move(database: Path, artifacts: str) -> None:
    """Point a sweep's SQLite store at the folder `artifacts` (a file: URI) where it names one of that name elsewhere.

    Does nothing where there is no store yet, or nothing was moved. Raises SweepError for a file that is not usable.
    """
    if not database.exists():
        return
    try:
        with closing(sqlite3.connect(database, timeout=_PATIENCE_S)) as connection, connection:
            _follow(connection, artifacts)
    except sqlite3.Error as error:
        raise SweepError(f"{database} must be MLflow's SQLite store, but: {error}; use another --output") from error


def _follow(connection: sqlite3.Connection, artifacts: str) -> None:
    there = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if "experiments" not in there:
        return
    query = "SELECT artifact_location FROM experiments WHERE artifact_location LIKE ? AND artifact_location != ?"
    moved = connection.execute(query, (f"file:%/{artifacts.rpartition('/')[2]}", artifacts)).fetchall()
    for (before,) in moved:
        size = len(before) + 1
        for table, column in _PLACES:
            if table in there:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # noqa: S608  # names of our own
                    f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (artifacts, size, before, size, f"{before}/"),
                )
