"""The data type that a sweep trains with, where its configuration leaves that open (`training.dtype: auto`).

It is found before anything is trained and stands in the output directory's `config.yaml`: the same sweep goes on with it,
and its runs can be repeated. On a machine that has measured the same network before, nothing is measured.
"""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context
from typing import TYPE_CHECKING

from orchestrator.config import SweepConfig, load_config
from orchestrator.paths import SweepPaths
from orchestrator.user_cache import kept
from trainers.config import Dtype, as_record
from trainers.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from orchestrator.plan import SweepPlan
    from trainers.dtype_choice import DtypeChoice

_VERSION = 1  # of how it is measured


def with_recorded_dtype(config: SweepConfig, paths: SweepPaths) -> SweepConfig:
    """Return the configuration with `auto` replaced by what a sweep in this directory began with, if there is one."""
    if config.training.dtype != "auto" or not paths.config.exists():
        return config
    return _with(config, load_config(paths.config).training.dtype)


def with_measured_dtype(config: SweepConfig, plan: "SweepPlan") -> tuple[SweepConfig, str | None]:
    """Return the configuration with `auto` replaced by the faster data type, and what there is to say about it, or None.

    A data type that is given stays, though a bfloat16 that this CPU lacks instructions for is worth a word.
    """
    from trainers.dtype_choice import bfloat16_is_native

    given, device = config.training.dtype, _device(config)
    if given == "auto":
        found = _choice(config, plan)
        times = ", ".join(f"{dtype} {ms:.3g} ms" for dtype, ms in found.ms.items())
        why = f"a step takes: {times}" if times else f"this {device.type} has no instructions for bfloat16"
        return _with(config, found.dtype), f"training.dtype: {found.dtype} ({why})"
    if given == "bfloat16" and not os.environ.get("RAY_ADDRESS") and not bfloat16_is_native(device):
        return config, (
            f"training.dtype: bfloat16 is emulated here and slow: this {device.type} has no instructions for it (a CPU "
            "needs AMX or AVX512-BF16); set float32, or auto"
        )
    return config, None


def require_measurable(config: SweepConfig) -> None:
    """Raise ConfigError where `auto` cannot be measured, since the trials train elsewhere or the GPU is not there."""
    import torch

    if config.training.dtype != "auto":
        return
    text = None
    if os.environ.get("RAY_ADDRESS"):
        text = (
            "auto is measured on this machine, but trials train on the cluster at RAY_ADDRESS; set float32 or bfloat16"
        )
    elif _device(config).type == "cuda" and not torch.cuda.is_available():
        text = "auto is measured on a GPU, but PyTorch finds none on this machine; set float32 or bfloat16"
    if text is not None:
        raise ConfigError([("training.dtype", text)])


def _device(config: SweepConfig) -> "torch.device":
    import torch

    return torch.device("cpu" if config.resources.gpus_per_trial == 0 else "cuda")


def _with(config: SweepConfig, dtype: Dtype) -> SweepConfig:
    return replace(config, training=replace(config.training, dtype=dtype))


def _choice(config: SweepConfig, plan: "SweepPlan") -> "DtypeChoice":
    from trainers.dtype_choice import DtypeChoice

    depends_on = {
        "version": _VERSION,
        "network": as_record(plan.spec),
        "factorization": as_record(config.factorization),
        "method": as_record(plan.starts[0]),
        "batch_size": config.training.batch_size,
        "optimizer": config.training.optimizer,
        "threads": config.resources.cpus_per_trial,
        "device": _device(config).type,
    }
    return kept(
        "dtype",
        depends_on,
        lambda: json.dumps(asdict(_measured(config, plan))) + "\n",
        lambda text: DtypeChoice(**json.loads(text)),
    )


def _measured(config: SweepConfig, plan: "SweepPlan") -> "DtypeChoice":
    from trainers.dtype_choice import choose_dtype
    from trainers.latency import threads
    from trainers.methods import Network

    device = _device(config)
    asked = (plan.spec, Network(plan.spec.sample_shape, config.factorization), config.training, plan.starts[0], device)
    if device.type == "cuda":
        # in a process of its own: the driver would hold memory of the GPU for as long as it lives
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(choose_dtype, *asked).result()
    with threads(config.resources.cpus_per_trial):
        return choose_dtype(*asked)
