"""What follows from a network's shapes alone, found out once for each network and not again at every cut."""

from collections.abc import Callable, Hashable
from functools import wraps
from typing import TypeVar
from weakref import WeakKeyDictionary

from torch import nn

T = TypeVar("T")


def once_per_structure(
    function: Callable[[nn.Module, tuple[int, ...]], T],
) -> Callable[[nn.Module, tuple[int, ...]], T]:
    """Remember what `function(model, sample_shape)` returned while the model lives and its modules and sizes stay the same.

    Such a function runs the network on shapes, which takes tens of milliseconds: for each cut anew, a sixth of a small
    network's trial. Do not change what it returns.
    """
    known: WeakKeyDictionary[nn.Module, tuple[Hashable, T]] = WeakKeyDictionary()

    @wraps(function)
    def remembered(model: nn.Module, sample_shape: tuple[int, ...]) -> T:
        modules = tuple((name, type(module)) for name, module in model.named_modules())
        structure = sample_shape, modules, tuple(tuple(parameter.shape) for parameter in model.parameters())
        if model not in known or known[model][0] != structure:
            known[model] = structure, function(model, sample_shape)
        return known[model][1]

    return remembered
