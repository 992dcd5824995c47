"""Draws that do not depend on which driver makes them: a sweep that goes on proposes what it would have proposed."""

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState


class Repeatable(BaseSampler):
    """Draws as `sampler`, each trial from a seed made of `seed` and the trial's number, each parameter drawn alone from one
    of its own.

    A proposal then follows from the study's trials, whatever was drawn before in this process. Parameters that a trial has
    already, one that was cut off, are not drawn again.
    """

    def __init__(self, sampler: BaseSampler, seed: int) -> None:
        self._sampler, self._seed = sampler, seed
        self._generators = list(_generators(sampler))

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the parameters that are drawn together."""
        found = self._sampler.infer_relative_search_space(study, trial)
        return {} if found.keys() <= trial.params.keys() else found

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw those parameters."""
        if not search_space:
            return {}
        self._reseed(trial)
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw one of the other parameters."""
        self._reseed(trial, param_name)
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Tell the sampler that a trial starts."""
        self._sampler.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Tell the sampler that a trial has ended."""
        self._sampler.after_trial(study, trial, state, values)

    def _reseed(self, trial: FrozenTrial, name: str = "") -> None:
        parts = np.random.SeedSequence((self._seed, trial.number, zlib.crc32(name.encode())))
        for generator, state in zip(self._generators, parts.generate_state(len(self._generators)), strict=True):
            generator.rng.seed(int(state))


def _generators(sampler: BaseSampler) -> Iterator[Any]:
    """Yield the random states of a sampler and of those that it draws by: Optuna has no public way to seed them again."""
    for value in vars(sampler).values():
        if isinstance(value, BaseSampler):
            yield from _generators(value)
        elif type(value).__name__ == "LazyRandomState":
            yield value
