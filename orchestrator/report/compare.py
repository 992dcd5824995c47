"""Several sweeps side by side: their fronts, one hypervolume for all, what each reaches within the same budgets."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.objectives import accuracy_of
from orchestrator.output import flat_settings
from orchestrator.pareto import hypervolume
from orchestrator.records import RunRecord
from orchestrator.report.sweep import Sweep, read_sweep
from trainers.errors import SweepError

BUDGETS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)  # shares of the reference MACs
_PLACES = ("data.root", "data.download")  # where data lies changes no result


@dataclass(frozen=True)
class Reached:
    """The best network with at most `budget` of the reference MACs; fractions of 1, None where there is none.

    `score`: of the search's cuts, validation accuracy after a short recovery. `val_accuracy` and `test_accuracy`: of the
    fine-tuned network that is best on validation data.
    """

    budget: float
    score: float | None
    val_accuracy: float | None
    test_accuracy: float | None


@dataclass(frozen=True)
class SweepScore:
    """One sweep. `core_s` is the CPU time of all its runs in seconds; `dense_macs` are of one sample.

    Hypervolumes are shares of the rectangle between accuracy 0 to 1 and 0 to the reference MACs: of the search's cuts, by
    their scores, and of fine-tuned networks, by validation accuracy, None where there are none.
    """

    label: str
    name: str
    directory: str
    num_trials: int
    core_s: float
    dense_macs: int
    dense_test_accuracy: float | None
    search_hypervolume: float
    finetuned_hypervolume: float | None
    reached: list[Reached]


@dataclass(frozen=True)
class Comparison:
    """What `rankfront compare` prints; `reference_macs` are those of the largest dense network among the sweeps."""

    reference_macs: int
    warnings: list[str]
    sweeps: list[SweepScore]

    def as_json(self) -> dict[str, Any]:
        """The comparison as plain values."""
        return {"reference": {"accuracy": 0.0, "macs": self.reference_macs}, **asdict(self)}

    def rows(self) -> list[dict[str, Any]]:
        """A flat row for each sweep, for CSV: budgets are in the names of columns."""
        rows = []
        for score in self.sweeps:
            row = {key: value for key, value in asdict(score).items() if key != "reached"}
            row["reference_macs"] = self.reference_macs
            for reached in score.reached:
                for key in ("score", "val_accuracy", "test_accuracy"):
                    row[f"{key}_at_{reached.budget:g}"] = getattr(reached, key)
            rows.append(row)
        return rows


def read_sweeps(directories: Sequence[Path]) -> list[Sweep]:
    """Read what is to be compared; raises SweepError for fewer than two, or one that cannot be read."""
    if len(directories) < 2:
        raise SweepError(f"compare must be given at least two output directories, but got {len(directories)}")
    return [read_sweep(directory) for directory in directories]


def compare_sweeps(sweeps: Sequence[Sweep]) -> Comparison:
    """Compare sweeps by one reference point: accuracy 0, and the MACs of the largest dense network among them."""
    reference = max(map(dense_macs, sweeps))
    scores = [_score(sweep, label, reference) for sweep, label in zip(sweeps, labels(sweeps), strict=True)]
    return Comparison(reference, _warnings(sweeps, reference), scores)


def labels(sweeps: Sequence[Sweep]) -> list[str]:
    """Return a short name for each sweep: its directory's, as many parts of the path as it takes to tell them apart."""
    parts = [sweep.paths.root.parts for sweep in sweeps]
    count = 1
    while count < max(map(len, parts)) and len({each[-count:] for each in parts}) < len(parts):
        count += 1
    return ["/".join(each[-count:]) for each in parts]


def dense_macs(sweep: Sweep) -> int:
    """Return the MACs of a sweep's dense network; raises SweepError where no run has counted any."""
    for record in sweep.records:
        if record.macs and record.macs_ratio:
            return round(record.macs / record.macs_ratio)
    raise SweepError(f"at least one run must have counted its MACs, but none of the sweep in {sweep.directory} has")


def share_of(record: RunRecord, reference_macs: int) -> float:
    """Return a network's MACs as a share of the reference."""
    return (record.macs or 0) / reference_macs


def _score(sweep: Sweep, label: str, reference: int) -> SweepScore:
    series = sweep.series
    cuts = [cut for curve in series.curves for cut in curve]
    dense = series.dense
    return SweepScore(
        label=label,
        name=sweep.config.name,
        directory=str(sweep.directory),
        num_trials=len(sweep.trials),
        core_s=sum(record.cpu_s or 0.0 for record in sweep.records),
        dense_macs=dense_macs(sweep),
        dense_test_accuracy=None if dense is None else dense.test_accuracy,
        search_hypervolume=_hypervolume(cuts, reference),
        finetuned_hypervolume=_hypervolume(series.finalists, reference) if series.finalists else None,
        reached=[_reached(cuts, series.finalists, budget, reference) for budget in BUDGETS],
    )


def _hypervolume(records: Sequence[RunRecord], reference: int) -> float:
    points = [(-(accuracy_of(record) or 0.0), share_of(record, reference)) for record in records]
    return hypervolume(np.array(points).reshape(-1, 2), np.array([0.0, 1.0]))


def _reached(cuts: Sequence[RunRecord], tuned: Sequence[RunRecord], budget: float, reference: int) -> Reached:
    def best(records: Sequence[RunRecord]) -> RunRecord | None:
        within = [record for record in records if share_of(record, reference) <= budget]
        return max(within, key=lambda record: accuracy_of(record) or 0.0, default=None)

    cut, network = best(cuts), best(tuned)
    return Reached(
        budget,
        None if cut is None else accuracy_of(cut),
        None if network is None else network.val_accuracy,
        None if network is None else network.test_accuracy,
    )


def _warnings(sweeps: Sequence[Sweep], reference: int) -> list[str]:
    """What makes figures hard to compare: other data, another network."""
    flat = [flat_settings(sweep.config) for sweep in sweeps]
    names = labels(sweeps)
    found = []
    for section, meaning in (
        ("data", "accuracies are not of the same data"),
        ("model", "the networks are not the same"),
    ):
        keys = [key for key in flat[0] if key.startswith(f"{section}.") and key not in _PLACES]
        differing = [key for key in keys if len({repr(each[key]) for each in flat}) > 1]
        if differing:
            values = "; ".join(
                f"{key}: " + ", ".join(f"{each[key]} in {name}" for each, name in zip(flat, names, strict=True))
                for key in differing
            )
            found.append(f"{meaning} ({values})")
    if any(dense_macs(sweep) != reference for sweep in sweeps) and not any("networks" in text for text in found):
        found.append("the dense networks' MACs differ, although the settings of the network do not")
    return found
