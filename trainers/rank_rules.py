"""Rules that choose each layer's rank from singular values, shapes and costs: pure functions, in RANK_RULES.

Per-layer rules look at one spectrum at a time; global rules spend one budget, a share of the whole network's
multiply-accumulates or parameters, where it keeps most. A rule takes a `RankProblem` and a `RankConfig` and returns a rank
for every layer; `choose_ranks` rounds, and leaves a layer at full rank, which is deployed as one dense layer, where two
thin layers would not be cheaper. To add one: write a function and enter it in RANK_RULES.
"""

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from trainers.config import RankConfig
from trainers.errors import ConfigError
from trainers.evbmf import evbmf_rank

Ranks = dict[str, int]
Unit = Literal["macs", "params"]


@dataclass(frozen=True)
class LayerSpectrum:
    """One layer's matrix (m, n) as a rule sees it: its exact singular values s (r), descending, float64; its costs.

    `macs_per_rank` and `params_per_rank` are those of the two-layer form; costs are of one sample.
    """

    s: Tensor
    shape: tuple[int, int]
    macs_per_rank: int
    dense_macs: int
    params_per_rank: int
    dense_params: int

    @property
    def full_rank(self) -> int:
        """min(m, n): here it stands for the dense form."""
        return len(self.s)

    @cached_property
    def noise_free_rank(self) -> int:
        """Rank by `evbmf_rank`, which takes a while."""
        return evbmf_rank(self.s, self.shape)

    @property
    def largest_low_rank(self) -> int:
        """The largest rank below break-even, r < dense_macs / macs_per_rank (m n / (m + n) for a linear layer); or 0."""
        return max(0, min(self.full_rank, -(-self.dense_macs // max(1, self.macs_per_rank))) - 1)

    def candidates(self, multiple: int = 1) -> Tensor:
        """Return all ranks worth choosing from, ascending: multiples of `multiple` below break-even, and the full rank."""
        ranks = multiple * torch.arange(1, self.largest_low_rank // multiple + 1)
        return torch.cat((ranks, torch.tensor([self.full_rank])))

    def admissible(self, rank: int, multiple: int = 1) -> int:
        """Return the smallest candidate that is at least `rank`."""
        rank = -(-max(1, rank) // multiple) * multiple
        return rank if rank <= self.largest_low_rank else self.full_rank

    def cost(self, ranks: Tensor, unit: Unit) -> Tensor:
        """Return MACs or parameters of the layer at each of `ranks`; dense at full rank."""
        per_rank, dense = (
            (self.macs_per_rank, self.dense_macs) if unit == "macs" else (self.params_per_rank, self.dense_params)
        )
        return torch.where(ranks >= self.full_rank, dense, ranks * per_rank)

    def kept_energy(self, ranks: Tensor) -> Tensor:
        """Return the share of ||s||^2 that each of `ranks` (1 .. full rank) keeps; 1 for a zero matrix."""
        total = torch.cumsum(self.s.square(), 0)
        return torch.ones(len(ranks), dtype=total.dtype) if total[-1] == 0 else total[ranks - 1] / total[-1]


@dataclass(frozen=True)
class RankProblem:
    """All layers by module path, what the rest of the network costs, and a measure of quality for `greedy`.

    `fixed_macs` and `fixed_params` belong to what is not decomposed. `validation_loss` maps ranks to a loss.
    """

    layers: dict[str, LayerSpectrum]
    fixed_macs: int = 0
    fixed_params: int = 0
    validation_loss: Callable[[Ranks], float] | None = field(default=None, compare=False)

    def cost(self, ranks: Ranks, unit: Unit) -> int:
        """Return the whole network's cost at `ranks`."""
        layers = sum(int(layer.cost(torch.tensor(ranks[name]), unit)) for name, layer in self.layers.items())
        return layers + (self.fixed_macs if unit == "macs" else self.fixed_params)

    def dense_cost(self, unit: Unit) -> int:
        """Return the whole network's cost with every layer dense."""
        return self.cost({name: layer.full_rank for name, layer in self.layers.items()}, unit)

    def allowance(self, config: RankConfig) -> int:
        """Return what the budget leaves for the layers; raises ConfigError if not even the smallest ranks fit."""
        unit, fixed = config.budget_unit, self.fixed_macs if config.budget_unit == "macs" else self.fixed_params
        dense = self.dense_cost(unit)
        smallest = [layer.cost(layer.candidates(config.rank_multiple), unit).min() for layer in self.layers.values()]
        least = fixed + int(sum(smallest))
        if least > config.budget * dense:
            text = f"must be at least {least / dense:.4f}, the share of {unit} at the lowest ranks, but got {config.budget}"
            remedy = "raise budget" + (" or lower rank_multiple" if config.rank_multiple > 1 else "")
            raise ConfigError([("budget", f"{text}; {remedy}")])
        return int(config.budget * dense) - fixed


RankRule = Callable[[RankProblem, RankConfig], Ranks]


def choose_ranks(problem: RankProblem, config: RankConfig) -> Ranks:
    """Apply `config.rank_rule` (energy, if None); each rank is rounded up to a multiple, or full at break-even."""
    ranks = RANK_RULES[config.rank_rule or "energy"](problem, config)
    return {name: layer.admissible(ranks[name], config.rank_multiple) for name, layer in problem.layers.items()}


def rank_by_energy(s: Tensor, energy: float) -> int:
    """Return the smallest rank whose squared singular values sum to at least (1 - energy) of the total; at least 1.

    s is (r), descending and non-negative, in float64; 0 <= energy < 1. energy = 0 drops only exact zeros, and a zero
    matrix keeps rank 1. Source: Yang et al., CVPR-W 2020, section 3.3 (per layer).
    """
    if not 0 <= energy < 1:
        raise ValueError(f"energy must be a number with 0 <= energy < 1, but got {energy!r}")
    # summed from the small end: the tail is what is cut, and it would vanish in the rounding of the full sum
    tail = torch.flip(torch.cumsum(torch.flip(s.square(), (0,)), 0), (0,))  # tail[i] = sum of s_j^2 over j >= i
    return max(1, int((tail > energy * tail[0]).sum()))


def rank_by_entropy(s: Tensor, share: float) -> int:
    """Return the smallest k with -sum_{i<=k} p_i log p_i >= share * H(p), p = s / sum(s); 0 < share <= 1.

    A zero matrix, and one of rank 1 (whose entropy is 0), keep rank 1. Source: Cherukuri and Lala, arXiv 2504.20078.
    """
    terms = _entropy_terms(s)
    partial = torch.cumsum(terms, 0)
    target = share * partial[-1] * (1 - 1e-12)  # the last partial sum is the total, whatever the rounding
    return 1 + int((partial < target).sum())


def effective_rank(s: Tensor) -> float:
    """Return exp(H(p)), p = s / sum(s): r for a flat spectrum, 1 for a single value and for a zero matrix.

    Source: Roy and Vetterli, "The effective rank", EUSIPCO 2007.
    """
    return math.exp(float(_entropy_terms(s).sum()))


def _entropy_terms(s: Tensor) -> Tensor:
    """-p_i log p_i of p = s / sum(s); zeros for a zero matrix."""
    total = s.sum()
    terms: Tensor = torch.special.entr(s / total if total > 0 else torch.zeros_like(s))
    return terms


def scaled_stable_rank(s: Tensor, shape: tuple[int, int]) -> float:
    """Return stable rank ||s||^2 / s_1^2 times min(m, n) / (stable rank at initialisation); 0 for a zero matrix.

    Cuttlefish (Wang et al., MLSys 2023, arXiv 2305.02538) divides by the stable rank measured before training, so that
    a random matrix counts as full. Departure: its expectation for independent entries is used, m n / (sqrt(m) +
    sqrt(n))^2 (the largest singular value of an m x n matrix of unit variance tends to sqrt(m) + sqrt(n)), so that the
    rule needs no memory of the start.
    """
    m, n = shape
    if s[0] == 0:
        return 0.0
    stable = float(s.square().sum() / s[0].square())
    return stable * min(m, n) * (math.sqrt(m) + math.sqrt(n)) ** 2 / (m * n)


def equal_error(problem: RankProblem, config: RankConfig) -> Ranks:
    """Spend the budget so that all layers have the same relative spectral error s_{r+1} / s_1, the least possible.

    Source: ALDS, Liebenwein et al., NeurIPS 2021, section 3.2. Departure: each layer is one subspace (k = 1).
    """
    layers, multiple = problem.layers, config.rank_multiple
    allowance = problem.allowance(config)
    relative = {name: layer.s / layer.s[0].clamp_min(1e-300) for name, layer in layers.items()}

    def at(error: float) -> Ranks:
        return {name: layer.admissible(int((relative[name] > error).sum()), multiple) for name, layer in layers.items()}

    def spent(error: float) -> int:
        ranks = at(error)
        return sum(int(layer.cost(torch.tensor(ranks[name]), config.budget_unit)) for name, layer in layers.items())

    errors = torch.cat([*relative.values(), torch.tensor([0.0, 1.0])]).unique()  # ascending: the cost falls along it
    low, high = -1, len(errors) - 1  # `high` fits: at error 1 each layer has its lowest rank
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if spent(float(errors[middle])) <= allowance else (middle, high)
    return at(float(errors[high]))


def knapsack(problem: RankProblem, config: RankConfig) -> Ranks:
    """Keep the most energy under the budget: maximise sum_l E_l(r_l) with sum_l C_l(r_l) <= budget.

    E_l(r) is the share of the layer's ||s||^2 that rank r keeps. Source of the rule: the budget allocation of BALF-style
    compressors.
    """
    return _spend(problem, config, lambda kept: kept)


def log_knapsack(problem: RankProblem, config: RankConfig) -> Ranks:
    """As `knapsack`, for the product of what the layers keep: maximise sum_l log E_l(r_l).

    Layers act one after another, so that what one of them loses cannot be made up for by the others: at small budgets the
    sum sacrifices single layers, the product does not. Our own variant.
    """
    return _spend(problem, config, lambda kept: kept.clamp_min(1e-300).log())


def _spend(problem: RankProblem, config: RankConfig, value: Callable[[Tensor], Tensor]) -> Ranks:
    """Maximise sum_l value(E_l(r_l)) with sum_l C_l(r_l) <= budget.

    Bisection on the Lagrange multiplier: r_l = argmax E_l(r) -
    lambda C_l(r), which is optimal among all ranks of at most its own cost (Everett, Operations Research 11, 1963). What
    is left of the budget then goes to the steps that gain most per cost and still fit.
    """
    allowance = problem.allowance(config)
    tables = {name: _Table.of(layer, config, value) for name, layer in problem.layers.items()}
    low, high = 0.0, 1.0
    while sum(table.costs[table.best(high)] for table in tables.values()) > allowance:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        fits = sum(table.costs[table.best(middle)] for table in tables.values()) <= allowance
        low, high = (low, middle) if fits else (middle, high)
    chosen = {name: table.best(high) for name, table in tables.items()}
    left = allowance - sum(tables[name].costs[index] for name, index in chosen.items())
    while (step := _best_step(tables, chosen, left)) is not None:
        name, index = step
        left -= tables[name].costs[index] - tables[name].costs[chosen[name]]
        chosen[name] = index
    return {name: int(tables[name].ranks[index]) for name, index in chosen.items()}


@dataclass(frozen=True)
class _Table:
    """One layer's candidates with their costs, ascending, and what each is worth."""

    ranks: list[int]
    costs: list[int]
    values: Tensor
    prices: Tensor  # the costs, for arithmetic

    @staticmethod
    def of(layer: LayerSpectrum, config: RankConfig, value: Callable[[Tensor], Tensor]) -> "_Table":
        ranks = layer.candidates(config.rank_multiple)
        costs = layer.cost(ranks, config.budget_unit)
        order = torch.argsort(costs, stable=True)  # in parameters a dense layer may cost less than a low-rank one
        ranks, costs = ranks[order], costs[order]
        return _Table(ranks.tolist(), costs.tolist(), value(layer.kept_energy(ranks)), costs.double())

    def best(self, multiplier: float) -> int:
        return int(torch.argmax(self.values - multiplier * self.prices))


def _best_step(tables: dict[str, _Table], chosen: dict[str, int], left: int) -> tuple[str, int] | None:
    """The (layer, candidate) that fits in `left` and gains most per cost, if any gains."""
    best, found = 0.0, None
    for name, table in tables.items():
        now = chosen[name]
        for index in range(now + 1, len(table.costs)):
            extra = table.costs[index] - table.costs[now]
            if extra > left:
                break
            rate = float(table.values[index] - table.values[now]) / max(1, extra)
            if rate > best:
                best, found = rate, (name, index)
    return found


def greedy(problem: RankProblem, config: RankConfig) -> Ranks:
    """Lower one layer at a time, always the one whose measured validation loss rises least per cost saved.

    Starts with all layers dense and stops at the budget. Each step takes a layer down to the next of about twelve levels of
    its rank. A layer's rise is measured again when it comes first (lazy greedy), so that most steps need few evaluations.
    Needs `problem.validation_loss`.
    """
    loss = problem.validation_loss
    if loss is None:
        raise ConfigError(
            [("rank_rule", "greedy measures the validation loss, but there is nothing to measure it with")]
        )
    layers, unit = problem.layers, config.budget_unit
    target = problem.allowance(config) + problem.cost(dict.fromkeys(layers, 0), unit)
    levels = {name: _levels(layer, config.rank_multiple) for name, layer in layers.items()}
    ranks = {name: layer.full_rank for name, layer in layers.items()}
    current = loss(ranks)

    def measured(name: str) -> tuple[float, float, str]:
        lower = {**ranks, name: levels[name][0]}
        value = loss(lower)
        saved = problem.cost(ranks, unit) - problem.cost(lower, unit)
        return ((value - current) / max(1, saved), value, name)

    queue = [measured(name) for name in layers if levels[name]]
    heapq.heapify(queue)
    while problem.cost(ranks, unit) > target and queue:
        fresh = measured(heapq.heappop(queue)[2])
        if queue and fresh[0] > queue[0][0]:
            heapq.heappush(queue, fresh)
            continue
        _, current, name = fresh
        ranks[name] = levels[name].pop(0)
        if levels[name]:
            heapq.heappush(queue, measured(name))
    return ranks


def _levels(layer: LayerSpectrum, multiple: int) -> list[int]:
    """About twelve ranks below break-even, descending by a constant factor to the lowest one."""
    ranks = layer.candidates(multiple)[:-1].tolist()
    chosen = {ranks[round(len(ranks) ** (i / 11) - 1)] for i in range(12)} if ranks else set()
    return sorted(chosen, reverse=True)


def _per_layer(rank: Callable[[LayerSpectrum, RankConfig], float]) -> RankRule:
    """A rule that looks at one layer at a time; fractions are rounded up."""
    return lambda problem, config: {
        name: math.ceil(rank(layer, config) - 1e-9) for name, layer in problem.layers.items()
    }


# the fields of RankConfig that each rule reads
RULE_SETTINGS: dict[str, tuple[str, ...]] = {
    "energy": ("energy",),
    "absolute_threshold": ("threshold",),
    "relative_threshold": ("threshold",),
    "fixed_ratio": ("rank_fraction",),
    "entropy": ("entropy",),
    **dict.fromkeys(("effective_rank", "stable_rank", "evbmf"), ("rank_scale",)),
    **dict.fromkeys(("equal_error", "knapsack", "log_knapsack", "greedy"), ("budget", "budget_unit")),
}

RANK_RULES: dict[str, RankRule] = {
    "energy": _per_layer(lambda layer, config: rank_by_energy(layer.s, config.energy)),
    "absolute_threshold": _per_layer(lambda layer, config: int((layer.s > config.threshold).sum())),
    "relative_threshold": _per_layer(lambda layer, config: int((layer.s > config.threshold * layer.s[0]).sum())),
    "fixed_ratio": _per_layer(lambda layer, config: config.rank_fraction * layer.full_rank),
    "entropy": _per_layer(lambda layer, config: rank_by_entropy(layer.s, config.entropy)),
    "effective_rank": _per_layer(lambda layer, config: config.rank_scale * effective_rank(layer.s)),
    "stable_rank": _per_layer(lambda layer, config: config.rank_scale * scaled_stable_rank(layer.s, layer.shape)),
    "evbmf": _per_layer(lambda layer, config: config.rank_scale * layer.noise_free_rank),
    "equal_error": equal_error,
    "knapsack": knapsack,
    "log_knapsack": log_knapsack,
    "greedy": greedy,
}
