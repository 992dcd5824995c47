"""A cheap recovery of a network that was just cut, so that its score foresees what fine-tuning will make of it.

Accuracy right after a cut misleads: a deep cut may score far lower than a shallow one and end beside it. Two remedies, from
the cheapest: BatchNorm statistics are estimated again, since the cut has moved every activation; then a few dozen steps of
training.
"""

from itertools import islice

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainers.batches import training_batches
from trainers.config import CurveConfig, TrainingConfig
from trainers.data import ImageData
from trainers.loop import stage_seed
from trainers.optimizers import DTYPES


def recover(model: nn.Module, data: ImageData, training: TrainingConfig, config: CurveConfig) -> None:
    """Re-estimate BatchNorm statistics, then train for `config.recovery_steps` batches, in place; data on its device.

    Every network sees the same batches, whatever was trained before: scores differ by the networks alone.
    """
    estimate_batch_norm(model, data, training, config.batch_norm_batches)
    train_briefly(model, data, training, config.recovery_steps)


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
    generator = torch.Generator().manual_seed(stage_seed(training.seed, "batch norm"))
    batches = training_batches(data, training.batch_size, "none", generator, DTYPES[training.dtype])
    for images, _ in islice(batches, num_batches):
        with torch.autocast(images.device.type, torch.bfloat16, enabled=training.dtype == "bfloat16"):
            model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.train(was_training)


def train_briefly(model: nn.Module, data: ImageData, training: TrainingConfig, num_steps: int) -> None:
    """Train all parameters for `num_steps` batches of cross-entropy with Adam at the stage's learning rate, in place."""
    if num_steps == 0:
        return
    seed = stage_seed(training.seed, "recovery")
    torch.manual_seed(seed)  # dropout and the like
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=training.learning_rate, fused=True)
    was_training = model.training
    model.train()
    done = 0
    while done < num_steps:
        batches = training_batches(data, training.batch_size, training.augmentation, generator, DTYPES[training.dtype])
        for images, labels in islice(batches, num_steps - done):
            with torch.autocast(images.device.type, torch.bfloat16, enabled=training.dtype == "bfloat16"):
                loss = F.cross_entropy(model(images), labels, label_smoothing=training.label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            done += 1
    model.train(was_training)
