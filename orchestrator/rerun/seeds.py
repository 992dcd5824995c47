"""A recorded run with other seeds: what its stage's own randomness is worth."""

import math
import statistics
from dataclasses import dataclass

from orchestrator.ledger import METRIC_COLUMNS
from orchestrator.rerun.prepare import Prepared
from orchestrator.rerun.recorded import record_of
from orchestrator.rerun.repeat import repeat_run
from trainers.errors import SweepError


@dataclass(frozen=True)
class Spread:
    """One metric over several seeds: the recorded value, and mean and standard deviation (n - 1) of the others."""

    metric: str
    recorded: float
    values: list[float]

    @property
    def mean(self) -> float:
        """Of the repetitions alone."""
        return statistics.fmean(self.values)

    @property
    def std(self) -> float:
        """NaN for a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan

    @property
    def below(self) -> int:
        """How many repetitions are below the recorded value."""
        return sum(value < self.recorded for value in self.values)


def repeat_with_seeds(prepared: Prepared, count: int) -> list[Spread]:
    """Train the run with the `count` seeds after its own, from the same start, and return each metric's spread."""
    assert prepared.name is not None
    if prepared.config.training.seed != prepared.sweep.config.training.seed:
        raise SweepError(
            f"--seeds counts from the run's own seed, but training.seed is set to {prepared.config.training.seed}; leave "
            "one of them out"
        )
    record = record_of(prepared.sweep, prepared.name)
    first = (record.seed or 0) + 1
    found = [repeat_run(prepared, seed=seed).records[0] for seed in range(first, first + count)]
    complete = [run for run in found if run.state == record.state]
    if not complete:
        raise SweepError(
            f"at least one seed must end {record.state} as recorded, but none did; the last:\n{found[-1].error}"
        )
    spreads = []
    for metric in METRIC_COLUMNS:
        values = [value for run in complete if (value := getattr(run, metric)) is not None]
        recorded = getattr(record, metric)
        if recorded is not None and len(values) == len(complete):
            spreads.append(Spread(metric, recorded, values))
    return spreads
