"""One epoch of several trainings: those of one shape as one program, all others one after the other.

Each keeps to what the single trainer does: its own order of images and augmentation, schedule, penalties and optimizer. What
is read back from the device is read once an epoch. Sums are taken in another order, so that results differ by rounding.
"""

import json
import logging
import time
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.arrays.layers import ArraySVDConv, ArraySVDLinear
from trainers.arrays.network import array_form, array_problem, stack_state
from trainers.arrays.optimizer import ArrayOptimizer
from trainers.batches import training_batches
from trainers.errors import NonFiniteError
from trainers.loop import PendingEpoch, TrainedEpoch, require_finite
from trainers.methods.svd_training import SVDTraining
from trainers.optimizers import DTYPES, learning_rate_at
from trainers.regularizers import SPARSITY, by_shape, orthogonality_gradient, stack
from trainers.step import autocast

_log = logging.getLogger(__name__)

_have_array_form: dict[str, bool] = {}  # by what a network's shapes depend on


def train_epochs(pending: Sequence[PendingEpoch]) -> list[TrainedEpoch | Exception]:
    """Train the epochs, as many together as have one shape; return what each gave, in order, or the error it ended with.

    Times are shares: an array's are divided by its number of trainings.
    """
    together: dict[Hashable, list[int]] = defaultdict(list)
    for i, due in enumerate(pending):
        together[_shape(due) or i].append(i)
    found: dict[int, TrainedEpoch | Exception] = {}
    for members in together.values():
        trained = _train_together([pending[i] for i in members]) if len(members) > 1 else [pending[members[0]].train()]
        found |= zip(members, trained, strict=True)
    return [found[i] for i in range(len(pending))]


def _shape(due: PendingEpoch) -> Hashable:
    """Return a key that is equal for epochs that can be one program; None where there is no such form.

    Learning rates, schedules, strengths, regularizers, weight decays, seeds and augmentations may differ.
    """
    method, config = due.method, due.stage.training
    if (
        type(method) is not SVDTraining
        or method.config.retraction_period is not None
        or due.step.distillation is not None
    ):
        return None
    if config.step != "eager" or due.stage.accumulation > 1:
        return None
    spec = json.dumps([due.stage.config.get("model"), repr(method.form)], sort_keys=True)
    if not _can_be_one(spec, due):
        return None
    common = (config.batch_size, config.optimizer, config.momentum, config.label_smoothing, config.dtype)
    place = (due.data.sample_shape, len(due.data.train_rows), due.data.images.device)
    return spec, common, place, method.config.orthogonality_period


def _can_be_one(spec: str, due: PendingEpoch) -> bool:
    """Whether networks of this `spec` have an array form: asked once, since the answer takes a trial run."""
    if spec not in _have_array_form:
        problem = array_problem(due.method.model, due.data.sample_shape)
        if problem is not None:
            _log.warning("trials are trained one at a time: %s", problem)
        _have_array_form[spec] = problem is None
    return _have_array_form[spec]


def _train_together(pending: list[PendingEpoch]) -> Sequence[TrainedEpoch | Exception]:
    started, cpu_started = time.perf_counter(), time.process_time()
    count = len(pending)
    try:
        losses = _Array(pending).train()
    except Exception as error:  # noqa: BLE001 - such as too little memory: it is for each training to raise
        return [error] * count
    duration_s, cpu_s = (time.perf_counter() - started) / count, (time.process_time() - cpu_started) / count
    found: list[TrainedEpoch | Exception] = []
    for due, (task_loss, loss) in zip(pending, losses, strict=True):
        try:
            require_finite(loss, due)
            found.append(TrainedEpoch(task_loss, duration_s, cpu_s))
        except NonFiniteError as error:
            found.append(error)
    return found


