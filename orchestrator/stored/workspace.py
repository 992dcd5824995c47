"""Where a worker finds what its run needs and leaves what it makes: the driver's folder, or away from it the URL.

On the driver's node that is the output directory, which the driver's mirror sends. On another node, which need not see it, a
folder of the worker's own takes its place: the network that a run starts from and its last checkpoint come from the URL, and
each checkpoint and the network go there.
"""

import fcntl
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from orchestrator.config import SweepConfig
from orchestrator.jobs import Job, run_job, stage_one_of
from orchestrator.paths import SweepPaths
from orchestrator.ray_session import node_name
from orchestrator.scheduler import is_last
from orchestrator.stored.location import Location, retried
from orchestrator.stored.opened import url_of
from trainers.checkpoint import read_payload, remove_checkpoints
from trainers.errors import CheckpointError, StorageError
from trainers.recipe import CHECKPOINT_FILE, MODEL_FILE

if TYPE_CHECKING:
    from trainers.loop import TrainEpoch

AWAY = "away"  # in a result: its worker does not work in the driver's folder
_log = logging.getLogger(__name__)
_SENT_LATER_S = 300.0  # how long to wait for what the driver's mirror is about to send
_POLL_S = 2.0
_PREFIX, _LOCK = "rankfront-worker-", ".lock"
_NEW_S = 60.0  # a folder may be this old before its process has locked it


@dataclass(frozen=True)
class Place:
    """Where the runs of a sweep read and write: the driver's folder, and with a URL that and the driver's node."""

    root: str
    url: str | None = None
    node: str | None = None

    @classmethod
    def of(cls, paths: SweepPaths) -> "Place":
        """The place of a sweep whose driver is this process, connected to Ray."""
        url = url_of(paths)
        return cls(str(paths.root), url, None if url is None else _node_id())

    def collect(self, name: str) -> None:
        """Bring the network of a run that has ended elsewhere to the driver, and remove its checkpoint from the URL.

        What cannot be reached now is brought by the run that needs it.
        """
        assert self.url is not None, name
        location, run = Location(self.url), SweepPaths(Path(self.root)).run(name)
        try:
            retried(lambda: location.download(_path(name, MODEL_FILE), run / MODEL_FILE))
            location.delete(_path(name, CHECKPOINT_FILE))
        except StorageError as error:
            _log.warning("%s is not brought here now: %s", name, error)
        else:
            remove_checkpoints(run / CHECKPOINT_FILE)  # of an attempt on this node before


