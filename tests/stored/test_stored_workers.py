"""Workers that see nothing of the driver's folder: what they need comes from the URL, and what they make goes there."""

import itertools
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from buckets import objects
from test_team import with_two
from test_trial_arrays import in_arrays, params, to_the_end

from orchestrator.jobs import pretrain_job, trial_job
from orchestrator.paths import SweepPaths
from orchestrator.stored import location as locations
from orchestrator.stored import workspace
from orchestrator.stored.location import Location
from orchestrator.stored.workspace import AWAY, Place, run_at
from orchestrator.team import team_of
from orchestrator.trial_arrays import ArrayWorker
from trainers.checkpoint import load_checkpoint
from trainers.config import MethodConfig
from trainers.methods import pretraining

pytestmark = pytest.mark.ray

JOB = pretrain_job(MethodConfig())
CHECKPOINT, MODEL = (f"runs/{JOB.name}/{name}" for name in ("checkpoint.pt", "model.pt"))


@pytest.fixture
def config(ray_cluster, small_sweep, monkeypatch):
    monkeypatch.setattr(locations, "_FIRST_WAIT_S", 0.0)
    return replace(small_sweep, training=replace(small_sweep.training, pretrain_epochs=4, epochs=2))


@pytest.fixture
def location(tmp_path):
    return Location.of(f"file://{tmp_path}/bucket/sweep")


@pytest.fixture
def away(tmp_path, location):
    """Where this process, as a worker, is not on the driver's node."""
    return Place(str(tmp_path / "driver"), location.url, "another node")


@pytest.fixture
def near(away):
    return replace(away, node=ray.get_runtime_context().get_node_id())


def epochs(place, job, config, data, count):
    """Train so many epochs, and be lost."""
    results = run_at(place, job, config, data.arrays())
    found = [next(results) for _ in range(count)]
    results.close()
    return found


def test_a_run_goes_on_elsewhere_and_its_network_comes_to_the_driver(away, location, config, digits, tmp_path):
    before = set(Path(tempfile.gettempdir()).glob("rankfront-*"))
    first = epochs(away, JOB, config, digits, 2)
    assert first[0][AWAY]
    assert first[0]["node"]
    assert location.files() == [CHECKPOINT]
    results = list(run_at(away, JOB, config, digits.arrays()))
    assert [result["replayed"] for result in results] == [True, True, False, False]
    assert [result["metrics"] for result in results[:2]] == [result["metrics"] for result in first]
    assert "finished" in results[-1]
    assert set(Path(tempfile.gettempdir()).glob("rankfront-*")) == before
    driver = SweepPaths(tmp_path / "driver")
    assert not driver.root.exists()
    away.collect(JOB.name)
    assert location.files() == [MODEL]
    assert (driver.root / MODEL).read_bytes() == location.read(MODEL)
    assert [result["replayed"] for result in run_at(away, JOB, config, digits.arrays())][-1]  # its answer was lost
    trial = trial_job("trial-0000", 0, {})
    assert "finished" in list(run_at(away, trial, config, digits.arrays()))[-1]
    assert "runs/trial-0000/model.pt" in location.files()


def test_what_a_killed_worker_left_is_removed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = "from orchestrator.stored import workspace as w\nwith w._own_folder(): print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          env={**os.environ, "TMPDIR": str(tmp_path)}) as process:  # fmt: skip
        process.stdout.readline()
        (left,) = tmp_path.iterdir()
        monkeypatch.setattr(workspace, "_NEW_S", -1.0)
        with workspace._own_folder() as own:
            assert set(tmp_path.iterdir()) == {left, own}  # it lives
        process.kill()
    monkeypatch.setattr(workspace, "_NEW_S", 60.0)
    with workspace._own_folder() as own:
        assert set(tmp_path.iterdir()) == {left, own}  # it may be about to lock it
    os.utime(left, (0, 0))
    with workspace._own_folder() as own:
        assert set(tmp_path.iterdir()) == {own}


