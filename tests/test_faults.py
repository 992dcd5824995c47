"""Faults of workers, memory and storage: retried where that helps, told apart from bugs, never the end of what was found."""

import os
import signal
import subprocess
import threading
import time
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from chaos import below
from mlflow import MlflowClient
from optuna.trial import TrialState
from ray import tune
from recorded import open_tracker
from rich.console import Console
from spaces import quick
from sweeps import comparable, run, study_states, trials_of

from orchestrator.config import ResourcesConfig
from orchestrator.jobs import pretrain_job, run_job
from orchestrator.ledger import Ledger
from orchestrator.paths import SweepPaths
from orchestrator.pipeline import run_sweep
from orchestrator.scheduler import tune_result
from orchestrator.search import run_trials
from orchestrator.study import open_study
from trainers.config import CurveConfig, MethodConfig
from trainers.errors import StorageError
from trainers.recipe import MODEL_FILE
from trainers.saved_model import load_model

LIMIT_S = 300


class Meanwhile(threading.Thread):
    """Does something beside the test as soon as a condition holds; re-raises at the end of the block what went wrong."""

    def __init__(self, condition, action):
        super().__init__(daemon=True)
        self._condition, self._action, self._failure = condition, action, None

    def run(self):
        end = time.monotonic() + LIMIT_S
        try:
            while not (found := self._condition()):
                assert time.monotonic() < end, "the moment did not come"
                time.sleep(0.005)
            self._action(found)
        except BaseException as error:
            self._failure = error

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.join(LIMIT_S)
        if self._failure is not None:
            raise self._failure


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_lost_worker_is_no_bug_and_a_bug_is_not_retried(small_sweep, tmp_path):
    """One trial's worker is killed once too often, another meets a bug; both say so, and the third is well."""
    output = tmp_path / "faults"
    paths = SweepPaths(output)
    config = replace(
        small_sweep,
        search=replace(small_sweep.search, num_trials=3),
        training=replace(small_sweep.training, epochs=20),
        curve=CurveConfig(num_points=0),
        resources=ResourcesConfig(max_retries=0),
    )

    def training():
        """The worker in the first trial; between two results a worker has another title."""
        if (paths.run("trial-0000") / "checkpoint.pt").exists():
            return [pid for pid, title in below(os.getpid()).items() if title.startswith("ray::ImplicitFunc.train")]
        return []

    def kill(workers):
        paths.run("trial-0001").write_text("a file where the run's folder should be")
        (worker,) = workers
        os.kill(worker, signal.SIGKILL)

    with Meanwhile(training, kill):
        run(config, output)
    lost, bug, well = trials_of(output)
    assert (lost.state, bug.state, well.state) == ("FAIL", "FAIL", "COMPLETE")
    assert lost.error.startswith("the worker was lost 1 times: The actor died unexpectedly")
    assert bug.error.startswith("Traceback")
    assert "FileExistsError" in bug.error
    assert bug.epochs == 0
    assert study_states(output) == [TrialState.FAIL, TrialState.FAIL, TrialState.COMPLETE]
    client = MlflowClient(f"sqlite:///{output}/mlflow.db")
    for record in (lost, bug):
        found = client.get_run(record.run_id)
        assert (found.info.status, found.data.tags["error"]) == ("FAILED", record.error[-2000:])


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_trial_whose_worker_cannot_begin_fails_by_name(small_sweep, tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("def trial(params):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = replace(small_sweep, resources=ResourcesConfig(max_retries=0))
    paths = SweepPaths(tmp_path / "sweep")
    paths.root.mkdir()
    tracker = open_tracker(config, paths)
    ledger = Ledger(config, paths, tracker, [])
    study = open_study(paths.study, config.name, 0)
    run_trials(import_module("only_here").trial, study, quick, 1, config, paths, ledger)
    tracker.close()
    (record,) = ledger.records()
    assert record.state == "FAIL"
    assert "No module named 'only_here'" in record.error


def dies_after_it(params, marks):
    """A trial whose worker lives for a moment after its end, if its number is among the names of the files in `marks`."""
    cut = {"settings": {}, "macs": 10, "params": 10, "score": 0.5}
    result = {
        "epoch": 1,
        "metrics": dict.fromkeys(("val_accuracy", "macs", "macs_ratio", "params", "params_ratio"), 0.5),
    }
    result |= {"duration_s": 0.1, "cpu_s": 0.1, "ended_at_s": 1.0, "curve": [cut], "replayed": False, "finished": True}
    mark = marks / str(params["number"])
    if mark.exists():
        mark.unlink()
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGKILL)).start()
    tune.report(tune_result(result))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("max_retries", [1, 0])
def test_a_trial_whose_worker_is_lost_before_it_begins_is_tried_again(small_sweep, tmp_path, max_retries):
    """The proposal takes longer than the worker of the trial before lives: Tune itself tries no such trial again."""

    def slow(trial):
        time.sleep(1.5)
        return quick(trial)

    for number in (0, 1):
        (tmp_path / str(number)).touch()
    search = replace(small_sweep.search, max_concurrent=1)
    config = replace(small_sweep, search=search, resources=ResourcesConfig(max_retries=max_retries))
    paths = SweepPaths(tmp_path / "sweep")
    paths.root.mkdir()
    tracker = open_tracker(config, paths)
    ledger = Ledger(config, paths, tracker, [])
    study = open_study(paths.study, config.name, 0)
    run_trials(tune.with_parameters(dies_after_it, marks=tmp_path), study, slow, 3, config, paths, ledger)
    tracker.close()
    states = {record.name: record.state for record in ledger.records()}
    if max_retries:  # the last one too, for which Tune has no trial left
        assert states == dict.fromkeys(("trial-0000", "trial-0001", "trial-0002"), "COMPLETE")
    else:
        assert states == {"trial-0000": "COMPLETE", "trial-0001": "FAIL", "trial-0002": "COMPLETE"}
        assert ledger.record("trial-0001").error.startswith("the worker was lost 1 times: The actor died unexpectedly")
    assert [trial.state.name for trial in study.get_trials(deepcopy=False)] == list(states.values())


