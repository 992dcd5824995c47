"""Learning-compression with rank learning (Idelbayev and Carreira-Perpinan, CVPR 2020)."""

from dataclasses import replace

import torch
from torch import Tensor

from trainers.deploy import PrunedModel, Spectra, prune_to_ranks, rank_problem, stored_spectra
from trainers.factorization import finite_svd, from_matrix, to_matrix
from trainers.methods.base import Method, ValidationLoss, put
from trainers.rank_rules import LayerSpectrum, RankProblem, Ranks, Unit


class LC(Method):
    """A dense W is drawn to a low-rank copy D whose rank is learned: min L(W) + rank_cost * C(r) with W = D.

    L steps: gradient steps on L + mu / 2 sum_l ||W_l - D_l||_F^2. C steps, every `compression_period` batches: for each
    layer D = the truncated SVD of W at the rank that minimises rank_cost * C_l(r) + mu / 2 sum_{i>r} s_i^2 (their section
    3), C the share of the dense network's cost in `budget_unit`. mu rises geometrically from `mu_first` to `mu_last` over
    the stage. `rank_cost` is the knob that sweeps out the front. Departures: the quadratic penalty without multipliers
    (their equation 3 without beta), C steps within an epoch, and a layer may stay dense where that is cheaper.
    """

    rank_rule = None
    owns_rank_rule = True
    ranks_at_cut = False
    can_continue = False
    settings = ("compression_period", "rank_cost", "budget_unit", "mu_first", "mu_last")

    def bind(self) -> None:
        """Find the weights, and what each rank of theirs costs."""
        self._layers = self.dense_layers()
        shapes = self.decomposed_copy("meta")
        self._problem = rank_problem(shapes, stored_spectra(shapes), self.network.sample_shape)
        self._copies: list[Tensor] = []
        self._mu = self.config.mu_last  # where a training has ended

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """A C step: D is a function of the weights, so that a checkpoint need not hold it."""
        self._mu, self._next_mu = self._mu_at(epoch / epochs), self._mu_at((epoch + 1) / epochs)
        self._compress()

    def end_epoch(self) -> None:
        """The weight that the next epoch starts with, and the one with which the network is cut after the last."""
        self._mu = self._next_mu

    def after_step(self, step: int) -> None:
        """A C step every `compression_period` batches."""
        if step % self.config.compression_period == 0:
            self._compress()

    def loss_weight(self, progress: float) -> float:
        """Half of mu."""
        self._mu = self._mu_at(progress)
        return self._mu / 2

    def loss_term(self) -> Tensor:
        """Return sum ||W - D||_F^2."""
        pairs = zip(self._layers.values(), self._copies, strict=True)
        return torch.stack([(layer.weight - near).square().sum() for layer, near in pairs]).sum()  # type: ignore[operator]

    def cut(self, model: torch.nn.Module, spectra: Spectra, validation_loss: ValidationLoss | None) -> PrunedModel:
        """Cut at the ranks of a last C step."""
        problem = rank_problem(model, spectra, self.network.sample_shape)
        ranks = learned_ranks(
            problem, self.config.rank_cost, self._mu, self.config.budget_unit, self.config.rank_multiple
        )
        return prune_to_ranks(model, ranks, self.network.sample_shape, spectra)

    def _mu_at(self, progress: float) -> float:
        first, last = self.config.mu_first, self.config.mu_last
        return float(first * (last / first) ** progress)

    @torch.no_grad()
    def _compress(self) -> None:
        config = self.config
        weights: list[Tensor] = [layer.weight for layer in self._layers.values()]  # type: ignore[misc]
        factors = [finite_svd(to_matrix(weight, config.decomposition)) for weight in weights]
        layers: dict[str, LayerSpectrum] = {
            name: replace(layer, s=s.double().cpu())
            for (name, layer), (_, s, _) in zip(self._problem.layers.items(), factors, strict=True)
        }
        problem = replace(self._problem, layers=layers)
        ranks = learned_ranks(problem, config.rank_cost, self._mu, config.budget_unit, config.rank_multiple)
        copies = [
            from_matrix((u[:, :k] * s[:k]) @ vt[:k], tuple(weight.shape), config.decomposition)
            for weight, (u, s, vt), k in zip(weights, factors, ranks.values(), strict=True)
        ]
        self._copies = put(copies, self._copies)


def learned_ranks(problem: RankProblem, rank_cost: float, mu: float, unit: Unit, multiple: int) -> Ranks:
    """Return, for each layer, the candidate rank r that minimises rank_cost * C(r) + mu / 2 * sum_{i>r} s_i^2.

    C(r) is the layer's cost at rank r over that of the whole dense network.
    """
    dense = problem.dense_cost(unit)
    ranks = {}
    for name, layer in problem.layers.items():
        candidates = layer.candidates(multiple)
        squares = torch.cat((layer.s.square(), torch.zeros(1, dtype=layer.s.dtype)))
        tail = torch.flip(torch.cumsum(torch.flip(squares, (0,)), 0), (0,))  # tail[r] = sum of s_i^2 over i > r
        price = rank_cost * layer.cost(candidates, unit).double() / dense
        ranks[name] = int(candidates[torch.argmin(price + mu / 2 * tail[candidates])])
    return ranks
