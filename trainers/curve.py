"""One training, a whole curve: the trained network cut at a ladder of budgets, and each cut scored.

The exact SVD is taken once; a cut costs an evaluation and a short recovery, where another training would cost epochs.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from trainers.budgets import within_budget
from trainers.config import CurveConfig, RankConfig, TrainingConfig
from trainers.cost import measure_cost
from trainers.data import ImageData, spread_rows
from trainers.deploy import PrunedModel, Spectra, prune_to_ranks, rank_problem
from trainers.errors import ConfigError
from trainers.evaluation import evaluate_split
from trainers.latency_table import LatencyTable
from trainers.methods import Method
from trainers.rank_rules import RULE_SETTINGS, choose_ranks
from trainers.recovery import recover

_LARGEST_JUDGED = 0.8


@dataclass(frozen=True)
class Cut:
    """One cut of a trained network. `settings` are those of the rank rule that differ from the method's own: none for its
    own cut. `score` is the validation accuracy after the recovery; MACs are of one sample. `latency_ms` is foreseen from a
    table of times, where there is one.
    """

    settings: dict[str, float]
    macs: int
    params: int
    score: float
    latency_ms: float | None = None

    def record(self) -> dict[str, Any]:
        """The cut as plain values, for a file."""
        return asdict(self)


def trained_curve(
    method: Method,
    own: PrunedModel,
    decomposed: tuple[nn.Module, Spectra] | None,
    data: ImageData,
    training: TrainingConfig,
    config: CurveConfig,
    latency: LatencyTable | None = None,
) -> list[Cut]:
    """Score the method's `own` cut, the first of the list, and one at each budget at which its rule gives other ranks.

    `decomposed` is what `method.decomposed()` returned, or None where ranks were decided during training; `data` is on the
    network's device.
    """
    rows = scoring_rows(data, config)
    uncut = evaluate_split(method.model, rows, training.dtype)["accuracy"]
    shape = method.network.sample_shape

    def scored(settings: dict[str, float], pruned: PrunedModel, model: nn.Module) -> Cut:
        cost = measure_cost(model, shape)
        score = recover(model.to(memory_format=torch.channels_last), rows, training, config, uncut).accuracy
        form = method.deployed_form(pruned).decomposition or ""
        foreseen = None if latency is None else latency.predict(form, pruned.layers)
        return Cut(settings, cost.macs, cost.params, score, foreseen)

    cuts = [scored({}, own, copy.deepcopy(own.model))]
    if decomposed is None:
        return cuts
    model, spectra = decomposed
    seen = {tuple(own.ranks.items())}
    for settings, ranks in ladder(method, model, spectra, config):
        pruned = prune_to_ranks(model, ranks, shape, spectra)
        if (key := tuple(pruned.ranks.items())) not in seen:
            seen.add(key)
            cuts.append(scored(settings, pruned, pruned.model))
    return cuts


def judged_curve(config: CurveConfig) -> CurveConfig:
    """Return the curve by which trials are compared on their way: half of the points, without steps of recovery.

    Mild cuts are left out: there all trials cost the same, and the one that happens to be the best would never be stopped.
    """
    largest = max(config.smallest, min(config.largest, _LARGEST_JUDGED))
    return replace(config, num_points=-(-config.num_points // 2), recovery_steps=0, largest=largest)


def scoring_rows(data: ImageData, config: CurveConfig) -> ImageData:
    """Return the set with at most `max_validation` validation rows, evenly spread."""
    return replace(data, validation_rows=spread_rows(data.validation_rows, config.max_validation))


def ladder(
    method: Method, model: nn.Module, spectra: Spectra, config: CurveConfig
) -> Iterator[tuple[dict[str, float], dict[str, int]]]:
    """Yield the rank rule's settings and its ranks at each of the curve's budgets that it can meet.

    `greedy` measures every step on validation data, which would cost more than a training: it has no ladder.
    """
    own: RankConfig = method.config
    if own.rank_rule == "greedy":
        return
    problem = rank_problem(model, spectra, method.network.sample_shape)
    key = RULE_SETTINGS[own.rank_rule or "energy"][0]
    for budget in budgets(config):
        rule = within_budget(problem, own, budget, own.budget_unit)
        try:
            ranks = choose_ranks(problem, rule)
        except ConfigError:  # below the cost of rank 1 everywhere
            return
        yield {key: getattr(rule, key)}, ranks


def budgets(config: CurveConfig) -> list[float]:
    """Return the shares of the dense network at which a training is cut, from the largest.

    Their square roots fall in equal steps: mild cuts, between which users choose, lie closer than in equal factors.
    """
    if config.num_points < 2:
        return [config.largest] * config.num_points
    first, last = math.sqrt(config.largest), math.sqrt(config.smallest)
    steps = config.num_points - 1
    between = [(first + (last - first) * i / steps) ** 2 for i in range(1, steps)]
    return [config.largest, *between, config.smallest]
