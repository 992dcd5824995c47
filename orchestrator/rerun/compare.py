"""Two runs held against each other: every metric of every epoch, bit for bit, or the last epoch's scores within a tolerance.

The tolerance is for another machine, whose kernels round otherwise, which a training amplifies.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from typing import Any

import torch

from orchestrator.ledger import METRIC_COLUMNS
from orchestrator.objectives import front_hypervolume
from orchestrator.records import RunRecord
from trainers.saved_model import SavedModel

SHARE_TOLERANCE = 0.02  # absolute: of accuracies, F1, scores and ratios
LOSS_TOLERANCE = 0.1  # relative: of losses
TOLERANCE_TEXT = (
    f"within a tolerance: the last epoch's accuracies, F1, scores and ratios to {SHARE_TOLERANCE}, its losses to "
    f"{LOSS_TOLERANCE:.0%}"
)
_SHARES = ("accuracy", "macro_f1", "score", "_ratio")

Place = tuple[int, str]  # the epoch, and the metric's name


@dataclass(frozen=True)
class Run:
    """What is known of a run: its row of the table and, of one that is complete, its model file."""

    record: RunRecord
    saved: SavedModel | None

    def values(self) -> dict[Place, Any]:
        """Return all that was measured, by epoch and name; without a model file that is the last epoch's row alone."""
        record, last = self.record, self.record.epochs or 0
        found: dict[Place, Any] = {(last, "state"): record.state, (last, "epochs"): last}
        found |= {(0, "settings"): record.settings, (0, "source"): record.source}
        if record.error:
            found[last, "error"] = record.error.strip().splitlines()[-1]
        columns = {name: getattr(record, name) for name in METRIC_COLUMNS}
        found |= {(last, name): value for name, value in columns.items() if value is not None}
        if self.saved is None:
            ranks = zip(record.layers or [], record.ranks or [], strict=True)
            found |= {(last, f"rank/{layer}"): rank for layer, rank in ranks}
            curve = json.loads(record.curve or "[]")
            for epoch, cuts in groupby(curve, key=itemgetter("epoch")):
                found |= _cut_values(epoch, cuts)
        else:
            for result in self.saved.history:
                found |= {(result["epoch"], name): value for name, value in result["metrics"].items()}
                found |= _cut_values(result["epoch"], result["curve"] or [])
        return found


@dataclass(frozen=True)
class Difference:
    """One value that is not the record's; `epoch` 0 for what no epoch has. None: it is not there."""

    run: str
    epoch: int
    metric: str
    recorded: Any
    found: Any


@dataclass(frozen=True)
class Comparison:
    """How many values were compared, and those that differ; `others` are runs that cannot be, and why."""

    compared: int
    differences: list[Difference]
    others: list[str]


def _cut_values(epoch: int, cuts: Iterable[dict[str, Any]]) -> dict[Place, Any]:
    parts = ("settings", "macs", "params", "score", "latency_ms")
    return {(epoch, f"cut {place}: {part}"): cut.get(part) for place, cut in enumerate(cuts) for part in parts}


def compare_runs(recorded: Run, again: Run, *, exact: bool) -> Comparison:
    """Compare a run with its record; see the module's docstring. `exact`: also the weights, tensor by tensor.

    Where the record's model file is gone, only what its row of the table holds is compared.
    """
    if recorded.saved is None:
        again = replace(again, saved=None)
    there, here = recorded.values(), again.values()
    last = recorded.record.epochs or 0
    places = [place for place in sorted({*there, *here}) if exact or _counts(place, last)]
    differences = [
        Difference(recorded.record.name, *place, there.get(place), here.get(place))
        for place in places
        if not (_same if exact else _near)(place[1], there.get(place), here.get(place))
    ]
    if exact and recorded.saved is not None and again.saved is not None:
        differences += _weight_differences(recorded.record, recorded.saved, again.saved)
    return Comparison(len(places), differences, [])


def _counts(place: Place, last: int) -> bool:
    epoch, name = place
    return name == "state" or (epoch == last and not name.startswith("cut ") and _tolerated(name))


def _tolerated(name: str) -> bool:
    return name.endswith((*_SHARES, "loss"))


def _same(name: str, recorded: Any, found: Any) -> bool:
    if isinstance(recorded, float) and isinstance(found, float):
        return recorded.hex() == found.hex()
    return bool(recorded == found)


def _near(name: str, recorded: Any, found: Any) -> bool:
    if not isinstance(recorded, int | float) or not isinstance(found, int | float):
        return bool(recorded == found)
    bound = LOSS_TOLERANCE * abs(recorded) if name.endswith("loss") else SHARE_TOLERANCE
    return abs(found - recorded) <= bound  # also false for NaN


def _weight_differences(record: RunRecord, there: SavedModel, here: SavedModel) -> Iterator[Difference]:
    """One difference for all tensors that are not equal."""
    old, new = there.model.state_dict(), here.model.state_dict()
    unequal = [
        name
        for name in sorted({*old, *new})
        if name not in old or name not in new or not torch.equal(old[name], new[name])
    ]
    if unequal:
        yield Difference(record.name, record.epochs or 0, "weights", f"{len(old)} tensors", f"{len(unequal)} differ")


def compare_sweeps(recorded: Sequence[Run], again: Sequence[Run], *, exact: bool) -> Comparison:
    """Compare two sweeps run by run, by their names.

    Not `exact`: runs with other settings or another start are no repetitions of each other and left out; the hypervolume
    that the finalists and the baseline reach stands for them.
    """
    old, new = ({run.record.name: run for run in runs} for runs in (recorded, again))
    compared, differences, others = 0, [], []
    for name in dict.fromkeys([*old, *new]):
        if name not in old or name not in new:
            states = (old[name].record.state, None) if name in old else (None, new[name].record.state)
            if exact:
                differences.append(Difference(name, 0, "state", *states))
            else:
                others.append(f"{name} is in one of the two alone")
        elif not exact and _origin(old[name].record) != _origin(new[name].record):
            others.append(f"{name} has other settings or another start")
        else:
            found = compare_runs(old[name], new[name], exact=exact)
            compared, differences = compared + found.compared, differences + found.differences
    volumes = [
        front_hypervolume([run.record for run in runs if run.record.stage in ("finetune", "dense")])
        for runs in (recorded, again)
    ]
    if not (_same if exact else _near)("hypervolume", *volumes):
        differences.append(Difference("sweep", 0, "hypervolume", *volumes))
    return Comparison(compared + 1, differences, others)


def _origin(record: RunRecord) -> tuple[str | None, str | None]:
    return record.settings, record.source
