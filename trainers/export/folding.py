"""BatchNorm folded into the layer before it: in evaluation it is an affine map, and costs nothing there.

Which layer that is, is seen in one forward pass on shapes alone: the modules say whose output a BatchNorm takes, the
operators whether anything else takes it too. Unlike torch.fx this follows any forward. After a low-rank layer it is the
second of its two parts, so that ranks stay as they are.
"""

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainers.surgery import replace_modules

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(frozen=True)
class Folded:
    """A network in evaluation mode; `folded`: BatchNorm to the layer that took it over; `left`: those that stay, by path.

    A BatchNorm stays where it does not follow a layer directly, or something else takes that layer's output as well.
    """

    model: nn.Module
    folded: dict[str, str]
    left: list[str]


def fold_batch_norm(model: nn.Module, sample_shape: tuple[int, ...]) -> Folded:
    """Return a copy of `model` for evaluation with every BatchNorm folded that can be; outputs equal up to rounding.

    Weights are computed in float64 and rounded once.
    """
    pairs = _pairs(model, sample_shape)
    model = copy.deepcopy(model).eval()
    modules = dict(model.named_modules())
    for norm, layer in pairs.items():
        _fold(modules[layer], modules[norm])
    replace_modules(model, {modules[norm]: nn.Identity() for norm in pairs}.get)
    left = [name for name, module in model.named_modules() if isinstance(module, _NORMS)]
    return Folded(model, pairs, left)


def _fold(layer: Any, norm: Any) -> None:
    def exact(value: Any) -> Any:
        return None if value is None else value.detach().double()

    own, statistics = (exact(layer.weight), exact(layer.bias)), (exact(norm.running_mean), exact(norm.running_var))
    fused = fuse_conv_bn_weights(*own, *statistics, norm.eps, exact(norm.weight), exact(norm.bias))
    layer.weight, layer.bias = (nn.Parameter(value.detach().to(layer.weight.dtype)) for value in fused)


def _pairs(model: nn.Module, sample_shape: tuple[int, ...]) -> dict[str, str]:
    """BatchNorm to the layer it can be folded into, by module path."""
    probe = copy.deepcopy(model).to("meta").eval()
    shared = Counter(id(parameter) for module in probe.modules() for parameter in module.parameters(recurse=False))
    calls: Counter[str] = Counter()
    produced: dict[int, str] = {}
    taken: dict[str, int] = {}
    watched = {name: module for name, module in probe.named_modules() if type(module) in (*_LAYERS, *_NORMS)}

    def record(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            calls[name] += 1
            if isinstance(module, _NORMS):
                taken[name] = id(inputs[0])
            elif not isinstance(module, nn.Linear) or output.ndim == 2:  # BatchNorm's channels are axis 1
                produced[id(output)] = name

        return hook

    for name, module in watched.items():
        module.register_forward_hook(record(name))
    dtype = next((parameter.dtype for parameter in probe.parameters()), torch.float32)
    with torch.no_grad(), _Uses() as uses:
        out = probe(torch.empty((1, *sample_shape), device="meta", dtype=dtype))
    uses.count(out)

    def admitted(norm: str, key: int) -> bool:
        layer = produced.get(key)
        return (
            layer is not None
            and calls[norm] == calls[layer] == uses.counts[key] == 1
            and watched[norm].running_mean is not None
            and shared[id(watched[layer].weight)] == 1
        )

    return {norm: produced[key] for norm, key in taken.items() if admitted(norm, key)}


class _Uses(TorchDispatchMode):
    """Counts by how many operators each tensor is taken; keeps all alive, so that no identity is used twice."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[int] = Counter()
        self._kept: list[Tensor] = []

    def count(self, values: Any) -> None:
        """Count one more use of each tensor in `values`."""
        tensors = [value for value in tree_leaves(values) if isinstance(value, Tensor)]
        self.counts.update(map(id, tensors))
        self._kept += tensors

    def __torch_dispatch__(self, func: Any, types: Sequence[Any], args: Any = (), kwargs: Any = None) -> Any:
        self.count((args, kwargs))
        out = func(*args, **(kwargs or {}))
        self._kept += [value for value in tree_leaves(out) if isinstance(value, Tensor)]
        return out
