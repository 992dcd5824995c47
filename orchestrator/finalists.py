"""Which cuts of which trials are fine-tuned in the end."""

import numpy as np

from orchestrator.config import ConstraintsConfig, FinetuneConfig
from orchestrator.constraints import feasible
from orchestrator.curves import candidates
from orchestrator.objectives import accuracy_of, front_of, objectives
from orchestrator.pareto import spread_subset
from orchestrator.records import RunRecord


def pick_finalists(
    trials: list[RunRecord], config: FinetuneConfig, constraints: ConstraintsConfig | None = None
) -> list[RunRecord]:
    """Return at most `config.num_models` non-dominated candidates, spread along the front, best first.

    Candidates are the trials and all cuts of their curves (`curves.candidates`); see `pick_among`.
    """
    return pick_among(candidates(trials), config, constraints)


def pick_among(
    cuts: list[RunRecord], config: FinetuneConfig, constraints: ConstraintsConfig | None = None
) -> list[RunRecord]:
    """Return at most `config.num_models` of the non-dominated `cuts` by their scores, spread along the front, best first.

    Those that break `constraints`, or are below `config.min_relative_score` of the best, are left out. Each choice adds
    the most hypervolume; MACs count by their logarithm there: halving them is worth the same anywhere on the front.
    """
    limits = constraints or ConstraintsConfig()
    front = front_of([candidate for candidate in cuts if feasible(candidate, limits)])
    best = max((accuracy_of(candidate) or 0.0 for candidate in front), default=0.0)
    front = [candidate for candidate in front if (accuracy_of(candidate) or 0.0) >= config.min_relative_score * best]
    points = objectives(front)
    points[:, 1] = np.log(points[:, 1])
    return [front[row] for row in spread_subset(points, config.num_models)]
