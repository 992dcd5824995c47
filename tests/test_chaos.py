"""A sweep that is killed finds what it finds undisturbed: no run lost, none double, nothing left running."""

import fcntl
import random
import shutil
import time

import chaos
import pytest
from mlflow import MlflowClient
from rich.console import Console
from sweeps import run
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.config import load_config
from orchestrator.output import change_state, read_state
from orchestrator.paths import SweepPaths
from orchestrator.records import read_records
from orchestrator.resume import resume
from trainers.errors import SweepError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

SHORT = (
    chaos.CONFIG.replace("num_trials: 12", "num_trials: 3")
    .replace("pretrain_epochs: 3, epochs: 4", "pretrain_epochs: 2, epochs: 3")
    .replace("num_models: 2, epochs: 4", "num_models: 1, epochs: 3")
)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A sweep whose driver was killed in the search and again in the final stage, and that was moved before its end."""
    folder, moments = tmp_path_factory.mktemp("killed"), random.Random(0)
    sweep = chaos.Sweep(folder / "here", SHORT)
    for pattern, wait in (("runs/trial-*/checkpoint.pt", False), ("runs/dense/checkpoint.pt", True)):
        sweep.start()
        sweep.wait_for(pattern)
        time.sleep(moments.uniform(0, 0.3))
        sweep.kill(wait=wait)
    shutil.move(sweep.output, folder / "elsewhere")
    sweep.output = folder / "elsewhere"
    sweep.finish()
    assert sweep.num_starts == 3
    return sweep.output


def test_a_driver_that_was_killed_twice_finds_the_same(killed, tmp_path):
    config = load_config(SweepPaths(killed).config)
    run(config, tmp_path / "undisturbed")
    assert chaos.found(killed) == chaos.found(tmp_path / "undisturbed")


def test_a_moved_sweep_has_its_artifacts_with_it(killed):
    client = MlflowClient(f"sqlite:///{killed}/mlflow.db")
    record = next(record for record in read_records(SweepPaths(killed).results) if record.stage == "trial")
    assert client.get_run(record.run_id).info.artifact_uri.startswith(killed.as_uri())
    assert [item.path for item in client.list_artifacts(record.run_id)] == ["curve.json"]
    assert not (killed.parent / "here" / "sweep").exists()


def test_a_finished_sweep_says_so(killed):
    before = {path: path.stat().st_mtime_ns for path in killed.rglob("*") if path.is_file()}
    done = CliRunner().invoke(app, ["resume", str(killed)])
    assert done.exit_code == 0, done.output
    assert f"The sweep in {killed} is finished: nothing is left to do" in done.output
    assert "Finalists, after fine-tuning" in done.output
    assert {path: path.stat().st_mtime_ns for path in killed.rglob("*") if path.is_file()} == before


def test_what_cannot_be_resumed_is_refused(killed, tmp_path, monkeypatch):
    def refused(directory, match, *overrides):
        with pytest.raises(SweepError, match=match):
            resume(directory, overrides, Console())

    refused(tmp_path, "must be the output directory of a sweep, but has no config.yaml")
    refused(killed, r"training\.epochs: 3 there, 4 here", "training.epochs=4")
    with SweepPaths(killed).lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused(killed, r"in use by a sweep \(process \d+ on .*, for \d+:\d\d:\d\d h\)", "search.num_trials=4")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    refused(killed, "must be the sweep's store 'mlflow.db', but is 'http://127.0.0.1:9'; unset it")


def test_more_trials_and_candidates_that_were_being_fine_tuned_are_resumed(killed, tmp_path):
    output = tmp_path / "copied"
    shutil.copytree(killed, output)
    paths = SweepPaths(output)
    tuned = {record.name for record in read_records(paths.results) if record.stage == "finetune"}
    name = next(name for name in ("trial-0000", "trial-0000-cut-1") if name.replace("trial", "finetune") not in tuned)
    change_state(paths, finetuning={"names": [name], "repeats": 1})
    found = resume(output, ["search.num_trials=4"], Console(quiet=True))
    assert not found.was_finished
    records = {record.name: record for record in read_records(paths.results)}
    assert sum(record.stage == "trial" for record in records.values()) == 4
    assert records[name.replace("trial", "finetune")].state == "COMPLETE"
    assert read_state(paths).finetuning is None
    assert resume(output, [], Console(quiet=True)).was_finished


@pytest.mark.chaos
@pytest.mark.server
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("victim", chaos.VICTIMS)
def test_twenty_kills_of_each_part(victim, tmp_path):
    expected, duration_s = chaos.undisturbed(tmp_path / "undisturbed")
    row = chaos.disturbed(victim, 20, 4, 0, tmp_path, expected, duration_s)
    assert (row["kills"], row["equal"]) == (20, row["sweeps"])
