"""Latency foreseen: how long each layer of a network takes at each rank, measured once, added up for any choice of ranks.

A forecast for the search, where thousands of cuts are compared; `trainers.latency` measures what is deployed.
"""

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainers.config import Decomposition, FactorizationConfig, LatencyConfig
from trainers.deploy import DeployedLayer, dense_macs, low_rank_macs
from trainers.engines import inference
from trainers.latency import layer_inputs, threads, time_in_turn
from trainers.models import ModelSpec, build_model
from trainers.surgery import LayerGeometry, decomposable, decompose, layer_geometry

_NUM_RANKS = 6
_MULTIPLE = 8  # kernels are faster at multiples of it, by up to twice
_ROUNDS = 7
_SEED = 0


@dataclass(frozen=True)
class LayerTimes:
    """Milliseconds of one layer, dense and in low-rank form at `ranks`, which rise: multiples of 8, and others."""

    dense_ms: float
    ranks: tuple[int, ...]
    times_ms: tuple[float, ...]

    def at(self, rank: int) -> float:
        """Return the time at any rank, interpolated between measured ones that are multiples of 8 if it is, else not.

        At most the dense layer's: it is deployed in the faster form.
        """
        measured = list(zip(self.ranks, self.times_ms, strict=True))
        if not measured:
            return self.dense_ms
        alike = [point for point in measured if _is_aligned(point[0]) == _is_aligned(rank)]
        ranks, times_ms = zip(*(alike or measured), strict=True)
        return min(self.dense_ms, float(np.interp(rank, ranks, times_ms)))


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of the whole dense network, and of its layers by form of decomposition and module path."""

    dense_ms: float
    layers: Mapping[str, Mapping[str, LayerTimes]]

    def predict(self, form: str, layers: Sequence[DeployedLayer]) -> float:
        """Return the milliseconds of the network with `layers` decomposed in `form`, the others as they are."""
        saved_ms = 0.0
        for layer in layers:
            times = self.layers.get(form, {}).get(layer.name)
            if times is not None and layer.form == "low_rank":
                saved_ms += times.dense_ms - times.at(layer.rank)
        return max(0.0, self.dense_ms - saved_ms)

    @staticmethod
    def read(record: Mapping[str, Any]) -> "LatencyTable":
        """Undo `asdict`, also after JSON; raises KeyError or TypeError for anything else."""
        layers = {
            form: {
                name: LayerTimes(times["dense_ms"], tuple(times["ranks"]), tuple(times["times_ms"]))
                for name, times in of_form.items()
            }
            for form, of_form in record["layers"].items()
        }
        return LatencyTable(record["dense_ms"], layers)


def measure_table(
    spec: ModelSpec, factorization: FactorizationConfig, forms: Collection[Decomposition], config: LatencyConfig
) -> LatencyTable:
    """Time the dense network, and each layer that is decomposed at a few ranks below break-even, in each of `forms`.

    Weights are drawn at random: times do not depend on them. Layers of the same shapes are timed once.
    """
    torch.manual_seed(_SEED)
    model = build_model(spec).eval()
    images = torch.randn(config.batch, *spec.sample_shape, device=config.device)
    layers = decomposable(model, spec.sample_shape, factorization)
    inputs = layer_inputs(model, list(layers), images)
    geometry = layer_geometry(model, spec.sample_shape)
    known: dict[tuple[str, str, tuple[int, ...]], LayerTimes] = {}
    found: dict[str, dict[str, LayerTimes]] = {}
    with threads(config.threads):
        whole = time_in_turn({"dense": inference(model, images, config.engine)}, _ROUNDS)["dense"].median_ms
        for form in sorted(forms):
            found[form] = {}
            for name, value in inputs.items():
                key = form, repr(layers[name]), tuple(value.shape)
                if key not in known:
                    known[key] = _layer_times(layers[name], form, value, geometry[name], config)
                found[form][name] = known[key]
    return LatencyTable(whole, found)


def _layer_times(
    layer: nn.Module, form: Decomposition, value: Tensor, geometry: LayerGeometry, config: LatencyConfig
) -> LayerTimes:
    with torch.device("meta"):
        decomposed = decompose(copy.deepcopy(layer).to("meta"), form)
    rows, columns = decomposed.u.shape[0], decomposed.vt.shape[1]
    below = -(-dense_macs(decomposed, geometry) // low_rank_macs(decomposed, 1, geometry)) - 1
    calls = {"dense": inference(layer, value, config.engine)}
    ranks = measured_ranks(min(decomposed.full_rank, below))
    for rank in ranks:
        pair = decomposed.low_rank(torch.empty(rows, rank, device="meta"), torch.empty(rank, columns, device="meta"))
        calls[str(rank)] = inference(_drawn(pair), value, config.engine)
    times = time_in_turn(calls, _ROUNDS)
    return LayerTimes(times["dense"].median_ms, ranks, tuple(times[str(rank)].median_ms for rank in ranks))


def measured_ranks(largest: int) -> tuple[int, ...]:
    """Return ranks from 1 to `largest`: six at most in nearly equal factors, from 8 on multiples of 8, each with the rank
    just below it. None where `largest` is below 1.
    """
    if largest < 1:
        return ()
    wanted = np.geomspace(1, largest, _NUM_RANKS)
    steps = {round(rank) if rank < _MULTIPLE else int(rank // _MULTIPLE) * _MULTIPLE for rank in wanted}
    return tuple(sorted(steps | {rank - 1 for rank in steps if _is_aligned(rank)}))


def _is_aligned(rank: int) -> bool:
    return rank % _MULTIPLE == 0


def _drawn(module: nn.Module) -> nn.Module:
    module = module.to_empty(device="cpu")
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.02)
    return module
