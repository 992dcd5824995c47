"""What a sweep will cost, from a few measured batches: an upper bound, since the scheduler stops trials early."""

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.config import ResourcesConfig, SweepConfig
from orchestrator.probes import few_batches, longest_recovery_s, trial_of_form
from orchestrator.ray_session import places
from trainers.config import MethodConfig

if TYPE_CHECKING:
    from orchestrator.plan import SweepPlan

_FEW, _MORE = 2, 8  # batches of the two probes, whose difference is the cost of batches alone
_HOUR_S = 3600.0


@dataclass(frozen=True)
class Timing:
    """Seconds of a batch of training, of the rest of an epoch (evaluation), and of a curve of cuts."""

    batch_s: float
    evaluation_s: float
    curve_s: float

    def epoch_s(self, num_batches: int) -> float:
        """Seconds of an epoch of so many batches."""
        return num_batches * self.batch_s + self.evaluation_s


@dataclass(frozen=True)
class Estimate:
    """Hours that the workers train in all, and hours of wall time with `at_once` of them."""

    worker_hours: float
    wall_hours: float
    at_once: int
    timing: Timing
    workers: int = 1  # of a trial, of which one was measured

    def __str__(self) -> str:
        several = "" if self.workers == 1 else f", all by one worker where a trial has {self.workers}"
        return (
            f"at most {_hours(self.worker_hours)} of training, {_hours(self.wall_hours)} with {self.at_once} at once "
            f"(measured: {1e3 * self.timing.batch_s:.3g} ms a batch, {self.timing.evaluation_s:.3g} s an evaluation, "
            f"{self.timing.curve_s:.3g} s a curve{several})"
        )


def _hours(hours: float) -> str:
    return f"{60 * hours:.3g} min" if hours < 1 else f"{hours:.3g} h"


def room(nodes: Sequence[Mapping[str, float]], resources: ResourcesConfig) -> int:
    """Return how many trials fit on the nodes (by their resources) at once; `auto` counts a whole GPU for each."""
    return places(nodes, resources) // resources.workers_per_trial


def total(config: SweepConfig, timing: Timing, num_batches: int, num_starts: int, at_once: int) -> Estimate:
    """Add up a whole sweep: stage 1 in each form, all trials to their end with their curves, finalists, the baseline."""
    training, finetune, epoch_s = config.training, config.finetune, timing.epoch_s(num_batches)
    stage_one_s = training.pretrain_epochs * epoch_s
    trial_s = training.epochs * epoch_s + timing.curve_s
    tuning_s = finetune.epochs * epoch_s
    num_tunings = finetune.num_models * finetune.repeats
    baseline_s = stage_one_s + training.epochs * epoch_s + tuning_s
    parts = ((num_starts, stage_one_s), (config.search.num_trials, trial_s), (num_tunings, tuning_s), (1, baseline_s))
    slots = max(1, at_once)
    wall_s = sum(math.ceil(count / slots) * seconds for count, seconds in parts[:2])
    wall_s += max(baseline_s, (num_tunings * tuning_s + baseline_s) / slots)
    worker_s = sum(count * seconds for count, seconds in parts)
    return Estimate(worker_s / _HOUR_S, wall_s / _HOUR_S, slots, timing, config.resources.workers_per_trial)


def estimate(config: SweepConfig, plan: "SweepPlan", at_once: int) -> Estimate:
    """Measure a few batches of stage 1 and of a trial in a worker, with a trial's resources, and add up the sweep."""
    import ray

    gpus = 1.0 if config.resources.gpus_per_trial == "auto" else config.resources.gpus
    probe = ray.remote(num_cpus=config.resources.cpus_per_trial, num_gpus=gpus)(measure)
    timing: Timing = ray.get(probe.remote(config, plan.starts[0], plan.data.arrays(), gpus > 0))
    num_batches = max(1, len(plan.data.train_rows) // config.training.batch_size)
    return total(config, timing, num_batches, len(plan.starts), at_once)


def measure(config: SweepConfig, start: MethodConfig, arrays: dict[str, Any], gpu: bool) -> Timing:
    """Train a few batches in this process; `start` is the form of stage 1."""
    import torch

    from trainers import recipe

    torch.set_num_threads(config.resources.cpus_per_trial)
    few_setting, more_setting = (
        few_batches(config, arrays, count, "cuda" if gpu else "cpu") for count in (_FEW, _MORE)
    )
    with tempfile.TemporaryDirectory() as folder:
        list(recipe.pretrain(few_setting, start, Path(folder)))  # also what warms everything up
        few, more = (next(recipe.pretrain(setting, start)).duration_s for setting in (few_setting, more_setting))
        begun = Path(folder) / recipe.MODEL_FILE
        without_steps = replace(config.curve, recovery_steps=0)
        plain, curved = (
            next(recipe.compress(few_setting, trial_of_form(start), begun, None, curve)).duration_s
            for curve in (replace(without_steps, num_points=0), without_steps)
        )
        shorter, longer = (
            longest_recovery_s(few_setting, start, begun, curve) for curve in (without_steps, config.curve)
        )
    num_more = (len(more_setting.data.train_rows) - len(few_setting.data.train_rows)) // config.training.batch_size
    batch_s = max(0.0, more - few) / max(1, num_more)
    curve_s = max(0.0, curved - plain) + (config.curve.num_points + 1) * max(0.0, longer - shorter)
    return Timing(batch_s, max(0.0, few - _FEW * batch_s), curve_s)
