"""A scheduler for any Ray Tune experiment with several objectives: asynchronous successive halving on fronts.

Tune's own ASHA takes one metric: with accuracy it stops small models for being small, with cost it keeps them all.
`ParetoASHA` stops trials that others dominate. The rule itself, without Ray, is `orchestrator.halving`.
"""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from ray import tune
from ray.tune.schedulers import FIFOScheduler

from orchestrator.halving import ParetoHalving

_log = logging.getLogger(__name__)


class ParetoASHA(FIFOScheduler):
    """Stops, at fixed times of training ("rungs"), the trials that are not among the best on all metrics together.

    A trial goes on if it is on the rung's front, or among the best 1 / reduction_factor by front number and then by
    what it adds to the volume of its front (`ParetoHalving` has the rule to the letter). A poor but cheap model and a
    good but expensive one both go on; one that is worse than another in everything does not::

        from ray import tune
        from orchestrator.pareto_asha import ParetoASHA, SchedulerState

        def train(config):
            model = build(config["width"])
            for _ in range(27):
                train_one_epoch(model)
                tune.report({"accuracy": evaluate(model), "macs": count_macs(model)})

        scheduler = ParetoASHA(metric=["accuracy", "macs"], mode=["max", "min"], max_t=27, reduction_factor=3)
        tuner = tune.Tuner(
            train,
            param_space={"width": tune.randint(8, 512)},
            tune_config=tune.TuneConfig(num_samples=100, scheduler=scheduler),
            run_config=tune.RunConfig(name="widths", callbacks=[SchedulerState(scheduler)]),
        )
        results = tuner.fit()

    A trial that can be cut to several sizes reports all of them: with `curve="curve"` and
    `tune.report({..., "curve": [[0.91, 5e6], [0.84, 2e6]]})` it is as good as its best points.

    Arguments:
        metric: the objectives' names in the results; "a/b" for the entry "b" of the entry "a".
        mode: "min" or "max" for each of them.
        time_attr: the entry that holds the time; a result without it changes nothing.
        max_t: the time at which a trial is stopped as finished.
        grace_period, reduction_factor, rungs, exempt_share, spare_front, min_trials, seed: as of `ParetoHalving`.
        curve: the entry that holds a trial's k points, each a list of values in the order of `metric`; where a result
            has no such entry its own metrics are one point.
        key: what a trial is recorded under; a name that outlives an experiment lets a later one take up `halving`.
        halving: the rule itself, with what it has recorded so far, in place of `mode` and its other arguments.

    A rung that a trial reaches without a metric, with NaN, an infinite value or a curve of another shape sees it without
    a point: it is stopped, unless exempt, with a warning if something is missing, and the sweep goes on. A trial that
    is resumed under its id, after a lost worker or by `Tuner.restore`, is not judged again where it was; one that
    `restart_errored` starts anew has a new id. Tune does not tell a searcher that a trial was stopped early: its last
    metrics are not those of a full training.

    Raises ValueError for arguments that break a rule.
    """

    def __init__(
        self,
        metric: Sequence[str],
        mode: Sequence[Literal["min", "max"]] | None = None,
        time_attr: str = "training_iteration",
        max_t: int = 100,
        grace_period: int = 1,
        reduction_factor: float = 3.0,
        rungs: Sequence[int] | None = None,
        exempt_share: float = 0.0,
        spare_front: bool = True,
        min_trials: int = 1,
        curve: str | None = None,
        seed: int = 0,
        key: Callable[[Any], str] = lambda trial: trial.trial_id,
        halving: ParetoHalving | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        directions = mode if halving is None else halving.directions
        if isinstance(metric, str) or not len(set(metric)) == len(metric) == len(directions or ()):
            raise ValueError(
                f"metric must be a list of distinct names with one mode each, but got {metric!r} and {directions!r}; give "
                'metric=["loss"], mode=["min"] for a single one'
            )
        self.halving = halving or ParetoHalving(
            directions or (),
            max_t,
            grace_period,
            reduction_factor,
            exempt_share,
            spare_front,
            min_trials,
            seed,
            rungs,
        )
        self._metrics, self._time_attr, self._max_t, self._curve = list(metric), time_attr, max_t, curve
        self._num_stopped, self._key = 0, key

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Accept Tune's call: the objectives are the scheduler's own; those of TuneConfig serve to look up results."""
        return True

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Record a flattened result if a rung is due; returns STOP at max_t or where the rung says so, else CONTINUE."""
        time = result.get(self._time_attr)
        if time is None:
            return self.CONTINUE
        if time >= self._max_t:
            self._record(self._key(trial), time, result)
            return self.STOP
        if self._record(self._key(trial), time, result):
            return self.CONTINUE
        self._num_stopped += 1
        return self.STOP

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Record a trial that Tune's own stopping criteria ended: its last result was not shown to `on_trial_result`."""
        if (time := result.get(self._time_attr)) is not None:
            self._record(self._key(trial), time, result)

    def _record(self, trial_id: str, time: float, result: dict[str, Any]) -> bool:
        rung = self.halving.due(trial_id, time)
        if rung is None:
            return True
        try:
            return self.halving.record(trial_id, time, self._points(result))
        except (KeyError, TypeError, ValueError) as error:  # one trial's fault must not end the sweep
            _log.warning("trial %s has no point at rung %s: %s", trial_id, rung, error)
            return self.halving.record(trial_id, time, [])

    def _points(self, result: dict[str, Any]) -> Any:
        if self._curve is not None and self._curve in result:
            return result[self._curve]
        if missing := [name for name in self._metrics if name not in result]:
            raise KeyError(f"its result must have {missing}, but has {sorted(result)}")
        return [[result[name] for name in self._metrics]]

    def debug_string(self) -> str:
        """Return a line for Tune's console output."""
        counts = ", ".join(f"{rung}: {count}" for rung, count in self.halving.num_recorded().items())
        return (
            f"Using ParetoASHA: {self._num_stopped} trials stopped early; trials at each rung: {counts or 'no rungs'}"
        )

    def state(self) -> dict[str, Any]:
        """Return all that later decisions depend on besides the arguments, as plain values."""
        return {**self.halving.state(), "num_stopped": self._num_stopped}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a `state()`; raises ValueError where it comes from other modes or rungs."""
        self.halving.load_state(state)
        self._num_stopped = state["num_stopped"]

    def save(self, checkpoint_path: str) -> None:
        """Write the state to a JSON file, whole or not at all. Tune itself never calls this."""
        partial = Path(f"{checkpoint_path}.partial")
        partial.write_text(json.dumps(self.state()))
        partial.replace(checkpoint_path)

    def restore(self, checkpoint_path: str) -> None:
        """Read the state from the file of `save`."""
        self.load_state(json.loads(Path(checkpoint_path).read_text()))


class SchedulerState(tune.Callback):
    """Lets a scheduler's state ride in Tune's own snapshots, for Tune saves callbacks but never the scheduler.

    Without it `Tuner.restore` goes on with empty rungs, and judges late trials against almost nobody. Give it the very
    object that TuneConfig gets: Tune pickles both together, so that they are one object after a restore too. The
    snapshot is as old as the environment's TUNE_GLOBAL_CHECKPOINT_S lets it be; what a rung recorded after it is lost.
    """

    def __init__(self, scheduler: ParetoASHA) -> None:
        self._scheduler = scheduler

    def get_state(self) -> dict[str, Any]:
        """Return what Tune writes into its snapshot."""
        return self._scheduler.state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Take back what Tune finds in its newest snapshot."""
        self._scheduler.load_state(state)
