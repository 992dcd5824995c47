"""The one training loop that all stages share: a generator that yields a result per epoch and can be resumed.

Every epoch draws its random numbers from a seed of its own, so that a training resumed after epoch k goes on exactly as
the uninterrupted one: nothing but weights and optimizer state has to be remembered.
"""

import hashlib
import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.optim import Optimizer

from trainers.batches import Share, training_batches
from trainers.best import BestNetwork
from trainers.checkpoint import load_checkpoint, require_same_config, save_checkpoint
from trainers.config import TrainingConfig
from trainers.data import ImageData
from trainers.distillation import Distillation
from trainers.errors import CheckpointError, NonFiniteError
from trainers.methods import Method
from trainers.optimizers import DTYPES, make_optimizer
from trainers.step import Step

R = TypeVar("R")


@dataclass(frozen=True)
class EpochResult:
    """One epoch: its number (from 1), its metrics, its training and evaluation time, the CPU time of the process in it
    (all threads), and when it ended (Unix time).

    `curve` holds the cuts that were scored after this epoch (`trainers.curve`). A resumed training yields its earlier
    epochs' results again, unchanged, with `replayed` set, and with `judged` all but the newest: whoever stops trainings
    early had let it go on from there, where of the newest it is not known that anybody had heard. One that has ended was
    let go on to its end.
    """

    epoch: int
    metrics: dict[str, float]
    duration_s: float
    cpu_s: float
    ended_at_s: float
    curve: list[dict[str, Any]] | None = None
    replayed: bool = False
    judged: bool = False

    def record(self) -> dict[str, Any]:
        """The result as plain values, for a file."""
        return {key: value for key, value in asdict(self).items() if key not in ("replayed", "judged")}


@dataclass(frozen=True)
class Evaluation:
    """What is measured after an epoch: metrics, and the cuts that were scored, where that was due."""

    metrics: dict[str, float]
    curve: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Stage:
    """One run of the loop: its name, length and settings. `config` is what a checkpoint must agree with to be resumed.

    With `patience` it ends before `epochs` once the validation accuracy has not risen for so many epochs.

    `keep_best`: the network that is left in the end is that of the best epoch (`trainers.best`), not of the last one. With
    `judge_start` the network as it is before any training is one of them.

    `accumulation`: each batch goes through the network in so many parts, one after another, whose gradients add up to the
    batch's. Memory for activations shrinks with it. The steps are the same up to rounding, except that BatchNorm sees the
    statistics of a part, and dropout other random numbers. `keep`: how many checkpoints are kept.
    """

    name: str
    epochs: int
    training: TrainingConfig
    config: dict[str, Any]
    checkpoint: Path | None = None
    patience: int | None = None
    keep_best: bool = False
    judge_start: bool = False
    accumulation: int = 1
    keep: int = 2


@dataclass(frozen=True)
class TrainedEpoch:
    """What training for an epoch gave and took: the mean cross-entropy of its batches, and times as in `EpochResult`."""

    loss: float
    duration_s: float
    cpu_s: float


@dataclass(frozen=True)
class PendingEpoch:
    """Epoch `epoch` (from 0) of a stage, which is due; `data` is on the network's device, `share` is of each batch."""

    method: Method
    optimizer: Optimizer
    step: Step
    data: ImageData
    stage: Stage
    epoch: int
    share: Share = Share()  # noqa: RUF009 - it is frozen

    @property
    def seed(self) -> int:
        """The seed from which all random numbers of the epoch come."""
        return stage_seed(self.stage.training.seed, self.stage.name, self.epoch)

    def train(self) -> TrainedEpoch | Exception:
        """Train it by itself; what goes wrong, such as a loss that is not finite, is the training's to raise."""
        started, cpu_started = time.perf_counter(), time.process_time()
        try:
            loss = _train_epoch(self)
        except Exception as error:  # noqa: BLE001 - see above
            return error
        return TrainedEpoch(loss, time.perf_counter() - started, time.process_time() - cpu_started)


