"""Which trials are fine-tuned in the end."""

import numpy as np

from orchestrator.objectives import front_of, objectives
from orchestrator.pareto import spread_subset
from orchestrator.records import RunRecord


def pick_finalists(trials: list[RunRecord], count: int) -> list[RunRecord]:
    """Return at most `count` non-dominated trials, spread along the front by hypervolume contribution, best first.

    MACs count by their logarithm here: halving them is worth the same anywhere on the front.
    """
    front = front_of(trials)
    points = objectives(front)
    points[:, 1] = np.log(points[:, 1])
    return [front[row] for row in spread_subset(points, count)]
