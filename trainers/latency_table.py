"""Latency foreseen: how long each layer of a network takes at each rank, measured once, added up for any choice of ranks.

A forecast for the search, where thousands of cuts are compared; `trainers.latency` measures what is deployed. A layer that
is timed by itself finds its weights in the processor's caches, so that it saves less than in the network: what layers save
is scaled by what it comes to in two whole networks.
"""

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainers.config import Decomposition, FactorizationConfig, LatencyConfig
from trainers.deploy import DeployedLayer, dense_macs, low_rank_macs
from trainers.engines import inference
from trainers.latency import layer_inputs, quickest_in_turn, threads
from trainers.layers import SVDLayer
from trainers.models import ModelSpec, build_model
from trainers.surgery import LayerGeometry, decomposable, decompose, layer_geometry, replace_modules

_NUM_RANKS = 6
_MULTIPLE = 8  # kernels are faster at multiples of it, by up to twice
_SEED = 0
_DOUBT = 0.1  # of the dense network's time: of so much the scale is taken to be 1
_SHARES = (0.5, 0.15)  # of the largest rank that saves MACs: the networks by which savings are scaled


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

    def saved_ms(self, rank: int) -> float:
        """Return what the low-rank form saves at `rank`; 0 where the layer is faster dense."""
        return self.dense_ms - self.at(rank)


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of the whole dense network, and of its layers by form of decomposition and module path.

    `scale` says by form how many milliseconds whole networks save for each that their layers, timed by themselves, do.
    """

    dense_ms: float
    layers: Mapping[str, Mapping[str, LayerTimes]]
    scale: Mapping[str, float] = field(default_factory=dict)

    def predict(self, form: str, layers: Sequence[DeployedLayer]) -> float:
        """Return the milliseconds of the network with `layers` decomposed in `form`, the others as they are."""
        saved_ms = 0.0
        for layer in layers:
            times = self.layers.get(form, {}).get(layer.name)
            if times is not None and layer.form == "low_rank":
                saved_ms += times.saved_ms(layer.rank)
        return max(0.0, self.dense_ms - self.scale.get(form, 1.0) * saved_ms)

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
        return LatencyTable(record["dense_ms"], layers, dict(record.get("scale", {})))


def measure_table(
    spec: ModelSpec, factorization: FactorizationConfig, forms: Collection[Decomposition], config: LatencyConfig
) -> LatencyTable:
    """Time the dense network, each layer that is decomposed at a few ranks below break-even, and two whole networks, in
    each of `forms`.

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
    scale: dict[str, float] = {}
    with threads(config.threads):
        dense_ms = quickest_in_turn({"dense": inference(model, images, config.engine)})["dense"]
        for form in sorted(forms):
            found[form] = {}
            for name, value in inputs.items():
                key = form, repr(layers[name]), tuple(value.shape)
                if key not in known:
                    known[key] = _layer_times(layers[name], form, value, geometry[name], config)
                found[form][name] = known[key]
            scale[form] = _scale(model, form, found[form], images, config, dense_ms)
    return LatencyTable(dense_ms, found, scale)


def _layer_times(
    layer: nn.Module, form: Decomposition, value: Tensor, geometry: LayerGeometry, config: LatencyConfig
) -> LayerTimes:
    decomposed = _decomposed(layer, form)
    below = -(-dense_macs(decomposed, geometry) // low_rank_macs(decomposed, 1, geometry)) - 1
    calls = {"dense": inference(layer, value, config.engine)}
    ranks = measured_ranks(min(decomposed.full_rank, below))
    for rank in ranks:
        calls[str(rank)] = inference(_pair(decomposed, rank), value, config.engine)
    times = quickest_in_turn(calls)
    return LayerTimes(times["dense"], ranks, tuple(times[str(rank)] for rank in ranks))


def _scale(
    model: nn.Module,
    form: Decomposition,
    times: Mapping[str, LayerTimes],
    images: Tensor,
    config: LatencyConfig,
    dense_ms: float,
) -> float:
    """What whole networks save over what their layers do, by least squares; 1 where no layer is faster at a low rank, and
    near 1 where layers save so little of the network's time that it may be noise.

    Their times count as shares of the dense network's beside them: the machine may have become slower since `dense_ms`.
    """
    calls, foreseen_ms = {"dense": inference(model, images, config.engine)}, dict[str, float]()
    for share in _SHARES:
        pairs, saved_ms = dict[nn.Module, nn.Module](), 0.0
        network = copy.deepcopy(model)
        for name, layer in times.items():
            rank = min(layer.ranks, key=lambda rank: abs(rank - share * layer.ranks[-1]), default=0)
            if rank > 0 and layer.saved_ms(rank) > 0:
                replaced = network.get_submodule(name)
                pairs[replaced] = _pair(_decomposed(replaced, form), rank)
                saved_ms += layer.saved_ms(rank)
        if pairs:
            replace_modules(network, pairs.get)
            calls[str(share)], foreseen_ms[str(share)] = inference(network, images, config.engine), saved_ms
    if not foreseen_ms:
        return 1.0
    measured = quickest_in_turn(calls)
    saved = {key: dense_ms * (1 - measured[key] / measured["dense"]) for key in foreseen_ms}
    doubt = (_DOUBT * dense_ms) ** 2
    products = sum(saved[key] * saved_ms for key, saved_ms in foreseen_ms.items())
    return max(0.0, (products + doubt) / (sum(saved_ms**2 for saved_ms in foreseen_ms.values()) + doubt))


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


def _decomposed(layer: nn.Module, form: Decomposition) -> SVDLayer:
    """The decomposed layer's shapes, on the meta device."""
    with torch.device("meta"):
        return decompose(copy.deepcopy(layer).to("meta"), form)


def _pair(decomposed: SVDLayer, rank: int) -> nn.Module:
    """The two layers that are deployed at `rank`, with weights drawn at random, on the CPU."""
    rows, columns = decomposed.u.shape[0], decomposed.vt.shape[1]
    pair = decomposed.low_rank(torch.empty(rows, rank, device="meta"), torch.empty(rank, columns, device="meta"))
    pair = pair.to_empty(device="cpu")
    for parameter in pair.parameters():
        nn.init.normal_(parameter, std=0.02)
    return pair
