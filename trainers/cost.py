"""What a model costs to run: parameters and multiply-accumulates (MACs) of one forward pass of one sample."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

COUNTER = "torch.utils.flop_counter.FlopCounterMode"

# operators that move, reshape or make tensors and multiply nothing; they are not worth listing as uncounted
_FREE = {
    "_to_copy", "_unsafe_view", "alias", "as_strided", "cat", "clone", "constant_pad_nd", "copy_", "detach", "empty",
    "expand", "permute", "reflection_pad2d", "replication_pad2d", "reshape", "select", "slice", "split", "stack", "t",
    "transpose", "unsqueeze", "squeeze", "view",
}  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """`macs` and `flops` = 2 macs of one sample, as `counter` counts them (matrix products and convolutions);
    `uncounted` names the operators that ran and were not counted; `params` are all parameters of the model.
    """

    macs: int
    params: int
    uncounted: tuple[str, ...]
    counter: str = COUNTER

    @property
    def flops(self) -> int:
        """Floating-point operations, two for each MAC."""
        return 2 * self.macs


def measure_cost(model: nn.Module, sample_shape: tuple[int, ...]) -> Cost:
    """Count `model` on one sample of `sample_shape` (no batch axis), in evaluation mode, on shapes alone.

    Decomposed layers are counted as they train; measure the deployed model to learn what deployment costs.
    """
    probe = copy.deepcopy(model).to("meta").eval()
    dtype = next((parameter.dtype for parameter in probe.parameters()), torch.float32)
    x = torch.empty((1, *sample_shape), device="meta", dtype=dtype)
    operators = _OperatorLog()
    with torch.no_grad(), FlopCounterMode(display=False) as counter, operators:
        probe(x)
    uncounted = tuple(sorted(operators.seen - {str(packet) for packet in flop_registry}))
    params = sum(parameter.numel() for parameter in model.parameters())
    return Cost(counter.get_total_flops() // 2, params, uncounted)


class _OperatorLog(TorchDispatchMode):
    """Remembers the name of every operator that runs and is not free."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Sequence[Any], args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket
        if packet.__name__ not in _FREE:
            self.seen.add(str(packet))
        return func(*args, **(kwargs or {}))
