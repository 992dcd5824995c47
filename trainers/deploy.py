"""From a trained decomposed model to the ordinary model that is deployed: plain layers, low-rank or dense.

The exact SVD of each trained layer's W = U diag(s) V^T is taken once, so that a cut is the best of its rank
(Eckart-Young) although U and V are only nearly orthogonal after training. Departure from Yang et al., who cut the
trained s as it stands.
"""

import copy
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from trainers.factorization import balanced_factors, exact_svd
from trainers.layers import SVDConv2d, SVDLayer, svd_layers
from trainers.rank_rules import rank_by_energy
from trainers.surgery import LayerGeometry, layer_geometry, replace_modules


@dataclass(frozen=True)
class DeployedLayer:
    """How one decomposed layer is deployed. A dense layer keeps its whole matrix, so its `rank` is `full_rank`."""

    name: str
    rank: int
    full_rank: int
    form: Literal["low_rank", "dense"]


Spectra = dict[str, tuple[Tensor, Tensor, Tensor]]  # module path -> exact (u, s, vt)


@dataclass(frozen=True)
class PrunedModel:
    """An ordinary module without decomposed layers, and how each of its decomposed layers was deployed."""

    model: nn.Module
    layers: list[DeployedLayer]

    @property
    def ranks(self) -> dict[str, int]:
        """Rank by module path; the full rank where the layer is dense."""
        return {layer.name: layer.rank for layer in self.layers}

    @property
    def rank_ratio(self) -> float:
        """Sum of the ranks over the sum of the full ranks; 1 for a model without decomposed layers."""
        full = sum(layer.full_rank for layer in self.layers)
        return sum(layer.rank for layer in self.layers) / full if full else 1.0


def prune_by_energy(model: nn.Module, energy: float, sample_shape: tuple[int, ...]) -> PrunedModel:
    """Return `model` pruned per layer by `energy` (0 <= energy < 1) and deployed; `model` is left as it is.

    Raises NonFiniteError where a weight is NaN or infinite.
    """
    spectra = exact_spectra(model)
    ranks = {name: rank_by_energy(s, energy) for name, (_, s, _) in spectra.items()}
    layers = plan_deployment(model, ranks, sample_shape)
    return PrunedModel(deploy(model, layers, spectra), layers)


def exact_spectra(model: nn.Module) -> Spectra:
    """Return the exact SVD of every decomposed layer's matrix, in float64, by module path."""
    return {name: exact_svd(layer.matrix()) for name, layer in svd_layers(model).items()}


def plan_deployment(model: nn.Module, ranks: dict[str, int], sample_shape: tuple[int, ...]) -> list[DeployedLayer]:
    """Choose each decomposed layer's form at `ranks[path]`: two layers where that takes fewer MACs, else one dense."""
    geometry = layer_geometry(model, sample_shape)
    layers = []
    for name, layer in svd_layers(model).items():
        # `<`, not `<=`: at break-even one dense layer costs the same and loses nothing
        if low_rank_macs(layer, ranks[name], geometry[name]) < dense_macs(layer, geometry[name]):
            layers.append(DeployedLayer(name, ranks[name], layer.full_rank, "low_rank"))
        else:
            layers.append(DeployedLayer(name, layer.full_rank, layer.full_rank, "dense"))
    return layers


def deploy(model: nn.Module, layers: list[DeployedLayer], spectra: Spectra) -> nn.Module:
    """Return a copy of `model` with each decomposed layer in the form that `layers` gives it."""
    deployed = copy.deepcopy(model)
    found = svd_layers(deployed)
    replacements: dict[nn.Module, nn.Module] = {}
    for planned in layers:
        layer = found[planned.name]
        if planned.form == "dense":
            replacements[layer] = layer.dense(layer.weight())
        else:
            replacements[layer] = layer.low_rank(*balanced_factors(*spectra[planned.name], planned.rank))
    if deployed in replacements:  # the model itself is one decomposed layer
        return replacements[deployed]
    replace_modules(deployed, replacements.get)
    return deployed


def low_rank_macs(layer: SVDLayer, rank: int, geometry: LayerGeometry) -> int:
    """Multiply-accumulates of the two-layer form at `rank`, for one sample."""
    if isinstance(layer, SVDConv2d):
        n, c, kh, kw = layer.weight_shape
        if layer.decomposition == "spatial":
            return rank * (c * kh * geometry.wide_positions + n * kw * geometry.positions)
        return rank * (c * kh * kw + n) * geometry.positions
    n_out, n_in = layer.weight_shape
    return rank * (n_in + n_out) * geometry.positions


def dense_macs(layer: SVDLayer, geometry: LayerGeometry) -> int:
    """Multiply-accumulates of the dense form, for one sample."""
    size = 1
    for side in layer.weight_shape:
        size *= side
    return size * geometry.positions
