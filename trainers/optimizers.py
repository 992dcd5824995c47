"""Optimizers and learning-rate schedules by name."""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from trainers.config import TrainingConfig
from trainers.layers import svd_layers


def make_optimizer(model: nn.Module, config: TrainingConfig) -> Optimizer:
    """Return the optimizer named in `config` over all parameters of `model`.

    Weight decay acts on weights and on the singular values s (for orthonormal U, V, ||W||_F = ||s||_2), not on U and V,
    which the orthogonality penalty scales, nor on biases and norm parameters.
    """
    layers = svd_layers(model).values()
    factors = {id(factor) for layer in layers for factor in (layer.u, layer.vt)}
    values = {id(layer.s) for layer in layers}
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for parameter in model.parameters():
        weight = parameter.ndim >= 2 and id(parameter) not in factors
        (decayed if weight or id(parameter) in values else free).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return _OPTIMIZERS[config.optimizer]([group for group in groups if group["params"]], config)


_OPTIMIZERS: dict[str, Callable[[list[dict[str, object]], TrainingConfig], Optimizer]] = {
    "adam": lambda groups, config: Adam(groups, lr=config.learning_rate, fused=True),
    "adamw": lambda groups, config: AdamW(groups, lr=config.learning_rate, fused=True),
    "sgd": lambda groups, config: SGD(groups, lr=config.learning_rate, momentum=config.momentum, fused=True),
}


def learning_rate_at(progress: float, config: TrainingConfig) -> float:
    """Return the learning rate at `progress` of the stage, 0 <= progress < 1."""
    if config.schedule == "cosine":
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
    if config.schedule == "step":
        return config.learning_rate * config.decay ** sum(progress >= milestone for milestone in config.milestones)
    return config.learning_rate


def set_learning_rate(optimizer: Optimizer, value: float) -> None:
    """Give every parameter group the learning rate `value`."""
    for group in optimizer.param_groups:
        group["lr"] = value


DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.float32}
