"""What every entry of a dict of parts must do: a new entry is tested by being there."""

import copy

import optuna
import pytest
import torch
from torch import nn

from orchestrator.choices import probe_search_space
from orchestrator.jobs import pretrain_job
from search_spaces import SEARCH_SPACES, find_search_space
from trainers.config import (
    OWN_DATASETS,
    OWN_MODELS,
    MethodConfig,
    ModelConfig,
    RankConfig,
    TrainingConfig,
    apply_settings,
)
from trainers.cost import measure_cost
from trainers.data import DATASETS
from trainers.deploy import prune, stored_spectra
from trainers.errors import ConfigError
from trainers.methods import resolve
from trainers.models import MODELS, ModelSpec, build_model, build_shapes, model_names, torchvision_names
from trainers.recipe import dense_cost
from trainers.regularizers import SPARSITY
from trainers.surgery import factorize

# one of each family, small or with layers that others do not have; the rest under `slow`
TORCHVISION = ["googlenet", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_0", "swin_t"]


def spec_of(name):
    channels, side = (1, 28) if name in ("mlp", "lenet5", "tiny") else (3, 32)
    if name not in MODELS:
        side = 224
    return ModelSpec(ModelConfig(name), (channels, side, side), 7)


@pytest.mark.parametrize("name", MODELS)
class TestModels:
    def test_maps_images_to_logits(self, name):
        spec = spec_of(name)
        assert build_model(spec)(torch.zeros(2, *spec.sample_shape)).shape == (2, 7)

    def test_initial_weights_come_from_the_seed(self, name):
        states = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            states.append(build_model(spec_of(name)).state_dict())
        first, again, other = states
        assert all(torch.equal(first[key], again[key]) for key in first)
        assert any(not torch.equal(first[key], other[key]) for key in first)

    def test_train_and_eval_have_the_same_layers(self, name):
        model = build_model(spec_of(name))
        before = str(model.train())
        assert str(model.eval()) == before


def check_conversion(name, decomposition):
    """The model converts without a change of output, accounts for every parameter, prunes and deploys."""
    spec = spec_of(name)
    torch.manual_seed(0)
    model = build_model(spec).double().eval()
    x = torch.randn(1, *spec.sample_shape, dtype=torch.float64)
    with torch.no_grad():
        expected = model(x)
        params = sum(parameter.numel() for parameter in model.parameters())
        reports = factorize(model, decomposition, spec.sample_shape)
        torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)
        assert sum(report.params for report in reports) == params
        assert any(report.status == "factorized" for report in reports)
        dense = measure_cost(build_model(spec), spec.sample_shape)
        pruned = prune(model, RankConfig(energy=0.5), spec.sample_shape)
        cost = measure_cost(pruned.model, spec.sample_shape)
        assert cost.macs < dense.macs
        assert pruned.model(x).shape == expected.shape


@pytest.mark.parametrize("decomposition", ["channel", "spatial"])
@pytest.mark.parametrize("name", MODELS)
def test_our_models_convert_prune_and_deploy(name, decomposition):
    check_conversion(name, decomposition)


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_classifiers_convert_prune_and_deploy(name):
    check_conversion(name, "spatial")


def torchvision_params(name):
    from torchvision.models import get_model_weights

    return next(iter(get_model_weights(name))).meta["num_params"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", [name for name in torchvision_names() if torchvision_params(name) <= 150e6])
def test_every_torchvision_classifier_converts_runs_prunes_to_a_budget_and_deploys(name):
    """All of at most 150 million parameters, with 1000 classes."""
    spec = ModelSpec(ModelConfig(name), (3, 224, 224), 1000)
    torch.manual_seed(0)
    model = build_model(spec).eval()
    x = torch.randn(1, *spec.sample_shape)
    with torch.no_grad():
        expected, dense = model(x), measure_cost(model, spec.sample_shape)
        reports = factorize(model, "channel", spec.sample_shape)
        assert sum(report.params for report in reports) == dense.params
        found = model(x)
        assert (found - expected).norm() <= 1e-3 * expected.norm()
        fixed = RankConfig(rank_rule="log_knapsack", budget=0.7)
        pruned = prune(model, fixed, spec.sample_shape, stored_spectra(model))
        assert measure_cost(pruned.model, spec.sample_shape).macs <= 0.7 * dense.macs
        assert torch.isfinite(pruned.model(x)).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in model_names() if name not in [*MODELS, *TORCHVISION]])
