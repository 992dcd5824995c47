"""The network of an epoch is evaluated alike in every way of running it, after each change of its weights."""

from dataclasses import replace

import pytest
import torch

from trainers.config import ModelConfig, TrainingConfig
from trainers.evaluation import Evaluator, evaluate_split
from trainers.models import ModelSpec, build_model

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def require_equal_evaluations(way, data):
    """Two networks one after the other, each with weights and statistics that move between its evaluations.

    The last batch of the rows is smaller than the others.
    """
    data = replace(data, validation_rows=torch.arange(1100, device=data.images.device))
    evaluator = Evaluator(TrainingConfig(step=way, dtype="float64"))
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = build_model(ModelSpec(ModelConfig("tiny"), data.sample_shape, 10)).double().to(data.images.device)
        seen = []
        for _ in range(3):
            found, expected = evaluator(model, data), evaluate_split(model, data, "float64")
            assert found == pytest.approx(expected, rel=1e-9)
            assert model.training
            seen.append(found["loss"])
            with torch.no_grad():
                for value in (*model.parameters(), model[1].running_mean):
                    value += 0.1 * torch.randn_like(value)
        assert len(set(seen)) == 3


@pytest.mark.slow
def test_compiled_on_a_cpu(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    require_equal_evaluations("compile", digits)
    torch.compiler.reset()


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("way", ["graph", "compile", "compile_graph"])
def test_on_a_gpu(way, digits):
    require_equal_evaluations(way, digits.to(torch.device("cuda")))
    torch.compiler.reset()


@pytest.mark.gpu
@GPU
def test_no_batch_of_a_captured_evaluation_waits_for_a_gpu(digits, request):
    """The scores are read once, at the end."""
    data = digits.to(torch.device("cuda"))
    model = build_model(ModelSpec(ModelConfig("tiny"), data.sample_shape, 10)).to("cuda")
    config = TrainingConfig(step="graph")
    evaluator = Evaluator(config)
    expected = evaluator(model, data)  # captures
    request.addfinalizer(lambda: torch.cuda.set_sync_debug_mode("default"))
    forward = evaluator._forward
    images = torch.zeros(500, *data.sample_shape, device="cuda").contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        for _ in range(4):
            forward(images)
        torch.cuda.set_sync_debug_mode("error")
        forward(images)
    torch.cuda.set_sync_debug_mode("default")
    assert evaluator(model, data) == pytest.approx(expected, rel=1e-6)
