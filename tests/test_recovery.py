"""What comes between a cut and its score: a recovery that never makes a network worse."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from trainers.batches import training_batches
from trainers.config import CurveConfig, MethodConfig, ModelConfig, TrainingConfig
from trainers.curve import scoring_rows
from trainers.evaluation import evaluate_split
from trainers.loop import stage_seed
from trainers.models import ModelSpec, build_model
from trainers.recipe import Setting, cut_network, pretrain
from trainers.recovery import estimate_batch_norm, recover
from trainers.saved_model import load_model

TRAINING = TrainingConfig(batch_size=64, pretrain_epochs=12, learning_rate=2e-3, augmentation="crop")


def setting_of(digits, model="tiny", training=TRAINING):
    return Setting(
        ModelSpec(ModelConfig(model, hidden=(40,)), digits.sample_shape, digits.num_classes), digits, training
    )


@pytest.fixture(scope="module", params=["tiny", "mlp"])
def trained(request, digits, tmp_path_factory):
    """A network with BatchNorm and one without, trained at full rank: its setting and its file."""
    torch.set_num_threads(1)
    setting, folder = setting_of(digits, request.param), tmp_path_factory.mktemp(request.param)
    list(pretrain(setting, MethodConfig(), folder))
    return setting, load_model(folder / "model.pt")


def cut_to(setting, saved, budget):
    config = MethodConfig(rank_rule="knapsack", budget=budget)
    return cut_network(setting, config, saved)[0].model


def test_batch_norm_statistics_are_the_mean_over_augmented_batches(digits):
    """Against the formula: means of batch means and of unbiased batch variances of the first layer's output."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.LazyLinear(10))
    training = TrainingConfig(batch_size=32, seed=3, augmentation="crop_flip")
    model(torch.zeros(1, *digits.sample_shape))
    model[1].momentum = 0.3
    model.eval()
    before = copy.deepcopy(model[0].state_dict())
    assert estimate_batch_norm(model, digits, training, 3)
    generator = torch.Generator().manual_seed(stage_seed(3, "batch norm"))
    batches = [images for images, _ in training_batches(digits, 100, "crop_flip", generator, torch.float32)][:3]
    outputs = [model[0](images).detach() for images in batches]
    means = torch.stack([y.mean((0, 2, 3)) for y in outputs]).mean(0)
    variances = torch.stack([y.transpose(0, 1).flatten(1).var(1) for y in outputs]).mean(0)
    torch.testing.assert_close(model[1].running_mean, means)
    torch.testing.assert_close(model[1].running_var, variances)
    assert not model.training
    assert model[1].momentum == 0.3
    for key, value in before.items():
        assert torch.equal(model[0].state_dict()[key], value)


@pytest.mark.parametrize(
    ("optimizer", "learning_rate"), [("adam", 2e-3), ("adam", 1.0), ("sgd", 0.1), ("sgd", 1e4), ("adamw", 1e-9)]
)
def test_no_recovery_ends_below_its_start_whatever_its_rate(trained, optimizer, learning_rate):
    setting, saved = trained
    rows, config = scoring_rows(setting.data, CurveConfig()), CurveConfig(recovery_steps=12)
    training = replace(TRAINING, optimizer=optimizer, learning_rate=learning_rate)
    for budget in (1.0, 0.6, 0.3, 0.1):
        model = cut_to(setting, saved, budget)
        start = evaluate_split(model, rows)["accuracy"]
        found = recover(model, rows, training, config)
        assert found.start == start
        assert evaluate_split(model, rows) == pytest.approx({**evaluate_split(model, rows), "accuracy": found.accuracy})
        assert found.accuracy >= start
        assert found.steps in (0, 5, 10, 12)


def test_steps_of_training_help_deep_cuts(trained):
    """Three tenths of the MACs: the network with BatchNorm loses little, the other one much."""
    setting, saved = trained
    rows = scoring_rows(setting.data, CurveConfig())
    for budget in (0.3, 0.2):
        model = cut_to(setting, saved, budget)
        without = recover(copy.deepcopy(model), rows, TRAINING, CurveConfig(recovery_steps=0))
        trained_on = recover(model, rows, TRAINING, CurveConfig(recovery_steps=10))
        assert trained_on.accuracy >= without.accuracy
        assert trained_on.loss < without.loss
    assert trained_on.steps > 0


def test_a_network_that_is_not_cut_keeps_its_accuracy(trained):
    """On rows that the recovery never saw, within two standard errors of the difference."""
    setting, saved = trained
    shown, others = setting.data.validation_rows[::2], setting.data.validation_rows[1::2]
    model = cut_to(setting, saved, 1.0)
    unseen = replace(setting.data, validation_rows=others)
    before = evaluate_split(model, unseen)["accuracy"]
    recover(model, replace(setting.data, validation_rows=shown), TRAINING, CurveConfig())
    after = evaluate_split(model, unseen)["accuracy"]
    error = (2 * before * (1 - before) / len(others)) ** 0.5
    assert after >= before - 2 * error


def test_a_rate_that_is_too_high_is_found_out_and_nothing_is_kept_of_it(trained):
    setting, saved = trained
    rows, config = scoring_rows(setting.data, CurveConfig()), CurveConfig(recovery_steps=10, batch_norm_batches=0)
    model = cut_to(setting, saved, 0.6)
    before = copy.deepcopy(model.state_dict())
    found = recover(model, rows, replace(TRAINING, optimizer="sgd", learning_rate=1e6), config)
    assert found.steps == 0
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    one_try = recover(model, rows, TRAINING, replace(config, recovery_learning_rate=2e-3))
    assert one_try.learning_rate in (0.0, 2e-3, 2e-4)


def test_recovery_sees_the_same_batches_for_equal_seeds(trained):
    setting, saved = trained
    rows, config = scoring_rows(setting.data, CurveConfig()), CurveConfig(recovery_steps=30)
    model = cut_to(setting, saved, 0.3)
    twin = copy.deepcopy(model)
    first = recover(model, rows, TRAINING, config)
    torch.rand(7)  # another state of the global generator
    second = recover(twin, rows, replace(TRAINING, batch_size=7), config)
    assert (first.accuracy, first.loss, first.steps) == (second.accuracy, second.loss, second.steps)
    for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_network_of_infinite_loss_is_left_as_it_is(digits):
    model = build_model(ModelSpec(ModelConfig("mlp", hidden=(8,)), digits.sample_shape, digits.num_classes))
    with torch.no_grad():
        model[-1].bias.fill_(float("nan"))
    found = recover(model, digits, TRAINING, CurveConfig())
    assert found.steps == 0
    assert found.accuracy == found.start
