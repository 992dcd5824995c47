"""The scheduler of a sweep: what its configuration asks for, with the rungs of the trials that have ended before."""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal

from orchestrator.config import SweepConfig
from orchestrator.halving import ParetoHalving
from orchestrator.records import RunRecord

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


def make_scheduler(config: SweepConfig, trials: Sequence[RunRecord]) -> Any:
    """Return Tune's scheduler for the sweep; what `trials` reported at its rungs, before it was stopped, counts again."""
    from ray.tune.schedulers import FIFOScheduler

    from orchestrator.pareto_asha import ParetoASHA

    class SweepScheduler(ParetoASHA):
        """Does not stop a trial at a rung that it had passed before it was cut off."""

        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            decision = super().on_trial_result(tune_controller, trial, result)
            return self.CONTINUE if result.get("replayed") else decision

    if (halving := make_halving(config)) is None:
        return FIFOScheduler()
    scheduler = SweepScheduler(
        metric=["metrics/score", "metrics/macs"],
        mode=DIRECTIONS,
        time_attr="epoch",
        max_t=config.training.epochs + 1,  # a trial ends by itself, after its last epoch: it has a model file to write
        rungs=halving.rungs,
        reduction_factor=halving.reduction_factor,
        exempt_share=halving.exempt_share,
        min_trials=halving.min_trials,
        curve="points",
        seed=halving.seed,
        key=run_name,
    )
    for trial in trials:
        for epoch, points in _reported(trial).items():
            scheduler.halving.record(trial.name, epoch, points)
    return scheduler


def run_name(trial: Any) -> str:
    """Return the name of the run that a Tune trial is: ids change when a sweep goes on, names do not."""
    return str(trial.config["name"])


def rung_point(score: float, macs: float) -> list[float]:
    """Return a cut as the scheduler compares it: its score, and the logarithm of its MACs in steps of a tenth.

    Cuts at one budget differ a little in MACs, as their ranks happen to fall: by the exact numbers, nearly all of them
    would be on the front.
    """
    return [score, round(math.log(max(macs, 1e-9), _COST_STEP))]


def _reported(trial: RunRecord) -> dict[int, list[list[float]]]:
    """Return a trial's points by epoch."""
    found: dict[int, list[list[float]]] = defaultdict(list)
    for cut in json.loads(trial.curve or "[]"):
        found[cut["epoch"]].append(rung_point(cut["score"], cut["macs"]))
    return dict(found)