class SmallDevice:
    """A device without room for more than `limit` images: its allocator raises what CUDA's does."""

    def __init__(self, monkeypatch, limit):
        self.limit, self.batches = limit, []
        monkeypatch.setattr(torch.nn.Flatten, "forward", self._forward(torch.nn.Flatten.forward))

    def _forward(self, forward):
        def limited(module, images):
            if torch.is_grad_enabled():
                self.batches.append(len(images))
                if len(images) > self.limit:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return forward(module, images)

        return limited


class TestOutOfMemory:
    def results(self, small_sweep, digits, output, **resources):
        config = replace(small_sweep, resources=ResourcesConfig(share_stage_one=False, **resources))
        return list(run_job(pretrain_job(MethodConfig()), config, str(output), digits.arrays()))

    @pytest.fixture
    def device(self, monkeypatch):
        return SmallDevice(monkeypatch, 20)

    def test_it_is_tried_again_with_half_as_much_at_a_time_until_it_fits(self, small_sweep, digits, tmp_path, device):
        results = self.results(small_sweep, digits, tmp_path, accumulate_when_out_of_memory=True)
        assert device.batches[:4] == [64, 32, 16, 16]
        assert max(device.batches[3:]) == 16
        assert [(result["epoch"], result.get("finished", False)) for result in results] == [(1, False), (2, True)]
        assert results[-1]["metrics"]["accumulation"] == 4
        assert load_model(SweepPaths(tmp_path).run("pretrain-channel") / MODEL_FILE).history[-1]["epoch"] == 2

    def test_it_goes_on_from_its_checkpoint(self, small_sweep, digits, tmp_path, device):
        device.limit = 64
        results = run_job(
            pretrain_job(MethodConfig()),
            replace(small_sweep, resources=ResourcesConfig(share_stage_one=False, accumulate_when_out_of_memory=True)),
            str(tmp_path),
            digits.arrays(),
        )
        assert next(results)["epoch"] == 1
        device.limit = 32
        left = list(results)
        assert [(result["epoch"], result["replayed"]) for result in left] == [(1, True), (2, False)]
        assert [result["metrics"].get("accumulation") for result in left] == [None, 2]

    def test_without_leave_to_accumulate_it_is_tried_as_it_is(self, small_sweep, digits, tmp_path, device):
        (result,) = self.results(small_sweep, digits, tmp_path, max_retries=1)
        assert device.batches == [64, 64]
        assert "torch.OutOfMemoryError: CUDA out of memory" in result["error"]

    def test_tries_are_counted(self, small_sweep, digits, tmp_path, device):
        device.limit = 1
        (result,) = self.results(small_sweep, digits, tmp_path, max_retries=9, accumulate_when_out_of_memory=True)
        assert device.batches == [64, 32, 16, 8, 4, 2, 2, 2, 2, 2]  # no part of a single image
        assert "OutOfMemoryError" in result["error"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system that can be filled, and made read-only for root as well."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=16m", "tmpfs", folder):
        pytest.skip("needs the right to mount a file system")
    yield folder
    unmount(folder)


def unmount(folder):
    subprocess.run(["umount", "-l", str(folder)], check=True)


def mount(*arguments):
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True, check=False).returncode == 0


def keep_full(folder, stopped):
    """Take all room, and what is given back, until `stopped`."""
    with (folder / "filler").open("wb", buffering=0) as file:
        while not stopped.wait(0.005):
            size = 1 << 20
            while size:
                try:
                    file.write(bytes(size))
                except OSError:
                    size //= 2


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_storage_that_fails_stops_the_sweep_and_loses_nothing(finished, small_sweep, small_disk):
    output, stopped = small_disk / "sweep", threading.Event()

    def second_trial():
        return len(list(output.glob("runs/trial-*"))) == 2

    with Meanwhile(second_trial, lambda _: keep_full(small_disk, stopped)):
        try:
            with pytest.raises(StorageError, match=rf"No space left on device.*`rankfront resume {output}`"):
                run_sweep(small_sweep, output, Console(quiet=True))
        finally:
            stopped.set()
    kept = comparable(output)
    assert {row["name"] for row in kept} >= {"pretrain-channel", "trial-0000"}
    assert {row["state"] for row in kept} == {"COMPLETE"}
    (small_disk / "filler").unlink()
    assert mount("--bind", small_disk, small_disk)
    try:
        assert mount("-o", "remount,bind,ro", small_disk)
        with pytest.raises(StorageError, match="Read-only file system"):
            run_sweep(small_sweep, output, Console(quiet=True))
    finally:
        unmount(small_disk)
    run(small_sweep, output)
    assert comparable(output) == comparable(finished[0])
    assert [row for row in comparable(output) if row["name"] in {one["name"] for one in kept}] == kept
    assert study_states(output) == [TrialState.COMPLETE] * 4
