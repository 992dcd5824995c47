"""What a configuration leads to, found out before anything is trained or written."""

import os
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch

from orchestrator.config import SweepConfig
from orchestrator.data_type import require_measurable
from search_spaces import find_search_space
from trainers.config import MethodConfig
from trainers.cost import Cost, measure_cost
from trainers.data import ImageData, check_test_split, load_train_validation
from trainers.errors import ConfigError
from trainers.models import ModelSpec, build_shapes
from trainers.surgery import LayerReport, layer_reports


@dataclass(frozen=True)
class SweepPlan:
    """What a configuration leads to: its data, its network, the forms of stage 1 that its search space needs, the dense
    network's cost, and what becomes of each layer.
    """

    data: ImageData
    spec: ModelSpec
    starts: list[MethodConfig]
    dense_cost: Cost
    layers: list[LayerReport]


def plan_sweep(config: SweepConfig, *, begun: bool = False) -> SweepPlan:
    """Read and check what the configuration names: search space, data, and that the model takes the data.

    Of a sweep that has `begun`, what it took from an earlier one is in its study. Trains nothing. Raises ConfigError or
    DataError.
    """
    from orchestrator.added_trials import check_search
    from orchestrator.choices import probe_search_space

    _require_gpu(config)
    require_measurable(config)
    space = find_search_space(config.search_space)
    starts = probe_search_space(space)
    check_search(replace(config.resolved_search, warm_start=None) if begun else config.resolved_search, space)
    check_test_split(config.data)
    data = load_train_validation(config.data)
    _require_images(config, len(data.train_rows))
    spec = ModelSpec(config.model, data.sample_shape, data.num_classes)
    with torch.device("meta"):
        model = build_shapes(spec)
        cost = measure_cost(model, spec.sample_shape)
        _require_patterns_that_match(config, model)
        layers = layer_reports(model, spec.sample_shape, config.factorization)
    if not any(layer.status == "factorized" for layer in layers):
        reasons = "; ".join(f"{layer.name}: {layer.reason}" for layer in layers)
        raise ConfigError([("factorization", f"must leave at least one layer to decompose, but skips all: {reasons}")])
    return SweepPlan(data, spec, starts, cost, layers)


def _require_gpu(config: SweepConfig) -> None:
    """On a cluster it is its nodes that need one, which `ray_session` checks."""
    here = not os.environ.get("RAY_ADDRESS")
    if config.resources.gpus_per_trial == "auto" and here and not torch.cuda.is_available():
        text = (
            "auto measures a trial on a GPU, but PyTorch finds none on this machine; set 0, or RAY_ADDRESS to a cluster"
        )
        raise ConfigError([("resources.gpus_per_trial", text)])


def _require_images(config: SweepConfig, num_images: int) -> None:
    if num_images < config.resources.workers_per_trial:
        text = f"must be at most the number of training images ({num_images}), but got {config.resources.workers_per_trial}"
        raise ConfigError([("resources.workers_per_trial", text)])


def _require_patterns_that_match(config: SweepConfig, model: torch.nn.Module) -> None:
    """A pattern that names no module is a slip of the pen: left alone, it would decompose what was to stay dense."""
    names = [name for name, _ in model.named_modules()]
    idle = [
        (f"factorization.{key}", f"each pattern must match a module, but {pattern!r} matches none")
        for key in ("include", "exclude")
        for pattern in getattr(config.factorization, key)
        if not any(fnmatchcase(name, pattern) for name in names)
    ]
    if idle:
        raise ConfigError(idle)
