"""What the picture of a front shows, taken from a sweep's table: the same for every program that draws it."""

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.config import FinetuneConfig
from orchestrator.curves import candidates, trial_of
from orchestrator.objectives import accuracy_of, front_of
from orchestrator.records import RunRecord
from orchestrator.tuned import fine_tuned


@dataclass(frozen=True)
class FrontSeries:
    """The points of a sweep, each a row of its table or a cut of a trial's network (`curves.candidates`).

    `trials` are the own cuts of complete trials, `stopped` those of trials that were stopped early, at their last epoch;
    `curves` holds all cuts of each complete trial, its own among them, from the fewest MACs to the most. `front` is the
    search's front, `finalists` are the networks that were fine-tuned, `final_front` their front; all in the order of MACs.
    `before` has, for the name of a finalist, the cut that it was fine-tuned from. `dense` is None until it has ended.
    """

    trials: list[RunRecord]
    stopped: list[RunRecord]
    curves: list[list[RunRecord]]
    front: list[RunRecord]
    finalists: list[RunRecord]
    final_front: list[RunRecord]
    before: dict[str, RunRecord]
    dense: RunRecord | None


def front_series(records: Sequence[RunRecord]) -> FrontSeries:
    """Sort a table into what is drawn; runs without an accuracy or MACs, failed ones among them, are left out."""
    trials = [record for record in records if record.stage == "trial"]
    cuts = [cut for cut in candidates(trials) if _drawable(cut)]
    curves: dict[str, list[RunRecord]] = {}
    for cut in cuts:
        curves.setdefault(trial_of(cut.name), []).append(cut)
    by_name = {cut.name: cut for cut in cuts}
    tuned = [one for one in fine_tuned(records) if _complete(one.record) and one.candidate in by_name]
    finalists = sorted((finalist.record for finalist in tuned), key=_macs)
    return FrontSeries(
        trials=[cut for cut in cuts if cut.name in curves],
        stopped=[trial for trial in trials if trial.state == "PRUNED" and _drawable(trial)],
        curves=[sorted(curve, key=_macs) for curve in curves.values()],
        front=front_of(cuts),
        finalists=finalists,
        final_front=front_of(finalists),
        before={finalist.record.name: by_name[finalist.candidate] for finalist in tuned},
        dense=next((record for record in records if record.stage == "dense" and _complete(record)), None),
    )


def short_name(record: RunRecord) -> str:
    """Return a run's name without its stage, `0003-cut-2`: what a picture has room for."""
    return record.name.removeprefix(f"{record.stage}-")


def lowest_of_interest(series: FrontSeries, finetune: FinetuneConfig) -> float:
    """Return the least accuracy that the picture of a front need show: what lies lower is never picked.

    That is the worst of the picks before and after fine-tuning, and of the front's cuts above
    `finetune.min_relative_score` of its best; 0 where there is nothing to show.
    """
    best = max((accuracy_of(cut) or 0.0 for cut in series.front), default=0.0)
    shown = [*series.finalists, *series.before.values(), *([series.dense] if series.dense else [])]
    shown += [cut for cut in series.front if (accuracy_of(cut) or 0.0) >= finetune.min_relative_score * best]
    return min((accuracy_of(record) or 0.0 for record in shown), default=0.0)


def all_points(series: FrontSeries) -> list[RunRecord]:
    """Return every point of the picture once: all cuts, stopped trials, finalists and the dense baseline."""
    cuts = [cut for curve in series.curves for cut in curve]
    return [*cuts, *series.stopped, *series.finalists, *([series.dense] if series.dense else [])]


def visible_accuracies(series: FrontSeries, finetune: FinetuneConfig) -> tuple[float, float]:
    """Return the range (%) of the axis of accuracy: from what could still be picked to the best, with a margin."""
    shown = [100 * (accuracy_of(record) or 0) for record in all_points(series)]
    if not shown:
        return 0.0, 100.0
    highest, lowest = max(shown), 100 * lowest_of_interest(series, finetune)
    margin = max(1.0, 0.05 * (highest - lowest))
    return max(0.0, lowest - margin), min(highest + margin, 101.0)


def hidden_cuts(series: FrontSeries, low: float) -> tuple[int, int]:
    """Return how many cuts have an accuracy below `low` (%), and how many cuts there are."""
    cuts = [record for record in all_points(series) if record.stage == "trial"]
    return sum(100 * (accuracy_of(cut) or 0) < low for cut in cuts), len(cuts)


def spread_out(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return positions for labels: as near to `places` (ascending) as possible, `gap` apart, within [low, high].

    Neighbours that are too close share their shift (isotonic regression of the places less their gaps, by pooling adjacent
    violators). Where there is no room for all, they are set closer, evenly.
    """
    if len(places) > 1:
        gap = min(gap, (high - low) / (len(places) - 1))
    pools: list[tuple[float, int]] = []  # mean and size
    for i, place in enumerate(places):
        mean, size = place - i * gap, 1
        while pools and pools[-1][0] > mean:
            other, count = pools.pop()
            mean, size = (mean * size + other * count) / (size + count), size + count
        pools.append((mean, size))
    levels = [mean for mean, size in pools for _ in range(size)]
    room = high - gap * (len(places) - 1)
    return [min(max(level, low), room) + i * gap for i, level in enumerate(levels)]


def _drawable(record: RunRecord) -> bool:
    return accuracy_of(record) is not None and record.macs_ratio is not None


def _complete(record: RunRecord) -> bool:
    return record.state == "COMPLETE" and _drawable(record)


def _macs(record: RunRecord) -> int:
    return record.macs or 0
