"""Trial arrays in a search: an actor trains up to K trials as one program, and each is an ordinary trial of Ray Tune.

Tune's side of a trial is light: it joins an array, asks it for one result after the other and reports them, so that the
scheduler, the searcher and the ledger see what they always see. A trial that was stopped or whose worker was lost is not
waited for, and its slot goes to the next one; after an array was lost its trials join again, from their checkpoints.
"""

import time
import traceback
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Condition
from typing import TYPE_CHECKING, Any

from orchestrator.config import ResourcesConfig, SweepConfig
from orchestrator.jobs import job_of, job_steps, start_of
from orchestrator.scheduler import is_last, tune_result
from orchestrator.stored.workspace import Place, Workspace
from trainers.errors import StorageError

if TYPE_CHECKING:
    import ray

LIGHT_CPU = 0.001  # what Tune's side of a trial reserves: it waits all the time
_GATHER_S = 0.5  # trials that start together come in one after the other
_PATIENCE_S = 10.0  # after which an array goes on without a trial that asks for nothing
_POLL_S = 0.05


class ArrayWorker:
    """The actor; its methods are called from threads, one of which trains at a time.

    A key is a trial's name, a slash, and what tells this attempt at it from those whose worker was lost.
    """

    def __init__(self, config: SweepConfig, place: Place, data: dict[str, Any], starts: dict[str, Any]) -> None:
        import torch

        from trainers.arrays import TrialArray
        from trainers.data import ImageData

        self._config, self._starts = config, starts
        self._workspace = Workspace(place, config)
        device = torch.device("cuda" if config.resources.gpus > 0 else "cpu")
        self._data = ImageData.from_arrays(data).to(device)  # once for all trials
        self._array: TrialArray[dict[str, Any]] = TrialArray(config.resources.trials_per_array)
        self._slots: dict[str, int] = {}  # by key
        self._asking: set[str] = set()
        self._absent: set[str] = set()  # those that were waited for in vain
        self._results: dict[str, dict[str, Any]] = {}
        self._training: set[str] = set()
        self._joined_s = self._changed_s = time.monotonic()
        self._state = Condition()

    def join(self, key: str, params: dict[str, Any]) -> bool:
        """Take up a trial if a slot is free or held by one that was waited for in vain; say whether it was taken."""
        with self._state:
            if key in self._slots:  # Ray has sent the call again
                return True
            if len(self._slots) == self._array.size and self._absent:
                self._drop(next(iter(self._absent)))
            if len(self._slots) == self._array.size:
                return False
            job = job_of(params)
            start = start_of(job, self._starts)
            try:
                self._workspace.bring(job, started=start is not None)
            except StorageError as error:
                self._results[key] = {"storage": str(error)}
                return True
            steps = job_steps(job, self._config, self._workspace.output, self._data, start=start)
            self._slots[key] = self._array.add(steps)
            self._joined_s = self._changed_s = time.monotonic()
            self._state.notify_all()
            return True

    def forget(self, name: str) -> None:
        """Free the slots of earlier attempts at a trial."""
        with self._state:
            for key in [key for key in self._slots if key.startswith(f"{name}/")]:
                self._drop(key)

    def next(self, key: str) -> dict[str, Any]:
        """Return the trial's next result, as `run_job` yields them; waits until the array has trained it."""
        with self._state:
            self._asking.add(key)
            self._absent.discard(key)
            self._changed_s = time.monotonic()
            self._state.notify_all()
            while key not in self._results:
                if key not in self._slots:
                    raise LookupError(f"{key} must be in this array, but it has left, or the array was started anew")
                if not self._training and self._ready():
                    self._train()
                else:
                    self._state.wait(_POLL_S)
            return self._results.pop(key)

    def leave(self, key: str) -> None:
        """Free a trial's slot; a trial that has left already may do so again."""
        with self._state:
            self._drop(key)

    def _drop(self, key: str) -> None:
        while key in self._training:
            self._state.wait(_POLL_S)
        if (slot := self._slots.pop(key, None)) is not None:
            self._array.remove(slot)
        for held in (self._asking, self._absent):
            held.discard(key)
        self._results.pop(key, None)
        self._changed_s = time.monotonic()
        self._state.notify_all()

    def _ready(self) -> bool:
        """Whether to begin: all are here, or those that are not have had their time."""
        if not self._asking & self._slots.keys():
            return False
        now, waiting = time.monotonic(), self._slots.keys() - self._asking - self._absent - self._results.keys()
        if waiting and now - self._changed_s < _PATIENCE_S:
            return False
        if len(self._slots) < self._array.size and now - self._joined_s < _GATHER_S:
            return False
        self._absent |= waiting
        return True

    def _train(self) -> None:
        """Bring all that ask to their next results; meanwhile others may join and leave."""
        self._training = self._asking & self._slots.keys()
        keys = {self._slots[key]: key for key in self._training}
        self._state.release()
        try:
            found = self._array.advance(keys)
            results = {keys[slot]: self._passed_on(keys[slot], result) for slot, result in found.results.items()}
        finally:
            self._state.acquire()
            self._training = set()
            self._state.notify_all()
        self._asking -= set(keys.values())
        self._results |= results
        for slot, error in found.ended.items():
            text = "".join(traceback.format_exception(error)) if error is not None else "it ended without a result"
            self._results[keys[slot]] = {"error": text}
            del self._slots[keys[slot]]
        self._changed_s = time.monotonic()

    def _passed_on(self, key: str, result: dict[str, Any]) -> dict[str, Any]:
        return self._workspace.passed_on(key.rpartition("/")[0], result)