def test_every_torchvision_classifier_builds_on_shapes(name):
    """Those of over 150 million parameters too; weights are not computed."""
    spec = spec_of(name)
    model = build_shapes(spec)
    with torch.device("meta"):
        reports = factorize(model, "channel", spec.sample_shape)
    assert any(report.status == "factorized" for report in reports)


def test_a_network_that_computes_its_widths_with_tensors_has_shapes_too():
    spec = ModelSpec(ModelConfig("regnet_y_400mf"), (3, 64, 64), 7)
    assert all(parameter.is_meta for parameter in build_shapes(spec).parameters())
    assert dense_cost(spec).params == sum(parameter.numel() for parameter in build_model(spec).parameters())


@pytest.mark.parametrize("name", ["lenet5", "resnet18", "vit_b_16"])
def test_a_model_that_does_not_fit_the_images_is_an_error(name):
    with pytest.raises(ConfigError, match=r"model\.name"):
        build_model(ModelSpec(ModelConfig(name), (1, 9, 9), 10))


def test_an_unknown_model_is_an_error_with_the_nearest_name():
    with pytest.raises(ConfigError, match="did you mean 'resnet20'"):
        ModelConfig("resnet_20")


@pytest.mark.parametrize("name", SPARSITY)
class TestRegularizers:
    def test_is_zero_at_zero_not_negative_and_batched(self, name):
        regularizer = SPARSITY[name]
        s = torch.rand(4, 6, dtype=torch.float64)
        assert regularizer(torch.zeros(6)).item() == 0
        assert (regularizer(s) >= 0).all()
        torch.testing.assert_close(regularizer(s), torch.stack([regularizer(row) for row in s]))

    def test_does_not_care_about_signs_and_order(self, name):
        s = torch.rand(6, dtype=torch.float64)
        torch.testing.assert_close(SPARSITY[name](-s.flip(0)), SPARSITY[name](s))

    def test_a_step_down_its_gradient_makes_the_spectrum_sparser(self, name):
        s = torch.tensor([3.0, 1.0, 0.5], requires_grad=True)
        SPARSITY[name](s).backward()
        stepped = (s - 0.05 * s.grad).detach()
        assert stepped[2] / stepped[0] < s[2] / s[0]


@pytest.mark.parametrize("name", SEARCH_SPACES)
class TestSearchSpaces:
    def test_settings_are_valid_for_any_draw_and_repeat_from_their_parameters(self, name):
        space = SEARCH_SPACES[name]
        study = optuna.create_study(directions=["maximize", "minimize"], sampler=optuna.samplers.RandomSampler(0))
        for _ in range(50):
            trial = study.ask()
            settings = space(trial)
            training, method = apply_settings(settings, TrainingConfig(), MethodConfig())
            assert resolve(method).strength >= 0
            assert training.learning_rate > 0
            assert space(optuna.trial.FixedTrial(trial.params)) == settings
            study.tell(trial, [0.5, 1.0])

    def test_what_stage_one_needs_is_found(self, name):
        starts = probe_search_space(find_search_space(name))
        found = {pretrain_job(start).name for start in starts}
        expected = {"pretrain-channel", "pretrain-spatial"}
        if name == "methods":
            lorita = {f"pretrain-lorita{n}-{form}" for n in (2, 3) for form in ("channel", "spatial")}
            expected |= {"pretrain-dense", *lorita}
        assert found == expected


def test_every_data_set_is_a_name_a_config_takes():
    from trainers.config import DataConfig

    for name in DATASETS:
        assert DataConfig(name, image_size=8).name == name


def test_the_names_that_need_no_torch_are_those_of_ours():
    assert set(OWN_MODELS) == set(MODELS)
    assert set(OWN_DATASETS) == set(DATASETS)


def test_copies_of_a_decomposed_model_are_independent():
    model = nn.Sequential(nn.Linear(3, 3))
    factorize(model, "channel", (3,))
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].s.zero_()
    assert model[0].s.abs().sum() > 0
