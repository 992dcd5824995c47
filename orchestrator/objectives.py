"""The two objectives of a sweep, read off its table: validation accuracy, maximised, and MACs, minimised.

The accuracy is the score after a cheap recovery, where a run has one, else that of its network as it is.
"""

import numpy as np

from orchestrator.pareto import Points, hypervolume, non_dominated
from orchestrator.records import RunRecord

REFERENCE = np.array([0.0, 1.0])  # accuracy 0, MACs of the dense network


def objectives(records: list[RunRecord]) -> Points:
    """Return the two objectives of each run, both to be minimised: (-accuracy, macs_ratio); NaN where missing."""
    rows = [
        (np.nan, np.nan)
        if record.state != "COMPLETE" or (accuracy := accuracy_of(record)) is None or record.macs_ratio is None
        else (-accuracy, record.macs_ratio)
        for record in records
    ]
    return np.array(rows, dtype=np.float64).reshape(-1, 2)


def accuracy_of(record: RunRecord) -> float | None:
    """Return the accuracy that counts: `score` if the run has one, else `val_accuracy`."""
    return record.val_accuracy if record.score is None else record.score


def saves(record: RunRecord) -> bool:
    """Whether a network costs less than the dense one: a curve begins with the network uncut, which nobody looks for."""
    return (record.macs_ratio or 0.0) < 1


def front_of(records: list[RunRecord]) -> list[RunRecord]:
    """Return the non-dominated complete runs, from the fewest MACs to the most."""
    keep = non_dominated(objectives(records))
    front = [record for record, kept in zip(records, keep, strict=True) if kept]
    return sorted(front, key=lambda record: record.macs or 0)


def front_hypervolume(records: list[RunRecord]) -> float:
    """Return the area between the front and (accuracy 0, MACs of the dense network), as a fraction of 1."""
    return hypervolume(objectives(records), REFERENCE)
