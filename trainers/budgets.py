"""Budgets for rank rules that have none of their own: the number of a per-layer rule that spends a given share."""

import math
from dataclasses import replace
from typing import Any

from trainers.config import RankConfig
from trainers.rank_rules import RULE_SETTINGS, RankProblem, Unit, choose_ranks

# the range of each rule's number, from the cheapest network to the most costly
RULE_RANGES: dict[str, tuple[float, float]] = {
    "energy": (0.999999, 1e-9),
    "absolute_threshold": (1e2, 1e-4),
    "relative_threshold": (1.0, 1e-4),
    "fixed_ratio": (1e-3, 1.0),
    "entropy": (1e-6, 1.0),
    "effective_rank": (1e-3, 1e3),
    "stable_rank": (1e-3, 1e3),
    "evbmf": (1e-3, 1e3),
}
_STEPS = 24  # to a relative 1e-6 of the number: not to the very edge of a jump, which other rounding would move


def within_budget(problem: RankProblem, config: RankConfig, budget: float, unit: Unit) -> RankConfig:
    """Return `config` with the number of its rank rule that spends at most `budget`, and as nearly as the rule can.

    `budget` is a share of the dense network's `unit`, 0 < budget <= 1. A per-layer rule's number is found by bisection on
    its logarithm, a global rule takes the budget as it is. Where even the cheap end of the rule's range costs more, that
    end is returned.
    """
    rule = config.rank_rule or "energy"
    if rule not in RULE_RANGES:
        return replace(config, budget=budget, budget_unit=unit)
    (key,) = RULE_SETTINGS[rule]
    allowed = budget * problem.dense_cost(unit)
    cheap, costly = RULE_RANGES[rule]

    def at(number: float) -> RankConfig:
        changed: dict[str, Any] = {key: number}
        return replace(config, **changed)

    for _ in range(_STEPS):
        middle = math.sqrt(cheap * costly)
        fits = problem.cost(choose_ranks(problem, at(middle)), unit) <= allowed
        cheap, costly = (middle, costly) if fits else (cheap, middle)
    return at(cheap)
