"""What the protocol of methods promises, for all of METHODS, through whole trainings."""

import copy
from dataclasses import replace

import pytest
import torch
from small_networks import SHAPE, attached, network

from trainers.config import DistillationConfig, FactorizationConfig, MethodConfig, ModelConfig, TrainingConfig
from trainers.cost import measure_cost
from trainers.errors import ConfigError
from trainers.form import ModelForm, product_factors
from trainers.layers import svd_layers
from trainers.methods import METHODS, Network, make_method, resolve
from trainers.models import ModelSpec, build_model
from trainers.recipe import Setting, compress, finetune, pretrain
from trainers.saved_model import load_model


def small_setting(digits, **training):
    settings = {"batch_size": 64, "pretrain_epochs": 2, "epochs": 3, "learning_rate": 2e-3, "dtype": "float64"}
    spec = ModelSpec(ModelConfig("tiny"), digits.sample_shape, digits.num_classes)
    return Setting(spec, digits, TrainingConfig(**{**settings, **training}))


def quick(name):
    """Settings with which each method cuts something after a few epochs."""
    more = {"lc": {"rank_cost": 1.0}, "cuttlefish": {"plateau_tolerance": 0.2, "rank_scale": 0.6}}
    base = MethodConfig(method=name, **more.get(name, {}))
    return base if METHODS[name].owns_rank_rule else replace(base, rank_rule="knapsack", budget=0.5)


@pytest.mark.parametrize("name", METHODS)
class TestEveryMethod:
    def test_the_trained_form_computes_what_the_dense_network_does(self, name):
        x = torch.randn(3, *SHAPE, dtype=torch.float64)
        method = attached(MethodConfig(method=name, decomposition="spatial"))
        torch.testing.assert_close(method.model(x), network()(x), rtol=1e-9, atol=1e-11)

    def test_layers_that_are_excluded_stay_as_they_are(self, name):
        method = attached(quick(name), factorization=FactorizationConfig(exclude=("0", "4")))
        method.start_epoch(0, 1)
        method.after_step(method.config.compression_period)
        expected = network()
        assert torch.equal(method.model[0].weight, expected[0].weight)
        assert torch.equal(method.model[4].weight, expected[4].weight)
        assert {layer.name for layer in method.finish().layers} <= {"2"}

    def test_finish_gives_an_ordinary_network_and_leaves_the_trained_one(self, name):
        method = attached(quick(name))
        before = copy.deepcopy(method.model.state_dict())
        pruned = method.finish()
        assert not svd_layers(pruned.model)
        assert not product_factors(pruned.model)
        assert pruned.model(torch.randn(2, *SHAPE, dtype=torch.float64)).shape == (2, 5)
        for key, value in method.model.state_dict().items():
            assert torch.equal(value, before[key])

    def test_the_three_stages_run_cut_and_recover(self, name, digits, tmp_path):
        setting = small_setting(digits, dtype="float32", pretrain_epochs=5, epochs=5)
        config = quick(name)
        list(pretrain(setting, config, tmp_path / "1"))
        compressed = list(compress(setting, config, tmp_path / "1/model.pt", tmp_path / "2"))
        tuned = list(finetune(setting, config, 5, tmp_path / "2/model.pt", tmp_path / "3"))
        last = tuned[-1].metrics
        if name == "dense":
            assert last["macs_ratio"] == 1
        else:
            assert last["macs_ratio"] == compressed[-1].metrics["macs_ratio"] < 1
        if name != "evbmf":  # finds next to nothing that stands out of the noise in so small a network
            assert last["val_accuracy"] > 0.9
        model = load_model(tmp_path / "3/model.pt").model
        assert measure_cost(model, digits.sample_shape).macs == last["macs"]

    def test_another_training_goes_on_from_a_finished_one(self, name, digits, tmp_path):
        if not METHODS[name].can_continue:
            pytest.skip("its network has decided its ranks")
        setting = small_setting(digits, dtype="float32", pretrain_epochs=2, epochs=2)
        list(pretrain(setting, quick(name), tmp_path / "1"))
        first = list(compress(setting, quick(name), tmp_path / "1/model.pt", tmp_path / "2"))
        second = list(compress(setting, quick(name), tmp_path / "2/model.pt", tmp_path / "3"))
        assert second[-1].metrics["train_loss"] < first[-1].metrics["train_loss"]

    def test_a_budget_that_cannot_be_met_is_refused_before_training(self, name, digits, tmp_path):
        if METHODS[name].owns_rank_rule:
            pytest.skip("takes no budget")
        setting = small_setting(digits)
        config = MethodConfig(method=name, rank_rule="knapsack", budget=1e-4)
        list(pretrain(setting, config, tmp_path / "1"))
        with pytest.raises(ConfigError, match=r"budget: must be at least 0\.0.*; raise budget"):
            next(compress(setting, config, tmp_path / "1/model.pt", tmp_path / "2"))
        assert not (tmp_path / "2").exists()

    @pytest.mark.parametrize("stop_after", [1, 2])
    def test_an_interrupted_compression_resumes_to_the_same_result(self, name, stop_after, digits, tmp_path):
        setting, config = small_setting(digits), quick(name)
        list(pretrain(setting, config, tmp_path / "1"))
        start = tmp_path / "1/model.pt"
        whole = list(compress(setting, config, start, tmp_path / "whole"))
        generator = compress(setting, config, start, tmp_path / "cut")
        for _ in range(stop_after):
            next(generator)
        generator.close()
        torch.manual_seed(999)  # another process's state
        resumed = list(compress(setting, config, start, tmp_path / "cut"))
        assert [result.metrics for result in resumed] == [result.metrics for result in whole]
        a, b = (load_model(tmp_path / part / "model.pt") for part in ("whole", "cut"))
        assert a.form == b.form
        for key, value in a.model.state_dict().items():
            assert torch.equal(value, b.model.state_dict()[key])

    def test_settings_are_resolved_once_and_for_all(self, name):
        config = resolve(MethodConfig(method=name))
        assert resolve(config) == config
        assert config.strength is not None
        assert config.rank_rule == METHODS[name].rank_rule

    def test_a_regularizer_of_another_method_is_refused(self, name):
        with pytest.raises(ConfigError, match=rf"(unknown regularizer for|must be left out:) {name} .*'nonsense'"):
            MethodConfig(method=name, regularizer="nonsense")

    def test_a_rank_rule_is_refused_where_the_method_has_its_own(self, name):
        if METHODS[name].owns_rank_rule:
            with pytest.raises(ConfigError, match=f"{name} chooses ranks itself"):
                MethodConfig(method=name, rank_rule="fixed_ratio")
        else:
            assert resolve(MethodConfig(method=name, rank_rule="fixed_ratio")).rank_rule == "fixed_ratio"

    def test_it_says_where_it_comes_from(self, name):
        text = METHODS[name].__doc__ + (
            METHODS[name].__module__ and __import__(METHODS[name].__module__, fromlist=["x"]).__doc__
        )
        assert name == "dense" or "arXiv" in text or "CVPR" in text


