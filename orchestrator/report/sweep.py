"""A sweep as its output directory has it, finished or still running: nothing is changed there."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from orchestrator.config import SweepConfig, load_config
from orchestrator.front import SweepFront, sweep_front
from orchestrator.output import read_json
from orchestrator.paths import SweepPaths
from orchestrator.records import RunRecord, read_records
from orchestrator.report.series import FrontSeries, front_series
from trainers.errors import SweepError


@dataclass(frozen=True)
class Sweep:
    """What stands in an output directory. `directory` is spelled as the user gave it; `identity` is sweep.json,
    `environment` what `provenance.environment` found; both are empty where the file is not there.
    """

    directory: Path
    paths: SweepPaths
    config: SweepConfig
    records: list[RunRecord]
    layers: list[dict[str, Any]]
    identity: dict[str, Any]
    environment: dict[str, Any]

    @cached_property
    def series(self) -> FrontSeries:
        """What the picture of its front shows."""
        return front_series(self.records)

    @cached_property
    def front(self) -> SweepFront:
        """What `rankfront front` prints."""
        return sweep_front(self.records)

    @cached_property
    def by_name(self) -> dict[str, RunRecord]:
        """Its runs by their names."""
        return {record.name: record for record in self.records}

    @property
    def trials(self) -> list[RunRecord]:
        """Its trials, complete, stopped and failed, in the order in which they ended."""
        return [record for record in self.records if record.stage == "trial"]


def read_sweep(directory: Path) -> Sweep:
    """Read an output directory; raises SweepError where it holds no sweep, or none of whose runs has finished."""
    paths = SweepPaths.of(directory)
    if not paths.config.is_file():
        raise SweepError(f"{directory} must be the output directory of a sweep, but has no {paths.config.name}")
    config = load_config(paths.config)
    records = read_records(paths.results) if paths.results.is_file() else []
    if not records:
        raise SweepError(
            f"at least one run must have ended, but none of the sweep in {directory} has; wait for the first"
        )
    layers = read_json(paths.layers, list[dict[str, Any]]())
    return Sweep(directory, paths, config, records, layers, read_json(paths.state, {}), _environment(paths))


def _environment(paths: SweepPaths) -> dict[str, Any]:
    found = read_json(paths.environment, dict[str, Any]())
    splits = found.get("data", {})
    sections = [found.get(key, {}) for key in ("packages", "hardware")] + [found.get("git") or {}, splits]
    sections += splits.values() if isinstance(splits, dict) else []
    if not all(isinstance(section, dict) for section in sections):
        raise SweepError(f"{paths.environment} must say with what a sweep ran, but is of another form; remove it")
    return found
