"""The scheduler of a sweep: what its configuration asks for, with the rungs of the trials that have ended before."""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.config import SweepConfig
from orchestrator.halving import ParetoHalving
from orchestrator.records import RunRecord

if TYPE_CHECKING:
    from ray.tune.schedulers import FIFOScheduler

DIRECTIONS: tuple[Literal["max", "min"], ...] = ("max", "min")  # score, MACs
_COST_STEP = 1.1


def make_halving(config: SweepConfig) -> ParetoHalving | None:
    """Return the rule by which trials are stopped, without records; None for a sweep that stops none."""
    scheduler = config.scheduler
    if scheduler.name == "none":
        return None
    grace_period = scheduler.grace_period or -(-config.training.epochs // 2)
    return ParetoHalving(
        DIRECTIONS,
        max_t=max(config.training.epochs, grace_period),
        grace_period=grace_period,
        reduction_factor=scheduler.reduction_factor,
        exempt_share=scheduler.exempt_share,
        min_trials=scheduler.min_trials,
        seed=config.search.seed,
    )


def rungs(config: SweepConfig) -> tuple[int, ...]:
    """Return the epochs of a trial, before its last, at which the scheduler judges it."""
    halving = make_halving(config)
    return () if halving is None else halving.rungs


def make_scheduler(config: SweepConfig, trials: Sequence[RunRecord]) -> "FIFOScheduler":
    """Return Tune's scheduler for the sweep; what `trials` reported at its rungs, before it was stopped, counts again."""
    from orchestrator.sweep_scheduler import SweepScheduler, WorkersMayStart

    if (halving := make_halving(config)) is None:
        return WorkersMayStart()  # type: ignore[no-untyped-call]
    for trial in trials:
        for epoch, points in _reported(trial).items():
            halving.record(trial.name, epoch, points)
    return SweepScheduler(halving, config.training.epochs)


def rung_point(score: float, macs: float) -> list[float]:
    """Return a cut as the scheduler compares it: its score, and the logarithm of its MACs in steps of a tenth.

    Cuts at one budget differ a little in MACs, as their ranks happen to fall: by the exact numbers, nearly all of them
    would be on the front.
    """
    return [score, round(math.log(max(macs, 1e-9), _COST_STEP))]


def rung_points(result: Mapping[str, Any]) -> list[list[float]]:
    """Return a result of `run_job` as the scheduler compares it: its cuts, or the network as it is where none was scored."""
    metrics = result.get("metrics", {})
    if cuts := result.get("curve"):
        return [rung_point(cut["score"], cut["macs"]) for cut in cuts]
    return [rung_point(metrics["val_accuracy"], metrics["macs"])] if "macs" in metrics else []


def tune_result(result: dict[str, Any]) -> dict[str, Any]:
    """Return what Tune is told of a result of `run_job`: what the scheduler reads, and all of it as "report".

    That is a list of one, into which Tune does not look: of each number that it finds it keeps a statistic of several
    kilobytes a trial, in the driver, to the end.
    """
    seen: dict[str, Any] = {key: result[key] for key in ("epoch", "judged", "finished") if key in result}
    # "done" spares Tune the question whether there is more; a worker's next trial waits for the answer
    return {
        **seen,
        "points": rung_points(result),
        "report": [result],
        "done": is_last(result),
    }


def is_last(result: dict[str, Any]) -> bool:
    """Whether nothing follows this result of `run_job`."""
    return not {"finished", "error", "storage"}.isdisjoint(result)


def _reported(trial: RunRecord) -> dict[int, list[list[float]]]:
    """Return a trial's points by epoch."""
    found: dict[int, list[list[float]]] = defaultdict(list)
    for cut in json.loads(trial.curve or "[]"):
        found[cut["epoch"]].append(rung_point(cut["score"], cut["macs"]))
    return dict(found)
