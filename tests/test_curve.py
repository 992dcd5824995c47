"""One training, a whole curve; and the recovery that comes before a cut is scored."""

import math
from dataclasses import replace

import pytest
import torch
from small_networks import attached

from trainers.config import CurveConfig, MethodConfig, ModelConfig, TrainingConfig
from trainers.curve import budgets, judged_curve, ladder, scoring_rows
from trainers.evaluation import evaluate_split
from trainers.methods import METHODS, make_method
from trainers.models import ModelSpec
from trainers.recipe import Setting, compress, cut_network, finetune, pretrain
from trainers.saved_model import load_model

CURVE = CurveConfig(num_points=5, largest=0.8, smallest=0.1, recovery_steps=4, max_validation=150)


def setting_of(digits, **training):
    settings = {"batch_size": 64, "pretrain_epochs": 2, "epochs": 2, "learning_rate": 2e-3}
    spec = ModelSpec(ModelConfig("tiny"), digits.sample_shape, digits.num_classes)
    return Setting(spec, digits, TrainingConfig(**{**settings, **training}))


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    """Stage 2 of SVD training with a curve: its setting, its folder and its results."""
    torch.set_num_threads(1)  # sums depend on it
    folder = tmp_path_factory.mktemp("curve")
    setting, config = setting_of(digits), MethodConfig(regularizer="l1", strength=0.01, energy=0.2)
    list(pretrain(setting, config, folder / "1"))
    results = list(compress(setting, config, folder / "1/model.pt", folder / "2", CURVE, curve_epochs=(1,)))
    return setting, config, folder, results


def test_a_curve_has_the_trials_own_cut_first_and_one_for_each_other_budget(trained):
    setting, _, _, results = trained
    for result in results:
        own, *others = result.curve
        assert own["settings"] == {}
        assert own["macs"] == result.metrics["macs"]
        assert own["score"] == result.metrics["score"]
        shares = [cut["macs"] / setting.dense_cost.macs for cut in others]
        assert shares == sorted(shares, reverse=True)
        assert max(shares) <= 0.8
        assert min(shares) <= 0.1
        assert len({cut["macs"] for cut in others}) == len(others) == (3 if result.epoch == 1 else 5)


def test_a_cut_is_what_the_final_stage_makes_of_its_settings(trained):
    """Each point can be rebuilt from the trial's model file and its settings: same cost, same score, whatever the final
    stage trains with.
    """
    setting, config, folder, results = trained
    rows = scoring_rows(setting.data, CURVE)
    assert len(rows.validation_rows) == 150
    saved = load_model(folder / "2/model.pt")
    other = replace(setting, training=replace(setting.training, learning_rate=1e-12, seed=5))
    for cut in results[-1].curve:
        settings = replace(config, **cut["settings"])
        pruned, _ = cut_network(other, settings, saved, CURVE)
        assert evaluate_split(pruned.model, rows)["accuracy"] == cut["score"]
        (tuned,) = finetune(other, settings, 1, folder / "2/model.pt", curve=CURVE)
        assert tuned.metrics["macs"] == cut["macs"]
        assert tuned.metrics["params"] == cut["params"]
        assert tuned.metrics["start_val_accuracy"] == evaluate_split(pruned.model, setting.data)["accuracy"]


def test_the_largest_budget_of_all_is_the_network_uncut(trained):
    setting, config, folder, _ = trained
    whole = replace(CURVE, num_points=1, largest=1.0)
    (result,) = list(compress(setting, config, folder / "1/model.pt", folder / "whole", whole))[-1:]
    own, uncut = result.curve
    assert own["macs"] < uncut["macs"] == setting.dense_cost.macs
    saved = load_model(folder / "whole/model.pt")
    accuracy = evaluate_split(saved.model, scoring_rows(setting.data, whole))["accuracy"]
    assert uncut["score"] >= accuracy


def test_the_trained_network_is_not_touched_by_its_curve(trained):
    setting, config, folder, results = trained
    plain = list(compress(setting, config, folder / "1/model.pt", folder / "plain"))
    assert plain[-1].curve is None
    for key, value in plain[-1].metrics.items():
        assert results[-1].metrics[key] == value
    first, second = (load_model(folder / name / "model.pt").model.state_dict() for name in ("2", "plain"))
    for key, value in first.items():
        assert torch.equal(value, second[key])


def test_a_resumed_training_yields_its_curves_again(trained):
    setting, config, folder, results = trained
    running = compress(setting, config, folder / "1/model.pt", folder / "resumed", CURVE, curve_epochs=(1,))
    next(running)
    running.close()
    again = list(compress(setting, config, folder / "1/model.pt", folder / "resumed", CURVE, curve_epochs=(1,)))
    assert [result.curve for result in again] == [result.curve for result in results]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_curve_or_its_own_cut_alone(name, digits, tmp_path):
    setting, config = setting_of(digits, epochs=1), MethodConfig(method=name)
    list(pretrain(setting, config, tmp_path / "1"))
    curve = replace(CURVE, recovery_steps=0)
    (result,) = compress(setting, config, tmp_path / "1/model.pt", tmp_path / "2", curve)
    assert all(math.isfinite(cut["score"]) for cut in result.curve)
    if METHODS[name].ranks_at_cut:
        assert min(cut["macs"] for cut in result.curve) <= 0.2 * setting.dense_cost.macs
    else:
        assert [cut["settings"] for cut in result.curve] == [{}]


@pytest.mark.parametrize("rule", ["energy", "relative_threshold", "entropy", "equal_error", "knapsack", "greedy"])
def test_the_ladder_names_the_rules_own_setting(rule):
    method = attached(MethodConfig(rank_rule=rule))
    steps = list(ladder(method, *method.decomposed(), CurveConfig(num_points=4, largest=0.9, smallest=0.3)))
    if rule == "greedy":
        assert steps == []
        return
    key = {"relative_threshold": "threshold", "equal_error": "budget", "knapsack": "budget"}.get(rule, rule)
    for settings, ranks in steps:
        again = make_method(replace(method.config, **settings), method.network)
        again.attach(method.model, method.form)
        deployed = again.finish().ranks
        assert settings.keys() == {key}
        assert deployed == {name: ranks[name] for name in deployed}


def test_square_roots_of_budgets_fall_in_equal_steps():
    assert budgets(CurveConfig(num_points=3, largest=0.81, smallest=0.25)) == pytest.approx([0.81, 0.49, 0.25])
    assert budgets(CurveConfig(num_points=1, largest=0.5)) == [0.5]
    assert budgets(CurveConfig(num_points=0)) == []


def test_the_rows_that_score_are_spread_over_all_validation_rows(digits):
    """A head of them would be one class, in files that are sorted by class."""
    rows = scoring_rows(digits, CurveConfig(max_validation=10)).validation_rows
    assert len(rows.unique()) == 10
    assert rows[0] == digits.validation_rows[0]
    assert rows[-1] == digits.validation_rows[-1]
    assert torch.equal(scoring_rows(digits, CurveConfig()).validation_rows, digits.validation_rows)


def test_on_the_way_trials_are_compared_without_their_mild_cuts():
    assert budgets(judged_curve(CurveConfig())) == pytest.approx([0.8, 0.4395, 0.1862, 0.04], abs=1e-4)
    assert judged_curve(CurveConfig()).recovery_steps == 0
    assert budgets(judged_curve(CurveConfig(num_points=4, smallest=0.9))) == pytest.approx([0.9, 0.9])
    assert budgets(judged_curve(CurveConfig(num_points=3, largest=0.5))) == [0.5, 0.04]
