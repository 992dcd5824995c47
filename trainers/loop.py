"""The one training loop that all stages share: a generator that yields a result per epoch and can be resumed.

Every epoch draws its random numbers from a seed of its own, so that a training resumed after epoch k goes on exactly as
the uninterrupted one: nothing but weights and optimizer state has to be remembered.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from trainers.batches import evaluation_batches, training_batches
from trainers.checkpoint import read_payload, require_same_config, write_payload
from trainers.config import TrainingConfig
from trainers.data import ImageData
from trainers.errors import NonFiniteError
from trainers.optimizers import (
    DTYPES,
    learning_rate_at,
    make_optimizer,
    set_learning_rate,
)

EVALUATION_BATCH = 500


@dataclass(frozen=True)
class EpochResult:
    """One epoch: its number (from 1), its metrics, its training and evaluation time, and when it ended (Unix time).

    A resumed training yields its earlier epochs' results again, unchanged, with `replayed` set.
    """

    epoch: int
    metrics: dict[str, float]
    duration_s: float
    ended_at_s: float
    replayed: bool = False

    def record(self) -> dict[str, Any]:
        """The result as plain values, for a file."""
        return {key: value for key, value in asdict(self).items() if key != "replayed"}


@dataclass(frozen=True)
class Stage:
    """One run of the loop: its name, length and settings. `config` is what a checkpoint must agree with to be resumed."""

    name: str
    epochs: int
    training: TrainingConfig
    config: dict[str, Any]
    checkpoint: Path | None = None


def stage_seed(seed: int, *parts: str | int) -> int:
    """Return a seed that depends on `seed` and on where it is used, below 2^63."""
    text = ":".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


def train(
    model: nn.Module,
    data: ImageData,
    stage: Stage,
    penalty: Callable[[], Tensor] | None,
    evaluate: Callable[[], dict[str, float]],
) -> Iterator[EpochResult]:
    """Train `model` in place on its device and yield one result per epoch; `data` must be on the same device.

    Loss = cross-entropy + penalty(). `evaluate` is called after each epoch and gives the metrics beside `train_loss` and
    `learning_rate`. With `stage.checkpoint`, each epoch ends with a checkpoint there, and one that is there already is
    resumed. Raises NonFiniteError for a loss that is NaN or infinite, CheckpointError for a checkpoint of another config.
    """
    optimizer = make_optimizer(model, stage.training)
    history = _resume(model, optimizer, stage)
    for record in history:
        yield EpochResult(**record, replayed=True)
    for epoch in range(len(history), stage.epochs):
        started = time.perf_counter()
        loss = _train_epoch(model, optimizer, data, stage, epoch, penalty)
        metrics = {"train_loss": loss, "learning_rate": optimizer.param_groups[0]["lr"], **evaluate()}
        result = EpochResult(epoch + 1, metrics, time.perf_counter() - started, time.time())
        history.append(result.record())
        if stage.checkpoint is not None:
            _save(model, optimizer, stage, history)
        yield result


def _train_epoch(
    model: nn.Module,
    optimizer: Optimizer,
    data: ImageData,
    stage: Stage,
    epoch: int,
    penalty: Callable[[], Tensor] | None,
) -> float:
    """One pass over the training rows; returns the mean cross-entropy of its batches, without the penalties."""
    config = stage.training
    seed = stage_seed(config.seed, stage.name, epoch)
    torch.manual_seed(seed)  # dropout and the like
    generator = torch.Generator().manual_seed(seed)
    steps = max(1, len(data.train_rows) // config.batch_size)
    device = data.images.device
    totals = torch.zeros(2, device=device)  # cross-entropy, and the whole loss
    model.train()
    batches = training_batches(data, config.batch_size, config.augmentation, generator, DTYPES[config.dtype])
    for step, (images, labels) in enumerate(batches):
        set_learning_rate(optimizer, learning_rate_at((epoch + step / steps) / stage.epochs, config))
        with torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == "bfloat16"):
            task_loss = F.cross_entropy(model(images), labels, label_smoothing=config.label_smoothing)
        loss = task_loss if penalty is None else task_loss + penalty()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        totals += torch.stack((task_loss, loss)).detach()  # read once, at the end: a read per step would stall a GPU
    mean_task_loss, mean_loss = (totals / steps).tolist()
    if not math.isfinite(mean_loss):
        raise NonFiniteError(
            f"the loss must stay finite, but became {mean_loss} in epoch {epoch + 1} of stage {stage.name!r}; lower "
            f"learning_rate (now {config.learning_rate}) or the penalties"
        )
    return float(mean_task_loss)


@torch.no_grad()
def evaluate_split(model: nn.Module, data: ImageData, dtype: str = "float32") -> dict[str, float]:
    """Return {"accuracy": fraction of 1, "loss": mean cross-entropy} of `model` on the validation rows of `data`."""
    training = model.training
    model.eval()
    device = data.images.device
    correct = torch.zeros((), dtype=torch.int64, device=device)
    total = torch.zeros((), dtype=torch.float64, device=device)
    for images, labels in evaluation_batches(data, EVALUATION_BATCH, DTYPES[dtype]):
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            logits = model(images)
        correct += (logits.argmax(1) == labels).sum()
        total += F.cross_entropy(logits.double(), labels, reduction="sum")
    model.train(training)
    count = len(data.validation_rows)
    return {"accuracy": int(correct) / count, "loss": float(total) / count}


def _resume(model: nn.Module, optimizer: Optimizer, stage: Stage) -> list[dict[str, Any]]:
    """Load the stage's checkpoint if there is one; returns the results of the epochs already done."""
    if stage.checkpoint is None or not stage.checkpoint.exists():
        return []
    payload = read_payload(stage.checkpoint, "checkpoint")
    require_same_config(stage.checkpoint, payload["config"], stage.config)
    model.load_state_dict(payload["model"])
    optimizer.load_state_dict(payload["optimizer"])
    return list(payload["history"])


def _save(model: nn.Module, optimizer: Optimizer, stage: Stage, history: list[dict[str, Any]]) -> None:
    assert stage.checkpoint is not None
    content = {
        "config": stage.config,
        "history": history,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    write_payload(stage.checkpoint, "checkpoint", content)
