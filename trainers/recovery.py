"""A cheap recovery of a network that was just cut, so that its score predicts what fine-tuning will make of it.

Accuracy right after a cut misleads: a deep cut may score far lower than a shallow one and end beside it. Two remedies, from
the cheapest: BatchNorm statistics are estimated again, since the cut has moved every activation; then a few steps of
training. Either can hurt as well, and is taken back where it does: a score is never below the accuracy right after the cut.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainers.batches import training_batches
from trainers.config import CurveConfig, TrainingConfig
from trainers.data import ImageData
from trainers.evaluation import evaluate_split
from trainers.loop import stage_seed
from trainers.optimizers import DTYPES, make_optimizer
from trainers.step import autocast

BATCH_SIZE = 100  # of every recovery
_STEPS_BETWEEN_LOOKS = 5
# of the training's own rate: at the whole of it a few steps of Adam or SGD ruin a network whose schedule is over
_FIRST_RATE = 0.3
_NUM_RATES = 2  # tried, each a tenth of the one before
_ENOUGH = 0.97  # of the uncut network's accuracy: above it training for a few steps gains nothing, at any rate


@dataclass(frozen=True)
class Recovered:
    """A network at one point of its recovery: its accuracy and loss on the validation rows, and after how many steps of
    training at which learning rate; `start` is its accuracy right after the cut.
    """

    start: float
    accuracy: float
    loss: float
    steps: int
    learning_rate: float
    weights: dict[str, Any]

    @property
    def quality(self) -> tuple[float, float]:
        """By which the better of two is told."""
        return self.accuracy, -self.loss


def recover(
    model: nn.Module, data: ImageData, training: TrainingConfig, config: CurveConfig, uncut: float = 1.0
) -> Recovered:
    """Put the best that a cheap recovery makes of a network that was cut in its place; `data` is on its device.

    The best has the highest accuracy on the validation rows of `data`, of equals the lowest loss. There are to choose from:

    - the network as it was cut;
    - with BatchNorm statistics of `config.batch_norm_batches` batches, augmented as in `training`: on images that are not,
      a network that was trained on augmented ones loses accuracy even where nothing was cut;
    - and trained for up to `config.recovery_steps` batches by the optimizer of `training`, at
      `config.recovery_learning_rate`, by default three tenths of the training's rate. Training ends where the validation
      loss rises, which is looked at every few steps; where it rises at once, training starts again at a tenth of the rate.
      A network that has kept nearly all of `uncut`, the accuracy before the cut, is not trained.

    Every network sees the same batches, and dropout the same masks, for equal seeds.
    """

    def look(start: float | None = None, steps: int = 0, rate: float = 0.0) -> Recovered:
        scores = evaluate_split(model, data, training.dtype)
        weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
        accuracy = scores["accuracy"]
        return Recovered(accuracy if start is None else start, accuracy, scores["loss"], steps, rate, weights)

    def trained(begin: Recovered, rate: float) -> Recovered | None:
        """Return the best network on the way from `begin`; None where the first steps already raise the loss."""
        model.load_state_dict(begin.weights)
        best, loss, steps = begin, begin.loss, 0
        for batches in _train_briefly(model, data, replace(training, learning_rate=rate), config.recovery_steps):
            steps += batches
            now = look(begin.start, steps, rate)
            if not now.loss < loss:  # NaN neither
                return None if best is begin and steps == batches else best
            best, loss = max(best, now, key=lambda one: one.quality), now.loss
        return best

    best = look()
    if estimate_batch_norm(model, data, training, config.batch_norm_batches):
        best = max(best, look(best.start), key=lambda one: one.quality)
    rate = config.recovery_learning_rate or _FIRST_RATE * training.learning_rate
    for attempt in range(_NUM_RATES if best.accuracy < _ENOUGH * uncut else 0):
        found = trained(best, rate / 10**attempt)
        if found is not None:
            best = found
            break
    model.load_state_dict(best.weights)
    return best


@torch.no_grad()
def estimate_batch_norm(model: nn.Module, data: ImageData, training: TrainingConfig, num_batches: int) -> bool:
    """Set the running statistics of all BatchNorm layers to the mean over `num_batches` batches, augmented as in training.

    Returns whether there are any.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms or num_batches == 0:
        return False
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
    return True


def _train_briefly(model: nn.Module, data: ImageData, training: TrainingConfig, steps: int) -> Iterator[int]:
    """Train all parameters on `steps` batches of cross-entropy, in place; yield every few, and how many those were."""
    torch.manual_seed(stage_seed(training.seed, "recovery"))  # dropout and the like
    optimizer = make_optimizer(model, training)
    batches = _batches(data, training, "recovery", steps)
    was_training = model.training
    while some := list(islice(batches, _STEPS_BETWEEN_LOOKS)):
        model.train()
        for images, labels in some:
            with autocast(training.dtype, images.device):
                loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        model.train(was_training)
        yield len(some)


def _batches(data: ImageData, training: TrainingConfig, purpose: str, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield `count` shuffled training batches, of as many passes over the training rows as that takes."""
    generator = torch.Generator().manual_seed(stage_seed(training.seed, purpose))
    dtype, augmentation = DTYPES[training.dtype], training.augmentation
    passes = (training_batches(data, BATCH_SIZE, augmentation, generator, dtype) for _ in range(count))
    return islice(chain.from_iterable(passes), count)
