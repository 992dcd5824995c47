import pytest
from hypothesis import given
from hypothesis import strategies as st
from trial_records import record

from orchestrator.config import ConstraintsConfig, dump_config, load_config
from orchestrator.constraints import feasible, violations
from orchestrator.output import flat_settings
from trainers.errors import ConfigError

SWEEP = """name: x
model: {name: tiny}
data: {name: digits}
search:
  sampler: qmc
  ask_batch: 4
  warm_start: runs/before
  first_points:
    - {regularizer: l1, energy: 1e-2, epochs: 3, flag: true}
    - {}
  constraints: {max_macs_ratio: 0.5}
"""


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"macs_ratio": 0.5, "params_ratio": 0.7}, True),
        ({"macs_ratio": 0.51, "params_ratio": 0.7}, False),
        ({"macs_ratio": 0.5, "params_ratio": 0.71}, False),
        ({"macs_ratio": 0.5, "params_ratio": 0.7, "accuracy": 0.79}, False),
        ({"macs_ratio": 0.5, "params_ratio": 0.7, "accuracy": 0.79, "score": 0.8}, True),
        ({"macs_ratio": 0.5}, False),
        ({"macs_ratio": float("nan"), "params_ratio": 0.7}, False),
    ],
)
def test_each_limit_is_kept_or_not(columns, expected):
    assert feasible(record("x", **columns), ConstraintsConfig(0.5, 0.7, 0.8)) == expected
    assert feasible(record("x", **columns), ConstraintsConfig())


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.1, 1), st.floats(0, 1))
def test_an_excess_is_positive_exactly_where_a_limit_is_broken(accuracy, ratio, limit, floor):
    found = violations(ConstraintsConfig(max_macs_ratio=limit, min_accuracy=floor), accuracy, ratio, None)
    assert found.keys() == {"max_macs_ratio", "min_accuracy"}
    assert (found["max_macs_ratio"] > 0) == (ratio > limit)
    assert (found["min_accuracy"] > 0) == (accuracy < floor)


def test_the_settings_of_a_search_read_back_equal_and_lie_flat(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP)
    config = load_config(path)
    assert config.search.first_points == ({"regularizer": "l1", "energy": 0.01, "epochs": 3, "flag": True}, {})
    assert config.search.constraints == ConstraintsConfig(max_macs_ratio=0.5)
    flat = flat_settings(config)
    path.write_text(dump_config(config))
    assert load_config(path) == config
    assert flat_settings(load_config(path)) == flat
    assert flat["search.first_points"] == [*config.search.first_points]
    assert flat["search.constraints.max_macs_ratio"] == 0.5


def test_errors_name_the_place_and_the_remedy(tmp_path):
    path = tmp_path / "sweep.yaml"
    search = "{sampler: tpf, ask_batch: 0, first_points: [3], constraints: {min_accuracy: 2, max_flops: 1}}"
    path.write_text(f"name: x\nmodel: {{name: tiny}}\ndata: {{name: digits}}\nsearch: {search}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    found = {place.partition("search.")[2]: text for place, text in caught.value.problems}
    assert found.keys() == {
        "sampler",
        "ask_batch",
        "first_points.0",
        "constraints.min_accuracy",
        "constraints.max_flops",
    }
    assert "did you mean 'tpe'" in found["sampler"]
    assert "must be an object, but got 3" in found["first_points.0"]
    assert "known: max_macs_ratio, max_params_ratio, min_accuracy, max_latency_ms" in found["constraints.max_flops"]
