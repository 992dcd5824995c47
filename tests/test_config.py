import re
from contextlib import suppress
from dataclasses import fields

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config import SweepConfig, dump_config, load_config
from orchestrator.yaml_source import parse_override
from trainers.config import (
    DataConfig,
    MethodConfig,
    TrainingConfig,
    apply_settings,
)
from trainers.errors import ConfigError

MINIMAL = "name: x\nmodel: {name: tiny}\ndata: {name: digits}\n"


def write(tmp_path, text):
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    return path


def problems(path, *overrides):
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return dict(caught.value.problems)


@pytest.mark.parametrize(
    "example", ["digits", "digits_methods", "mnist_lenet5", "cifar10_resnet20", "cifar10_resnet20_cpu"]
)
def test_examples_are_valid(example, pytestconfig):
    config = load_config(pytestconfig.rootpath / "examples" / f"{example}.yaml")
    assert config.finetune.num_models > 1


def test_a_minimal_file_has_every_default(tmp_path):
    config = load_config(write(tmp_path, MINIMAL))
    assert config.training == TrainingConfig()
    assert config.data == DataConfig("digits")
    assert config.search_space == "svd_training"


def test_the_resolved_config_reads_back_equal(tmp_path):
    text = MINIMAL + "factorization: {exclude: ['fc', layer1.*]}\ntraining: {milestones: [0.3], learning_rate: 1e-3}\n"
    config = load_config(write(tmp_path, text), ["resources.gpus_per_trial=0.25", "model.hidden=[5, 6]"])
    assert (config.factorization.exclude, config.training.milestones) == (("fc", "layer1.*"), (0.3,))
    assert config.training.learning_rate == 0.001
    assert load_config(write(tmp_path, dump_config(config))) == config


def test_all_errors_are_reported_at_once_with_path_line_and_remedy(tmp_path):
    path = write(
        tmp_path,
        """name: a b
model: {name: resnet21, depth: 3}
data: {name: cifar10, root: 5, validation_fraction: 1.5}
serch: {}
search_space: nope
training:
  batch_size: 0
  epochs: 2.5
  learning_rate: -1e-3
  optimizer: adm
  milestones: [0.5, 2]
search: [1]
finetune: {num_models: true}
resources: {gpus_per_trial: 1.5}
""",
    )
    found = problems(path)
    expected = {
        "1: name": "letters, digits",
        "2: model.name": "did you mean 'resnet",
        "2: model.depth": "unknown key 'depth'; known: name, hidden",
        "3: data.root": "must be a valid string, but got 5",
        "3: data.validation_fraction": "0 < value < 1, but got 1.5",
        "4: serch": "did you mean 'search'",
        "5: search_space": "known: svd_training",
        "7: training.batch_size": "must be >= 1, but got 0",
        "8: training.epochs": "must be a valid integer, but got 2.5",
        "9: training.learning_rate": "must be > 0, but got -0.001",
        "10: training.optimizer": "'adam', 'adamw' or 'sgd', but got 'adm'",
        "11: training.milestones": "0 < value < 1, but got 2",
        "12: search": "must be a section",
        "13: finetune.num_models": "must be a valid integer, but got True",
        "14: resources.gpus_per_trial": "at most 1 or a whole number, but got 1.5",
    }
    assert found.keys() == {f"{path}:{place}" for place in expected}
    for place, text in expected.items():
        assert text in found[f"{path}:{place}"]


def test_missing_sections_are_named(tmp_path):
    path = write(tmp_path, "name: x\n")
    assert problems(path) == {
        f"{path}: model": "must be given; add it, e.g. `model: ...`",
        f"{path}: data": "must be given; add it, e.g. `data: ...`",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "valid YAML"),
        ("- a\n- b", "holds list"),
        ("", "holds NoneType"),
        ("name: x\nname: y", "stands twice"),
        ("name: !!python/object:os.system {}", "valid YAML"),
        ("? [a, b]\n: 1", "valid YAML|unknown key"),
        (MINIMAL + "search: {seed: 4294967296}", "0 <= value < 4294967296"),
    ],
)
def test_files_that_are_no_config(tmp_path, text, message):
    path = write(tmp_path, text)
    assert re.search(message, str(problems(path)))


