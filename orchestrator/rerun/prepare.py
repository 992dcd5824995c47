"""A repetition before it trains: what the record asks for, and what is otherwise here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.config import SweepConfig, load_config
from orchestrator.provenance import environment, with_data
from orchestrator.report.sweep import Sweep, read_sweep
from orchestrator.rerun.changes import (
    Change,
    data_changes,
    environment_changes,
    run_changes,
    setting_changes,
    why_not_exact,
)
from orchestrator.rerun.recorded import changed_starts, record_of, recorded_job, saved_run, start_files
from orchestrator.sync import recorded_store
from trainers.data import ImageData, load_test, load_train_validation
from trainers.errors import SweepError


@dataclass(frozen=True)
class Prepared:
    """A repetition that has not begun: what it repeats, with which settings, and what is otherwise here.

    `name` is None for the whole sweep. `inexact` says why equal bits are not asked for, None where they are.
    """

    sweep: Sweep
    name: str | None
    config: SweepConfig
    changes: list[Change]
    inexact: str | None
    data: ImageData
    test: ImageData | None
    environment: dict[str, Any]

    @property
    def input_changes(self) -> list[Change]:
        """The changes with which no repetition can agree."""
        return [change for change in self.changes if change.input]


def prepare(directory: Path, name: str | None, overrides: list[str]) -> Prepared:
    """Read the record, and compare all that a training depends on; trains nothing.

    Raises SweepError, ConfigError, DataError and CheckpointError where the record or the data cannot be read or used.
    """
    sweep = read_sweep(directory)
    config = load_config(sweep.paths.config, overrides)
    record = None if name is None else record_of(sweep, name)
    saved = None if name is None else saved_run(sweep.paths, name)
    data = load_train_validation(config.data)
    trials_alone = record is not None and record.stage in ("pretrain", "trial")
    test = None if trials_alone else load_test(config.data, data)
    changes = setting_changes(sweep, config)
    if record is not None:
        _require_device(config)
        recorded_store(sweep.paths, sweep.config.name)
        job = recorded_job(record)
        changes = run_changes(saved, job, config, changes)
        starts = list(start_files(sweep, job, config).values())
        changes += [
            Change(f"start {file}", "as recorded", "another network", input=True)
            for file in changed_starts(saved, starts)
        ]
    found = environment()
    changes += data_changes(sweep, saved, data, test) + environment_changes(sweep.environment, found)
    inexact = why_not_exact(changes, config)
    if inexact is None and name is None and config.search.max_concurrent > 1:
        inexact = "with search.max_concurrent above 1 what is proposed depends on which trial ends first"
    return Prepared(sweep, name, config, changes, inexact, data, test, with_data(found, data, test))


def _require_device(config: SweepConfig) -> None:
    """A whole sweep may find its GPUs elsewhere; one run is trained in this process."""
    import torch

    if config.resources.gpus_per_trial != 0 and not torch.cuda.is_available():
        raise SweepError(
            "a run that was trained on a GPU needs one, but PyTorch finds none here; add --set resources.gpus_per_trial=0 "
            "to repeat it on the CPU"
        )
