"""The thread of a driver that sends what changes in its folder to the sweep's URL."""

import _thread
import hashlib
import logging
import threading
import time
from contextlib import suppress
from pathlib import Path

from orchestrator.remote.listing import checksum
from orchestrator.stored.lease import RENEW_S, Lease, LeaseLostError
from orchestrator.stored.location import Location
from orchestrator.stored.manifest import ABSENT, Entry, Manifest, write_manifest
from orchestrator.stored.snapshot import Change, Stamp, by_workers, take
from trainers.errors import StorageError

_log = logging.getLogger(__name__)
_INTERVAL_S = 20.0
_SHARE = 10  # a pass is followed by a rest at least so many times as long: it takes a tenth of the driver at most
_LONGEST_REST_S = 300.0
_TRIES_AT_END = 4
_RETRY_S = 2.0  # at the end; twice as long after each further try


class Mirror:
    """Sends `root` to `location` until it is closed. What cannot be sent is tried again, and never stops the sweep.

    `manifest`: what is there; `sent`: stamps of files that are known to be there as they are here.
    """

    def __init__(
        self, root: Path, location: Location, lease: Lease, manifest: Manifest, sent: dict[str, Stamp] | None = None
    ) -> None:
        self._root, self._location, self._lease, self._manifest = root, location, lease, manifest
        self._sent = {} if sent is None else dict(sent)
        self._closing = threading.Event()
        self._failures = 0
        self._problem: Exception | None = None
        self._thread = threading.Thread(target=self._send_until_closed, name="mirror", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def close(self) -> Exception | None:
        """Send what is left, with a few tries, and stop; returns why that failed, None where all is there."""
        self._closing.set()
        self._thread.join()
        return self._problem

    def waiting(self) -> tuple[int, int]:
        """Return how many files, and bytes of them, are not at the URL as they are here."""
        stamps = [change.stamp for change in take(self._root, self._sent).changes]
        return len(stamps), sum(size for size, _ in stamps)

    def send(self) -> None:
        """Send what has changed, and remove there what is gone here.

        Raises StorageError, LeaseLostError where another driver has taken over, and what reading the folder raises.
        """
        self._lease.renew(force=True)
        snapshot, files = take(self._root, self._sent), self._manifest.files
        new = [
            (change, entry)
            for change in snapshot.changes
            if not self._manifest.holds(change.path, entry := _entry(change))
        ]
        brought = [(change, entry) for change, entry in new if self._was_brought(change, entry)]
        files |= {change.path: [entry] for change, entry in brought}
        new = [pair for pair in new if pair not in brought]
        gone = [path for path in files if path not in snapshot.present]
        if new or gone:
            for change, entry in new:
                files[change.path] = [*files.get(change.path, [ABSENT]), entry]
            for path in gone:
                files[path].append(ABSENT)
            write_manifest(self._location, self._manifest)
            for change, _ in reversed(new):
                with suppress(FileNotFoundError):  # it is gone since; the next pass removes it there
                    # a file that has changed since it was looked at is there as it was read now
                    files[change.path] = [self._location.write(change.path, change.content, self._renew)]
                    self._sent[change.path] = change.stamp
            for path in gone:
                self._location.delete(path)
                del files[path]
                self._sent.pop(path, None)
        if new or gone or brought:
            write_manifest(self._location, self._manifest)
        sent_now = {change.path for change, _ in new}
        self._sent |= {change.path: change.stamp for change in snapshot.changes if change.path not in sent_now}

    def _was_brought(self, change: Change, entry: Entry) -> bool:
        """Whether it is a network that a worker elsewhere has sent, and that came here from the URL."""
        if not by_workers(change.path) or change.path in self._manifest.files:
            return False
        return self._location.size(change.path) == entry[0]

    def _renew(self) -> None:
        with suppress(StorageError):  # the next pass says so
            self._lease.renew()

    def _send_until_closed(self) -> None:
        try:
            while not self._closing.is_set():
                self._rest(self._try())
            for attempt in range(_TRIES_AT_END):
                if attempt:
                    time.sleep(_RETRY_S * 2 ** (attempt - 1))
                self._try()
                if self._problem is None:
                    return
        except LeaseLostError as error:
            self._problem = error
            if not self._closing.is_set():
                _thread.interrupt_main()  # two drivers must not go on

    def _try(self) -> float:
        """One pass; returns for how many seconds to rest then."""
        started = time.monotonic()
        try:
            self.send()
        except LeaseLostError:
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, the sweep goes on, and its end says so
            self._failures, self._problem = self._failures + 1, error
            if self._failures == 1:
                _log.warning("%s; the sweep goes on in %s, and this is tried again", error, self._root)
            return min(_INTERVAL_S * 2.0 ** (self._failures - 1), _LONGEST_REST_S)
        if self._failures:
            _log.warning("%s takes files again", self._location)
        self._failures, self._problem = 0, None
        return min(max(_INTERVAL_S, _SHARE * (time.monotonic() - started)), _LONGEST_REST_S)

    def _rest(self, duration_s: float) -> None:
        end = time.monotonic() + duration_s
        while (left := end - time.monotonic()) > 0 and not self._closing.wait(min(left, RENEW_S)):
            try:
                self._lease.renew()
            except LeaseLostError:
                raise
            except StorageError:  # the next pass says so
                continue


def _entry(change: Change) -> Entry:
    if isinstance(change.content, bytes):
        return len(change.content), hashlib.sha256(change.content).hexdigest()
    try:
        return checksum(change.content)
    except FileNotFoundError:  # gone since
        return ABSENT
