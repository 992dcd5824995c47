"""An object that says who drives the sweep at a URL, in place of a lock: object stores have none.

Its owner renews it; one that is not renewed any more may be taken over. Two drivers that start within the same second can
both believe that it is theirs, until the earlier one renews it and finds the other's: it stops then.
"""

import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from orchestrator.stored.location import Location
from trainers.errors import StorageError, SweepError

FILE = ".rankfront.lease"
RENEW_S = 15.0
_PATIENCE_S = 60.0  # without being renewed: its owner is gone
_SURELY_GONE_S = 600.0  # no clocks differ by so much
_POLL_S = 2.0


class LeaseLostError(StorageError):
    """Another process has taken the lease."""


class Lease:
    """`folder` is the identity of the driver's folder: a lease of the same folder was left by a driver that is gone."""

    def __init__(self, location: Location, folder: str) -> None:
        self._location, self._token, self._folder = location, uuid.uuid4().hex, folder
        self._count, self._renewed_s = 0, 0.0
        self._lock = threading.Lock()

    def take(self, tell: Callable[[str], None]) -> None:
        """Become the owner; waits where it cannot be seen at once whether another one lives.

        Raises SweepError where one does.
        """
        found = self._read()
        if found is not None and found.get("folder") != self._folder and self._location.age_s(FILE) < _SURELY_GONE_S:
            self._require_gone(found, tell)
        self._write()
        if (now := self._read() or {}).get("token") != self._token:
            raise SweepError(_in_use(self._location, now))

    def _require_gone(self, found: dict[str, Any], tell: Callable[[str], None]) -> None:
        tell(f"{self._location} was in use by {_owner(found)}: looking for up to {_PATIENCE_S:g} s whether it still is")
        end = time.monotonic() + _PATIENCE_S
        while time.monotonic() < end:
            time.sleep(_POLL_S)
            now = self._read()
            if now is None:
                return
            if now != found:
                raise SweepError(_in_use(self._location, now))

    def renew(self, *, force: bool = False) -> None:
        """Say that its owner lives, if that is due; raises LeaseLostError where another one has taken it."""
        with self._lock:
            if not force and time.monotonic() - self._renewed_s < RENEW_S:
                return
            found = self._read()
            if found is None:  # whoever took it over has released it since
                raise LeaseLostError(
                    f"{self._location} was taken over by another sweep, which has ended; this one stops"
                )
            if found.get("token") != self._token:
                raise LeaseLostError(f"{self._location} was taken over by {_owner(found)}; this sweep stops")
            self._write()

    def release(self) -> None:
        """Let another process take it at once."""
        found = self._read()
        if found is not None and found.get("token") == self._token:
            self._location.delete(FILE)

    def _read(self) -> dict[str, Any] | None:
        content = self._location.read(FILE)
        try:
            found = None if content is None else json.loads(content)
        except ValueError:
            return {}
        return found if found is None or isinstance(found, dict) else {}

    def _write(self) -> None:
        self._count += 1
        owner = {"token": self._token, "folder": self._folder, "host": platform.node(), "process": os.getpid()}
        self._location.write(FILE, json.dumps({**owner, "renewed": self._count}).encode())
        self._renewed_s = time.monotonic()


def _owner(found: dict[str, Any]) -> str:
    return f"process {found.get('process')} on {found.get('host')}"


def _in_use(location: Location, found: dict[str, Any]) -> str:
    return f"{location} is in use by a sweep ({_owner(found)}); wait for it, or use another --output"
