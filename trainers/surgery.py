"""The one walker that swaps dense layers for decomposed ones, and its report of every layer.

Every module that holds parameters appears in the report once: factorized, or skipped with the reason.
"""

import copy
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from trainers.config import Decomposition, FactorizationConfig
from trainers.layers import SVDConv, SVDLayer, SVDLinear
from trainers.structure import once_per_structure

_DENSE = (nn.Linear, nn.Conv1d, nn.Conv2d)  # what can be decomposed


@dataclass(frozen=True)
class LayerReport:
    """What surgery did with one module: its path, type, number of parameters (its own), and the reason if skipped."""

    name: str
    kind: str
    params: int
    status: Literal["factorized", "skipped"]
    reason: str


@dataclass(frozen=True)
class LayerGeometry:
    """Sizes one layer sees in one forward pass of one sample.

    `calls` counts how often it runs; `positions` are the output positions of all calls (1 for a linear layer on a vector,
    H' W' for a convolution); `wide_positions` are H' W, the positions of a vertical kh x 1 convolution.
    """

    calls: int = 0
    positions: int = 0
    wide_positions: int = 0


def factorize(
    model: nn.Module,
    decomposition: Decomposition,
    sample_shape: tuple[int, ...],
    config: FactorizationConfig | None = None,
) -> list[LayerReport]:
    """Replace, in place, every layer that `config` admits by its decomposed form at full rank; outputs stay equal.

    `sample_shape` is one input without the batch axis: a forward pass on shapes alone finds layers whose weight is used
    by their parent directly. Returns one report per module with parameters, in module order.
    Raises ValueError for a model that is itself one such layer.
    """
    if type(model) in _DENSE:
        raise ValueError(f"model must contain its layers, but is one {type(model).__name__}; wrap it in nn.Sequential")
    reports = layer_reports(model, sample_shape, config)
    modules = dict(model.named_modules())
    replacements: dict[nn.Module, nn.Module] = {
        modules[report.name]: decompose(modules[report.name], decomposition)
        for report in reports
        if report.status == "factorized"
    }
    replace_modules(model, replacements.get)
    return reports


def layer_reports(
    model: nn.Module, sample_shape: tuple[int, ...], config: FactorizationConfig | None = None
) -> list[LayerReport]:
    """Return what `factorize` would do: one report per module with parameters, in module order; changes nothing."""
    reasons = _reasons(model, sample_shape, config or FactorizationConfig())
    reports = []
    for name, module in model.named_modules():
        own = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        if own > 0:
            status: Literal["factorized", "skipped"] = "skipped" if reasons[name] else "factorized"
            reports.append(LayerReport(name, type(module).__name__, own, status, reasons[name]))
    return reports


def decomposable(
    model: nn.Module, sample_shape: tuple[int, ...], config: FactorizationConfig | None = None
) -> dict[str, nn.Module]:
    """Return the dense layers that `factorize` would replace, by module path, in module order."""
    modules = dict(model.named_modules())
    reports = layer_reports(model, sample_shape, config)
    return {report.name: modules[report.name] for report in reports if report.status == "factorized"}


def decompose(module: nn.Module, decomposition: Decomposition) -> SVDLayer:
    """Return the decomposed form of one `nn.Linear`, `nn.Conv1d` or `nn.Conv2d` by its exact SVD."""
    if isinstance(module, nn.Linear):
        return SVDLinear(module)
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return SVDConv(module, decomposition)
    raise TypeError(f"only nn.Linear, nn.Conv1d and nn.Conv2d can be decomposed, but got {type(module).__name__}")


def replace_modules(model: nn.Module, replacement: Callable[[nn.Module], nn.Module | None]) -> None:
    """Put `replacement(child)` in place of each child it is not None for; a module used twice is replaced twice."""
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if child is not None and (new := replacement(child)) is not None:
                parent._modules[key] = new


@once_per_structure
def layer_geometry(model: nn.Module, sample_shape: tuple[int, ...]) -> dict[str, LayerGeometry]:
    """Return the sizes that each linear or convolutional layer, dense or decomposed, sees; computes shapes only."""
    probe = copy.deepcopy(model).to("meta").eval()
    found: dict[str, LayerGeometry] = {}

    def record(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            before = found[name]
            if isinstance(module, nn.Linear | SVDLinear):
                positions = wide = output.numel() // output.shape[-1]
            else:
                positions = wide = math.prod(output.shape[2:])
                if output.ndim == 4:
                    wide = output.shape[2] * inputs[0].shape[3]
            found[name] = LayerGeometry(before.calls + 1, before.positions + positions, before.wide_positions + wide)

        return hook

    for name, module in probe.named_modules():
        if isinstance(module, (*_DENSE, SVDLayer)):
            found[name] = LayerGeometry()
            module.register_forward_hook(record(name))
    dtype = next((parameter.dtype for parameter in probe.parameters()), torch.float32)
    with torch.no_grad():
        probe(torch.empty((1, *sample_shape), device="meta", dtype=dtype))
    return found


def _reasons(model: nn.Module, sample_shape: tuple[int, ...], config: FactorizationConfig) -> dict[str, str]:
    """For every module with parameters of its own: why it stays as it is, or "" where it is to be factorized."""
    candidates = [name for name, module in model.named_modules() if type(module) in _DENSE]
    geometry = layer_geometry(model, sample_shape)
    uses = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
    reasons = {}
    for name, module in model.named_modules():
        if not list(module.parameters(recurse=False)):
            continue
        if parametrize.is_parametrized(module):
            reasons[name] = "its weight is parametrized"
        elif name not in candidates:
            reasons[name] = _unfit(module)
        elif any(uses[id(parameter)] > 1 for parameter in module.parameters(recurse=False)):
            reasons[name] = "its weight is shared with another module"
        elif isinstance(module, nn.Conv1d | nn.Conv2d) and module.groups != 1:
            depthwise = module.groups == module.in_channels
            reasons[name] = f"{'depthwise' if depthwise else 'grouped'} convolution (groups={module.groups})"
        elif geometry[name].calls == 0:
            reasons[name] = "its forward is never called: its parent uses the weight directly"
        else:
            reasons[name] = _excluded(name, name == candidates[0], name == candidates[-1], config)
    return reasons


def _unfit(module: nn.Module) -> str:
    if isinstance(module, nn.MultiheadAttention):
        return "a fused attention layer (nn.MultiheadAttention): its projections are not layers of their own"
    base = next((base for base in _DENSE if isinstance(module, base)), None)
    if base is not None:
        return f"a subclass of nn.{base.__name__}, whose own behaviour a replacement would lose"
    return f"not a linear, 1-d or 2-d convolutional layer ({type(module).__name__})"


def _excluded(name: str, first: bool, last: bool, config: FactorizationConfig) -> str:
    if first and not config.first_layer:
        return "first layer (first_layer: false)"
    if last and not config.last_layer:
        return "last layer (last_layer: false)"
    if not any(fnmatchcase(name, pattern) for pattern in config.include):
        return f"matches no include pattern {list(config.include)}"
    matched = next((pattern for pattern in config.exclude if fnmatchcase(name, pattern)), None)
    return f"matches exclude pattern {matched!r}" if matched else ""
