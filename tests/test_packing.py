"""Trials share a GPU as its memory allows."""

from dataclasses import replace

import pytest
import torch

from orchestrator.config import ResourcesConfig
from orchestrator.packing import GpuUse, gpu_share, measure, trials_per_gpu
from orchestrator.plan import plan_sweep
from trainers.config import MethodConfig
from trainers.errors import ConfigError

GIB = 2**30


@pytest.mark.parametrize(
    ("total", "reserved", "context", "count"),
    [
        (16, 1.0, 0.5, 8),  # 15.2 / 1.875 = 8.1
        (16, 1.5, 0.5, 6),  # 15.2 / 2.5 = 6.08
        (80, 0.1, 0.4, 8),  # 121 would fit
        (16, 12.0, 0.5, 1),
        (16, 20.0, 0.5, 1),  # it did fit
    ],
)
def test_as_many_as_fit_with_a_margin(total, reserved, context, count):
    assert trials_per_gpu(GpuUse(int(total * GIB), int(reserved * GIB), int(context * GIB)), 8) == count


@pytest.mark.parametrize("count", range(1, 65))
def test_shares_add_up_to_no_more_than_a_gpu_and_leave_no_room_for_another(count):
    share = gpu_share(count)
    assert count * round(10_000 * share) <= 10_000 < (count + 1) * round(10_000 * share)


def test_a_number_is_used_as_it_is_and_auto_must_be_measured_first():
    assert ResourcesConfig(gpus_per_trial=0.25).gpus == 0.25
    with pytest.raises(AssertionError):
        _ = ResourcesConfig(gpus_per_trial="auto").gpus


@pytest.mark.parametrize("value", [-1, 1.5, "all", True, float("nan")])
def test_other_values_are_refused(value):
    with pytest.raises(ConfigError, match="gpus_per_trial: must be"):
        ResourcesConfig(gpus_per_trial=value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device")
def test_without_a_gpu_auto_is_refused_before_anything_is_trained(small_sweep, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = replace(small_sweep, resources=ResourcesConfig(gpus_per_trial="auto"))
    with pytest.raises(ConfigError, match=r"resources\.gpus_per_trial: auto measures .* finds none on this machine"):
        plan_sweep(config)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_probe_sees_what_a_training_needs(small_sweep, digits):
    use = measure(small_sweep, MethodConfig(), digits.arrays())
    weights = digits.images.numel() * digits.images.element_size()
    assert weights < use.reserved < use.total
    assert 0 < use.context < use.total - use.reserved
