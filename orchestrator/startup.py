"""Random draws first: a sampler that models results waits for ten runs, not for ten points of two runs' curves."""

from collections.abc import Sequence
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from orchestrator.study import ADDED, CURVE

# as many as Optuna's samplers wait for, which count every trial of the study
NUM_RUNS = 10


class RandomFirst(BaseSampler):
    """Draws at random until NUM_RUNS trials that are not curve points have ended complete or pruned, then as `model`."""

    def __init__(self, model: BaseSampler, seed: int) -> None:
        self._model, self._random = model, RandomSampler(seed=seed)
        self._started = False

    def _current(self, study: Study) -> BaseSampler:
        if not self._started:
            ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
            self._started = sum(not _is_curve_point(trial) for trial in ended) >= NUM_RUNS
        return self._model if self._started else self._random

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the parameters that are drawn together."""
        return self._current(study).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw those parameters."""
        return self._current(study).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw one of the other parameters."""
        return self._current(study).sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Tell the model that a trial starts."""
        self._model.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Tell the model that a trial has ended."""
        self._model.after_trial(study, trial, state, values)


def _is_curve_point(trial: FrozenTrial) -> bool:
    """Of this sweep, or of an earlier one that warm-starts it."""
    return trial.user_attrs.get(ADDED) == CURVE or bool(trial.user_attrs.get(CURVE, False))
