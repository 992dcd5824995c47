"""The networks of a sweep that were fine-tuned, and what their runs are called."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator.objectives import front_of
from orchestrator.records import RunRecord


def finetune_name(candidate: str, repeat: int = 0) -> str:
    """Return the name of the run that fine-tunes `trial-0003-cut-2`: `finetune-0003-cut-2`, then `...-repeat-1`."""
    return candidate.replace("trial", "finetune", 1) + (f"-repeat-{repeat}" if repeat else "")


def candidate_name(finetuned: str) -> str:
    """Return the name of the candidate that a run fine-tuned."""
    return finetuned.partition("-repeat-")[0].replace("finetune", "trial", 1)


def repeat_of(finetuned: str) -> int:
    """Return how many runs of the same candidate came before this one."""
    return int(finetuned.partition("-repeat-")[2] or 0)


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


def on_trained_front(records: Sequence[RunRecord]) -> set[str]:
    """Return the names of the fine-tuned networks and the dense baseline that none of them dominates, by the means over
    their runs, as finalists are picked: first runs' names.
    """
    dense = [record for record in records if record.stage == "dense" and record.state == "COMPLETE"]
    return {record.name for record in front_of([*(finalist.record for finalist in fine_tuned(records)), *dense])}


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
    import statistics  # with fractions and decimals, a tenth of what `rankfront front` takes without it

    return statistics.fmean(known), statistics.stdev(known)
