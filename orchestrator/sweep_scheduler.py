"""Ray Tune's schedulers as a sweep uses them; apart from `scheduler`, whose readers need no Ray."""

from typing import Any

from ray.tune.schedulers import FIFOScheduler

from orchestrator.halving import ParetoHalving
from orchestrator.pareto_asha import ParetoASHA


class WorkersMayStart(FIFOScheduler):
    """First in, first out, for trials that are never paused; a worker that is starting is left to start.

    Tune's own gives each worker that is free to the trial that has waited longest, ends the worker that was starting for it,
    and starts one more for the new trial: where trials end faster than workers start, which takes seconds of imports, all
    cores are busy starting workers until, by chance, each trial has one.
    """

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Return no trial: then Tune takes the waiting ones in order, and gives free workers to those that have none."""


class SweepScheduler(WorkersMayStart, ParetoASHA):
    """Judges trials of `epochs` epochs by the points that `scheduler.tune_result` reports, under their runs' names.

    A trial ends by itself, after its last epoch: it has a model file to write. None is stopped at a rung that it had passed
    before it was cut off; one that was cut off right at a rung is judged there. Names are kept, since ids change when a
    sweep goes on.
    """

    def __init__(self, halving: ParetoHalving, epochs: int) -> None:
        super().__init__(
            ["score", "macs"],
            time_attr="epoch",
            max_t=epochs + 1,
            curve="points",
            key=lambda trial: str(trial.config["name"]),
            halving=halving,
        )

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Return the rung's decision, and CONTINUE for a result that was judged before."""
        decision = super().on_trial_result(tune_controller, trial, result)
        return self.CONTINUE if result.get("judged") else decision
