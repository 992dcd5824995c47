"""Which data type trains faster here: `training.dtype: auto` is what this finds, measured once on the network itself."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from trainers.config import Dtype, MethodConfig, TrainingConfig
from trainers.methods import Network, make_method
from trainers.models import ModelSpec, build_model
from trainers.optimizers import make_optimizer
from trainers.step import Step

_ROUNDS = 5
_LEAST_GAIN = 0.05  # of a step's time: less is not worth bfloat16's rounding


@dataclass(frozen=True)
class DtypeChoice:
    """The data type, and the milliseconds of a training step with each that was tried."""

    dtype: Dtype
    ms: dict[str, float]


def bfloat16_is_native(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16; on a CPU without them it is emulated."""
    if device.type == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def choose_dtype(
    spec: ModelSpec, network: Network, training: TrainingConfig, method: MethodConfig, device: torch.device
) -> DtypeChoice:
    """Return bfloat16 where the device has it and a step of `method` takes at least 5 % less with it, else float32.

    Steps of both, eager, are timed in turn on random images; five of each, and their median counts. On a CPU it is the
    time of its processors, on threads as they are set.
    """
    if not bfloat16_is_native(device):
        return DtypeChoice("float32", {})
    tried: tuple[Dtype, Dtype] = ("float32", "bfloat16")
    steps = {dtype: _step(spec, network, training, method, device, dtype) for dtype in tried}
    for step in steps.values():  # libraries choose their kernels
        step()
    times: dict[Dtype, list[float]] = {dtype: [] for dtype in steps}
    for _ in range(_ROUNDS):
        for dtype, step in steps.items():
            started = _seconds(device)
            step()
            times[dtype].append(_seconds(device) - started)
    ratio = statistics.median(b / a for a, b in zip(times["float32"], times["bfloat16"], strict=True))
    ms: dict[str, float] = {dtype: 1000 * statistics.median(values) for dtype, values in times.items()}
    return DtypeChoice("bfloat16" if ratio <= 1 - _LEAST_GAIN else "float32", ms)


def _step(
    spec: ModelSpec,
    network: Network,
    training: TrainingConfig,
    config: MethodConfig,
    device: torch.device,
    dtype: Dtype,
) -> Callable[[], object]:
    method = make_method(config, network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        method.prepare(build_model(spec))
        images = torch.randn(training.batch_size, *spec.sample_shape)
        labels = torch.randint(spec.num_classes, (training.batch_size,))
    method.model.to(device).to(memory_format=torch.channels_last).train()
    method.bind()
    method.start_epoch(0, 1)
    one_step = replace(training, dtype=dtype, step="eager")
    step = Step(method, make_optimizer(method.model, one_step, method.learning_rate_scales()), one_step, device)
    images, labels = images.to(device).contiguous(memory_format=torch.channels_last), labels.to(device)
    return lambda: step(images, labels, 0.5)


def _seconds(device: torch.device) -> float:
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()