def test_the_drivers_node_takes_up_what_has_come_further_elsewhere(near, away, location, config, digits):
    epochs(near, JOB, config, digits, 1)
    assert location.files() == []  # the driver's mirror sends it
    epochs(away, JOB, config, digits, 2)
    found = epochs(near, JOB, config, digits, 3)
    assert [result["replayed"] for result in found] == [True, True, False]
    here = SweepPaths(Path(near.root)).root / CHECKPOINT
    assert len(load_checkpoint(here)[1]["history"]) == 3
    found = epochs(near, JOB, config, digits, 3)  # it has come further than what is at the URL
    assert [result["replayed"] for result in found] == [True, True, True]
    assert not found[0][AWAY]


def test_without_the_url_the_drivers_node_goes_on_and_others_stop_the_sweep(
    near, away, config, digits, tmp_path, caplog
):
    (tmp_path / "bucket").write_bytes(b"no folder")
    assert "finished" in list(run_at(near, JOB, config, digits.arrays()))[-1]
    assert "goes on with what is in" in caplog.text
    (result,) = run_at(away, JOB, config, digits.arrays())
    assert "must be reachable and writable" in result["storage"]


def test_a_network_that_cannot_be_sent_is_a_fault_of_the_storage(away, location, config, digits, tmp_path, caplog):
    results = run_at(away, JOB, config, digits.arrays())
    next(results)
    aside = (tmp_path / "bucket").rename(tmp_path / "aside")
    (tmp_path / "bucket").write_bytes(b"no folder")
    *_, last = results
    assert "must be reachable and writable" in last["storage"]
    (tmp_path / "bucket").unlink()
    aside.rename(tmp_path / "bucket")
    assert list(objects(location)) == [CHECKPOINT]
    assert "finished" in list(run_at(away, JOB, config, digits.arrays()))[-1]


def test_what_a_run_starts_from_is_waited_for(away, config, digits, monkeypatch):
    monkeypatch.setattr(workspace, "_SENT_LATER_S", 0.1)
    monkeypatch.setattr(workspace, "_POLL_S", 0.0)
    (result,) = run_at(away, trial_job("trial-0001", 1, {}, "trial-0000"), config, digits.arrays())
    assert "must have runs/trial-0000/model.pt, but has not" in result["storage"]
    (result,) = run_at(away, trial_job("trial-0001", 1, {}), config, digits.arrays())
    assert "stage 1 must include pretrain-channel" in result["error"]


def test_an_array_that_is_lost_goes_on_elsewhere(away, location, config, digits):
    config = in_arrays(config, 2)
    list(run_at(away, pretrain_job(pretraining(MethodConfig())), config, digits.arrays()))
    lost, other = (ArrayWorker(config, away, digits.arrays(), {}) for _ in range(2))
    assert lost.join("trial-0/a", params(0))
    first = lost.next("trial-0/a")
    assert first[AWAY]
    assert "runs/trial-0/checkpoint.pt" in location.files()
    assert other.join("trial-0/b", params(0))
    again, *_, last = to_the_end(other, "trial-0/b")
    assert (again["replayed"], again["metrics"]) == (True, first["metrics"])
    assert "finished" in last
    assert "runs/trial-0/model.pt" in location.files()


def test_a_run_with_two_workers_goes_on_elsewhere(away, location, config, digits):
    config = with_two(config)
    data = [ray.put(digits.arrays())]

    def train(count):
        with team_of(config, data) as train_epoch:
            results = run_at(away, JOB, config, digits.arrays(), train_epoch=train_epoch)
            found = list(itertools.islice(results, count))
            results.close()
        return found

    first = train(2)
    assert location.files() == [CHECKPOINT]
    again = train(4)
    assert [result["replayed"] for result in again] == [True, True, False, False]
    assert [result["metrics"] for result in again[:2]] == [result["metrics"] for result in first]
    assert "finished" in again[-1]
    assert location.files() == [CHECKPOINT, MODEL]
