"""What tests of whole sweeps share: running one, and reading what it left."""

from dataclasses import asdict

from rich.console import Console

from orchestrator.paths import SweepPaths
from orchestrator.pipeline import run_sweep
from orchestrator.records import read_records
from orchestrator.study import ADDED, open_study

# what differs between two equal sweeps: when and how long they ran, and MLflow's ids
NOT_COMPARED = ("run_id", "duration_s", "cpu_s", "ended_at_s")


def run(config, output):
    with open(output.with_suffix(".log"), "w") as log:
        return run_sweep(config, output, Console(file=log))


def comparable(output):
    rows = [asdict(record) for record in read_records(SweepPaths(output).results)]
    return sorted(
        ({key: value for key, value in row.items() if key not in NOT_COMPARED} for row in rows),
        key=lambda row: row["name"],
    )


def study_trials(output):
    return open_study(SweepPaths(output).study, "small", 0).trials


def study_states(output):
    """The states of the trials that were run; those of curve points are left out."""
    return [trial.state for trial in study_trials(output) if ADDED not in trial.user_attrs]


def trials_of(output):
    return [record for record in read_records(SweepPaths(output).results) if record.stage == "trial"]
