"""Runs with several workers (`resources.workers_per_trial`): who trains with whom on a Ray cluster, and where.

A run's own process, Tune's actor or a Ray task, is the worker of rank 0. It runs the whole job, and starts the others as Ray
actors when its first epoch is due; their places are reserved together with its own, in one placement group. Images come from
Ray's object store, gradients go by torch.distributed (`trainers.distributed`).

Ray Train's TorchTrainer is not used: inside a trial of Tune, Ray 2.60 starts nine processes for two workers, in a placement
group beside the trial's own, and a trial that the scheduler stops hangs with its workers, and the sweep with it. Its
checkpoints and retries would be second ones beside the sweep's.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orchestrator.config import ResourcesConfig, SweepConfig
from orchestrator.jobs import device_of
from trainers.errors import LostWorkerError

if TYPE_CHECKING:
    from trainers.batches import Share
    from trainers.distributed import Training, Worker
    from trainers.loop import PendingEpoch, TrainedEpoch, TrainEpoch

_START_LIMIT_S = 600.0  # of a process that imports torch, on a busy machine
_END_LIMIT_S = 60.0  # in which Ray says which worker has failed


def bundles(resources: ResourcesConfig) -> list[dict[str, float]]:
    """Return what each worker of a run reserves, that of rank 0 first."""
    return [{"CPU": resources.cpus_per_trial, "GPU": resources.gpus}] * resources.workers_per_trial


class Places:
    """Where runs go that Tune does not place: a placement group for each with several workers; they end with the block."""

    def __init__(self, resources: ResourcesConfig) -> None:
        self._resources, self._taken = resources, dict[str, PlacementGroup]()

    def take(self, name: str) -> Any:
        """Return Ray's scheduling strategy for the worker of rank 0; the others go where it does."""
        if self._resources.workers_per_trial == 1:
            return "DEFAULT"
        reserved = [{kind: count for kind, count in bundle.items() if count} for bundle in bundles(self._resources)]
        group = self._taken[name] = placement_group(reserved)
        return PlacementGroupSchedulingStrategy(group, 0, placement_group_capture_child_tasks=True)

    def free(self, name: str) -> None:
        """Give a run's places back; what still runs there ends."""
        if (group := self._taken.pop(name, None)) is not None:
            remove_placement_group(group)

    def __enter__(self) -> "Places":
        """Reserve nothing yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give all back."""
        for name in list(self._taken):
            self.free(name)


class Follower:
    """The actor of a worker other than rank 0."""

    def __init__(self, share: "Share", config: SweepConfig, data: Sequence[Any]) -> None:
        import torch

        from trainers.data import ImageData
        from trainers.distributed import Worker
        from trainers.models import ModelSpec

        torch.set_num_threads(config.resources.cpus_per_trial)
        self._share, self._device, self._worker = share, device_of(config), Worker(share)
        self._data = ImageData.from_arrays(ray.get(data[0])).to(self._device)
        self._spec = ModelSpec(config.model, self._data.sample_shape, self._data.num_classes)

    def ready(self) -> None:
        """Answer as soon as the process is there."""

    def join(self, meeting: tuple[str, int]) -> None:
        """Join the others."""
        from trainers.distributed import join

        join(self._share, meeting, ray.util.get_node_ip_address(), self._device)

    def take(self, training: "Training") -> None:
        """Take up a network."""
        self._worker.take(training.begin(self._spec, self._data))

    def train(self, epoch: int) -> float:
        """Train an epoch with the others; return its CPU time in seconds."""
        found = self._worker.train(epoch)
        if isinstance(found, Exception):
            raise found
        return found.cpu_s


@contextmanager
def team_of(config: SweepConfig, data: Sequence[Any]) -> "Iterator[TrainEpoch | None]":
    """What trains the epochs of a run that goes on in this process: None where that is this process alone.

    `data` holds a reference to the images. No other worker is left when the block ends, however it does.
    """
    if config.resources.workers_per_trial == 1:
        yield None
        return
    team = Team(config, data)
    try:
        yield team.train
    finally:
        team.close()


