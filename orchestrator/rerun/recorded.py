"""What a sweep has written down of its runs: enough to train one again."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.config import SweepConfig
from orchestrator.jobs import Job, stage_one_of
from orchestrator.paths import SweepPaths
from orchestrator.records import RunRecord
from orchestrator.report.sweep import Sweep
from orchestrator.tuned import repeat_of
from trainers.errors import SweepError
from trainers.recipe import MODEL_FILE, start_record
from trainers.saved_model import SavedModel, load_model

if TYPE_CHECKING:
    from collections.abc import Sequence


def record_of(sweep: Sweep, name: str) -> RunRecord:
    """Return the record of the run called `name`; raises SweepError where the sweep has none."""
    if name not in sweep.by_name:
        raise SweepError(
            f"{name!r} must be a run that has ended in {sweep.directory}; those are: {', '.join(sorted(sweep.by_name))}"
        )
    return sweep.by_name[name]


def recorded_job(record: RunRecord) -> Job:
    """Return the job that led to the record; the baseline's length was the sweep's choice, and stands in its record."""
    epochs = record.epochs if record.stage == "dense" else None
    settings = json.loads(record.settings or "{}")
    return Job(record.name, record.stage, settings, record.source, record.trial_number, epochs, repeat_of(record.name))


def saved_run(paths: SweepPaths, name: str) -> SavedModel | None:
    """Return the run's model with the metrics of all its epochs; None where it left none.

    Raises CheckpointError where the file is damaged or foreign.
    """
    file = paths.run(name) / MODEL_FILE
    return load_model(file) if file.exists() else None


def start_files(sweep: Sweep, job: Job, config: SweepConfig) -> dict[str, Path]:
    """Return the model files that the job reads with `config`, by the names of their runs: its start, and the teacher of a
    distillation.

    Raises SweepError where one is not there.
    """
    names = [] if job.source is None else [job.source]
    if job.stage == "finetune" and config.finetune.distillation.weight > 0:
        names.append(stage_one_of(job.settings).name)
    return {name: _existing(sweep, job, name) for name in names}


def _existing(sweep: Sweep, job: Job, name: str) -> Path:
    file = sweep.paths.run(name) / MODEL_FILE
    if not file.is_file():
        raise SweepError(
            f"{job.name} starts from {file}, which is not there; make it with `rankfront rerun {sweep.directory} {name}`, "
            "and copy the model.pt that this leaves to that place"
        )
    return file


def changed_starts(saved: SavedModel | None, starts: "Sequence[Path]") -> list[Path]:
    """Return those of the files that are not what the recorded run, if it has left a model, started from."""
    if saved is None:
        return []
    known = [saved.config[key] for key in ("start", "teacher") if key in saved.config]
    return [file for file in starts if start_record(load_model(file)) not in known]
