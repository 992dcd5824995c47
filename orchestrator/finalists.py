"""Which cuts of which trials are fine-tuned in the end, and what has become of them."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from orchestrator.config import ConstraintsConfig, FinetuneConfig
from orchestrator.constraints import feasible
from orchestrator.curves import candidates
from orchestrator.jobs import candidate_name
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


def within_reach(cuts: Sequence[RunRecord], tuned: "Sequence[Finalist]") -> list[RunRecord]:
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


@dataclass(frozen=True)
class Finalist:
    """A network that was fine-tuned `num_runs` times: the record of its first run, with the means of all runs' accuracies.

    The standard deviations (fractions of 1) are None where there is one run, and for what was not measured.
    """

    record: RunRecord
    candidate: str
    num_runs: int
    val_std: float | None = None
    test_std: float | None = None


def fine_tuned(records: Sequence[RunRecord]) -> list[Finalist]:
    """Return every network that was fine-tuned, whenever it was picked, in the order of the table's first runs."""
    runs: dict[str, list[RunRecord]] = {}
    for record in records:
        if record.stage == "finetune" and record.state == "COMPLETE":
            runs.setdefault(candidate_name(record.name), []).append(record)
    return [_finalist(candidate, sorted(of_one, key=lambda run: run.name)) for candidate, of_one in runs.items()]


def _finalist(candidate: str, runs: list[RunRecord]) -> Finalist:
    if len(runs) == 1:
        return Finalist(runs[0], candidate, 1)
    val_mean, val_std = _mean_std([run.val_accuracy for run in runs])
    test_mean, test_std = _mean_std([run.test_accuracy for run in runs])
    mean = replace(runs[0], val_accuracy=val_mean, test_accuracy=test_mean)
    return Finalist(mean, candidate, len(runs), val_std, test_std)


def _mean_std(values: list[float | None]) -> tuple[float | None, float | None]:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None, None
    return statistics.fmean(known), statistics.stdev(known)