class Team:
    """The worker of rank 0, which is this process, and the others; these are started when they are first needed."""

    def __init__(self, config: SweepConfig, data: Sequence[Any]) -> None:
        self._config, self._data = config, data
        self._others: list[Any] = []
        self._calls: list[Any] = []  # of the others, that are not known to have ended
        self._failures: SimpleQueue[Exception] = SimpleQueue()  # of the others, in the order in which they ended
        self._worker: Worker | None = None
        self._step: object = None  # that of the network which all have

    def train(self, due: "PendingEpoch") -> "TrainedEpoch | Exception":
        """Train an epoch together. After an error the others have ended, and the next epoch starts new ones.

        The error is what one of them raised, such as that it ran out of memory, or LostWorkerError.
        """
        try:
            return self._train(due)
        except Exception as error:  # noqa: BLE001 - it is the training's to raise, as in `PendingEpoch.train`
            return self._cause(error)

    def close(self) -> None:
        """End the others, at once."""
        from trainers.distributed import leave

        _kill(self._others)
        leave()
        self._others, self._calls, self._worker, self._step = [], [], None, None
        self._failures = SimpleQueue()

    def _train(self, due: "PendingEpoch") -> "TrainedEpoch":
        from dataclasses import replace

        from trainers.distributed import Training

        worker = self._worker or self._start()
        started = time.perf_counter()
        if due.step is not self._step:
            training = ray.put(Training.of(due))
            self._call("take", training)
            worker.take(due)
            self._step = due.step
        self._call("train", due.epoch)
        found = worker.train(due.epoch)
        if isinstance(found, Exception):
            raise found
        cpu_s = found.cpu_s + sum(self._answers()[-len(self._others) :])
        return replace(found, duration_s=time.perf_counter() - started, cpu_s=cpu_s)

    def _start(self) -> "Worker":
        from trainers.batches import Share
        from trainers.distributed import Worker, join, listen

        resources = self._config.resources
        shares = [Share(rank, resources.workers_per_trial) for rank in range(resources.workers_per_trial)]
        actor: Any = ray.remote(num_cpus=resources.cpus_per_trial, num_gpus=resources.gpus)(Follower)
        self._others = [actor.remote(share, self._config, self._data) for share in shares[1:]]
        self._call("ready")
        self._answers()
        address = ray.util.get_node_ip_address()
        listener = listen(address)
        meeting = listener.getsockname()[:2]
        self._call("join", meeting)
        join(shares[0], meeting, address, device_of(self._config), listener)
        self._answers()
        self._worker = Worker(shares[0])
        return self._worker

    def _call(self, name: str, *arguments: Any) -> None:
        calls = [getattr(other, name).remote(*arguments) for other in self._others]
        self._calls += calls
        Thread(target=_watch, args=(calls, self._others, self._failures), daemon=True).start()

    def _answers(self) -> list[Any]:
        """Wait for all calls, and raise what one of them ended with."""
        found: list[Any] = ray.get(self._calls, timeout=_START_LIMIT_S)
        self._calls = []
        return found

    def _cause(self, error: Exception) -> Exception:
        """End the team and return why: that another worker does not answer is what the first failure has led to."""
        from trainers.distributed import is_lost_connection

        def is_lost(each: Exception) -> bool:
            return isinstance(each, ray.exceptions.RayError) or is_lost_connection(each)

        cause = _raised(error)
        if is_lost(cause):
            with suppress(Empty):
                cause = self._failures.get(timeout=_END_LIMIT_S)
        self.close()
        if is_lost(cause):
            return LostWorkerError(f"all workers of a run must stay, but: {type(cause).__name__}: {cause}")
        return cause


def _watch(calls: list[Any], others: list[Any], failures: "SimpleQueue[Exception]") -> None:
    """Wait for calls of the others; once one has failed, end all: who waits for it in a step then fails, too."""
    while calls:
        (ended,), calls = ray.wait(calls, num_returns=1)
        if (error := _outcome(ended)) is not None:
            failures.put(error)
            _kill(others)
            return


def _kill(others: list[Any]) -> None:
    for other in others:
        ray.kill(other)


def _outcome(call: Any) -> Exception | None:
    """Return what an ended call of an actor has raised, if anything."""
    try:
        ray.get(call)
    except ray.exceptions.RayError as error:
        return _raised(error)
    return None


def _raised(error: Exception) -> Exception:
    """Return what a worker itself has raised, where Ray has wrapped it."""
    return error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
