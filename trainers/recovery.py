"""A cheap recovery of a network that was just cut, so that its score foresees what fine-tuning will make of it.

Accuracy right after a cut misleads: a deep cut may score far lower than a shallow one and end beside it. Two remedies, from
the cheapest: BatchNorm statistics are estimated again, since the cut has moved every activation; then a few dozen steps of
training.
"""

from collections.abc import Iterator
from itertools import chain, islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainers.batches import training_batches
from trainers.config import CurveConfig, TrainingConfig
from trainers.data import ImageData
from trainers.loop import stage_seed
from trainers.optimizers import DTYPES
from trainers.step import autocast

BATCH_SIZE = 100  # of every recovery


def recover(model: nn.Module, data: ImageData, training: TrainingConfig, config: CurveConfig) -> None:
    """Re-estimate BatchNorm statistics, then train for `config.recovery_steps` batches, in place; data on its device.

    Every network sees the same batches, at the same learning rate, whatever it was trained with before: scores differ by the
    networks alone. Of `training` only the seed and the data type count.
    """
    estimate_batch_norm(model, data, training, config.batch_norm_batches)
    train_briefly(model, data, training, config)


@torch.no_grad()
def estimate_batch_norm(model: nn.Module, data: ImageData, training: TrainingConfig, num_batches: int) -> None:
    """Set the running statistics of all BatchNorm layers to the mean over `num_batches` training batches, not augmented."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms or num_batches == 0:
        return
    momenta = [norm.momentum for norm in norms]
    was_training = model.training
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
        norm.train()
    for images, _ in _batches(data, training, "batch norm", num_batches):
        with autocast(training.dtype, images.device):
            model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.train(was_training)


def train_briefly(model: nn.Module, data: ImageData, training: TrainingConfig, config: CurveConfig) -> None:
    """Train all parameters for `config.recovery_steps` batches of cross-entropy with Adam, in place, not augmented."""
    if config.recovery_steps == 0:
        return
    torch.manual_seed(stage_seed(training.seed, "recovery"))  # dropout and the like
    optimizer = torch.optim.Adam(model.parameters(), lr=config.recovery_learning_rate, fused=True)
    was_training = model.training
    model.train()
    for images, labels in _batches(data, training, "recovery", config.recovery_steps):
        with autocast(training.dtype, images.device):
            loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    model.train(was_training)


def _batches(data: ImageData, training: TrainingConfig, purpose: str, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield `count` shuffled training batches, of as many passes over the training rows as that takes."""
    generator = torch.Generator().manual_seed(stage_seed(training.seed, purpose))
    passes = (training_batches(data, BATCH_SIZE, "none", generator, DTYPES[training.dtype]) for _ in range(count))
    return islice(chain.from_iterable(passes), count)
