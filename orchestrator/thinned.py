"""A long study, for a sampler that reads every trial for each proposal: past a limit it is shown fewer.

Optuna's TPE takes in proportion to a study's points, 0.2 s of processor time with 5,000: more than wide clusters leave.
"""

from collections.abc import Container, Sequence
from typing import Any, cast

import numpy as np
from optuna import Study
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from orchestrator.drawn_by import DrawnBy
from orchestrator.pareto import non_dominated_sort
from orchestrator.study import FeasibleTrials

MAX_TRIALS = 1000
_BEST_SHARE = 0.1  # TPE takes the best tenth of the trials for its model of good ones
_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


class Thinned(DrawnBy):
    """Draws as `sampler`, which is shown at most `max_trials` of the trials that have ended complete or pruned.

    Those are the best ones, a tenth, by non-dominated sorting of feasible complete trials, and of the others every so many
    in the order of their numbers; they stay the same for all that is drawn for one trial. All trials that run are shown.
    """

    def __init__(self, sampler: BaseSampler, max_trials: int = MAX_TRIALS) -> None:
        super().__init__(sampler)
        self._max_trials = max_trials
        self._feasible = FeasibleTrials()
        self._last: tuple[int, Study] | None = None  # the last trial that was drawn for, and what was shown for it

    def _source(self, study: Study, trial: FrozenTrial) -> tuple[BaseSampler, Study]:
        if self._last is None or self._last[0] != trial._trial_id:
            self._last = trial._trial_id, self._shown(study)
        return self._sampler, self._last[1]

    def _shown(self, study: Study) -> Study:
        ended = study.get_trials(deepcopy=False, states=_ENDED)
        if len(ended) <= self._max_trials:
            return study
        self._feasible.read(ended)
        return cast("Study", _Shown(study, chosen(ended, self._feasible, self._max_trials)))


class _Shown:
    """A study that shows only some of its ended trials."""

    def __init__(self, study: Study, numbers: Container[int]) -> None:
        self._shown_study, self._numbers = study, numbers
        self._listed: dict[Any, list[FrozenTrial]] = {}  # the sampler asks several times for one proposal

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shown_study, name)

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        return self._get_trials(deepcopy, states)

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        key = deepcopy, states if states is None else tuple(state for state in TrialState if state in states)
        if key not in self._listed:
            trials = self._shown_study._get_trials(deepcopy, states, use_cache)  # what Optuna's samplers ask for
            self._listed[key] = [
                trial for trial in trials if trial.state not in _ENDED or trial.number in self._numbers
            ]
        return list(self._listed[key])


def chosen(trials: Sequence[FrozenTrial], feasible: FeasibleTrials, count: int) -> set[int]:
    """Return the numbers of `count` of the ended trials: the best tenth of the feasible ones, of the others some at equal
    steps.
    """
    # by their numbers within a front: a driver that takes the study up reads the trials in another order
    numbers = np.array([trial.number for trial in feasible.trials])
    order = np.lexsort((numbers, non_dominated_sort(feasible.points)))
    best = {feasible.trials[place].number for place in order[: round(_BEST_SHARE * count)]}
    others = [trial.number for trial in trials if trial.number not in best]
    steps = np.linspace(0, len(others) - 1, min(len(others), count - len(best))).round().astype(int)
    return best | {others[place] for place in steps}
