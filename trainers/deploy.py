"""From a trained decomposed model to the ordinary model that is deployed: plain layers, low-rank or dense.

The exact SVD of each trained layer's W = U diag(s) V^T is taken once, so that a cut is the best of its rank
(Eckart-Young) although U and V are only nearly orthogonal after training. Departure from Yang et al., who cut the
trained s as it stands.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from trainers.config import RankConfig
from trainers.cost import measure_cost
from trainers.factorization import balanced_factors, exact_svd
from trainers.layers import SVDLayer, svd_layers
from trainers.rank_rules import LayerSpectrum, RankProblem, choose_ranks
from trainers.structure import once_per_structure
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


def prune(
    model: nn.Module,
    config: RankConfig,
    sample_shape: tuple[int, ...],
    spectra: Spectra | None = None,
    validation_loss: Callable[[nn.Module], float] | None = None,
) -> PrunedModel:
    """Return the decomposed `model` cut to the ranks that `config.rank_rule` chooses, deployed; `model` stays as it is.

    `spectra` are the exact SVDs of its layers where they are known. `validation_loss` of an ordinary module is needed by
    the rule `greedy` alone. Raises NonFiniteError where a weight is NaN or infinite, ConfigError for a budget that is too
    small.
    """
    spectra = exact_spectra(model) if spectra is None else spectra
    problem = rank_problem(model, spectra, sample_shape, validation_loss)
    return prune_to_ranks(model, choose_ranks(problem, config), sample_shape, spectra)


def prune_to_ranks(
    model: nn.Module, ranks: dict[str, int], sample_shape: tuple[int, ...], spectra: Spectra | None = None
) -> PrunedModel:
    """Return the decomposed `model` cut to `ranks` (by module path) and deployed; `model` stays as it is."""
    layers = plan_deployment(model, ranks, sample_shape)
    return PrunedModel(deploy(model, layers, exact_spectra(model) if spectra is None else spectra), layers)


def exact_spectra(model: nn.Module) -> Spectra:
    """Return the exact SVD of every decomposed layer's matrix, in float64, by module path."""
    return {name: exact_svd(layer.matrix()) for name, layer in svd_layers(model).items()}


def stored_spectra(model: nn.Module) -> Spectra:
    """Return the factors of every decomposed layer as they are, on the CPU: exact SVDs only right after `factorize`."""

    def stored(factor: Tensor) -> Tensor:
        return factor.detach().to("meta" if factor.is_meta else "cpu", torch.float64)

    return {name: (stored(layer.u), stored(layer.s), stored(layer.vt)) for name, layer in svd_layers(model).items()}


def rank_problem(
    model: nn.Module,
    spectra: Spectra,
    sample_shape: tuple[int, ...],
    validation_loss: Callable[[nn.Module], float] | None = None,
) -> RankProblem:
    """Return what a rank rule needs to know of the decomposed `model`: spectra, shapes, costs, and how to measure ranks."""
    geometry = layer_geometry(model, sample_shape)
    found = svd_layers(model)
    layers = {
        name: LayerSpectrum(
            spectra[name][1],
            (len(spectra[name][0]), spectra[name][2].shape[1]),
            low_rank_macs(layer, 1, geometry[name]),
            dense_macs(layer, geometry[name]),
            len(spectra[name][0]) + spectra[name][2].shape[1],
            math.prod(layer.weight_shape),
        )
        for name, layer in found.items()
    }

    def loss(ranks: dict[str, int]) -> float:
        assert validation_loss is not None
        return validation_loss(prune_to_ranks(model, ranks, sample_shape, spectra).model)

    return RankProblem(
        layers,
        *_rest(model, sample_shape),
        None if validation_loss is None else loss,
    )


@once_per_structure
def _rest(model: nn.Module, sample_shape: tuple[int, ...]) -> tuple[int, int]:
    """MACs and parameters of the network without those of its decomposed layers, as dense ones."""
    geometry, layers = layer_geometry(model, sample_shape), svd_layers(model)
    dense = [DeployedLayer(name, layer.full_rank, layer.full_rank, "dense") for name, layer in layers.items()]
    cost = measure_cost(deploy(copy.deepcopy(model).to("meta"), dense, {}), sample_shape)
    macs = sum(dense_macs(layer, geometry[name]) for name, layer in layers.items())
    return cost.macs - macs, cost.params - sum(math.prod(layer.weight_shape) for layer in layers.values())


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
    rows, columns = layer.u.shape[0], layer.vt.shape[1]
    if layer.decomposition == "spatial":
        return rank * (columns * geometry.wide_positions + rows * geometry.positions)
    return rank * (columns + rows) * geometry.positions


def dense_macs(layer: SVDLayer, geometry: LayerGeometry) -> int:
    """Multiply-accumulates of the dense form, for one sample."""
    return math.prod(layer.weight_shape) * geometry.positions
