"""Draws that do not depend on which driver makes them: a sweep that goes on proposes what it would have proposed."""

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from orchestrator.drawn_by import DrawnBy


class Repeatable(DrawnBy):
    """Draws as `sampler`, each trial from a seed made of `seed` and the trial's number, each parameter drawn alone from one
    of its own.

    A proposal then follows from the study's trials, whatever was drawn before in this process. Parameters that a trial has
    already, one that was cut off, are not drawn again.
    """

    def __init__(self, sampler: BaseSampler, seed: int) -> None:
        super().__init__(sampler)
        self._seed = seed
        self._generators = list(_generators(sampler))

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the parameters that are drawn together."""
        found = super().infer_relative_search_space(study, trial)
        return {} if found.keys() <= trial.params.keys() else found

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw those parameters."""
        if not search_space:
            return {}
        self._reseed(trial)
        return super().sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw one of the other parameters."""
        self._reseed(trial, param_name)
        return super().sample_independent(study, trial, param_name, param_distribution)

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
