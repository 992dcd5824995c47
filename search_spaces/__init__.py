"""What a sweep searches: define-by-run functions of an Optuna trial, one a file.

A search space takes an `optuna.trial.BaseTrial`, suggests, and returns the trial's settings as a dict whose keys are
fields of `trainers.MethodConfig` or `trainers.TrainingConfig`; it can be tried with
`space(optuna.trial.FixedTrial(params))`. To add one: write a function and enter it in SEARCH_SPACES, or keep it in a
module of your own and name it `package.module:function` in the config. FIRST_POINTS are parameters that a sweep of a space
tries first unless its configuration says what to try.
"""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from search_spaces.methods import methods
from search_spaces.svd_training import FIRST_POINTS as SVD_TRAINING_FIRST
from search_spaces.svd_training import svd_training
from search_spaces.svd_training_l1 import svd_training_l1

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

    SearchSpace = Callable[[BaseTrial], dict[str, Any]]

SEARCH_SPACES: "dict[str, SearchSpace]" = {
    "svd_training": svd_training,
    "svd_training_l1": svd_training_l1,
    "methods": methods,
}

FIRST_POINTS: "dict[str, tuple[dict[str, Any], ...]]" = {"svd_training": SVD_TRAINING_FIRST}

__all__ = ["FIRST_POINTS", "SEARCH_SPACES", "find_search_space", "methods", "svd_training", "svd_training_l1"]


def find_search_space(name: str) -> "SearchSpace":
    """Return the space of that name, or import `package.module:function`.

    Raises ValueError where there is none, naming what was looked for and what is known.
    """
    if name in SEARCH_SPACES:
        return SEARCH_SPACES[name]
    module_name, colon, function_name = name.partition(":")
    if not colon:
        known = ", ".join(SEARCH_SPACES)
        raise ValueError(f"unknown search space {name!r}; known: {known}, or your own as package.module:function")
    try:
        space = getattr(importlib.import_module(module_name), function_name)
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise ValueError(
            f"search space {name!r} must be importable, but: {type(error).__name__}: {error}; run where its package is"
        ) from error
    if not callable(space):
        raise ValueError(f"search space {name!r} must be a function of a trial, but is a {type(space).__name__}")
    return space  # type: ignore[no-any-return]
