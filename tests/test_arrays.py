"""Trial arrays: what they give is what the single trainer gives, mostly in float64, where rounding hides nothing."""

import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from trainers.arrays import TrialArray, array_problem
from trainers.arrays.network import array_form, stack_state
from trainers.config import CurveConfig, MethodConfig, ModelConfig, TrainingConfig
from trainers.errors import NonFiniteError
from trainers.layers import SVDConv
from trainers.models import MODELS, ModelSpec, build_model
from trainers.recipe import Setting, compress, compress_steps, pretrain
from trainers.saved_model import load_model
from trainers.surgery import factorize

METHODS = [
    MethodConfig(decomposition="spatial", regularizer="hoyer", strength=0.05, energy=0.2),
    MethodConfig(
        decomposition="spatial",
        regularizer="l1",
        strength=0.02,
        strength_schedule="warmup",
        spectrum_learning_rate=10.0,
        orthogonality_weight=0.3,
    ),
    MethodConfig(decomposition="spatial", regularizer="hoyer_square", strength=0.01, spectrum_learning_rate=3.0),
]
CHANGES = [{}, {"learning_rate": 1e-3, "weight_decay": 1e-3, "seed": 5, "augmentation": "none"}, {"schedule": "step"}]


@pytest.fixture
def few(digits):
    """A tenth of the digits: two batches of 64 an epoch."""
    return replace(digits, train_rows=digits.train_rows[:140], validation_rows=digits.validation_rows[:60])


@pytest.fixture
def start(few, tmp_path):
    """Make a network's setting, and stage 1's file for it."""

    def make(model="mlp", data=few, **changes):
        training = TrainingConfig(
            batch_size=64, pretrain_epochs=1, epochs=3, learning_rate=2e-3, augmentation="crop_flip", dtype="float64"
        )
        spec = ModelSpec(ModelConfig(model, (24, 16)), data.sample_shape, data.num_classes)
        setting = Setting(spec, data, replace(training, **changes))
        list(pretrain(setting, METHODS[0], tmp_path / "start"))
        return setting, tmp_path / "start/model.pt"

    return make


def changed(setting, **changes):
    return replace(setting, training=replace(setting.training, **changes))


def run(array):
    """Advance to the end; the results by slot, and the errors."""
    results, errors = {}, {}
    while array.slots:
        found = array.advance()
        for slot, result in found.results.items():
            results.setdefault(slot, []).append(result)
        errors |= {slot: error for slot, error in found.ended.items() if error is not None}
    return results, errors


def metrics(results):
    return [result.metrics for result in results]


def assert_same(found, expected, tolerance=1e-9):
    """Results agree, epoch by epoch, and there are some."""
    assert len(found) == len(expected) > 0
    for one, other in zip(metrics(found), metrics(expected), strict=True):
        assert one == pytest.approx(other, rel=tolerance, abs=tolerance)


def assert_same_networks(found, expected, tolerance=1e-9):
    one, other = (load_model(folder / "model.pt").model.state_dict() for folder in (found, expected))
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=tolerance, atol=tolerance)


def test_three_trials_equal_singles_and_one_that_takes_a_slot_on_the_way_does_too(start, tmp_path):
    setting, file = start("tiny", epochs=2)
    curve = CurveConfig(num_points=2, recovery_steps=1, batch_norm_batches=1)
    settings = [changed(setting, **changes) for changes in CHANGES]
    trials = list(zip(settings, METHODS, strict=True))
    late = changed(setting, seed=9, learning_rate=3e-3), replace(METHODS[1], strength=0.1)
    expected = [list(compress(*trial, file, tmp_path / f"single{i}", curve)) for i, trial in enumerate([*trials, late])]

    array = TrialArray(3)
    for i, trial in enumerate(trials):
        assert array.add(compress_steps(*trial, file, tmp_path / f"array{i}", curve)) == i
    with pytest.raises(ValueError, match="a slot must be free, but all 3"):
        array.add(iter(()))
    first = array.advance().results
    array.remove(1)  # a scheduler has stopped it
    assert array.add(compress_steps(*late, file, tmp_path / "array3", curve)) == 1
    rest, errors = run(array)
    assert not errors
    assert_same([first[0], *rest[0]], expected[0])
    assert_same([first[1]], expected[1][:1])
    assert_same([first[2], *rest[2]], expected[2])
    assert_same(rest[1], expected[3])
    for i in (0, 2, 3):
        assert_same_networks(tmp_path / f"array{i}", tmp_path / f"single{i}")
    cuts = [[cut["macs"] for cut in results[-1].curve] for results in (rest[0], expected[0])]
    assert cuts[0] == cuts[1]
    assert len(cuts[0]) > 1


