"""Every rule against an independent formula or brute force, in float64."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import singular_values

from trainers.budgets import RULE_RANGES, within_budget
from trainers.config import RankConfig
from trainers.errors import ConfigError
from trainers.rank_rules import (
    RANK_RULES,
    RULE_SETTINGS,
    LayerSpectrum,
    RankProblem,
    choose_ranks,
    effective_rank,
    evbmf_rank,
    rank_by_energy,
    rank_by_entropy,
    scaled_stable_rank,
)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def linear(s, shape=None):
    """A linear layer of `shape` (m, n), by default square, whose rank costs m + n."""
    s = tensor(s)
    m, n = shape or (len(s), len(s))
    return LayerSpectrum(s, (m, n), m + n, m * n, m + n, m * n)


def random_problem(seed, num_layers=3, size=7, smallest=4):
    """Layers with decaying spectra; sizes are small enough to try every combination of ranks."""
    generator = np.random.default_rng(seed)
    layers = {}
    for i in range(num_layers):
        m, n = (int(side) for side in generator.integers(smallest, size + 1, 2))
        s = np.sort(generator.exponential(size=min(m, n)) * generator.choice([0.1, 1, 10]))[::-1]
        layers[f"layer{i}"] = linear(s.copy(), (m, n))
    return RankProblem(layers, fixed_macs=int(generator.integers(0, 30)))


def all_choices(problem, multiple=1):
    candidates = [layer.candidates(multiple).tolist() for layer in problem.layers.values()]
    for ranks in itertools.product(*candidates):
        yield dict(zip(problem.layers, ranks, strict=True))


def kept(problem, ranks):
    """Sum over layers of the share of squared singular values kept."""
    return sum(
        float(layer.s[: ranks[name]].square().sum() / layer.s.square().sum()) for name, layer in problem.layers.items()
    )


def dense(problem):
    return {name: layer.full_rank for name, layer in problem.layers.items()}


@given(singular_values, st.floats(0, 0.999))
def test_energy_is_the_smallest_rank_that_keeps_it(values, energy):
    s = tensor(values)
    rank = rank_by_energy(s, energy)
    lost = [float(s[k:].square().sum()) for k in range(len(values) + 1)]
    slack = 1e-12 * lost[0]
    assert 1 <= rank <= len(values)
    assert lost[rank] <= energy * lost[0] + slack
    if rank > 1:
        assert lost[rank - 1] > energy * lost[0] - slack


@pytest.mark.parametrize(
    ("values", "energy", "rank"),
    [
        ((2, 1, 1), 0, 3),
        ((2, 1, 0), 0, 2),
        ((0, 0), 0.5, 1),
        ((3, 0), 0, 1),
        ((2, 1, 1), 1 / 6, 2),  # the cut may take exactly its share
        ((2, 1, 1), 0.16, 3),
        ((1, 1e-9), 0, 2),  # a value far below the first one's rounding still counts
    ],
)
def test_energy_at_known_points(values, energy, rank):
    assert rank_by_energy(tensor(values), energy) == rank


@pytest.mark.parametrize("energy", [-0.1, 1, 1.5, float("nan")])
def test_energy_outside_its_range_is_refused(energy):
    with pytest.raises(ValueError, match="0 <= energy < 1, but got"):
        rank_by_energy(tensor([1.0]), energy)


@given(singular_values, st.floats(0.01, 1))
def test_entropy_is_the_smallest_rank_that_keeps_its_share(values, share):
    rank = rank_by_entropy(tensor(values), share)
    total = sum(values)
    p = [value / total for value in values] if total else [0.0 for _ in values]
    terms = [-x * math.log(x) if x > 0 else 0.0 for x in p]
    assert 1 <= rank <= len(values)
    assert sum(terms[:rank]) >= share * sum(terms) - 1e-9
    if rank > 1:
        assert sum(terms[: rank - 1]) < share * sum(terms) + 1e-9


def test_entropy_at_known_points():
    flat = tensor([1.0] * 10)
    assert rank_by_entropy(flat, 0.8) == 8
    assert rank_by_entropy(flat, 1.0) == 10
    assert rank_by_entropy(tensor([5.0, 0, 0]), 0.9) == 1
    assert rank_by_entropy(tensor([0.0, 0.0]), 0.9) == 1


def test_effective_rank_at_known_points():
    assert effective_rank(tensor([2.0] * 6)) == pytest.approx(6)
    assert effective_rank(tensor([3.0, 0, 0])) == pytest.approx(1)
    assert effective_rank(tensor([0.0, 0])) == pytest.approx(1)
    p = [0.5, 0.25, 0.25]
    assert effective_rank(tensor([2.0, 1, 1])) == pytest.approx(math.prod(x**-x for x in p))


def test_scaled_stable_rank_counts_a_random_matrix_as_full_and_one_value_as_least():
    for m, n in ((400, 400), (100, 900)):
        matrix = torch.randn(m, n, dtype=torch.float64)
        assert scaled_stable_rank(torch.linalg.svdvals(matrix), (m, n)) / min(m, n) == pytest.approx(1, abs=0.06)
    one = scaled_stable_rank(tensor([3.0, 0, 0, 0]), (4, 9))
    assert one == pytest.approx(4 * (2 + 3) ** 2 / 36)  # stable rank 1 times the factor
    assert scaled_stable_rank(tensor([0.0, 0]), (2, 2)) == 0


class TestEVBMF:
    @pytest.mark.parametrize(("rows", "columns", "rank"), [(60, 100, 5), (80, 80, 12), (30, 200, 3)])
    def test_finds_the_rank_of_a_matrix_under_noise(self, rows, columns, rank):
        left, right = torch.randn(rows, rank, dtype=torch.float64), torch.randn(rank, columns, dtype=torch.float64)
        for noise in (0.01, 0.3):
            matrix = left @ right + noise * torch.randn(rows, columns, dtype=torch.float64)
            assert evbmf_rank(torch.linalg.svdvals(matrix), (rows, columns)) == rank

    def test_pure_noise_has_rank_zero_and_so_has_a_zero_matrix(self):
        assert evbmf_rank(torch.linalg.svdvals(torch.randn(50, 80, dtype=torch.float64)), (50, 80)) == 0
        assert evbmf_rank(tensor([0.0, 0.0]), (2, 3)) == 0

    def test_a_matrix_without_noise_has_its_own_rank(self):
        s = tensor([3.0, 2, 1] + [0.0] * 17)
        assert evbmf_rank(s, (20, 30)) == 3

    def test_depends_neither_on_scale_nor_on_transposition(self):
        matrix = torch.randn(20, 4, dtype=torch.float64) @ torch.randn(4, 30, dtype=torch.float64)
        s = torch.linalg.svdvals(matrix + 0.5 * torch.randn(20, 30, dtype=torch.float64))
        assert evbmf_rank(s, (20, 30)) == evbmf_rank(s, (30, 20)) == evbmf_rank(1e4 * s, (20, 30))

    @pytest.mark.parametrize("seed", range(5))
    def test_agrees_with_a_fine_grid_over_the_free_energy_written_out(self, seed):
        """The posterior factors' own formulas: gamma, and the free energy of each component summed one by one."""
        generator = np.random.default_rng(seed)
        low, high = 24, 40
        matrix = generator.normal(size=(low, 3)) @ generator.normal(size=(3, high)) * 0.3
        s = np.linalg.svd(matrix + generator.normal(size=(low, high)), compute_uv=False)
        alpha = low / high
        tau_bar = 2.5129 * math.sqrt(alpha)
        x_bar = (1 + tau_bar) * (1 + alpha / tau_bar)

        def free_energy(variance):
            total = 0.0
            for value in s:
                x = value**2 / (high * variance)
                if x <= x_bar:
                    total += x - math.log(x)
                    continue
                # tau solves x = (1 + tau)(1 + alpha / tau), the larger root
                tau = max(np.roots([1, 1 + alpha - x, alpha]).real)
                total += x - tau + math.log((tau + 1) / x) + alpha * math.log(tau / alpha + 1)
            return total

        most = math.ceil(low / (1 + alpha)) - 1
        bounds = max(s[most] ** 2 / (high * x_bar), (s[most:] ** 2).mean() / high), (s**2).sum() / (low * high)
        best = min(np.geomspace(*bounds, 4000), key=free_energy)
        expected = int((s**2 > high * best * x_bar).sum())
        assert evbmf_rank(tensor(s.tolist()), (low, high)) == expected


