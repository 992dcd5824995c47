"""Which cuts of which trials are fine-tuned in the end."""

import numpy as np

from orchestrator.config import ConstraintsConfig
from orchestrator.constraints import feasible
from orchestrator.curves import candidates
from orchestrator.objectives import front_of, objectives
from orchestrator.pareto import spread_subset
from orchestrator.records import RunRecord


def pick_finalists(
    trials: list[RunRecord], count: int, constraints: ConstraintsConfig | None = None
) -> list[RunRecord]:
    """Return at most `count` non-dominated candidates, spread along the front by hypervolume contribution, best first.

    Candidates are the trials and all cuts of their curves (`curves.candidates`), by their scores; those that break
    `constraints` are left out. MACs count by their logarithm here: halving them is worth the same anywhere on the front.
    """
    limits = constraints or ConstraintsConfig()
    front = front_of([candidate for candidate in candidates(trials) if feasible(candidate, limits)])
    points = objectives(front)
    points[:, 1] = np.log(points[:, 1])
    return [front[row] for row in spread_subset(points, count)]