TrainEpoch = Callable[[PendingEpoch], TrainedEpoch | Exception]
# yields results, and each epoch that is due, for which it is sent what training it gave
Steps = Generator["EpochResult | PendingEpoch", "TrainedEpoch | None", "list[dict[str, Any]]"]


def stage_seed(seed: int, *parts: str | int) -> int:
    """Return a seed that depends on `seed` and on where it is used, below 2^63."""
    text = ":".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


def each_alone(
    steps: Generator[R | PendingEpoch, TrainedEpoch | None, Any], train_epoch: TrainEpoch = PendingEpoch.train
) -> Iterator[R]:
    """Train the epochs that `steps` asks for by `train_epoch`, one after the other, and yield its results."""
    trained: TrainedEpoch | Exception | None = None
    while True:
        try:
            found = answer(steps, trained)
        except StopIteration:
            return
        trained = None
        if isinstance(found, PendingEpoch):
            trained = train_epoch(found)
        else:
            yield found


def answer(
    steps: Generator[R | PendingEpoch, TrainedEpoch | None, Any], trained: TrainedEpoch | Exception | None
) -> R | PendingEpoch:
    """Take `steps` to the next one, with what training its pending epoch gave, or the error with which it ended."""
    return steps.throw(trained) if isinstance(trained, Exception) else steps.send(trained)


def train(
    method: Method,
    data: ImageData,
    stage: Stage,
    evaluate: Callable[[int], Evaluation],
    distillation: Distillation | None = None,
) -> Steps:
    """Train `method.model` on its device: yield one result per epoch, and before it the epoch, for the caller to train.

    Loss = cross-entropy (or what `distillation` makes of it) + the method's terms. `data` must be on the same device.
    `evaluate` is called after each epoch, with its number, and gives the metrics beside `train_loss` and `learning_rate`.
    With `stage.keep_best` the last result's metrics are those of the network that is left. With `stage.checkpoint`, each
    epoch ends with a checkpoint there, and one that is there already is resumed. Returns the results' records. Raises
    CheckpointError for a checkpoint of another config, and what training an epoch raised, such as NonFiniteError for a loss
    that is NaN or infinite.
    """

    def step_by(optimizer: Optimizer) -> Step:
        return Step(method, optimizer, stage.training, data.images.device, distillation, stage.accumulation)

    best = BestNetwork() if stage.keep_best else None
    history, optimizer = _start(method, stage, best)
    step = step_by(optimizer)
    if best is not None and stage.judge_start and not history:
        best.judge(0, evaluate(0).metrics, method.model)
    for epoch, record in enumerate(history, start=1):
        yield EpochResult(**record, replayed=True, judged=epoch < len(history))
    for epoch in range(len(history), stage.epochs):
        if _is_over(history, stage):
            break
        model = method.model
        trained = yield PendingEpoch(method, optimizer, step, data, stage, epoch)
        assert trained is not None
        started, cpu_started = time.perf_counter(), time.process_time()
        method.end_epoch()
        learning_rate = float(optimizer.param_groups[0]["lr"]) / optimizer.param_groups[0]["scale"]
        if method.model is not model:  # the method has put another network in place
            optimizer = _optimizer(method, stage)
            step = step_by(optimizer)
        found = evaluate(epoch + 1)
        metrics = {"train_loss": trained.loss, "learning_rate": learning_rate, **found.metrics}
        if stage.accumulation > 1:  # a record says where it is not what the settings alone give
            metrics["accumulation"] = stage.accumulation
        duration_s = trained.duration_s + time.perf_counter() - started
        cpu_s = trained.cpu_s + time.process_time() - cpu_started
        result = EpochResult(epoch + 1, metrics, duration_s, cpu_s, time.time(), found.curve)
        history.append(result.record())
        if best is not None:
            best.judge(epoch + 1, found.metrics, method.model)
            _keep_best(best, method, result, history, stage)
        if stage.checkpoint is not None:
            _save(method, optimizer, stage, history, best)
        yield result
    return history