class _Array:
    """The trainings of one epoch as one: networks, optimizers and penalties."""

    def __init__(self, pending: list[PendingEpoch]) -> None:
        self._pending = pending
        self._models = [due.method.model for due in pending]
        data, self._config = pending[0].data, pending[0].stage.training
        self._steps = max(1, len(data.train_rows) // self._config.batch_size)
        self._device = data.images.device
        self._network = array_form(self._models[0], len(pending))
        stack_state(self._network, self._models)
        rates = [
            [learning_rate_at(p, due.stage.training) for due, p in self._progress(step)] for step in range(self._steps)
        ]
        self._optimizer = ArrayOptimizer(
            self._network,
            self._models,
            [due.optimizer for due in pending],
            torch.tensor(rates, dtype=torch.float64),
        )
        self._penalties = _Penalties(self._network, [cast(SVDTraining, due.method) for due in pending], self._device)

    def train(self) -> list[list[float]]:
        """Train, write the results into the trainings' own networks and optimizers, return [task loss, loss] of each."""
        totals = torch.zeros(len(self._pending), 2, device=self._device)
        strengths = self._penalties.strengths([[p for _, p in self._progress(step)] for step in range(self._steps)])
        for step, (images, labels) in enumerate(_batches(self._pending)):
            with autocast(self._config.dtype, self._device):
                task_losses = self._task_losses(self._network(images), labels)
            losses = task_losses + self._penalties.sparsity(strengths[step])
            losses.sum().backward()  # each depends on weights of its own
            self._penalties.add_orthogonality()
            self._optimizer.step()
            totals += torch.stack((task_losses, losses), 1).detach()
        self._optimizer.store()
        self._store_buffers()
        return (totals / self._steps).tolist()

    def _progress(self, step: int) -> Iterator[tuple[PendingEpoch, float]]:
        for due in self._pending:
            yield due, (due.epoch + step / self._steps) / due.stage.epochs

    def _task_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(N, K classes), labels (N, K) -> (K)."""
        each = logits.unflatten(1, (len(self._pending), -1)).flatten(0, 1)
        smoothing = self._config.label_smoothing
        losses = F.cross_entropy(each, labels.flatten(), reduction="none", label_smoothing=smoothing)
        return cast(Tensor, losses.unflatten(0, (-1, len(self._pending))).mean(0))

    @torch.no_grad()
    def _store_buffers(self) -> None:
        for name, stacked in self._network.named_buffers():
            for row, model in zip(stacked, self._models, strict=True):
                model.get_buffer(name).copy_(row)


class _Penalties:
    """SVD training's penalties of K trainings, each with its own regularizer, strengths and weights."""

    def __init__(self, network: nn.Module, methods: list[SVDTraining], device: torch.device) -> None:
        self._methods, self._device = methods, device
        layers = [module for module in network.modules() if isinstance(module, ArraySVDConv | ArraySVDLinear)]
        self._values = by_shape(layer.s for layer in layers)
        self._factors = by_shape(factor for layer in layers for factor in (layer.u, layer.vt))
        self._regularizers = sorted({method.config.regularizer or "" for method in methods})
        weights = torch.tensor([method.config.orthogonality_weight for method in methods], dtype=torch.float64)
        self._weights = weights.to(layers[0].s)[:, None, None]
        self._period, self._calls = methods[0].config.orthogonality_period, 0
        self._held: list[Tensor] = []

    def strengths(self, progress: list[list[float]]) -> Tensor:
        """Return (steps, regularizers, K): the weight of each regularizer in each training's loss, zero but for its own."""
        table = [
            [
                [
                    method.strength_at(at) if method.config.regularizer == regularizer else 0.0
                    for method, at in zip(self._methods, step, strict=True)
                ]
                for regularizer in self._regularizers
            ]
            for step in progress
        ]
        return torch.tensor(table, dtype=torch.float64).to(self._weights)

    def sparsity(self, strengths: Tensor) -> Tensor:
        """Return strength * sum R(s) of each training, (K)."""
        total = torch.zeros(len(self._methods), device=self._device)
        for name, strength in zip(self._regularizers, strengths, strict=True):
            for group in self._values:
                total = total + strength * SPARSITY[name](stack(group)).sum(0)
        return total

    @torch.no_grad()
    def add_orthogonality(self) -> None:
        """Add the gradient of each training's orthogonality_weight * sum (L_o(U) + L_o(V)), see `OrthogonalityPenalty`."""
        if self._calls % self._period == 0:
            self._held = [
                self._weights * gradient for group in self._factors for gradient in orthogonality_gradient(stack(group))
            ]
        self._calls += 1
        torch._foreach_add_([cast(Tensor, factor.grad) for group in self._factors for factor in group], self._held)


def _batches(pending: Sequence[PendingEpoch]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (images (N, K C, H, W), labels (N, K)), or images (N, C, H, W) where all trainings see the same.

    Each sees the batches that it would see alone.
    """
    keys = [_stream(due) for due in pending]
    streams = {}
    for key, due in zip(keys, pending, strict=True):
        config = due.stage.training
        generator = torch.Generator().manual_seed(due.seed)
        streams[key] = training_batches(
            due.data, config.batch_size, config.augmentation, generator, DTYPES[config.dtype]
        )
    for found in zip(*streams.values(), strict=True):
        batch = dict(zip(streams, found, strict=True))
        labels = torch.stack([batch[key][1] for key in keys], 1)
        if len(batch) == 1:
            yield found[0][0], labels
        else:
            yield torch.cat([batch[key][0] for key in keys], 1), labels


def _stream(due: PendingEpoch) -> Hashable:
    """Return a key that is equal for epochs with the same batches."""
    data = due.data
    images = tuple(tensor.data_ptr() for tensor in (data.images, data.labels, data.train_rows))
    return images, data.mean, data.std, due.seed, due.stage.training.augmentation
