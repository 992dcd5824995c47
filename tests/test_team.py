"""Runs with several workers on a real Ray: what one trains, whatever happens to the others, and none is left."""

import os
import signal
import time
from dataclasses import replace

import pytest
import ray
import torch
from chaos import below
from ray import tune
from ray.tune.schedulers import FIFOScheduler
from sweeps import run, trials_of
from test_faults import Meanwhile

from orchestrator.config import ResourcesConfig
from orchestrator.jobs import pretrain_job, run_job, trial_job
from orchestrator.paths import SweepPaths
from orchestrator.records import read_records
from orchestrator.search import _trainable
from orchestrator.stored.workspace import Place
from orchestrator.team import bundles, team_of
from trainers.config import CurveConfig, MethodConfig
from trainers.errors import ConfigError, LostWorkerError
from trainers.methods import pretraining
from trainers.recipe import MODEL_FILE

LIMIT_S = 60
START = pretrain_job(pretraining(MethodConfig()))


def with_two(config, **resources):
    return replace(config, resources=ResourcesConfig(workers_per_trial=2, share_stage_one=False, **resources))


def followers():
    return [pid for pid, title in below(os.getpid()).items() if title.startswith("ray::Follower")]


def require_none_left():
    end = time.monotonic() + LIMIT_S
    while followers():
        assert time.monotonic() < end, "a worker is left"
        time.sleep(0.05)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
class TestTeam:
    """This process is the worker of rank 0."""

    @pytest.fixture
    def data(self, digits):
        return [ray.put(digits.arrays())]

    def results(self, config, output, digits, train_epoch=None):
        for result in run_job(START, config, str(output), digits.arrays(), train_epoch=train_epoch):
            assert "error" not in result, result["error"]
            yield result

    def test_a_lost_worker_ends_the_attempt_and_the_next_goes_on(self, small_sweep, digits, data, tmp_path):
        """The results are those of one worker; the epoch before the loss is not trained again."""
        alone = list(self.results(small_sweep, tmp_path / "alone", digits))
        config, output = with_two(small_sweep), tmp_path / "together"
        with team_of(config, data) as train_epoch:
            results = self.results(config, output, digits, train_epoch)
            first = next(results)
            (other,) = followers()
            os.kill(other, signal.SIGKILL)
            with pytest.raises(LostWorkerError, match="all workers of a run must stay"):
                next(results)
            require_none_left()
            again = list(self.results(config, output, digits, train_epoch))
            assert len(followers()) == 1
        require_none_left()
        assert not torch.distributed.is_initialized()
        assert (again[0]["replayed"], again[1]["replayed"]) == (True, False)
        assert again[0]["metrics"] == first["metrics"]
        for found, expected in zip(again, alone, strict=True):
            assert found["metrics"] == pytest.approx(expected["metrics"], rel=1e-3, abs=0.01)

    def test_what_another_worker_raises_is_the_run_s_own(self, small_sweep, digits, data, tmp_path):
        """Here that it has too few labels."""
        odd = {**ray.get(data[0])}
        odd["labels"] = odd["labels"][:10]
        with team_of(with_two(small_sweep), [ray.put(odd)]) as train_epoch:
            (result,) = run_job(START, with_two(small_sweep), str(tmp_path), digits.arrays(), train_epoch=train_epoch)
        assert "IndexError: index" in result["error"].splitlines()[-1]
        require_none_left()


class Stops(FIFOScheduler):
    """Stops every trial after its first epoch, and looks for the worker that is there then."""

    def __init__(self):
        super().__init__()
        self.seen = 0

    def on_trial_result(self, controller, trial, result):
        self.seen += len(followers())
        return self.STOP


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
class TestInASweep:
    def test_a_trial_that_the_scheduler_stops_leaves_no_process(self, small_sweep, digits, tmp_path):
        config = with_two(replace(small_sweep, training=replace(small_sweep.training, epochs=50)))
        list(run_job(START, config, str(tmp_path), digits.arrays()))
        job = trial_job("trial-0000", 0, {})
        params = {"name": job.name, "number": 0, "settings": {}, "source": None}
        trainable = tune.with_parameters(
            _trainable, config=config, place=Place(str(tmp_path)), data=[ray.put(digits.arrays())], starts={}
        )
        stops = Stops()
        found = tune.Tuner(
            tune.with_resources(trainable, tune.PlacementGroupFactory(bundles(config.resources))),
            param_space=params,
            tune_config=tune.TuneConfig(scheduler=stops, reuse_actors=True),
            run_config=tune.RunConfig(storage_path=str(tmp_path / "tune"), verbose=0),
        ).fit()
        assert found.num_errors == 0
        assert stops.seen == 1
        require_none_left()
        assert not (SweepPaths(tmp_path).run(job.name) / MODEL_FILE).exists()

    def test_a_sweep_survives_workers_that_are_killed(self, small_sweep, tmp_path):
        """One in stage 1 and one in a trial; each run goes on from its checkpoint and is complete."""
        output = tmp_path / "sweep"
        paths = SweepPaths(output)
        config = with_two(
            replace(
                small_sweep,
                search=replace(small_sweep.search, num_trials=2),
                training=replace(small_sweep.training, pretrain_epochs=20, epochs=20),
                curve=CurveConfig(num_points=0),
            ),
            max_retries=1,
        )
        killed = []

        def begun(name):
            return lambda: (paths.run(name) / "checkpoint.pt").exists() and followers()

        def kill(workers):
            killed.extend(workers)
            for worker in workers:
                os.kill(worker, signal.SIGKILL)

        with Meanwhile(begun(START.name), kill), Meanwhile(begun("trial-0000"), kill):
            run(config, output)
        assert len(killed) == 2
        records = read_records(paths.results)
        assert {record.state for record in records} == {"COMPLETE"}
        assert {record.epochs for record in trials_of(output)} == {20}
        assert {"pretrain", "trial", "finetune", "dense"} == {record.stage for record in records}
        require_none_left()


class TestRefused:
    """Before any compute."""

    @pytest.mark.parametrize(
        ("resources", "message"),
        [
            ({"trials_per_array": 2}, "workers_per_trial: must be 1 with trials_per_array above 1, but got 2"),
            ({"gpus_per_trial": 0.5}, "gpus_per_trial: must be 0 or 1 for each of several workers_per_trial"),
            ({"gpus_per_trial": "auto"}, "gpus_per_trial: must be 0 or 1 for each of several workers_per_trial"),
        ],
    )
    def test_resources(self, resources, message):
        with pytest.raises(ConfigError, match=message):
            ResourcesConfig(workers_per_trial=2, **resources)

    def test_a_step_that_is_compiled(self, small_sweep):
        with pytest.raises(ConfigError, match=r"training.step: must be eager with resources.workers_per_trial"):
            with_two(replace(small_sweep, training=replace(small_sweep.training, step="compile")))

    def test_batches_without_an_image_for_each(self, small_sweep):
        with pytest.raises(
            ConfigError, match=r"training.batch_size: must be at least resources.workers_per_trial \(2\)"
        ):
            with_two(replace(small_sweep, training=replace(small_sweep.training, batch_size=1)))