class Workspace:
    """What a worker has of a sweep; `output` is its folder, laid out as an output directory."""

    def __init__(self, place: Place, config: SweepConfig) -> None:
        self._config, self._node = config, node_name()
        self._location = None if place.url is None else Location(place.url)
        self.away = place.url is not None and _node_id() != place.node
        self._own = ExitStack()
        # in a folder of that one, for stages share networks beside an output directory
        self.output = str(self._own.enter_context(_own_folder()) / "sweep") if self.away else place.root
        self._paths = SweepPaths(Path(self.output))

    def __enter__(self) -> "Workspace":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._own.close()

    def bring(self, job: Job, *, started: bool) -> None:
        """Have what the job needs in `output`; `started`: what it starts from is given to it.

        Raises StorageError where that is not at the URL, or it cannot be reached.
        """
        if self._location is None:
            return
        for path, will_come in self._needed(job, started=started):
            if not (self._paths.root / path).exists():
                self._wait_for(self._location, path, _SENT_LATER_S if will_come else 0.0)
        if self.away:
            retried(lambda: self._take_up(job.name))
            return
        try:
            self._take_up(job.name)
        except StorageError as error:
            _log.warning("%s goes on with what is in %s: %s", job.name, self.output, error)

    def passed_on(self, name: str, result: dict[str, Any]) -> dict[str, Any]:
        """Return a result of a run as the driver is told it, after what it speaks of was sent; "storage" if that failed."""
        if self._location is not None and self.away:
            try:
                self._send(self._location, name, result)
            except StorageError as error:
                result = {"storage": str(error)}
        return {**result, "node": self._node, AWAY: self.away}

    def _needed(self, job: Job, *, started: bool) -> Iterator[tuple[str, bool]]:
        """Yield each file, and whether it is sure to come to the URL: of stage 1 not, a form of it may have been missed."""
        if job.stage not in ("trial", "finetune"):
            return
        first = stage_one_of(job.settings).name
        if job.source is not None and not started:
            yield _path(job.source, MODEL_FILE), job.source != first
        if job.stage == "finetune" and self._config.finetune.distillation.weight > 0:
            yield _path(first, MODEL_FILE), True
        if self._config.latency is not None:
            yield self._paths.latency_table.name, True

    def _wait_for(self, location: Location, path: str, limit_s: float) -> None:
        end = time.monotonic() + limit_s
        while not retried(lambda: location.download(path, self._paths.root / path)):
            if limit_s == 0:  # the run itself says what it lacks
                return
            if time.monotonic() > end:
                raise StorageError(f"{location} must have {path}, but has not after {limit_s:g} s")
            time.sleep(_POLL_S)

    def _take_up(self, name: str) -> None:
        """Have the run's network, or the newest of its checkpoints, where it has been trained before."""
        assert self._location is not None, name
        run = self._paths.run(name)
        if (run / MODEL_FILE).exists() or self._location.download(_path(name, MODEL_FILE), run / MODEL_FILE):
            return
        here, there = run / CHECKPOINT_FILE, run / f".{CHECKPOINT_FILE}"
        if self._location.download(_path(name, CHECKPOINT_FILE), there):
            if _num_epochs(there) > _num_epochs(here):
                remove_checkpoints(here)
                there.replace(here)
            there.unlink(missing_ok=True)

    def _send(self, location: Location, name: str, result: dict[str, Any]) -> None:
        run = self._paths.run(name)
        if "finished" in result:
            retried(lambda: location.write(_path(name, MODEL_FILE), run / MODEL_FILE))
            shutil.rmtree(run)
        elif not is_last(result) and (run / CHECKPOINT_FILE).exists():
            try:  # before the epoch is told: if the node is lost, it is not trained, and not recorded, again
                location.write(_path(name, CHECKPOINT_FILE), run / CHECKPOINT_FILE)
            except StorageError as error:
                _log.warning("the checkpoint of %s is not sent now: %s", name, error)


def run_at(
    place: Place,
    job: Job,
    config: SweepConfig,
    arrays: dict[str, Any],
    test_arrays: dict[str, Any] | None = None,
    start: bytes | None = None,
    train_epoch: "TrainEpoch | None" = None,
) -> Iterator[dict[str, Any]]:
    """`run_job` where this worker is; each result says on which node, and whether away from the driver's folder."""
    with Workspace(place, config) as there:
        try:
            there.bring(job, started=start is not None)
        except StorageError as error:
            yield {"storage": str(error)}
            return
        for result in run_job(job, config, there.output, arrays, test_arrays, start, train_epoch):
            yield there.passed_on(job.name, result)


@contextmanager
def _own_folder() -> Iterator[Path]:
    """A folder of this process until the block ends. What killed processes have left of theirs on this node is removed."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError), (left / _LOCK).open() as lock:  # one that lives has it locked; others' cannot be opened
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - left.stat().st_mtime > _NEW_S:
                shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as folder, (Path(folder) / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Path(folder)


def _node_id() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


def _path(name: str, file: str) -> str:
    return f"runs/{name}/{file}"


def _num_epochs(checkpoint: Path) -> int:
    """Return how many epochs a checkpoint has, -1 where there is none that can be read."""
    try:
        return len(read_payload(checkpoint, "checkpoint")["history"])
    except (CheckpointError, KeyError, TypeError):
        return -1