class TestBudgets:
    @pytest.mark.parametrize("seed", range(20))
    @pytest.mark.parametrize("unit", ["macs", "params"])
    @pytest.mark.parametrize("multiple", [1, 2])
    def test_knapsack_against_brute_force(self, seed, unit, multiple):
        """Nothing that costs as much as the choice keeps more; what the budget would allow beyond it is one step at most."""
        problem = random_problem(seed, size=7 * multiple, smallest=4 * multiple)
        config = RankConfig(rank_rule="knapsack", budget=0.7, budget_unit=unit, rank_multiple=multiple)
        budget = config.budget * problem.cost(dense(problem), unit)
        ranks = choose_ranks(problem, config)
        spent = problem.cost(ranks, unit)
        assert spent <= budget
        choices = list(all_choices(problem, multiple))
        best = max(kept(problem, choice) for choice in choices if problem.cost(choice, unit) <= budget)
        steps = [
            float(b - a)
            for layer in problem.layers.values()
            for a, b in itertools.pairwise(layer.kept_energy(layer.candidates(multiple)).tolist())
        ]
        assert kept(problem, ranks) <= best + 1e-12
        assert kept(problem, ranks) >= best - max(steps)

    @pytest.mark.parametrize("seed", range(20))
    def test_knapsack_is_optimal_wherever_the_multiplier_alone_decides(self, seed):
        """At the budgets that some multiplier spends to the last unit, no choice of all keeps more."""
        problem = random_problem(seed)
        total = problem.cost(dense(problem), "macs")
        for multiplier in (0.0005, 0.002, 0.008, 0.03):
            choices = list(all_choices(problem))
            chosen = max(choices, key=lambda choice: kept(problem, choice) - multiplier * problem.cost(choice, "macs"))
            budget = problem.cost(chosen, "macs")
            found = choose_ranks(problem, RankConfig(rank_rule="knapsack", budget=min(1.0, (budget + 0.5) / total)))
            best = max(kept(problem, choice) for choice in choices if problem.cost(choice, "macs") <= budget)
            assert kept(problem, found) == pytest.approx(best, abs=1e-9)

    @pytest.mark.parametrize("seed", range(10))
    def test_equal_error_has_the_least_common_error_that_fits(self, seed):
        problem = random_problem(seed)
        config = RankConfig(rank_rule="equal_error", budget=0.6)
        budget = config.budget * problem.cost(dense(problem), "macs")
        ranks = choose_ranks(problem, config)
        assert problem.cost(ranks, "macs") <= budget
        levels = sorted({float(x) for layer in problem.layers.values() for x in layer.s / layer.s[0]} | {0.0})
        for level in levels:  # from the smallest error: the first one that fits is the answer
            expected = {
                name: layer.admissible(sum(float(x) > level for x in layer.s / layer.s[0]))
                for name, layer in problem.layers.items()
            }
            if problem.cost(expected, "macs") <= budget:
                break
        assert ranks == expected

    def test_greedy_takes_the_step_that_costs_least_loss(self):
        """With a loss that is a sum over layers, the layer that does not matter is cut first."""
        layers = {"vital": linear([1.0] * 12), "idle": linear([1.0] * 12)}
        weights = {"vital": 1.0, "idle": 0.001}

        def loss(ranks):
            return sum(weights[name] * (12 - rank) for name, rank in ranks.items())

        problem = RankProblem(layers, validation_loss=loss)
        ranks = choose_ranks(problem, RankConfig(rank_rule="greedy", budget=0.7))
        assert ranks["vital"] == 12
        assert problem.cost(ranks, "macs") <= 0.7 * 288

    @pytest.mark.parametrize("seed", range(5))
    def test_greedy_follows_a_plain_greedy_search(self, seed):
        """The lazy queue finds what measuring every layer at every step finds, for a separable convex loss."""
        problem = random_problem(seed, size=9)

        def loss(ranks):
            return -kept(problem, ranks)

        config = RankConfig(rank_rule="greedy", budget=0.6)
        lazy = choose_ranks(RankProblem(problem.layers, problem.fixed_macs, validation_loss=loss), config)
        ranks = dense(problem)
        budget = config.budget * problem.cost(ranks, "macs")
        levels = {name: layer.candidates()[:-1].tolist() for name, layer in problem.layers.items()}  # all: under twelve
        while problem.cost(ranks, "macs") > budget:
            options = []
            for name, left in levels.items():
                if left:
                    lower = {**ranks, name: left[-1]}
                    saved = problem.cost(ranks, "macs") - problem.cost(lower, "macs")
                    options.append(((loss(lower) - loss(ranks)) / saved, name))
            name = min(options)[1]
            ranks[name] = levels[name].pop()
        assert lazy == ranks

    def test_greedy_without_a_measure_is_an_error(self):
        with pytest.raises(ConfigError, match="greedy measures the validation loss"):
            choose_ranks(random_problem(0), RankConfig(rank_rule="greedy"))

    @pytest.mark.parametrize("rule", ["knapsack", "equal_error", "greedy"])
    def test_a_budget_that_cannot_be_met_is_an_error_with_the_least_one(self, rule):
        problem = RankProblem({"a": linear([1.0] * 10)}, fixed_macs=50, validation_loss=lambda ranks: 0.0)
        with pytest.raises(ConfigError, match=r"must be at least 0\.4667, .* at the lowest ranks, but got 0\.3; raise"):
            choose_ranks(problem, RankConfig(rank_rule=rule, budget=0.3))
        assert choose_ranks(problem, RankConfig(rank_rule=rule, budget=0.4667)) == {"a": 1}