@contextmanager
def trial_arrays(
    config: SweepConfig, place: Place, data: "ray.ObjectRef[dict[str, Any]]", starts: dict[str, Any]
) -> Iterator[list[Any]]:
    """Start as many arrays as `search.max_concurrent` trials need; they end with the block."""
    import ray

    resources, size = config.resources, config.resources.trials_per_array
    worker: Any = ray.remote(ArrayWorker)
    options = {
        "num_cpus": array_cpus(resources),
        "num_gpus": resources.gpus,
        "max_restarts": -1,
        "max_task_retries": -1,  # each call may come again
        "max_concurrency": 4 * size,  # each trial has a call that waits, and some that join and leave
    }
    arrays = [worker.options(**options).remote(config, place, data, starts) for _ in range(config.num_arrays)]
    try:
        yield arrays
    finally:
        for array in arrays:
            ray.kill(array)


def array_cpus(resources: ResourcesConfig) -> float:
    """Return what an array reserves, so that it and Tune's side of its trials reserve `cpus_per_trial` together."""
    return resources.cpus_per_trial - resources.trials_per_array * LIGHT_CPU


def array_trainable(params: dict[str, Any], arrays: Sequence[Any], max_retries: int) -> None:
    """Tune's side of one trial. Raises LookupError where its array was lost more than `max_retries` times."""
    import ray
    from ray import tune

    name = params["name"]
    key = f"{name}/{uuid.uuid4().hex}"
    ray.get([array.forget.remote(name) for array in arrays])
    array = _joined(key, params, arrays)
    try:
        result: dict[str, Any] = {}
        num_lost = 0
        while not is_last(result):
            try:
                result = ray.get(array.next.remote(key))
            except LookupError:  # it goes on from its checkpoint, and first repeats its results
                num_lost += 1
                if num_lost > max_retries:
                    raise
                array = _joined(key, params, arrays)
                continue
            tune.report(tune_result(result))
    finally:
        array.leave.remote(key)


def _joined(key: str, params: dict[str, Any], arrays: Sequence[Any]) -> Any:
    """Return the array that has taken the trial; the one before it may be about to leave its slot."""
    import ray

    while True:
        for array in arrays:
            if ray.get(array.join.remote(key, params)):
                return array
        time.sleep(_POLL_S)