def _keep_best(
    best: BestNetwork, method: Method, result: EpochResult, history: list[dict[str, Any]], stage: Stage
) -> None:
    """Where `result` is the last one, put the best network in place, and its metrics into the result."""
    if _is_over(history, stage):
        result.metrics.update(best.put_back(method.model))
        history[-1] = result.record()


def _is_over(history: list[dict[str, Any]], stage: Stage) -> bool:
    """Whether no epoch follows: all are done, or the last `patience` are no better than the best one before them."""
    if len(history) == stage.epochs or (history and "best_epoch" in history[-1]["metrics"]):
        return True
    patience = stage.patience
    if patience is None or len(history) <= patience:
        return False
    accuracies: list[float] = [record["metrics"]["val_accuracy"] for record in history]
    return max(accuracies[-patience:]) <= max(accuracies[:-patience])


def _train_epoch(due: PendingEpoch) -> float:
    """One pass over the training rows; returns the mean cross-entropy of its batches, without the penalties."""
    method, data, stage, epoch = due.method, due.data, due.stage, due.epoch
    config = stage.training
    # dropout and the like: other masks for each share
    torch.manual_seed(due.seed if due.share.rank == 0 else stage_seed(due.seed, "share", due.share.rank))
    generator = torch.Generator().manual_seed(due.seed)
    steps = max(1, len(data.train_rows) // config.batch_size)
    # cross-entropy, and the whole loss; read once, at the end: a read per step would stall a GPU
    totals = torch.zeros(2, device=data.images.device)
    method.model.train()
    method.start_epoch(epoch, stage.epochs)
    dtype = DTYPES[config.dtype]
    batches = training_batches(data, config.batch_size, config.augmentation, generator, dtype, due.share)
    for step, (images, labels) in enumerate(batches):
        totals += due.step(images, labels, (epoch + step / steps) / stage.epochs)
        method.after_step(step + 1)
    mean_task_loss, mean_loss = due.step.averaged(totals / steps).tolist()
    require_finite(mean_loss, due)
    return float(mean_task_loss)


def require_finite(mean_loss: float, due: PendingEpoch) -> None:
    """Raise NonFiniteError where an epoch's mean loss is NaN or infinite."""
    if not math.isfinite(mean_loss):
        raise NonFiniteError(
            f"the loss must stay finite, but became {mean_loss} in epoch {due.epoch + 1} of stage {due.stage.name!r}; lower "
            f"learning_rate (now {due.stage.training.learning_rate}) or the penalties"
        )


def _optimizer(method: Method, stage: Stage) -> Optimizer:
    return make_optimizer(method.model, stage.training, method.learning_rate_scales())


def _start(method: Method, stage: Stage, best: BestNetwork | None) -> tuple[list[dict[str, Any]], Optimizer]:
    """Return the results of the epochs already done, if the stage has a checkpoint, and the optimizer to go on with."""
    found = None if stage.checkpoint is None else load_checkpoint(stage.checkpoint)
    if found is None:
        return [], _optimizer(method, stage)
    path, payload = found
    require_same_config(path, payload.get("config"), stage.config)
    try:
        method.load_state(payload["method"])
        method.model.load_state_dict(payload["model"])
        if best is not None and "best" in payload:  # else from before it was kept: the best of what follows
            best.load_state(payload["best"])
        optimizer = _optimizer(method, stage)
        optimizer.load_state_dict(payload["optimizer"])
        history = [EpochResult(**record).record() for record in payload["history"]]
    except Exception as error:  # torch raises whatever it meets in a content that does not fit
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise CheckpointError(
            f"{path} must be a complete checkpoint of this stage, but its content does not fit: {reason}; remove it, and "
            "the stage begins again"
        ) from error
    return history, optimizer


def _save(
    method: Method, optimizer: Optimizer, stage: Stage, history: list[dict[str, Any]], best: BestNetwork | None
) -> None:
    assert stage.checkpoint is not None
    content = {
        "config": stage.config,
        "history": history,
        "method": method.state(),
        "model": method.model.state_dict(),
        "optimizer": optimizer.state_dict(),
        **({} if best is None else {"best": best.state()}),
    }
    save_checkpoint(stage.checkpoint, content, stage.keep)
