"""`training.dtype: auto`: measured once a machine, the same for all of a sweep, and recorded."""

import json
from dataclasses import replace

import pytest
import torch

from orchestrator.config import dump_config, load_config
from orchestrator.data_type import with_measured_dtype, with_recorded_dtype
from orchestrator.output import claimed
from orchestrator.paths import SweepPaths
from orchestrator.plan import plan_sweep
from trainers import ConfigError, Setting
from trainers.config import MethodConfig, ModelConfig, TrainingConfig
from trainers.dtype_choice import DtypeChoice, bfloat16_is_native, choose_dtype
from trainers.methods import Network
from trainers.models import ModelSpec

CPU = torch.device("cpu")
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture
def auto(small_sweep):
    return replace(small_sweep, training=replace(small_sweep.training, dtype="auto"))


def test_the_faster_one_is_measured_where_there_are_instructions_for_bfloat16():
    spec, state = ModelSpec(ModelConfig("tiny"), (1, 8, 8), 10), torch.get_rng_state()
    found = choose_dtype(spec, Network((1, 8, 8)), TrainingConfig(batch_size=8, dtype="auto"), MethodConfig(), CPU)
    assert found.ms.keys() == ({"float32", "bfloat16"} if bfloat16_is_native(CPU) else set())
    assert all(ms > 0 for ms in found.ms.values())
    assert found.dtype in ("float32", "bfloat16")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("native", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_what_is_faster_counts_and_only_with_instructions(native, dtype, monkeypatch):
    clock = iter(range(0, 1000, 10))  # of a float32 step 20 ticks, of a bfloat16 step 10

    def ticks(device):
        return next(clock)

    def step(spec, network, training, method, device, name):
        return lambda: next(clock) if name == "float32" else None

    monkeypatch.setattr("trainers.dtype_choice.bfloat16_is_native", lambda device: native)
    monkeypatch.setattr("trainers.dtype_choice._seconds", ticks)
    monkeypatch.setattr("trainers.dtype_choice._step", step)
    spec = ModelSpec(ModelConfig("tiny"), (1, 8, 8), 10)
    assert choose_dtype(spec, Network((1, 8, 8)), TrainingConfig(), MethodConfig(), CPU).dtype == dtype


def test_it_is_measured_once_a_machine_and_a_sweep_keeps_it(auto, tmp_path, monkeypatch):
    plan, paths = plan_sweep(auto), SweepPaths(tmp_path / "sweep")
    monkeypatch.setattr("trainers.dtype_choice.choose_dtype", lambda *_: DtypeChoice("bfloat16", {"float32": 2.0}))
    found, remark = with_measured_dtype(auto, plan)
    assert found == replace(auto, training=replace(auto.training, dtype="bfloat16"))
    assert remark == "training.dtype: bfloat16 (a step takes: float32 2 ms)"
    with claimed(paths, found):
        pass
    assert load_config(paths.config).training.dtype == "bfloat16"

    monkeypatch.setattr("trainers.dtype_choice.choose_dtype", None)  # must not be called again
    assert with_measured_dtype(auto, plan) == (found, remark)
    (cached,) = (tmp_path / "cache/rankfront/dtype").iterdir()
    monkeypatch.setattr("trainers.dtype_choice.choose_dtype", lambda *_: DtypeChoice("float32", {}))
    cached.write_text(json.dumps({"dtype": "float64"})[:-1])
    assert with_measured_dtype(auto, plan)[0].training.dtype == "float32"
    assert with_recorded_dtype(auto, paths) == found  # as it began, whatever is faster now
    assert with_recorded_dtype(auto, SweepPaths(tmp_path / "new")) == auto


def test_an_emulated_bfloat16_is_remarked_and_stays(small_sweep, monkeypatch):
    config, plan = (
        replace(small_sweep, training=replace(small_sweep.training, dtype="bfloat16")),
        plan_sweep(small_sweep),
    )
    monkeypatch.setattr("trainers.dtype_choice.bfloat16_is_native", lambda device: False)
    found, remark = with_measured_dtype(config, plan)
    assert found == config
    assert "emulated" in remark
    assert "float32, or auto" in remark
    assert with_measured_dtype(small_sweep, plan) == (small_sweep, None)


def test_auto_is_refused_where_it_cannot_be_measured(auto, monkeypatch):
    on_gpus = replace(auto, resources=replace(auto.resources, gpus_per_trial=1.0))
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"finds none on this machine; set float32"):
            plan_sweep(on_gpus)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(ConfigError, match=r"training\.dtype.*cluster at RAY_ADDRESS"):
        plan_sweep(auto)


def test_a_training_by_itself_needs_one_that_is_known(digits):
    with pytest.raises(ConfigError, match="choose_dtype"):
        Setting(ModelSpec(ModelConfig("tiny"), digits.sample_shape, 10), digits, TrainingConfig(dtype="auto"))


def test_auto_is_a_value_of_a_file(auto, tmp_path):
    (tmp_path / "sweep.yaml").write_text(dump_config(auto))
    assert load_config(tmp_path / "sweep.yaml") == auto


@pytest.mark.gpu
@GPU
def test_on_a_gpu_it_is_measured_in_a_process_of_its_own(auto):
    on_gpus = replace(auto, resources=replace(auto.resources, gpus_per_trial=1.0))
    before = torch.cuda.memory_allocated()
    found, remark = with_measured_dtype(on_gpus, plan_sweep(on_gpus))
    assert found.training.dtype in ("float32", "bfloat16")
    assert "ms" in remark
    assert torch.cuda.memory_allocated() == before
