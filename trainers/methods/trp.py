"""Trained rank pruning (Xu et al., arXiv 1812.02402; journal version IJCAI 2020)."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from trainers.factorization import finite_svd, from_matrix, to_matrix
from trainers.methods.base import Method, put
from trainers.rank_rules import rank_by_energy


class TRP(Method):
    """W is trained dense and replaced by its truncated SVD every `compression_period` batches.

    At such a step W <- U_k diag(s_k) V_k^T, k the smallest rank that keeps 1 - `truncation_energy` of the energy. In
    between, the sub-gradient of the nuclear norm at the last truncation, U_k V_k^T, is added with weight `strength` (3e-4).
    Departures: the count of batches starts anew with each epoch, so that a training can be resumed exactly; the cut in the
    end takes any rank rule, and by default energy.
    """

    regularizers: ClassVar = {"nuclear_norm": 3e-4}
    default_regularizer = "nuclear_norm"
    settings = ("compression_period", "truncation_energy")

    def bind(self) -> None:
        """Find the weights that are truncated."""
        self._layers = list(self.dense_layers().values())
        self._polar: list[Tensor] = []

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Truncate."""
        self._truncate()

    def after_step(self, step: int) -> None:
        """Truncate every `compression_period` batches."""
        if step % self.config.compression_period == 0:
            self._truncate()

    def loss_weight(self, progress: float) -> float:
        """The strength."""
        return self.strength_at(progress)

    def loss_term(self) -> Tensor:
        """Return sum <W, U_k V_k^T>, whose gradient is the sub-gradient wanted."""
        pairs = zip(self._layers, self._polar, strict=True)
        return torch.stack([(layer.weight * polar).sum() for layer, polar in pairs]).sum()  # type: ignore[operator]

    def _truncate(self) -> None:
        energy = self.config.truncation_energy
        polar = [
            compress_(layer, self.config.decomposition, lambda s: rank_by_energy(s.double().cpu(), energy))
            for layer in self._layers
        ]
        self._polar = put(polar, self._polar)


@torch.no_grad()
def compress_(layer: nn.Module, decomposition: str, rank: Callable[[Tensor], int]) -> Tensor:
    """Truncate a layer's weight to the rank that `rank` finds for its singular values, in place; returns U_k V_k^T.

    The result has the weight's shape. In the weight's own precision: it is done often.
    """
    weight = layer.weight
    assert isinstance(weight, Tensor)
    u, s, vt = finite_svd(to_matrix(weight, decomposition))  # type: ignore[arg-type]
    k = rank(s)
    weight.copy_(from_matrix((u[:, :k] * s[:k]) @ vt[:k], tuple(weight.shape), decomposition))  # type: ignore[arg-type]
    return from_matrix(u[:, :k] @ vt[:k], tuple(weight.shape), decomposition)  # type: ignore[arg-type]
