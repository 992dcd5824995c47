"""The samplers that a search may use. Every one of them takes two objectives, conditional spaces and constraints.

What each makes of a study: TPE learns from curve points and trials of an earlier sweep as from any other, and ranks pruned
trials behind complete ones and infeasible ones behind those; the Gaussian process learns from complete trials only; both
draw at random until ten runs have ended. NSGA-II breeds from complete trials that it drew itself. Quasi-random and random
points ignore all results, and constraints with them.
"""

import logging
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

# Optuna's 50 would leave most sweeps random: 16 did as well over 300 trials, and starts to select after 16
_POPULATION = 16


def _tpe(seed: int) -> "BaseSampler":
    """Tree-structured Parzen estimators over groups of parameters that occur together; running trials count as bad."""
    from optuna.samplers import TPESampler

    from orchestrator.startup import RandomFirst
    from orchestrator.thinned import Thinned

    model = Thinned(TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True))
    return RandomFirst(model, seed)


def _nsga2(seed: int) -> "BaseSampler":
    """The genetic algorithm of Deb et al. (2002): cheap, and better than chance after several populations."""
    from optuna.samplers import NSGAIISampler

    return NSGAIISampler(seed=seed, population_size=_POPULATION)


def _gp(seed: int) -> "BaseSampler":
    """Optuna's Gaussian process (expected hypervolume improvement) for what every trial suggests, TPE for the rest."""
    from optuna.samplers import GPSampler, TPESampler

    from orchestrator.startup import RandomFirst

    conditional = TPESampler(seed=seed, multivariate=False)
    return RandomFirst(GPSampler(seed=seed, independent_sampler=conditional, warn_independent_sampling=False), seed)


def _qmc(seed: int) -> "BaseSampler":
    """A scrambled Sobol sequence over the parameters of the first trial, random for the rest.

    The study remembers how far the sequence is.
    """
    from optuna.samplers import QMCSampler, RandomSampler

    # says for each of the first trials that conditional parameters are drawn at random: known, see above
    logging.getLogger("optuna.samplers._qmc").setLevel(logging.ERROR)
    rest = RandomSampler(seed=seed)
    return QMCSampler(seed=seed, scramble=True, independent_sampler=rest, warn_independent_sampling=False)


def _random(seed: int) -> "BaseSampler":
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=seed)


SAMPLERS: "dict[str, Callable[[int], BaseSampler]]" = {
    "tpe": _tpe,
    "nsga2": _nsga2,
    "gp": _gp,
    "qmc": _qmc,
    "random": _random,
}


def make_sampler(name: str, seed: int) -> "BaseSampler":
    """Return a new sampler of SAMPLERS, whose draws for a trial follow from the seed and the study alone (`Repeatable`).

    Raises KeyError for a name that is not in SAMPLERS.
    """
    from optuna.exceptions import ExperimentalWarning

    from orchestrator.repeatable import Repeatable

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # TPE's groups and QMC: in Optuna since 2.8 and 3.0
        return Repeatable(SAMPLERS[name](seed), seed)