def test_merge_keys_work(tmp_path):
    text = "name: x\nmodel: &m {name: tiny}\ndata: {name: digits}\n"
    path = write(tmp_path, text.replace("&m {name: tiny}", "{<<: {name: tiny}}"))
    assert load_config(path).model.name == "tiny"


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="readable YAML"):
        load_config(tmp_path / "none.yaml")


def test_overrides_are_typed_checked_and_placed(tmp_path):
    path = write(tmp_path, MINIMAL + "search: {num_trials: 3}\n")
    assert load_config(path, ["search.num_trials=5", "search.seed=7"]).search.num_trials == 5
    assert problems(path, "search.num_trials=0") == {f"{path}: search.num_trials": "must be >= 1, but got 0"}
    for text in ("search", "=3", "a..b=1"):
        with pytest.raises(ConfigError, match="must be KEY=VALUE"):
            parse_override(text)
    with pytest.raises(ConfigError, match="'name' is a value, not a section"):
        load_config(path, ["name.x=1"])


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("spaces:none", "no attribute 'none'"),
        ("no_module:f", "No module named 'no_module'"),
        ("spaces:NOT_A_FUNCTION", "must be a function of a trial, but is a int"),
    ],
)
def test_search_spaces_of_ones_own_must_exist(tmp_path, space, message):
    path = write(tmp_path, MINIMAL + f"search_space: {space}\n")
    assert message in str(problems(path))
    assert load_config(write(tmp_path, MINIMAL + "search_space: spaces:quick\n")).search_space == "spaces:quick"


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.floats(),
    st.text(max_size=5),
    st.dates(),
    st.just([]),
    st.just({}),
)


@given(st.dictionaries(st.sampled_from([*(f.name for f in fields(SweepConfig)), "zzz"]), scalars, max_size=4))
def test_any_value_anywhere_is_read_or_refused_by_a_config_error(tmp_path_factory, settings):
    """Shallow and deep: each top-level key gets a wrong or right value, then each training key the same one."""
    folder = tmp_path_factory.mktemp("fuzz")
    base = yaml.safe_load(MINIMAL)
    deep = {**base, "training": dict(zip((f.name for f in fields(TrainingConfig)), settings.values(), strict=False))}
    for data in ({**base, **settings}, deep):
        path = folder / "sweep.yaml"
        path.write_text(yaml.safe_dump(data))
        with suppress(ConfigError):  # anything else is a traceback for the user
            load_config(path)


class TestSections:
    def test_python_gets_the_same_rules_all_at_once(self):
        with pytest.raises(ConfigError) as caught:
            TrainingConfig(batch_size=0, learning_rate=float("nan"), optimizer="rmsprop")
        assert [name for name, _ in caught.value.problems] == ["batch_size", "optimizer", "learning_rate"]

    def test_unknown_names_list_the_known_ones(self):
        with pytest.raises(ConfigError, match=r"unknown regularizer for svd_training 'hoier', did you mean 'hoyer'\?"):
            MethodConfig(regularizer="hoier")


class TestApplySettings:
    def test_each_key_goes_to_its_section(self):
        settings = {"energy": 0.3, "learning_rate": 0.1, "regularizer": "l1"}
        training, method = apply_settings(settings, TrainingConfig(epochs=7), MethodConfig())
        assert (training.learning_rate, training.epochs) == (0.1, 7)
        assert (method.energy, method.regularizer) == (0.3, "l1")

    @pytest.mark.parametrize("key", ["enegry", "epochs", "pretrain_epochs", "seed", "dtype"])
    def test_what_the_search_may_not_set_is_refused(self, key):
        with pytest.raises(ConfigError, match=f"unknown setting '{key}'"):
            apply_settings({key: 1}, TrainingConfig(), MethodConfig())

    def test_values_obey_their_rules(self):
        with pytest.raises(ConfigError, match="energy: must be a number with 0 <= value < 1, but got 2"):
            apply_settings({"energy": 2}, TrainingConfig(), MethodConfig())
