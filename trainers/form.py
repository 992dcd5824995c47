"""The forms that a network's layers can be in, as plain data from which an empty network of that form can be built."""

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from trainers.config import Decomposition, FactorizationConfig
from trainers.deploy import DeployedLayer, deploy, stored_spectra
from trainers.factorization import exact_svd, from_matrix, to_matrix
from trainers.surgery import decomposable, factorize, replace_modules


@dataclass(frozen=True)
class ModelForm:
    """Dense; or decomposed (`decomposition` set); or products (`num_factors` set too); or deployed (`layers` set too)."""

    decomposition: Decomposition | None = None
    factorization: FactorizationConfig = field(default_factory=FactorizationConfig)
    num_factors: int | None = None
    layers: tuple[DeployedLayer, ...] | None = None


def convert(model: nn.Module, form: ModelForm, sample_shape: tuple[int, ...]) -> nn.Module:
    """Return the dense `model` in `form`; decomposed layers and products are made in place and leave outputs equal."""
    if form.decomposition is None:
        return model
    if form.num_factors is not None:
        to_products(model, form.num_factors, form.decomposition, sample_shape, form.factorization)
        return model
    factorize(model, form.decomposition, sample_shape, form.factorization)
    return model if form.layers is None else deploy(model, list(form.layers), stored_spectra(model))


class Product(nn.Module):
    """A weight as a product of `num_factors` matrices, for `torch.nn.utils.parametrize`.

    W = W_1 W_2 ... W_N with inner dimension r = min(m, n), so that no rank is lost. Factors start balanced: for W = U
    diag(s) V^T they are U s^(1/N), diag(s^(1/N)), ..., s^(1/N) V^T. Where s is zero, only the last factor is: the product
    is the same, and gradients do not vanish.
    """

    def __init__(self, shape: tuple[int, ...], num_factors: int, decomposition: Decomposition) -> None:
        super().__init__()
        self.shape, self.num_factors, self.decomposition = shape, num_factors, decomposition

    def forward(self, *factors: Tensor) -> Tensor:
        """Return the weight in the layer's shape; factors are (m, r), (r, r), ..., (r, n)."""
        matrix = factors[0]
        for factor in factors[1:]:
            matrix = matrix @ factor
        return from_matrix(matrix, self.shape, self.decomposition)

    def right_inverse(self, weight: Tensor) -> list[Tensor]:
        """Return the balanced factors of a weight."""
        u, s, vt = exact_svd(to_matrix(weight, self.decomposition))
        zero = s <= torch.finfo(weight.dtype).eps * s.max()
        last = torch.where(zero, 0, s ** (1 / self.num_factors))
        others = torch.where(zero, torch.where(zero.all(), 1, last.max()), last)
        middle = [torch.diag(others) for _ in range(self.num_factors - 2)]
        return [factor.to(weight).contiguous() for factor in (u * others, *middle, last[:, None] * vt)]


def to_products(
    model: nn.Module,
    num_factors: int,
    decomposition: Decomposition,
    sample_shape: tuple[int, ...],
    config: FactorizationConfig,
) -> None:
    """Make the weight of every layer that `config` admits a `Product`, in place; outputs stay equal."""
    for layer in decomposable(model, sample_shape, config).values():
        assert isinstance(layer.weight, Tensor)
        product = Product(tuple(layer.weight.shape), num_factors, decomposition)
        parametrize.register_parametrization(layer, "weight", product)


def from_products(model: nn.Module) -> nn.Module:
    """Return a copy of `model` with all products multiplied out: ordinary layers again, outputs equal."""
    model = copy.deepcopy(model)
    products = [module for module in model.modules() if parametrize.is_parametrized(module, "weight")]
    replacements = {module: _multiplied_out(module) for module in products}  # one for a layer that is used twice
    replace_modules(model, replacements.get)
    return model


def _multiplied_out(layer: nn.Module) -> nn.Module:
    """The ordinary layer with the product's weight.

    Not `remove_parametrizations`: it changes the class, which a copy shares with the layer that it was copied from.
    """
    base: Any = type(layer).__bases__[0]
    plain: nn.Module = base.__new__(base)
    plain.__dict__.update(layer.__dict__)
    plain._modules = {key: child for key, child in layer._modules.items() if key != "parametrizations"}
    weight = layer.weight
    assert isinstance(weight, Tensor)
    plain._parameters = {"weight": nn.Parameter(weight.detach()), **layer._parameters}
    return plain


def product_factors(model: nn.Module) -> list[Tensor]:
    """Return all factors of all products."""
    return [
        parameter
        for module in model.modules()
        if isinstance(module, parametrize.ParametrizationList)
        for parameter in module.parameters()
    ]
