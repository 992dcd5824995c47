"""How the hypervolume grew while a sweep searched."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.curves import candidates
from orchestrator.objectives import REFERENCE, objectives
from orchestrator.pareto import hypervolume, non_dominated
from orchestrator.records import RunRecord


@dataclass(frozen=True)
class Progress:
    """One entry for each trial that ended, in that order.

    `wall_s` since the first run of the sweep began, pauses included; `core_s`: CPU time of all runs that had ended by then,
    those of stage 1, stopped and failed ones too; `hypervolume` of all cuts so far, as in `objectives.front_hypervolume`.
    """

    names: list[str]
    wall_s: list[float]
    core_s: list[float]
    hypervolume: list[float]


def search_progress(records: Sequence[RunRecord]) -> Progress:
    """Return the course of the search; runs without a time of ending are left out."""
    ended = sorted((record for record in records if record.ended_at_s is not None), key=lambda r: r.ended_at_s or 0)
    progress = Progress([], [], [], [])
    if not ended:
        return progress
    begin = min((record.ended_at_s or 0) - (record.duration_s or 0) for record in ended)
    front = np.empty((0, 2))
    core_s = 0.0
    for record in ended:
        core_s += record.cpu_s or 0.0
        if record.stage != "trial":
            continue
        points = np.concatenate((front, objectives(candidates([record]))))
        front = points[non_dominated(points)]  # all that later trials need to know of earlier ones
        progress.names.append(record.name)
        progress.wall_s.append((record.ended_at_s or 0) - begin)
        progress.core_s.append(core_s)
        progress.hypervolume.append(hypervolume(front, REFERENCE))
    return progress
