"""What the scheduler of a sweep is told, and what it knows of trials that ended before."""

import json
import math
import os
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from trial_records import record

from orchestrator.config import SchedulerConfig
from orchestrator.scheduler import make_scheduler, rung_points, rungs, tune_result

METRICS = {"val_accuracy": 0.8, "score": 0.85, "macs": 1e6}


def test_cuts_are_points_and_a_network_without_cuts_is_one_by_the_same_steps():
    cuts = [{"score": 0.9, "macs": 1_000_000}, {"score": 0.8, "macs": 1_040_000}, {"score": 0.7, "macs": 1_100_000}]
    points = rung_points({"metrics": METRICS, "curve": cuts})
    step = round(math.log(1e6, 1.1))
    assert points == [[0.9, step], [0.8, step], [0.7, step + 1]]
    assert rung_points({"metrics": METRICS, "curve": None}) == [[0.8, step]]
    assert rung_points({"error": "Traceback"}) == []


def test_tune_finds_no_number_to_keep_statistics_of_but_the_epoch():
    from ray.tune.utils import flatten_dict

    told = tune_result({"epoch": 2, "metrics": METRICS, "curve": None, "judged": False, "duration_s": 1.0})
    numbers = {key for key, value in flatten_dict(told).items() if isinstance(value, int | float)}
    assert numbers == {"epoch", "judged", "done"}
    assert told["report"] == [{"epoch": 2, "metrics": METRICS, "curve": None, "judged": False, "duration_s": 1.0}]


@pytest.mark.parametrize(("result", "done"), [({}, False), ({"finished": True}, True), ({"error": "Traceback"}, True)])
def test_the_last_result_says_so(result, done):
    assert tune_result(result)["done"] is done


class TestSweepScheduler:
    @pytest.fixture
    def config(self, small_sweep):
        scheduler = SchedulerConfig(grace_period=1, exempt_share=0, min_trials=1, reduction_factor=9)
        return replace(small_sweep, scheduler=scheduler)

    def judge(self, scheduler, name, score, **result):
        trial = SimpleNamespace(trial_id="id", config={"name": name})
        return scheduler.on_trial_result(None, trial, {"epoch": 1, "points": [[score, 10]], **result})

    def test_trials_that_ended_before_count_again(self, config):
        curve = json.dumps([{"epoch": 1, "score": 0.9, "macs": 1}, {"epoch": 2, "score": 0.95, "macs": 1}])
        scheduler = make_scheduler(config, [record("trial-0000", curve=curve)])
        assert rungs(config) == (1,)
        assert scheduler.halving.num_recorded() == {1: 1}
        assert self.judge(scheduler, "trial-0001", 0.8) == "STOP"
        assert self.judge(scheduler, "trial-0002", 0.99) == "CONTINUE"
        assert self.judge(scheduler, "trial-0000", 0.0) == "CONTINUE"  # it was there already

    def test_a_result_that_is_told_again_stops_nobody(self, config):
        scheduler = make_scheduler(config, [])
        assert self.judge(scheduler, "trial-0000", 0.9) == "CONTINUE"
        assert self.judge(scheduler, "trial-0001", 0.8, judged=True) == "CONTINUE"

    def test_no_scheduler_stops_nobody(self, small_sweep):
        assert rungs(small_sweep) == ()
        assert make_scheduler(small_sweep, []).on_trial_result(None, None, {"epoch": 1}) == "CONTINUE"


@pytest.mark.ray
def test_trials_that_end_faster_than_workers_start_do_not_end_those_that_are_starting(
    ray_cluster, small_sweep, tmp_path
):
    from ray import tune

    def short(config):
        time.sleep(0.1)
        tune.report({"pid": os.getpid(), "done": True})

    config = replace(small_sweep, scheduler=SchedulerConfig())
    tuner = tune.Tuner(
        short,
        tune_config=tune.TuneConfig(
            num_samples=150, max_concurrent_trials=2, reuse_actors=True, scheduler=make_scheduler(config, [])
        ),
        run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
    )
    assert len({result.metrics["pid"] for result in tuner.fit()}) == 2
