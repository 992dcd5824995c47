"""The curve of a trial: one training evaluated at many pruning thresholds, each point a candidate of the final stage."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CurvePoint:
    """One cut of one trial's network.

    `trial` is the name of the run whose model is cut, `settings` are those of the search space's choice that this cut
    changes ({"energy": 0.02}); none for the trial's own. Ratios are to the dense network. `val_accuracy` is right after
    the cut, `score` after the recovery (`trainers.recovery`).
    """

    trial: str
    settings: dict[str, Any]
    macs: int
    macs_ratio: float
    params: int
    params_ratio: float
    val_accuracy: float
    score: float
