"""Which cuts of which trials are fine-tuned in the end."""

import math
from collections.abc import Sequence

import numpy as np

from orchestrator.config import ConstraintsConfig, FinetuneConfig
from orchestrator.constraints import feasible
from orchestrator.curves import candidates
from orchestrator.objectives import accuracy_of, front_of, objectives, saves
from orchestrator.pareto import spread_subset
from orchestrator.records import RunRecord
from orchestrator.tuned import Finalist
from trainers.config import CurveConfig

_SAMPLED = CurveConfig().max_validation


def pick_finalists(
    trials: list[RunRecord],
    config: FinetuneConfig,
    constraints: ConstraintsConfig | None = None,
    num_scored: int = _SAMPLED,
) -> list[RunRecord]:
    """Return at most `config.num_models` non-dominated candidates, spread along the front, the nearest to dense first.

    Candidates are the trials and all cuts of their curves (`curves.candidates`); see `pick_among`.
    """
    return pick_among(candidates(trials), config, constraints, num_scored)


def pick_among(
    cuts: list[RunRecord],
    config: FinetuneConfig,
    constraints: ConstraintsConfig | None = None,
    num_scored: int = _SAMPLED,
) -> list[RunRecord]:
    """Return at most `config.num_models` of the non-dominated `cuts` by their scores, spread along the front.

    Those that break `constraints`, or are below `config.min_relative_score` of the best, are left out; so are networks that
    cost no less than the dense one, for which the baseline stands, where others do. Of two or more the first is the nearest
    to dense (`nearest_to_dense`); each further choice adds the most hypervolume. MACs count by their logarithm there:
    halving them is worth the same anywhere on the front. Scores are of at most `num_scored` images.
    """
    limits = constraints or ConstraintsConfig()
    cheaper = [candidate for candidate in cuts if saves(candidate)] or cuts
    front = front_of([candidate for candidate in cheaper if feasible(candidate, limits)])
    best = max((accuracy_of(candidate) or 0.0 for candidate in front), default=0.0)
    front = [candidate for candidate in front if (accuracy_of(candidate) or 0.0) >= config.min_relative_score * best]
    points = objectives(front)
    points[:, 1] = np.log(points[:, 1])
    # hypervolume alone would leave out the upper end of a front that is flat there
    given = [nearest_to_dense(front, num_scored)] if front and config.num_models > 1 else []
    return [front[row] for row in spread_subset(points, config.num_models, given)]


def nearest_to_dense(front: Sequence[RunRecord], num_scored: int) -> int:
    """Return the place on the `front`, which begins with the fewest MACs, of the cheapest network that is as good as any.

    As good, as far as scores of `num_scored` images can tell: at most two standard errors below the best one, after the rule
    of one standard error (Breiman et al., Classification and Regression Trees, 1984, section 3.4.3). A costlier one would
    save less for a gain that may well be chance, and that fine-tuning levels out.
    """
    scores = [accuracy_of(candidate) or 0.0 for candidate in front]
    best = max(scores)
    tolerance = 2 * math.sqrt(best * (1 - best) / num_scored)
    return next(place for place, score in enumerate(scores) if score >= best - tolerance)


def within_reach(cuts: Sequence[RunRecord], tuned: Sequence[Finalist]) -> list[RunRecord]:
    """Return the `cuts` that fine-tuning may still bring onto the front of the finalists that are `tuned`.

    A bound on the optimistic side: a cut may gain as much accuracy over its score as the finalist with no more MACs that
    gained most, since what is cut further gains more. Where that leaves it behind a finalist with no more MACs, it is left
    out. One that is cheaper than every finalist, or is one, is kept.
    """
    scores, there = {cut.name: accuracy_of(cut) or 0.0 for cut in cuts}, {one.candidate for one in tuned}
    known = [
        (one.record.macs or 0, one.record.val_accuracy or 0.0, (one.record.val_accuracy or 0.0) - scores[one.candidate])
        for one in tuned
        if one.candidate in scores
    ]

    def reaches(cut: RunRecord) -> bool:
        cheaper = [(accuracy, gain) for macs, accuracy, gain in known if macs <= (cut.macs or 0)]
        if not cheaper or cut.name in there:
            return True
        return scores[cut.name] + max(gain for _, gain in cheaper) > max(accuracy for accuracy, _ in cheaper)

    return [cut for cut in cuts if reaches(cut)]
