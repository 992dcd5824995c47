"""`rankfront front` as a question: which models keep to these limits, which one is the knee; as JSON or CSV for programs."""

import csv
import io
import math
import re
from dataclasses import dataclass, fields, replace

from orchestrator.front import FrontPoint, SweepFront
from orchestrator.picks import pick

_SIZES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_NUMBER = r"\s*(\d+\.?\d*(?:e[+-]?\d+)?|\.\d+)\s*"
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Bound:
    """An upper limit on MACs or parameters: a count, or a share (a fraction of 1) of the dense network's."""

    value: float
    is_share: bool

    def __str__(self) -> str:
        return f"{100 * self.value:g}% of the dense network's" if self.is_share else f"{self.value:,.0f}"

    def admits(self, count: int, ratio: float) -> bool:
        """Whether a model with this count, and this ratio to the dense network, keeps to the limit."""
        return (ratio if self.is_share else count) <= self.value * (1 + _ROUNDING)


def parse_bound(text: str) -> Bound:
    """Read `1200000`, `1.2e6`, `1.2M`, `40k` or `2G` as a count, `50%` as a share; raises ValueError for anything else."""
    match = re.fullmatch(_NUMBER + "([kmg%]?)", text, re.IGNORECASE)
    if match is not None:
        number, unit = float(match[1]), match[2].lower()
        if unit == "%" and number > 0:
            return Bound(number / 100, is_share=True)
        if unit != "%" and number * _SIZES[unit] >= 1:
            return Bound(number * _SIZES[unit], is_share=False)
    raise ValueError(
        f"must be a count from 1 (1.2e6, 900k, 40M, 2G) or a share of the dense network (50%), but got {text!r}"
    )


def parse_accuracy(text: str) -> float:
    """Read `0.97` or `97%` as a fraction of 1; raises ValueError for anything else."""
    match = re.fullmatch(_NUMBER + "(%?)", text, re.IGNORECASE)
    value = float("nan") if match is None else float(match[1]) / (100 if match[2] else 1)
    if not 0 <= value <= 1:
        raise ValueError(f"must be a fraction of 1 (0.97) or a percentage (97%), but got {text!r}")
    return value


@dataclass(frozen=True)
class Limits:
    """What a model must keep to; None: no limit. The accuracy is that on validation data, a fraction of 1.

    No model keeps to a latency that was not measured (`rankfront latency`).
    """

    max_macs: Bound | None = None
    max_params: Bound | None = None
    min_accuracy: float | None = None
    max_latency_ms: float | None = None

    def admit(self, point: FrontPoint) -> bool:
        """Whether a model keeps to all of them."""
        return (
            (self.max_macs is None or self.max_macs.admits(point.macs, point.macs_ratio))
            and (self.max_params is None or self.max_params.admits(point.params, point.params_ratio))
            and (self.min_accuracy is None or (point.accuracy or 0.0) >= self.min_accuracy - _ROUNDING)
            and (self.max_latency_ms is None or (point.latency_ms or math.inf) <= self.max_latency_ms)
        )

    def __str__(self) -> str:
        parts = [
            f"at most {limit} {unit}"
            for limit, unit in ((self.max_macs, "MACs"), (self.max_params, "parameters"))
            if limit is not None
        ]
        if self.min_accuracy is not None:
            parts.append(f"a validation accuracy of at least {100 * self.min_accuracy:g}%")
        if self.max_latency_ms is not None:
            parts.append(f"a measured latency of at most {self.max_latency_ms:g} ms")
        return " and ".join(parts) or "no limit"


class NothingMatchesError(Exception):
    """No model keeps to the limits; the message says which comes closest in each respect."""


def select(front: SweepFront, limits: Limits, *, knee: bool) -> SweepFront:
    """Return `front` with those models alone that keep to `limits`, and of these the knee alone if that is asked for.

    The models are the finalists, or, where there are none yet, the search's front; the other list is left empty. `picks`
    are still those of all. Raises NothingMatchesError.
    """
    pool = front.finalists or front.front
    kept = [point for point in pool if limits.admit(point)]
    if not kept:
        raise NothingMatchesError(_nothing(front, limits))
    if knee:
        kept = [pick(kept)["knee"]]
    return replace(front, front=[], finalists=kept) if front.finalists else replace(front, front=kept)


def _nothing(front: SweepFront, limits: Limits) -> str:
    pool = front.finalists or front.front
    if not pool:
        return "the sweep has no complete trial yet, and so nothing to choose from"
    smallest, best = min(pool, key=lambda point: point.macs), max(pool, key=lambda point: point.accuracy or 0.0)
    kind = "finalists" if front.finalists else "cuts on the search's front"
    times = [point.latency_ms for point in pool if point.latency_ms is not None]
    if limits.max_latency_ms is not None:
        timed = (
            f"the shortest latency is {min(times):.3g} ms" if times else "no latency was measured (`rankfront latency`)"
        )
        return f"none of the {len(pool)} {kind} has {limits}; {timed}; relax a limit"
    return (
        f"none of the {len(pool)} {kind} has {limits}; the fewest MACs are {smallest.macs:,} "
        f"({100 * smallest.macs_ratio:.1f}%, with {smallest.params:,} parameters), the best validation accuracy is "
        f"{100 * (best.accuracy or 0.0):.2f}%; relax a limit"
    )


def as_csv(front: SweepFront) -> str:
    """Return one line a model: `stage` (dense, front, finalist), the fields of `FrontPoint`, and its `picks`."""
    columns = ["stage", *(field.name for field in fields(FrontPoint)), "picks"]
    rows = [
        *([("dense", front.dense)] if front.dense else []),
        *(("front", point) for point in front.front),
        *(("finalist", point) for point in front.finalists),
    ]
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    for stage, point in rows:
        picks = "" if stage == "dense" else " ".join(front.picked_as(point.name))
        writer.writerow({"stage": stage, **vars(point), "picks": picks})
    return file.getvalue()