@pytest.mark.parametrize(
    "changes",
    [{"optimizer": "adamw"}, {"optimizer": "sgd", "momentum": 0.8}, {"optimizer": "sgd", "momentum": 0.0}],
    ids=str,
)
def test_each_optimizer_equals_torchs(changes, start, tmp_path):
    setting, file = start(label_smoothing=0.1, **changes)
    trials = [(changed(setting, **other), method) for other, method in zip(CHANGES, METHODS, strict=True)]
    array = TrialArray(3)
    for i, trial in enumerate(trials):
        array.add(compress_steps(*trial, file, tmp_path / f"array{i}"))
    results, _ = run(array)
    for i, trial in enumerate(trials):
        assert_same(results[i], list(compress(*trial, file, tmp_path / f"single{i}")))
        assert_same_networks(tmp_path / f"array{i}", tmp_path / f"single{i}")


def test_in_float32_losses_of_a_hundred_steps_differ_by_less_than_a_thousandth(start, digits):
    setting, file = start(data=replace(digits, train_rows=digits.train_rows[:1280]), dtype="float32", epochs=5)
    trials = [(changed(setting, **changes), method) for changes, method in zip(CHANGES, METHODS, strict=True)]
    array = TrialArray(3)
    for trial in trials:
        array.add(compress_steps(*trial, file))
    results, _ = run(array)
    for slot, trial in enumerate(trials):
        for one, other in zip(metrics(results[slot]), metrics(compress(*trial, file)), strict=True):
            assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-3)


@pytest.mark.parametrize("first", ["array", "single"])
def test_an_interrupted_trial_goes_on_in_the_other_trainer(first, start, tmp_path):
    setting, file = start()
    expected = list(compress(setting, METHODS[1], file))

    def others(array):
        array.add(compress_steps(changed(setting, seed=3), METHODS[0], file))
        return array

    folder, array = tmp_path / "trial", others(TrialArray(2))
    slot = array.add(compress_steps(setting, METHODS[1], file, folder))
    if first == "array":
        array.advance()
        array.remove(slot)
        found = list(compress(setting, METHODS[1], file, folder))
    else:
        next(compress(setting, METHODS[1], file, folder))
        found = run(array)[0][slot]
    assert [result.replayed for result in found] == [True, False, False]
    assert_same(found, expected)


def test_a_trial_whose_loss_is_not_finite_ends_alone(start):
    setting, file = start()
    expected = list(compress(setting, METHODS[0], file))
    array = TrialArray(3)
    array.add(compress_steps(setting, METHODS[0], file))
    failing = array.add(compress_steps(changed(setting, learning_rate=1e30), METHODS[1], file))
    results, errors = run(array)
    assert list(errors) == [failing]
    assert isinstance(errors[failing], NonFiniteError)
    assert "learning_rate (now 1e+30)" in str(errors[failing])
    assert_same(results[0], expected)


def test_trials_of_other_shapes_or_without_an_array_form_are_trained_alone(start, tmp_path):
    setting, file = start("tiny", epochs=1)
    channel = replace(METHODS[0], decomposition="channel")
    list(pretrain(setting, channel, tmp_path / "channel"))
    trials = [
        (setting, METHODS[0], file),
        (setting, channel, tmp_path / "channel/model.pt"),
        (changed(setting, batch_size=32), METHODS[0], file),
        (setting, replace(METHODS[0], retraction_period=2), file),
    ]
    array = TrialArray(4)
    for trial in trials:
        array.add(compress_steps(*trial))
    results, errors = run(array)
    assert not errors
    for slot, trial in enumerate(trials):  # the same code: bit for bit
        assert metrics(results[slot]) == metrics(compress(*trial))


def test_an_epochs_time_is_shared(start):
    setting, file = start()
    array = TrialArray(2)
    for seed in (0, 1):
        array.add(compress_steps(changed(setting, seed=seed), METHODS[0], file))
    began, cpu_began = time.perf_counter(), time.process_time()
    found = array.advance().results.values()
    assert 0 < sum(result.duration_s for result in found) <= time.perf_counter() - began
    assert 0 < sum(result.cpu_s for result in found) <= time.process_time() - cpu_began


