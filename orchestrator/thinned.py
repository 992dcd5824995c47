"""A long study, for a sampler that reads every trial for each proposal: past a limit it is shown fewer.

Optuna's TPE takes in proportion to a study's points, 0.2 s of processor time with 5,000: more than wide clusters leave.
"""

from collections.abc import Container, Sequence
from typing import Any, cast

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from orchestrator.pareto import non_dominated_sort
from orchestrator.study import kept_to_constraints

MAX_TRIALS = 1000
_BEST_SHARE = 0.1  # TPE takes the best tenth of the trials for its model of good ones
_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


class Thinned(BaseSampler):
    """Draws as `sampler`, which is shown at most `max_trials` of the trials that have ended complete or pruned.

    Those are the best ones, a tenth, by non-dominated sorting of feasible complete trials, and of the others every so many
    in the order of their numbers. All trials that run are shown.
    """

    def __init__(self, sampler: BaseSampler, max_trials: int = MAX_TRIALS) -> None:
        self._sampler, self._max_trials = sampler, max_trials

    def _shown(self, study: Study) -> Study:
        ended = study.get_trials(deepcopy=False, states=_ENDED)
        if len(ended) <= self._max_trials:
            return study
        return cast("Study", _Shown(study, chosen(ended, self._max_trials)))

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the parameters that are drawn together."""
        return self._sampler.infer_relative_search_space(self._shown(study), trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw those parameters."""
        return self._sampler.sample_relative(self._shown(study), trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw one of the other parameters."""
        return self._sampler.sample_independent(self._shown(study), trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Tell the sampler that a trial starts."""
        self._sampler.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Tell the sampler that a trial has ended."""
        self._sampler.after_trial(study, trial, state, values)


class _Shown:
    """A study that shows only some of its ended trials."""

    def __init__(self, study: Study, numbers: Container[int]) -> None:
        self._shown_study, self._numbers = study, numbers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shown_study, name)

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        return self._get_trials(deepcopy, states)

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        trials = self._shown_study._get_trials(deepcopy, states, use_cache)  # what Optuna's samplers ask for
        return [trial for trial in trials if trial.state not in _ENDED or trial.number in self._numbers]


def chosen(trials: Sequence[FrozenTrial], count: int) -> set[int]:
    """Return the numbers of `count` of the ended trials: the best tenth, and of the others some at equal steps."""
    good, points = kept_to_constraints(trials)
    order = np.argsort(non_dominated_sort(points), kind="stable")
    best = {good[place].number for place in order[: round(_BEST_SHARE * count)]}
    others = [trial.number for trial in trials if trial.number not in best]
    steps = np.linspace(0, len(others) - 1, min(len(others), count - len(best))).round().astype(int)
    return best | {others[place] for place in steps}
