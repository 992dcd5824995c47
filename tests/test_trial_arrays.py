"""Trial arrays in a search: ordinary trials to the scheduler, the study and the ledger; slots are refilled."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest
from sweeps import run, trials_of

from orchestrator import search, trial_arrays
from orchestrator.config import ResourcesConfig, SchedulerConfig
from orchestrator.jobs import pretrain_job, run_job, trial_job
from orchestrator.stored.workspace import Place
from orchestrator.trial_arrays import ArrayWorker
from trainers.config import CurveConfig, MethodConfig
from trainers.errors import ConfigError
from trainers.methods import pretraining


def in_arrays(config, size, **search):
    return replace(
        config,
        model=replace(config.model, name="mlp", hidden=(16,)),
        curve=CurveConfig(num_points=2, largest=0.8, smallest=0.4),
        search=replace(config.search, max_concurrent=size, continuation=0, **search),
        resources=replace(config.resources, trials_per_array=size),
    )


@pytest.fixture
def worker(small_sweep, digits, tmp_path):
    """An array of two slots in this process, with stage 1 done."""
    config = in_arrays(small_sweep, 2)
    list(run_job(pretrain_job(pretraining(MethodConfig())), config, str(tmp_path), digits.arrays()))
    return ArrayWorker(config, Place(str(tmp_path)), digits.arrays(), {})


def params(number, **settings):
    return {"name": f"trial-{number}", "number": number, "settings": settings, "source": None}


def to_the_end(worker, key):
    results = [worker.next(key)]
    while not results[-1].keys() & {"finished", "error"}:
        results.append(worker.next(key))
    return results


def together(calls):
    """Make the calls at once; their results by position."""
    found = {}
    threads = [
        threading.Thread(target=lambda i=i, call=call: found.update({i: call()})) for i, call in enumerate(calls)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return [found[i] for i in range(len(calls))]


def metrics(results):
    return [result["metrics"] for result in results]


def test_trials_of_an_array_give_what_they_give_alone_and_leave_their_slots_to_others(
    worker, small_sweep, digits, tmp_path
):
    settings = [{"strength": 0.01}, {"strength": 0.1, "regularizer": "l1"}, {"learning_rate": 1e-3}]
    assert worker.join("trial-0/a", params(0, **settings[0]))
    assert worker.join("trial-1/a", params(1, **settings[1]))
    assert worker.join("trial-1/a", params(1, **settings[1]))  # the same call again
    assert not worker.join("trial-2/a", params(2, **settings[2]))
    first = together([lambda: worker.next("trial-0/a"), lambda: worker.next("trial-1/a")])
    worker.leave("trial-1/a")  # its scheduler has stopped it
    worker.leave("trial-1/a")
    assert worker.join("trial-2/a", params(2, **settings[2]))
    rest, late = together([lambda: to_the_end(worker, "trial-0/a"), lambda: to_the_end(worker, "trial-2/a")])
    config = in_arrays(small_sweep, 1)
    for number, found in ((0, [first[0], *rest]), (1, first[1:]), (2, late)):
        job = trial_job(f"alone-{number}", number, settings[number])
        alone = list(run_job(job, config, str(tmp_path), digits.arrays()))
        assert [result["epoch"] for result in found] == [1, 2][: len(found)]
        for one, other in zip(metrics(found), metrics(alone), strict=False):
            assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)
    assert rest[-1]["finished"]
    assert late[-1]["curve"]


def test_a_trial_that_asks_for_nothing_is_not_waited_for_and_gives_its_slot_up(worker, monkeypatch):
    monkeypatch.setattr(trial_arrays, "_PATIENCE_S", 0.2)
    for number in (0, 1):
        assert worker.join(f"trial-{number}/a", params(number))
    assert worker.next("trial-0/a")["epoch"] == 1  # without trial-1, whose worker was lost
    assert worker.join("trial-2/a", params(2))
    with pytest.raises(LookupError, match="trial-1/a must be in this array"):
        worker.next("trial-1/a")


def test_an_attempt_that_goes_on_after_a_lost_worker_repeats_what_was_trained(worker):
    assert worker.join("trial-0/a", params(0))
    first = worker.next("trial-0/a")
    worker.forget("trial-0")
    assert worker.join("trial-0/b", params(0))
    again = to_the_end(worker, "trial-0/b")
    assert [result["replayed"] for result in again] == [True, False]
    assert again[0]["metrics"] == first["metrics"]


def test_a_trial_that_fails_says_so_and_the_others_go_on(worker):
    assert worker.join("trial-0/a", params(0))
    assert worker.join("trial-1/a", params(1, learning_rate=1e30))
    good, bad = together([lambda key=key: to_the_end(worker, key) for key in ("trial-0/a", "trial-1/a")])
    assert "NonFiniteError: the loss must stay finite" in bad[-1]["error"]
    assert good[-1]["finished"]


@pytest.mark.ray
def test_a_sweep_trains_its_trials_in_arrays_and_fills_the_slots_of_those_that_are_stopped(
    small_sweep, ray_cluster, tmp_path
):
    output = tmp_path / "stopped"
    scheduler = SchedulerConfig(grace_period=1, reduction_factor=3, exempt_share=0, min_trials=2)
    config = in_arrays(small_sweep, 2, num_trials=8, seed=4)  # whose draws are of both kinds
    config = replace(config, search_space="spaces:sometimes_idle", scheduler=scheduler)
    front = run(config, output)
    trials = trials_of(output)
    assert {trial.state for trial in trials} == {"COMPLETE", "PRUNED"}
    assert len(trials) == 8
    assert front.finalists


def test_arrays_do_not_go_with_measured_gpu_shares():
    with pytest.raises(ConfigError, match="trials_per_array: must be 1 with gpus_per_trial: auto, but got 4"):
        ResourcesConfig(gpus_per_trial="auto", trials_per_array=4)


@pytest.mark.ray
@pytest.mark.slow
def test_after_an_array_is_lost_its_trials_go_on_from_their_checkpoints(
    small_sweep, ray_cluster, tmp_path, monkeypatch
):
    import ray

    output, started = tmp_path / "lost", []

    @contextmanager
    def watched(*args):
        with trial_arrays.trial_arrays(*args) as arrays:
            started.extend(arrays)
            yield arrays

    def kill_when_it_trains():
        deadline = time.monotonic() + 300
        while not list(output.glob("runs/trial-*/checkpoint.pt")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        ray.kill(started[0], no_restart=False)

    monkeypatch.setattr(search, "trial_arrays", watched)
    config = in_arrays(small_sweep, 2, num_trials=4)
    config = replace(config, training=replace(config.training, epochs=30))
    with ThreadPoolExecutor() as pool:
        killed = pool.submit(kill_when_it_trains)
        run(config, output)
        killed.result()
    trials = trials_of(output)
    assert {(trial.state, trial.epochs) for trial in trials} == {("COMPLETE", 30)}
    assert len(trials) == 4