class Joined(nn.Module):
    """Joins channels by itself, as DenseNet does."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 4, 3), nn.Linear(8, 5)

    def forward(self, x):
        x = self.conv(x)
        return self.fc(torch.cat((x, x.abs()), 1).mean((2, 3)))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(36, 5)

    def forward(self, x):
        return self.fc(x.flatten(2)).mean(1)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Flatten()), "1 (GroupNorm) has no array form"),
        (nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(72, 5)), "draws random numbers"),
        (nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, momentum=None), nn.Flatten()), "(momentum: none)"),
        (Joined(), "mixes channels outside of its layers"),
        (Tokens(), "its forward pass"),
        (nn.Sequential(nn.Flatten(), nn.Linear(72, 5), nn.Softmax(1)), "mixes channels outside of its layers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_networks_without_an_array_form_are_named(model, reason):
    assert reason in array_problem(model, (2, 6, 6))


# deeper ones are resnet20 with more of the same blocks
@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("resnet32", "resnet56", "resnet110")])
@pytest.mark.parametrize("decomposition", [None, "channel", "spatial"])
def test_every_network_of_ours_has_an_array_form(name, decomposition):
    shape = (1, 28, 28) if name == "lenet5" else (3, 8, 8)
    model = build_model(ModelSpec(ModelConfig(name, (12, 8)), shape, 10))
    if decomposition is not None:
        factorize(model, decomposition, shape)
    assert array_problem(model, shape) is None


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
        nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect", bias=False),
        nn.Conv2d(4, 8, 3, groups=2, padding=1, padding_mode="circular"),
        nn.Conv2d(4, 4, 3, groups=4),
    ],
    ids=str,
)
def test_convolutions_of_every_kind_have_an_array_form(layer):
    net = nn.Sequential(
        layer, nn.BatchNorm2d(layer.out_channels, affine=False, track_running_stats=False), nn.Flatten()
    )
    assert array_problem(net, (4, 7, 7)) is None
    if layer.groups == 1:
        for decomposition in ("channel", "spatial"):
            assert array_problem(nn.Sequential(SVDConv(layer, decomposition), nn.Flatten()), (4, 7, 7)) is None


def test_one_dimensional_convolutions_have_an_array_form():
    net = nn.Sequential(nn.Conv1d(3, 4, 3, padding=1), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5))
    assert array_problem(net, (3, 9)) is None
    factorize(net, "channel", (3, 9))
    assert array_problem(net, (3, 9)) is None


def test_gradients_of_an_array_are_those_of_its_networks():
    shape = (3, 8, 8)
    torch.manual_seed(4)
    models = [build_model(ModelSpec(ModelConfig("resnet8"), shape, 10)).double() for _ in range(3)]
    for model in models:
        factorize(model, "spatial", shape)
    array = array_form(models[0], 3)
    stack_state(array, models)
    batch = torch.randn(4, *shape, dtype=torch.float64)
    array(batch).square().sum().backward()
    for model in models:
        model(batch).square().sum().backward()
    stacked = dict(array.named_parameters())
    for k, model in enumerate(models):
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(stacked[name].grad[k], parameter.grad, rtol=1e-8, atol=1e-8)
        for name, buffer in model.named_buffers():
            torch.testing.assert_close(array.get_buffer(name)[k], buffer, rtol=1e-8, atol=1e-8)


@pytest.mark.slow
def test_accuracies_of_ten_seeds_are_those_of_singles(start, digits):
    setting, file = start("tiny", digits, dtype="float32")
    settings = [changed(setting, seed=seed) for seed in range(10)]
    array = TrialArray(10)
    for one in settings:
        array.add(compress_steps(one, METHODS[2], file))
    found = [results[-1].metrics["val_accuracy"] for _, results in sorted(run(array)[0].items())]
    expected = [list(compress(one, METHODS[2], file))[-1].metrics["val_accuracy"] for one in settings]
    found, expected = torch.tensor(found), torch.tensor(expected)
    assert (found.mean() - expected.mean()).abs() <= expected.std() / 10**0.5  # a standard error
    assert expected.mean() > 0.5