@pytest.mark.parametrize(
    "options",
    [
        {"orthogonality_period": 7},
        {"retraction_period": 5, "spectrum_learning_rate": 3.0},
        {"strength_schedule": "warmup", "regularizer": "funnel"},
        {"method": "truncated_svd", "regularizer": "spectral_hoyer_square", "strength_schedule": "warmup"},
        {"method": "trp", "compression_period": 7},
    ],
)
def test_an_interrupted_training_resumes_to_the_same_result_with_every_option(options, digits, tmp_path):
    setting, config = small_setting(digits), MethodConfig(**options)
    list(pretrain(setting, config, tmp_path / "1"))
    start = tmp_path / "1/model.pt"
    whole = list(compress(setting, config, start))
    generator = compress(setting, config, start, tmp_path / "cut")
    next(generator)
    generator.close()
    resumed = list(compress(setting, config, start, tmp_path / "cut"))
    assert [result.metrics for result in resumed] == [result.metrics for result in whole]


def test_the_cuttlefish_switch_happens_within_a_stage(digits, tmp_path):
    setting, config = small_setting(digits, epochs=4), quick("cuttlefish")
    list(pretrain(setting, config, tmp_path / "1"))
    results = list(compress(setting, config, tmp_path / "1/model.pt", tmp_path / "2"))
    form = load_model(tmp_path / "2/model.pt").form
    assert form.layers is not None
    ratios = [result.metrics["macs_ratio"] for result in results]
    assert ratios[-1] == ratios[-2] < 1  # after the switch the ranks stay


def test_finetuning_with_a_teacher_differs_and_needs_one(digits, tmp_path):
    setting, config = small_setting(digits), quick("svd_training")
    list(pretrain(setting, config, tmp_path / "1"))
    list(compress(setting, config, tmp_path / "1/model.pt", tmp_path / "2"))
    start, distillation = tmp_path / "2/model.pt", DistillationConfig(weight=0.5)
    plain = list(finetune(setting, config, 2, start))
    taught = list(finetune(setting, config, 2, start, tmp_path / "3", None, distillation, tmp_path / "1/model.pt"))
    assert plain[-1].metrics["val_loss"] != taught[-1].metrics["val_loss"]
    assert load_model(tmp_path / "3/model.pt").config["distillation"] == {"weight": 0.5, "temperature": 4.0}
    with pytest.raises(ValueError, match="distillation needs a teacher"):
        list(finetune(setting, config, 2, start, None, None, distillation))


def test_greedy_is_a_rank_rule_of_a_whole_training(digits, tmp_path):
    """It measures the validation loss of real cuts, and meets its budget."""
    setting = small_setting(digits, dtype="float32")
    config = MethodConfig(method="truncated_svd", rank_rule="greedy", budget=0.5)
    list(pretrain(setting, config, tmp_path / "1"))
    results = list(compress(setting, config, tmp_path / "1/model.pt", tmp_path / "2"))
    assert results[-1].metrics["macs_ratio"] <= 0.5


def test_products_are_read_back_from_a_file(digits, tmp_path):
    setting, config = small_setting(digits), MethodConfig(method="lorita", num_factors=3, decomposition="spatial")
    list(pretrain(setting, config, tmp_path))
    saved = load_model(tmp_path / "model.pt")
    assert saved.form == ModelForm("spatial", FactorizationConfig(), 3)
    assert len(product_factors(saved.model)) == 3 * 4


def test_models_of_every_form_build_equal_networks():
    spec = ModelSpec(ModelConfig("tiny"), (1, 8, 8), 10)
    x = torch.randn(2, 1, 8, 8)
    for name in METHODS:
        torch.manual_seed(0)
        model = build_model(spec).eval()
        expected = model(x)
        method = make_method(MethodConfig(method=name), Network((1, 8, 8)))
        method.prepare(model)
        torch.testing.assert_close(method.model(x), expected, rtol=1e-4, atol=1e-5)
