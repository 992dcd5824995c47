"""What the rest of the program tells MLflow, and the thread that delivers it."""

import json
import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.tracking.spool import Event, Kind, Spool
from orchestrator.tracking.store import RunStore, refused
from orchestrator.tracking.target import TrackingTarget

IDS_FILE = "runs.jsonl"  # in the tracking folder: the ids of the runs in MLflow

_log = logging.getLogger(__name__)
_TICK_S = 5.0  # what comes in between goes in one call for each run
_RETRY_S = 2.0  # after a failure; twice as long after each further one
_MAX_WAIT_S = 30.0
_TRIES_AT_END = 3
_LOGGED_ARTIFACTS = "mlflow.loggedArtifacts"  # the tag by which MLflow's UI finds tables


class Tracker:
    """The runs of one sweep. Calls return at once: they write to the spool in `folder`, and never to the store.

    What the store does not take is sent again until it does; what it has not taken at the end stays in the spool, for
    the next start or `rankfront sync`. What it refuses for good goes to `refused.jsonl`, with a warning.
    """

    def __init__(self, target: TrackingTarget, sweep_id: str, root: Path, folder: Path) -> None:
        """Connect, and begin to deliver what an earlier process left; `root` is the output directory.

        Raises SweepError where the store cannot be used: before any training.
        """
        self.target = target
        self._root, self._refused_file = root, folder / "refused.jsonl"
        self._spool = Spool(folder)
        self.waiting = self._spool.count()  # what an earlier process left
        self._store = RunStore(target, sweep_id, root, folder / IDS_FILE)
        self._closing, self._wake = threading.Event(), threading.Event()
        self._failures = 0
        self._thread = threading.Thread(target=self._deliver_until_closed, name="mlflow-delivery", daemon=True)
        self._thread.start()

    def run_id(self, name: str) -> str:
        """Return the id of a run in MLflow, "" until it has one."""
        return self._store.run_id(name)

    def start_run(
        self, name: str, stage: str, params: Mapping[str, Any], tags: Mapping[str, str], source: str | None = None
    ) -> None:
        """A run begins, or goes on; `source` names the run that it starts from."""
        texts = {key: str(value) for key, value in params.items()}
        self._put(name, "start", {"stage": stage, "params": texts, "tags": dict(tags), "source": source})

    def log_metrics(
        self, name: str, metrics: Mapping[str, float], step: int, time_s: float, *, replaces: bool = False
    ) -> None:
        """Record what was measured at `time_s`, the same moment whenever it is told again.

        Of a step that a run had before it was taken up again the first value stays, unless a later one `replaces` it.
        """
        values = {key: float(value) for key, value in metrics.items()}
        self._put(name, "metrics", {"step": step, "values": values, "replaces": replaces}, time_s)

    def set_tags(self, name: str, tags: Mapping[str, str]) -> None:
        """Set or replace tags of a run."""
        self._put(name, "tags", dict(tags))

    def end_run(self, name: str, status: str) -> None:
        """End a run as FINISHED, FAILED or KILLED, after everything recorded before."""
        self._put(name, "end", {"status": status})

    def log_artifact(self, name: str, path: Path) -> None:
        """Store a file of the output directory with a run."""
        self._put(name, "artifact", {"path": str(path.relative_to(self._root))})

    def log_table(self, name: str, path: Path) -> None:
        """Store a file {"columns", "data"} with a run; MLflow's UI shows it as a table."""
        self.log_artifact(name, path)
        self.set_tags(name, {_LOGGED_ARTIFACTS: json.dumps([{"path": path.name, "type": "table"}])})

    def log_model(self, name: str, folder: Path, facts: Mapping[str, Any], time_s: float) -> None:
        """Record a packed model (`models.pack_model`) with a run, and remove `folder`, of the output directory, then.

        `facts` are those of `models.log_model`; its metrics were measured at `time_s`.
        """
        self._put(name, "model", {"path": str(folder.relative_to(self._root)), **facts}, time_s)

    def end_open_runs(self) -> None:
        """End as KILLED what the store holds for running, once everything else is delivered."""
        for name in self._store.open_runs():
            self.end_run(name, "KILLED")

    def flush(self, timeout_s: float) -> int:
        """Wait until all is delivered, at most so long and not for a store that fails; returns how many are left."""
        end = time.monotonic() + timeout_s
        while (left := self._spool.count()) and time.monotonic() < end and not self._failures:
            self._wake.set()
            time.sleep(0.05)
        return left

    def close(self) -> None:
        """Deliver what is left, for at most a minute or until the store has failed a few times, and stop."""
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout=60)
        if left := self._spool.count():
            _log.warning(
                "MLflow at %s did not take %d records; they wait in %s: send them with `rankfront sync %s`",
                self.target.shown, left, self._refused_file.parent, self._root,
            )  # fmt: skip
        if not self._thread.is_alive():
            self._spool.close()

    def _put(self, name: str, kind: Kind, value: dict[str, Any], time_s: float | None = None) -> None:
        self._spool.append(Event(name, kind, value, time.time() if time_s is None else time_s))

    def _deliver_until_closed(self) -> None:
        while True:
            closing = self._closing.is_set()
            try:
                left = self._deliver()
            except Exception as error:  # noqa: BLE001  # whatever the store raises, the sweep goes on and the records wait
                left = True
                self._store.failed()
                self._failures += 1
                if self._failures == 1:
                    why = self.target.reason(error)
                    _log.warning("MLflow at %s does not take records (will retry): %s", self.target.shown, why)
            else:
                if self._failures:
                    _log.warning("MLflow at %s takes records again", self.target.shown)
                self._failures = 0
            if closing and (not left or self._failures >= _TRIES_AT_END):
                return
            if not left or self._failures:
                self._wake.wait(self._pause_s(closing=closing))
                self._wake.clear()

    def _pause_s(self, *, closing: bool) -> float:
        if not self._failures:
            return _TICK_S
        return _RETRY_S if closing else min(_RETRY_S * 2 ** (self._failures - 1), _MAX_WAIT_S)

    def _deliver(self) -> bool:
        """Send the next events, those of one run together; returns whether that was not all there is."""
        events, end, more = self._spool.read()
        by_run: dict[str, list[Event]] = {}
        for event in events:
            by_run.setdefault(event.run, []).append(event)
        for name, of_run in by_run.items():
            self._deliver_run(name, of_run)
        if events:
            self._spool.delivered(end)
        return more

    def _deliver_run(self, name: str, events: list[Event]) -> None:
        """Send one run's events together; if the store refuses them, one by one, so that only the bad ones are kept back."""
        try:
            self._store.deliver(events)
        except Exception as error:
            if not refused(error):
                raise
            if len(events) == 1:
                self._refuse(name, events[0], error)
            else:
                for event in events:
                    self._deliver_run(name, [event])

    def _refuse(self, name: str, event: Event, error: Exception) -> None:
        why = self.target.reason(error)
        _log.warning("MLflow refuses a record of %s (%s), kept in %s: %s", name, event.kind, self._refused_file, why)
        with self._refused_file.open("a") as file:
            file.write(json.dumps({"why": why, "run": name, "kind": event.kind, "value": event.value}) + "\n")
