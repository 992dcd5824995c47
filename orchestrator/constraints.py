"""Limits on a network's cost and accuracy, as Optuna and the choice of finalists understand them."""

import math

from orchestrator.config import ConstraintsConfig
from orchestrator.objectives import accuracy_of
from orchestrator.records import RunRecord


def violations(
    constraints: ConstraintsConfig,
    accuracy: float | None,
    macs_ratio: float | None,
    params_ratio: float | None,
    latency_ms: float | None = None,
) -> dict[str, float] | None:
    """Return by how much each limit that is set is exceeded, at most 0 where it is kept, always in the same order.

    None where a figure that is limited is missing or not finite: nothing can be said then.
    """
    excess = {}
    for name, value, sign in (
        ("max_macs_ratio", macs_ratio, 1),
        ("max_params_ratio", params_ratio, 1),
        ("max_latency_ms", latency_ms, 1),
        ("min_accuracy", accuracy, -1),
    ):
        limit = getattr(constraints, name)
        if limit is None:
            continue
        if value is None or not math.isfinite(value):
            return None
        excess[name] = sign * (value - limit)
    return excess


def violations_of(record: RunRecord, constraints: ConstraintsConfig) -> dict[str, float] | None:
    """Return by how much a run, or a cut of its network, exceeds each limit, as `violations` does."""
    figures = record.macs_ratio, record.params_ratio, record.predicted_latency_ms
    return violations(constraints, accuracy_of(record), *figures)


def feasible(record: RunRecord, constraints: ConstraintsConfig) -> bool:
    """Whether a run, or a cut of its network, is known to keep to every limit; its state is not looked at."""
    found = violations_of(record, constraints)
    return found is not None and all(excess <= 0 for excess in found.values())
