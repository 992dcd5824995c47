"""A training of a few batches, run before a sweep to learn what its trials need."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from orchestrator.config import SweepConfig
from trainers.config import MethodConfig

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
