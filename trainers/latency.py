"""Latency as it is measured: networks timed in turn, whole and layer by layer, on the device that they are to run on.

FLOPs are not latency: two thin layers may take longer than the dense one that they stand for. Times of two networks are
compared only where they were taken in turn, in the same rounds.
"""

import copy
import math
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from trainers.config import Engine
from trainers.deploy import DeployedLayer
from trainers.engines import Call, inference
from trainers.saved_model import SavedModel
from trainers.surgery import replace_modules

_MIN_ROUND_S = 0.02  # shorter than that, the clock and the call itself are measured
_QUICK_ROUND_S = 0.002  # shorter than a processor's time slice: on a busy machine some of many are undisturbed


@dataclass(frozen=True)
class Latency:
    """Milliseconds for one batch: the median of all rounds, and their quartiles."""

    median_ms: float
    low_ms: float
    high_ms: float


def time_in_turn(calls: Mapping[str, Call], rounds: int = 15) -> dict[str, Latency]:
    """Time each call once a round, in an order that moves on by one, after a warm-up; `rounds` is at least 2.

    In a round a call is repeated until it has taken 20 ms, and its mean counts.
    """
    return {name: _summary(seconds) for name, seconds in _seconds(calls, rounds, _MIN_ROUND_S).items()}


def quickest_in_turn(calls: Mapping[str, Call], rounds: int = 70) -> dict[str, float]:
    """Time each call as `time_in_turn` does, in rounds of 2 ms; returns the milliseconds of its quickest one.

    Other work on the machine hardly changes them, where a median is a multiple.
    """
    return {name: 1e3 * min(seconds) for name, seconds in _seconds(calls, rounds, _QUICK_ROUND_S).items()}


def _seconds(calls: Mapping[str, Call], rounds: int, round_s: float) -> dict[str, list[float]]:
    names = list(calls)
    repeats = {name: _repeats(call, round_s) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for place in range(len(names)):
            name = names[(number + place) % len(names)]
            times[name].append(_mean_s(calls[name], repeats[name]))
    return times


def _repeats(call: Call, round_s: float) -> int:
    call()
    call()
    return max(1, round(round_s / max(1e-7, min(_mean_s(call, 1) for _ in range(3)))))


def _mean_s(call: Call, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def _summary(seconds: Sequence[float]) -> Latency:
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return Latency(1e3 * median, 1e3 * low, 1e3 * high)


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Let torch use `number` threads until the block ends."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


Timed = dict[tuple[str, tuple[int, ...]], dict[str, Latency]]  # a layer and its input's shape -> its two forms


@dataclass(frozen=True)
class LayerLatency:
    """A layer that is deployed as two, and the dense one that computes the same, timed in turn on the same input."""

    name: str
    low_rank: Latency
    dense: Latency

    @property
    def faster_dense(self) -> bool:
        """Whether the dense layer is faster for certain: its slow quartile is below the other's fast one."""
        return self.dense.high_ms < self.low_rank.low_ms


def layer_latencies(
    model: nn.Module,
    layers: Sequence[DeployedLayer],
    images: Tensor,
    engine: Engine = "eager",
    rounds: int = 15,
    known: Timed | None = None,
) -> list[LayerLatency]:
    """Time each low-rank layer of `model` on what reaches it for `images` (N, C, H, W), beside its dense form.

    Layers of the same shapes are timed once. `known` holds what was timed before by the same engine with as many threads
    and rounds, and takes up what is timed now.
    """
    found, known = [], {} if known is None else known
    names = [layer.name for layer in layers if layer.form == "low_rank"]
    for name, value in layer_inputs(model, names, images).items():
        pair = cast(nn.Sequential, model.get_submodule(name))
        key = repr(pair), tuple(value.shape)  # all that a layer is but for its numbers
        if key not in known:
            calls = {"low_rank": inference(pair, value, engine), "dense": inference(merged(pair), value, engine)}
            known[key] = time_in_turn(calls, rounds)
        found.append(LayerLatency(name, **known[key]))
    return found


def layer_inputs(model: nn.Module, names: Sequence[str], images: Tensor) -> dict[str, Tensor]:
    """Return what reaches each of the modules called `names` for `images`, the first time that it is called."""
    network, seen = copy.deepcopy(model).eval(), dict[str, Tensor]()

    def remember(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen.setdefault(name, inputs[0])

        return hook

    for name in names:
        network.get_submodule(name).register_forward_pre_hook(remember(name))
    with torch.no_grad():
        network.to(images.device, images.dtype)(images)
    return {name: seen[name] for name in names if name in seen}


def merged(pair: nn.Sequential) -> nn.Module:
    """Return the one layer that computes what two low-rank layers, as `trainers.deploy` makes them, compute together."""
    first, second = pair
    layer: nn.Linear | nn.Conv1d | nn.Conv2d
    with torch.no_grad():
        if isinstance(first, nn.Linear) and isinstance(second, nn.Linear):
            weight = second.weight @ first.weight
            like: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
            layer = nn.Linear(first.in_features, second.out_features, second.bias is not None, **like)
            layer.weight.copy_(weight)
        else:
            assert isinstance(first, nn.Conv1d | nn.Conv2d)
            assert isinstance(second, nn.Conv1d | nn.Conv2d)
            layer = _merged_convolution(first, second)
        if layer.bias is not None and second.bias is not None:
            layer.bias.copy_(second.bias)
    return layer


def _merged_convolution(first: nn.Conv1d | nn.Conv2d, second: nn.Conv1d | nn.Conv2d) -> nn.Conv1d | nn.Conv2d:
    """Of two convolutions, one of which has all of the kernel, or each of which has one axis of it; without the bias."""
    left, right = second.weight, first.weight  # (n, r, *k), (r, c, *k)
    if math.prod(second.kernel_size) == 1:
        weight = (left.flatten(1) @ right.flatten(1)).reshape(len(left), *right.shape[1:])
    else:
        weight = torch.einsum("nrj,rci->ncij", left[:, :, 0], right[..., 0])

    def along(of_first: tuple[int, ...], of_second: tuple[int, ...], neutral: int) -> tuple[int, ...]:
        return tuple(b if a == neutral else a for a, b in zip(of_first, of_second, strict=True))

    padding = first.padding
    if not isinstance(padding, str):
        assert not isinstance(second.padding, str)
        padding = along(padding, second.padding, 0)
    layer = type(first)(
        first.in_channels,
        second.out_channels,
        weight.shape[2:],  # type: ignore[arg-type]
        along(first.stride, second.stride, 1),  # type: ignore[arg-type]
        padding,  # type: ignore[arg-type]
        along(first.dilation, second.dilation, 1),  # type: ignore[arg-type]
        bias=second.bias is not None,
        padding_mode=first.padding_mode,
        device=weight.device,
        dtype=weight.dtype,
    )
    layer.weight.copy_(weight)
    return layer


def with_dense(saved: SavedModel, names: Collection[str]) -> SavedModel:
    """Return the deployed network with the low-rank layers called `names` as dense ones; it computes the same.

    Raises ValueError for a network that is not deployed yet.
    """
    if saved.form.layers is None:
        raise ValueError("the network must be deployed; layers in training have no low-rank form yet")
    model = copy.deepcopy(saved.model)
    pairs = {model.get_submodule(name): name for name in names}
    replace_modules(model, lambda module: merged(cast(nn.Sequential, module)) if module in pairs else None)
    layers = [
        replace(layer, rank=layer.full_rank, form="dense") if layer.name in names else layer
        for layer in saved.form.layers
    ]
    return replace(saved, model=model, form=replace(saved.form, layers=tuple(layers)))
