"""Dense training, one truncated SVD per layer, fine-tuning: the baseline of the field, with three rank rules by name."""

from typing import ClassVar

from torch import Tensor

from trainers.factorization import to_matrix
from trainers.methods.base import Method
from trainers.regularizers import SPECTRAL, by_shape, sparsity_of


class TruncatedSVD(Method):
    """W is trained dense, then cut to W ~ U_k diag(s_k) V_k^T (Eckart-Young) by any rank rule.

    With `regularizer` the dense training adds strength * sum_l R(W_l) on the spectra, without an SVD: `nuclear_norm`, or
    `spectral_hoyer_square`, which makes it SLORR (arXiv 2607.08754).
    """

    regularizers: ClassVar = {"nuclear_norm": 1e-4, "spectral_hoyer_square": 1e-4}

    def bind(self) -> None:
        """Find the weights that the penalty acts on."""
        self._layers = list(self.dense_layers().values())

    def loss_weight(self, progress: float) -> float:
        """The strength, if there is a regularizer."""
        return 0.0 if self.config.regularizer is None else self.strength_at(progress)

    def loss_term(self) -> Tensor:
        """Return sum R(W)."""
        assert self.config.regularizer is not None
        matrices = [to_matrix(layer.weight, self.config.decomposition) for layer in self._layers]  # type: ignore[arg-type]
        return sparsity_of(by_shape(matrices), SPECTRAL[self.config.regularizer])


class ARSVD(TruncatedSVD):
    """Adaptive-rank SVD (Cherukuri and Lala, arXiv 2504.20078): truncated SVD, ranks by the entropy of each spectrum.

    p_i = s_i / sum s; the smallest k with -sum_{i<=k} p_i log p_i >= `entropy` * H(p). Departure: convolutions too; the
    source has fully connected layers only.
    """

    rank_rule = "entropy"
    owns_rank_rule = True


class EVBMF(TruncatedSVD):
    """Truncated SVD with ranks by empirical variational Bayes matrix factorization, as arXiv 2408.16289 uses it.

    The rule is that of Nakajima et al. (JMLR 2013), see `trainers.rank_rules.evbmf_rank`. It has no parameter; to get
    more than one point, `rank_scale` multiplies its ranks, which the source does not do.
    """

    rank_rule = "evbmf"
    owns_rank_rule = True
