"""The optimizers over the weights of K trainings at once, each with its own learning rate and weight decay.

The weights that all trainings treat alike lie in one matrix, a row for each training, so that a step is a handful of
operators whatever the number of layers. Formulas are those of `torch.optim`; results differ by rounding.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from trainers.optimizers import set_learning_rate


@dataclass(frozen=True)
class _Part:
    """Parameters that each training gives one weight decay and one factor on the learning rate; a row is a training's."""

    names: list[str]
    shapes: list[torch.Size]
    weights: Tensor  # (K, P)
    state: dict[str, Tensor]  # (K, P) each, by torch.optim's names
    decay: Tensor  # (K, 1)
    scale: Tensor  # (K, 1)
    decays: bool

    def split(self, rows: Tensor) -> dict[str, Tensor]:
        """Return a row (P) by parameter names, or several, (K, P)."""
        pieces = rows.split([shape.numel() for shape in self.shapes], -1)
        return {
            name: piece.unflatten(-1, shape) if shape else piece.squeeze(-1)
            for name, shape, piece in zip(self.names, self.shapes, pieces, strict=True)
        }


class ArrayOptimizer:
    """The optimizers of K trainings, all of one class, as one over their `array`, whose weights it takes from the models.

    `store` writes weights and state back, so that each goes on by itself. `rates` (steps, K) are the learning rates of the
    steps to come.
    """

    def __init__(
        self, array: nn.Module, models: Sequence[nn.Module], optimizers: Sequence[Optimizer], rates: Tensor
    ) -> None:
        self._optimizers, self._array = optimizers, dict(array.named_parameters())
        self._models = [dict(model.named_parameters()) for model in models]
        self._rates = rates
        self._settings: dict[str, Any] = optimizers[0].param_groups[0]
        self._steps = [_steps_done(optimizer) for optimizer in optimizers]
        for optimizer in optimizers:
            if not optimizer.state:
                _create_state(optimizer)
        self._parts = [self._part(names, key) for key, names in self._alike().items()]
        self._coefficients = self._table()
        self._done = 0

    @torch.no_grad()
    def step(self) -> None:
        """Take a step by the gradients of the array's parameters, and forget them."""
        sizes = self._coefficients[self._done]
        self._done += 1
        for part in self._parts:
            gradients = torch.cat([cast(Tensor, self._array[name].grad).flatten(1) for name in part.names], 1)
            self._update(part, gradients, sizes)
        for parameter in self._array.values():
            parameter.grad = None

    @torch.no_grad()
    def store(self) -> None:
        """Write weights and state into the trainings' own models and optimizers."""
        for part in self._parts:
            for k, (model, optimizer) in enumerate(zip(self._models, self._optimizers, strict=True)):
                for name, value in part.split(part.weights[k]).items():
                    model[name].copy_(value)
                for key, rows in part.state.items():
                    for name, value in part.split(rows[k]).items():
                        optimizer.state[model[name]][key].copy_(value)
        for optimizer, steps, rate in zip(self._optimizers, self._steps, self._rates[-1].tolist(), strict=True):
            set_learning_rate(optimizer, rate)
            for state in optimizer.state.values():
                if "step" in state:
                    state["step"].fill_(steps + self._done)

    def _update(self, part: _Part, gradient: Tensor, sizes: Tensor) -> None:
        """One step; `sizes` (3, K, 1) are those of `_table`."""
        settings, first = self._settings, self._optimizers[0]
        size, root, rate = sizes[0] * part.scale, sizes[1], sizes[2] * part.scale
        if part.decays and isinstance(first, AdamW):
            part.weights.mul_(1 - rate * part.decay)
        elif part.decays:
            gradient = torch.addcmul(gradient, part.weights, part.decay)
        if isinstance(first, SGD):
            if (buffer := part.state.get("momentum_buffer")) is not None:
                gradient = buffer.mul_(settings["momentum"]).add_(gradient)
            part.weights.addcmul_(gradient, rate, value=-1)
            return
        beta1, beta2 = settings["betas"]
        mean, square = part.state["exp_avg"], part.state["exp_avg_sq"]
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        part.weights.addcdiv_(mean * size, square.sqrt().div_(root).add_(settings["eps"]), value=-1)

    def _table(self) -> Tensor:
        """Return for each step (3, K, 1): the rate divided by Adam's first correction, the root of its second, the rate."""
        rates = self._rates
        if "betas" not in self._settings:
            return torch.stack((rates, rates, rates), 1)[..., None].to(self._parts[0].weights)
        numbers = torch.tensor(self._steps, dtype=torch.float64) + torch.arange(1, len(rates) + 1)[:, None]
        first, second = (1 - beta**numbers for beta in self._settings["betas"])
        return torch.stack((rates / first, second.sqrt(), rates), 1)[..., None].to(self._parts[0].weights)

    def _alike(self) -> dict[tuple[tuple[float, float], ...], list[str]]:
        """Return the parameters' names by the (weight decay, scale) that each training gives them."""
        groups = [
            {
                parameter: (group["weight_decay"], group["scale"])
                for group in optimizer.param_groups
                for parameter in group["params"]
            }
            for optimizer in self._optimizers
        ]
        found = defaultdict(list)
        for name in self._array:
            found[tuple(of[model[name]] for of, model in zip(groups, self._models, strict=True))].append(name)
        return found

    @torch.no_grad()
    def _part(self, names: list[str], key: tuple[tuple[float, float], ...]) -> _Part:
        """Fill the rows from the trainings, and make the array's parameters views of them."""
        some = self._array[names[0]]

        def rows(values: list[list[Tensor]]) -> Tensor:
            return torch.stack([torch.cat([value.flatten() for value in row]) for row in values])

        weights = rows([[model[name] for name in names] for model in self._models])
        states = [
            [optimizer.state[model[name]] for name in names]
            for optimizer, model in zip(self._optimizers, self._models, strict=True)
        ]
        kept = [name for name, value in states[0][0].items() if isinstance(value, Tensor) and name != "step"]
        decay, scale = (
            torch.tensor(column, dtype=torch.float64).to(some)[:, None] for column in zip(*key, strict=True)
        )
        part = _Part(
            names,
            [self._array[name].shape[1:] for name in names],
            weights,
            {kind: rows([[state[kind] for state in row] for row in states]) for kind in kept},
            decay,
            scale,
            any(of for of, _ in key),
        )
        for name, view in part.split(weights).items():
            self._array[name].data = view
        return part


def _steps_done(optimizer: Optimizer) -> int:
    return max((int(state["step"]) for state in optimizer.state.values() if "step" in state), default=0)


def _create_state(optimizer: Optimizer) -> None:
    """Let the optimizer create its state, as zeros, by a step of length zero that leaves the weights as they are."""
    set_learning_rate(optimizer, 0.0)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor):
                value.zero_()
