"""How many trials one GPU holds, by what a trial was seen to need (`resources.gpus_per_trial: auto`)."""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.config import SweepConfig
from orchestrator.probes import few_batches, longest_recovery_s, trial_of_form
from trainers.config import MethodConfig

if TYPE_CHECKING:
    import ray

_MARGIN = 1.25  # trials differ: ranks, fragmentation of the allocator
_USABLE = 0.95  # of the GPU: its driver and desktop keep some
_RAY_STEPS = 10_000  # Ray counts in ten-thousandths
_PROBE_BATCHES = 3


@dataclass(frozen=True)
class GpuUse:
    """Bytes: of the whole GPU, reserved by PyTorch at a trial's peak, and of one process beside that (CUDA's context)."""

    total: int
    reserved: int
    context: int


def trials_per_gpu(use: GpuUse, most: int) -> int:
    """Return how many trials fit: each needs 1.25 times what it was seen to, 95 % of the GPU is used; 1 to `most`."""
    fit = math.floor(_USABLE * use.total / (_MARGIN * (use.reserved + use.context)))
    return max(1, min(fit, most))


def gpu_share(count: int) -> float:
    """Return what Ray is to reserve so that `count` fit on a GPU: 1 / count, rounded down to what Ray can count."""
    return math.floor(_RAY_STEPS / count) / _RAY_STEPS


def with_measured_share(
    config: SweepConfig, starts: Sequence[MethodConfig], data: "ray.ObjectRef[dict[str, Any]]"
) -> SweepConfig:
    """Return the configuration with `auto` replaced by what a probe on a GPU of the cluster found for the largest form."""
    import ray

    if config.resources.gpus_per_trial != "auto":
        return config
    probe = ray.remote(num_cpus=config.resources.cpus_per_trial, num_gpus=1)(measure)
    uses: list[GpuUse] = ray.get([probe.remote(config, start, data) for start in starts])
    largest = max(uses, key=lambda use: use.reserved + use.context)
    share = gpu_share(trials_per_gpu(largest, config.resources.max_trials_per_gpu))
    return replace(config, resources=replace(config.resources, gpus_per_trial=share))


def measure(config: SweepConfig, start: MethodConfig, arrays: dict[str, Any]) -> GpuUse:
    """Train a few batches of stage 1 and of a trial with its curve, from the form `start`, on this process's GPU."""
    import torch

    from trainers import recipe

    setting = few_batches(config, arrays, _PROBE_BATCHES, "cuda")
    torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        list(recipe.pretrain(setting, start, Path(folder)))
        begun = Path(folder) / recipe.MODEL_FILE
        list(recipe.compress(setting, trial_of_form(start), begun, None, config.curve))
        longest_recovery_s(setting, start, begun, config.curve)
    free, total = torch.cuda.mem_get_info()
    context = total - free - torch.cuda.memory_reserved()
    return GpuUse(total, torch.cuda.max_memory_reserved(), context)
