"""Optimizers and learning-rate schedules by name."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from trainers.config import TrainingConfig
from trainers.layers import svd_layers


def make_optimizer(
    model: nn.Module, config: TrainingConfig, scales: Mapping[nn.Parameter, float] | None = None
) -> Optimizer:
    """Return the optimizer named in `config` over all parameters of `model`.

    Weight decay acts on weights and on the singular values s (for orthonormal U, V, ||W||_F = ||s||_2), not on U and V,
    which the orthogonality penalty scales, nor on biases and norm parameters. `scales` multiply the learning rate of the
    parameters that they name.
    """
    layers = svd_layers(model).values()
    factors = {id(factor) for layer in layers for factor in (layer.u, layer.vt)}
    values = {id(layer.s) for layer in layers}
    scales = scales or {}
    groups: dict[tuple[bool, float], list[nn.Parameter]] = defaultdict(list)
    for parameter in model.parameters():
        weight = parameter.ndim >= 2 and id(parameter) not in factors
        groups[(weight or id(parameter) in values, scales.get(parameter, 1.0))].append(parameter)
    described = [
        {"params": parameters, "weight_decay": config.weight_decay if decayed else 0.0, "scale": scale}
        for (decayed, scale), parameters in groups.items()
    ]
    optimizer = _OPTIMIZERS[config.optimizer](described, config)
    set_learning_rate(optimizer, config.learning_rate)
    return optimizer


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
    """Give every parameter group the learning rate `value` times its scale."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(value * group["scale"])
        else:
            group["lr"] = value * group["scale"]


def learning_rates_on(optimizer: Optimizer, device: torch.device) -> None:
    """Hold every group's learning rate in a tensor, where a CUDA graph reads it at each replay."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), device=device)


DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.float32}
