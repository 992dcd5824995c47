"""The scheduler in Tune: dominated trials stop, both ends of the front go on, and a restore knows its rungs."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray import tune

from orchestrator.halving import ParetoHalving
from orchestrator.pareto_asha import ParetoASHA, SchedulerState

GOOD = {"cheap and poor": (0.5, 1.0), "costly and good": (0.95, 10.0), "between": (0.8, 4.0)}
DOMINATED = {f"dominated {i}": (0.4 - i / 20, 5.0 + i) for i in range(6)}
MODELS = {**GOOD, **DOMINATED, "not finite": (math.nan, 1.0), "no metric": (None, 1.0), "fails at first": (0.1, 20.0)}


def train(config):
    accuracy, macs = MODELS[config["model"]]
    if config["model"] == "fails at first" and not Path(config["repaired"]).exists():
        raise RuntimeError("not yet")
    for epoch in range(1, 10):
        metrics = {"accuracy": accuracy, "cost": {"macs": macs}, "epoch": epoch}
        tune.report({key: value for key, value in metrics.items() if value is not None})


@pytest.fixture(scope="module")
def experiment(ray_cluster, tmp_path_factory):
    """Twelve trials one after the other, so that each run has the same rungs; one of them fails."""
    storage = tmp_path_factory.mktemp("tune")
    scheduler = ParetoASHA(["accuracy", "cost/macs"], ["max", "min"], time_attr="epoch", max_t=4, reduction_factor=3)
    tuner = tune.Tuner(
        train,
        param_space={"model": tune.grid_search(list(MODELS)), "repaired": str(storage / "repaired")},
        tune_config=tune.TuneConfig(scheduler=scheduler, max_concurrent_trials=1, reuse_actors=True),
        run_config=tune.RunConfig("models", str(storage), callbacks=[SchedulerState(scheduler)], verbose=0),
    )
    return scheduler, tuner.fit(), storage


def last_epochs(results):
    return {result.config["model"]: (result.metrics or {}).get("epoch") for result in results}


@pytest.mark.ray
def test_both_ends_of_the_front_go_on_and_dominated_trials_stop(experiment):
    scheduler, results, _ = experiment
    epochs = last_epochs(results)
    assert {name: epochs[name] for name in GOOD} == dict.fromkeys(GOOD, 4)
    assert [epochs[name] for name in DOMINATED] == [1] * 6
    assert epochs["not finite"] == epochs["no metric"] == 1
    assert results.num_errors == 1
    assert "8 trials stopped early; trials at each rung: 1: 11, 3: 3" in scheduler.debug_string()


@pytest.mark.ray
def test_a_restored_experiment_judges_by_the_rungs_of_the_first_run(experiment):
    """Against empty rungs the dominated trial that failed at first would train to the end."""
    _, first, storage = experiment
    (storage / "repaired").touch()
    tuner = tune.Tuner.restore(str(storage / "models"), train, restart_errored=True)
    results = tuner.fit()
    assert results.num_errors == 0
    assert last_epochs(results) == {**last_epochs(first), "fails at first": 1}


def judge(scheduler, trial, **result):
    return scheduler.on_trial_result(None, SimpleNamespace(trial_id=trial), result)


def test_one_objective():
    scheduler = ParetoASHA(["loss"], ["min"], max_t=9)
    losses = {"a": 3.0, "b": 2.0, "c": 4.0, "d": 2.5, "e": 2.6}
    decisions = {trial: judge(scheduler, trial, training_iteration=1, loss=loss) for trial, loss in losses.items()}
    assert [trial for trial, decision in decisions.items() if decision == "CONTINUE"] == ["a", "b", "d"]
    assert judge(scheduler, "b", training_iteration=2, loss=9.0) == "CONTINUE"  # no rung is due
    assert judge(scheduler, "b", training_iteration=9, loss=0.0) == "STOP"


def test_a_curve_counts_by_its_best_points_and_a_result_without_one_by_its_metrics():
    scheduler = ParetoASHA(["accuracy", "macs"], ["max", "min"], max_t=9, curve="curve", exempt_share=0)
    own = {"training_iteration": 1, "accuracy": 0.1, "macs": 10.0}
    assert judge(scheduler, "a", **own, curve=[[0.9, 5.0], [0.5, 1.0]]) == "CONTINUE"
    assert judge(scheduler, "b", **own, curve=[[0.8, 5.0], [0.5, 2.0]]) == "STOP"
    assert judge(scheduler, "c", **own) == "STOP"
    assert judge(scheduler, "d", **own, curve=[[0.1, 9.0], [0.6, 2.0]]) == "CONTINUE"
    assert judge(scheduler, "e", training_iteration=1, accuracy=0.95, macs=10.0) == "CONTINUE"


@pytest.mark.parametrize(
    "result",
    [
        {"macs": 1.0},
        {"accuracy": None, "macs": 1.0},
        {"accuracy": "?", "macs": 1.0},
        {"curve": [[1.0]]},
        {"curve": None},
    ],
)
def test_a_result_without_a_usable_point_stops_its_trial_alone(result):
    scheduler = ParetoASHA(["accuracy", "macs"], ["max", "min"], max_t=9, curve="curve")
    assert judge(scheduler, "a", training_iteration=1, **result) == "STOP"
    assert judge(scheduler, "b", training_iteration=1, accuracy=0.5, macs=1.0) == "CONTINUE"


def test_a_missing_metric_is_named_in_a_warning(caplog):
    scheduler = ParetoASHA(["accuracy", "macs"], ["max", "min"], max_t=9)
    judge(scheduler, "a", training_iteration=1, macs=1.0)
    assert "trial a has no point at rung 1" in caplog.text
    assert "['accuracy']" in caplog.text


def test_a_result_without_time_changes_nothing():
    scheduler = ParetoASHA(["loss"], ["min"], max_t=9)
    assert judge(scheduler, "a", loss=1.0) == "CONTINUE"
    scheduler.on_trial_complete(None, SimpleNamespace(trial_id="a"), {})
    assert scheduler.state()["records"] == {"1": {}, "3": {}}


def test_a_trial_that_ends_by_itself_is_recorded():
    scheduler = ParetoASHA(["loss"], ["min"], max_t=9)
    scheduler.on_trial_complete(None, SimpleNamespace(trial_id="a"), {"training_iteration": 1, "loss": 1.0})
    assert judge(scheduler, "b", training_iteration=1, loss=2.0) == "STOP"


def test_an_exempt_trial_trains_to_the_end():
    scheduler = ParetoASHA(["loss"], ["min"], max_t=9, exempt_share=1)
    decisions = [judge(scheduler, "ab"[i], training_iteration=1, loss=loss) for i, loss in enumerate([1.0, math.nan])]
    assert decisions == ["CONTINUE", "CONTINUE"]
    assert judge(scheduler, "b", training_iteration=9, loss=math.nan) == "STOP"


def test_a_saved_scheduler_decides_as_before(tmp_path):
    first, second, fresh = (ParetoASHA(["loss"], ["min"], max_t=9) for _ in range(3))
    for trial, loss in {"a": 1.0, "b": 2.0, "c": math.nan}.items():
        judge(first, trial, training_iteration=1, loss=loss)
    first.save(str(tmp_path / "scheduler.json"))
    second.restore(str(tmp_path / "scheduler.json"))
    assert second.state() == first.state() == json.loads((tmp_path / "scheduler.json").read_text())
    assert second.debug_string() == first.debug_string()
    assert [judge(one, "d", training_iteration=1, loss=1.5) for one in (first, second)] == ["CONTINUE"] * 2
    assert [judge(one, "e", training_iteration=1, loss=1.9) for one in (first, second)] == ["STOP"] * 2
    assert judge(fresh, "e", training_iteration=1, loss=1.9) == "CONTINUE"


def test_a_rule_can_be_given_with_its_records():
    halving = ParetoHalving(["min"], max_t=9)
    halving.record("earlier", 1, [[1.0]])
    scheduler = ParetoASHA(["loss"], halving=halving, max_t=9)
    assert scheduler.halving is halving
    assert judge(scheduler, "a", training_iteration=1, loss=2.0) == "STOP"
    with pytest.raises(ValueError, match="one mode each"):
        ParetoASHA(["loss", "macs"], halving=halving)


@pytest.mark.parametrize(
    ("metric", "mode"), [("loss", "min"), (["a", "b"], ["min"]), (["a", "a"], ["min", "max"]), (["a", "a"], ["min"])]
)
def test_each_metric_needs_a_mode(metric, mode):
    with pytest.raises(ValueError, match="metric must be a list of distinct names with one mode each"):
        ParetoASHA(metric, mode)


def test_a_metric_of_the_experiment_itself_does_not_disturb():
    scheduler = ParetoASHA(["loss"], ["min"])
    assert scheduler.set_search_properties("accuracy", "max")
    assert scheduler.set_search_properties("accuracy", "max")  # again, for the next experiment
    assert scheduler.metric is None
