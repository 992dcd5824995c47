"""Trials that go on from a finished neighbour's weights instead of from stage 1 (`search.continuation`)."""

import math
from collections.abc import Sequence
from typing import Any

from orchestrator.jobs import stage_one_of
from orchestrator.records import RunRecord
from trainers.config import MethodConfig, TrainingConfig, apply_settings
from trainers.methods import resolve

MAX_FACTOR = 3.0  # between the strengths of two neighbours


def neighbour(settings: dict[str, Any], trials: Sequence[RunRecord]) -> RunRecord | None:
    """Return the trial whose uncut network a new one with `settings` can go on from, None where there is none.

    It is complete, itself started from stage 1, in the same form, with the same method, decomposition and regularizer; of
    those the one whose strength is nearest, as a ratio, and at most MAX_FACTOR away. Of equals the first to end.
    """
    method = resolve(apply_settings(settings, TrainingConfig(), MethodConfig())[1])
    if not method.regularizer or not method.strength:
        return None
    kind = (method.method, method.decomposition, method.regularizer)
    start = stage_one_of(settings).name
    best, least = None, math.log(MAX_FACTOR)
    for trial in trials:
        same = trial.state == "COMPLETE" and (trial.method, trial.decomposition, trial.regularizer) == kind
        if not same or trial.source != start or not trial.strength:
            continue
        distance = abs(math.log(trial.strength / method.strength))
        if distance < least or (best is None and distance <= least):
            best, least = trial, distance
    return best
