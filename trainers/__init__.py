"""One training at a time: low-rank methods, rank rules, deployment, cost and the three-stage recipe, on torch alone.

Read in this order: `factorization` (weights as matrices), `layers` (trained U, s, V), `surgery` (dense model to decomposed
one), `methods` (SVD training and the others behind one protocol), `rank_rules`, `deploy` (decomposed model to low-rank
one), `loop`, `recipe` (the three stages).

The public names are those of `public`. They are loaded when the first of them is asked for: `trainers.config` and
`trainers.errors` alone need no torch, and a command that only reads a sweep's files answers at once.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainers.public import *  # noqa: F403


def __getattr__(name: str) -> Any:
    if name.startswith("__") and name != "__all__":  # what Python and its tools ask every module for
        raise AttributeError(name)
    public = importlib.import_module("trainers.public")
    if name not in ("__all__", *public.__all__):
        raise AttributeError(f"module 'trainers' has no attribute {name!r}")
    return getattr(public, name)
