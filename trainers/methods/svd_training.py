"""SVD training (Yang et al., CVPR-W 2020, arXiv 2004.09031), the method that rankfront is built around."""

from typing import ClassVar

from torch import Tensor, nn

from trainers.config import MethodConfig
from trainers.deploy import Spectra, exact_spectra
from trainers.form import ModelForm
from trainers.layers import svd_layers
from trainers.methods.base import Method
from trainers.regularizers import SPARSITY, OrthogonalityPenalty, by_shape, retract, sparsity_of


class SVDTraining(Method):
    """Each layer is W = U diag(s) V^T at full rank, and U, s, V are trained.

    Loss = task + strength * sum_l R(s_l) + orthogonality_weight * sum_l [L_o(U_l) + L_o(V_l)] (equations 3-6), L_o(A) =
    ||A^T A - I||_F^2 / r^2; stage 1 has strength 0. The cut takes the exact SVD of U diag(s) V^T first, which the
    authors do not; and one convolution with the rebuilt weight runs in place of their two. Options that depart further:
    `orthogonality_period`, `retraction_period`, other regularizers, other rank rules.
    """

    regularizers: ClassVar = {"hoyer": 0.01, "hoyer_square": 1e-3, "l1": 0.01, "funnel": 1e-3, "log_sum": 1e-3}
    default_regularizer = "hoyer"
    settings = ("orthogonality_weight", "orthogonality_period", "retraction_period", "spectrum_learning_rate")

    @classmethod
    def pretraining(cls, config: MethodConfig) -> MethodConfig:
        """Stage 1: full rank, without sparsity."""
        return MethodConfig(method="svd_training", decomposition=config.decomposition, strength=0.0)

    @classmethod
    def stage_one_name(cls, config: MethodConfig) -> str:
        """The decomposition."""
        return config.decomposition

    def trained_form(self) -> ModelForm:
        """Decomposed."""
        return ModelForm(self.config.decomposition, self.network.factorization)

    def bind(self) -> None:
        """Group factors and singular values by shape."""
        self._layers = list(svd_layers(self.model).values())
        config = self.config
        self._orthogonality = OrthogonalityPenalty(
            self._layers, config.orthogonality_weight, config.orthogonality_period
        )
        self._values: list[list[Tensor]] = by_shape(layer.s for layer in self._layers)

    def learning_rate_scales(self) -> dict[nn.Parameter, float]:
        """Return `spectrum_learning_rate` for every s."""
        return {layer.s: self.config.spectrum_learning_rate for layer in self._layers}

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """A held gradient does not outlive its epoch, so that a resumed training is the same one."""
        self._orthogonality.renew()

    def loss_weight(self, progress: float) -> float:
        """The strength."""
        return self.strength_at(progress)

    def loss_term(self) -> Tensor:
        """Return sum R(s); `after_backward` has the other term."""
        assert self.config.regularizer is not None
        return sparsity_of(self._values, SPARSITY[self.config.regularizer])

    def after_backward(self) -> None:
        """Add the gradient of orthogonality_weight * sum (L_o(U) + L_o(V))."""
        self._orthogonality.add_gradient()

    def uncapturable(self) -> str | None:
        """The orthogonality gradient is another one at every `orthogonality_period`-th step."""
        return "orthogonality_period" if self.config.orthogonality_period > 1 else None

    def after_step(self, step: int) -> None:
        """Retract U and V, if asked for."""
        period = self.config.retraction_period
        if period is not None and step % period == 0:
            retract(self._layers)

    def decomposed(self) -> tuple[nn.Module, Spectra]:
        """The network as it is trained; its U and V are only nearly orthonormal, so that each SVD is taken anew."""
        return self.model, exact_spectra(self.model)

    def metrics(self) -> dict[str, float]:
        """How far U and V are from orthonormal: see `OrthogonalityPenalty.error`."""
        return {"orthogonality_error": float(self._orthogonality.error())}
