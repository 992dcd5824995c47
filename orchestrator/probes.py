"""A training of a few batches, run before a sweep to learn what its trials need."""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.config import SweepConfig
from trainers.config import CurveConfig, MethodConfig

if TYPE_CHECKING:
    from trainers.recipe import Setting


def few_batches(config: SweepConfig, arrays: dict[str, Any], num_batches: int, device: str) -> "Setting":
    """Return the sweep's training with one epoch a stage, of so many batches."""
    import torch

    from trainers.data import ImageData
    from trainers.models import ModelSpec
    from trainers.recipe import Setting

    data = ImageData.from_arrays(arrays)
    training = replace(config.training, pretrain_epochs=1, epochs=1)
    few = replace(data, train_rows=data.train_rows[: num_batches * training.batch_size])
    spec = ModelSpec(config.model, data.sample_shape, data.num_classes)
    return Setting(spec, few, training, config.factorization, torch.device(device))


def trial_of_form(start: MethodConfig) -> MethodConfig:
    """Return a method whose trials start from the form `start` of stage 1."""
    return replace(start, method="truncated_svd") if start.method == "dense" else start


def longest_recovery_s(setting: "Setting", start: MethodConfig, begun: Path, curve: CurveConfig) -> float:
    """Recover one cut of the network in `begun`, and return the seconds that it took.

    A network of a few batches has nothing to lose, so that the cuts of its curve would not be trained: here it is.
    """
    from trainers.curve import scoring_rows
    from trainers.recipe import cut_network
    from trainers.recovery import recover
    from trainers.saved_model import load_model

    pruned, _ = cut_network(setting, trial_of_form(start), load_model(begun))
    rows = scoring_rows(setting.data.to(setting.device), curve)
    began = time.perf_counter()
    recover(pruned.model, rows, setting.training, curve)
    return time.perf_counter() - began