@settings(max_examples=30)
@given(singular_values, st.integers(1, 20), st.sampled_from([1, 8, 16]))
def test_admissible_ranks_are_multiples_below_break_even_or_full(values, rank, multiple):
    layer = linear(values)
    found = layer.admissible(min(rank, len(values)), multiple)
    assert found in layer.candidates(multiple).tolist()
    if found < layer.full_rank:
        assert found % multiple == 0
        assert found >= min(rank, len(values))
        assert found * (2 * len(values)) < len(values) ** 2


def test_break_even_is_m_n_over_m_plus_n():
    layer = linear([1.0] * 12, (12, 24))  # 12 * 24 / 36 = 8: there two layers cost as much as one
    assert layer.largest_low_rank == 7
    assert layer.candidates().tolist() == [1, 2, 3, 4, 5, 6, 7, 12]
    assert layer.candidates(4).tolist() == [4, 12]
    assert [layer.admissible(rank) for rank in (0, 7, 8)] == [1, 7, 12]


@pytest.mark.parametrize("rule", RANK_RULES)
class TestEveryRule:
    @pytest.mark.parametrize("multiple", [1, 3])
    def test_gives_each_layer_an_admissible_rank(self, rule, multiple):
        problem = random_problem(3, size=24, smallest=12)
        problem = RankProblem(problem.layers, problem.fixed_macs, validation_loss=lambda r: -kept(problem, r))
        ranks = choose_ranks(problem, RankConfig(rank_rule=rule, rank_multiple=multiple, budget=0.6))
        assert list(ranks) == list(problem.layers)
        for name, rank in ranks.items():
            assert rank in problem.layers[name].candidates(multiple).tolist()

    def test_takes_a_zero_matrix_and_a_single_value(self, rule):
        layers = {"zero": linear([0.0] * 6), "one": linear([2.0], (1, 5)), "other": linear([3.0, 2, 1, 1, 1, 1])}
        problem = RankProblem(layers, validation_loss=lambda ranks: 0.0)
        ranks = choose_ranks(problem, RankConfig(rank_rule=rule, budget=0.9, energy=0.5))
        assert all(1 <= ranks[name] <= layer.full_rank for name, layer in layers.items())
        assert ranks["one"] == 1

    def test_a_scaled_matrix_keeps_its_rank(self, rule):
        """Except for the one rule that is about absolute size."""
        problem = random_problem(5, size=12)
        scaled = {
            name: LayerSpectrum(100 * x.s, x.shape, x.macs_per_rank, x.dense_macs, x.params_per_rank, x.dense_params)
            for name, x in problem.layers.items()
        }
        config = RankConfig(rank_rule=rule, budget=0.6, threshold=0.5)
        found = [
            choose_ranks(RankProblem(layers, validation_loss=lambda r: -kept(problem, r)), config)
            for layers in (problem.layers, scaled)
        ]
        assert (found[0] == found[1]) == (rule != "absolute_threshold")


