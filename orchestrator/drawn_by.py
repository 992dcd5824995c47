"""The common part of samplers that let another one draw, and change only by which one, or what it sees."""

from collections.abc import Sequence
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState


class DrawnBy(BaseSampler):
    """Draws as `sampler`, or, for each draw, by the sampler and from the study that `_source` returns."""

    def __init__(self, sampler: BaseSampler) -> None:
        self._sampler = sampler

    def _source(self, study: Study, trial: FrozenTrial) -> tuple[BaseSampler, Study]:
        """Return what draws for `trial` of `study`, and the study that it sees."""
        return self._sampler, study

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the parameters that are drawn together."""
        sampler, seen = self._source(study, trial)
        return sampler.infer_relative_search_space(seen, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw those parameters."""
        sampler, seen = self._source(study, trial)
        return sampler.sample_relative(seen, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw one of the other parameters."""
        sampler, seen = self._source(study, trial)
        return sampler.sample_independent(seen, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Tell the sampler that a trial starts."""
        self._sampler.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Tell the sampler that a trial has ended."""
        self._sampler.after_trial(study, trial, state, values)
