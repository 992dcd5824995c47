"""LoRITa, low-rank induced training (Alshammari et al., arXiv 2405.03089)."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from trainers.config import MethodConfig
from trainers.form import ModelForm, from_products, product_factors
from trainers.methods.base import Method
from trainers.regularizers import by_shape, sparsity_of


class LoRITa(Method):
    """Each weight is trained as a product W = W_1 ... W_N, N = `num_factors`, with plain weight decay on the factors.

    Loss = task + strength / 2 * sum_l sum_i ||W_i||_F^2, which for balanced factors is strength N / 2 times the Schatten-2/N
    quasi-norm sum_j s_j^(2/N): the spectrum becomes sparse without an SVD. In the end the product is multiplied out and
    cut. Departures: factors start as the balanced ones of the common initial weights, not at random, and stage 1 has no
    decay, like the other methods' stage 1.
    """

    regularizers: ClassVar = {"weight_decay": 1e-4}
    default_regularizer = "weight_decay"
    settings = ("num_factors",)

    @classmethod
    def pretraining(cls, config: MethodConfig) -> MethodConfig:
        """Stage 1: products without decay."""
        return MethodConfig(
            method="lorita", decomposition=config.decomposition, num_factors=config.num_factors, strength=0.0
        )

    @classmethod
    def stage_one_name(cls, config: MethodConfig) -> str:
        """The number of factors and the decomposition."""
        return f"lorita{config.num_factors}-{config.decomposition}"

    def trained_form(self) -> ModelForm:
        """Products."""
        return ModelForm(self.config.decomposition, self.network.factorization, self.config.num_factors)

    def bind(self) -> None:
        """Group the factors by shape."""
        self._factors = by_shape(product_factors(self.model))

    def loss_weight(self, progress: float) -> float:
        """Half the strength."""
        return self.strength_at(progress) / 2

    def loss_term(self) -> Tensor:
        """Return sum ||W_i||_F^2."""
        return sparsity_of(self._factors, torch.Tensor.square)

    def dense_copy(self) -> nn.Module:
        """Return the network with its products multiplied out."""
        return from_products(self.model)