@pytest.mark.parametrize(
    ("config", "rank"),
    [
        (RankConfig(rank_rule="absolute_threshold", threshold=1.5), 3),
        (RankConfig(rank_rule="relative_threshold", threshold=0.25), 2),
        (RankConfig(rank_rule="fixed_ratio", rank_fraction=0.25), 3),
        (RankConfig(rank_rule="fixed_ratio", rank_fraction=0.26), 4),
    ],
)
def test_simple_rules_at_known_points(config, rank):
    problem = RankProblem({"a": linear([8.0, 4, 2, 1, 0.5, 0.1, 0.1, 0.1, 0.1, 0, 0, 0])})
    assert choose_ranks(problem, config) == {"a": rank}


@pytest.mark.parametrize("rule", RANK_RULES)
@pytest.mark.parametrize("unit", ["macs", "params"])
def test_every_rule_reaches_a_budget_by_its_own_number(rule, unit):
    """Within the budget; and where the rule has a number of its own, a costlier one would exceed it."""
    problem = random_problem(5, num_layers=4, size=40, smallest=20)
    problem = RankProblem(problem.layers, problem.fixed_macs, 7, validation_loss=lambda ranks: -kept(problem, ranks))
    allowed = 0.6 * problem.dense_cost(unit)
    found = within_budget(problem, RankConfig(rank_rule=rule), 0.6, unit)
    spent = problem.cost(choose_ranks(problem, found), unit)
    assert spent <= allowed
    (key, *rest) = RULE_SETTINGS[rule]
    if rest:
        assert (found.budget, found.budget_unit) == (0.6, unit)
        return
    cheap, costly = RULE_RANGES[rule]
    steps = cheap * (costly / cheap) ** np.linspace(0, 1, 50)
    costs = [
        problem.cost(choose_ranks(problem, RankConfig(rank_rule=rule, **{key: min(step, 1e3)})), unit) for step in steps
    ]
    assert spent >= max(cost for cost in costs if cost <= allowed)
