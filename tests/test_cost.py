import pytest
import torch
from torch import nn

from trainers.config import ModelConfig
from trainers.cost import COUNTER, measure_cost
from trainers.models import ModelSpec, build_model


def resnet_macs(depth, classes=10):
    """Multiplications of He et al.'s CIFAR ResNet, layer by layer."""
    n = (depth - 2) // 6
    total, channels = 3 * 9 * 16 * 32 * 32, 16
    for stage, width in enumerate((16, 32, 64)):
        side = 32 >> stage
        for block in range(n):
            n_in = channels if block == 0 else width
            total += (n_in + width) * 9 * width * side * side
        channels = width
    return total + 64 * classes


@pytest.mark.parametrize(
    ("name", "shape", "macs", "params"),
    [
        ("mlp", (1, 28, 28), 784 * 300 + 300 * 100 + 100 * 10, 266_610),
        ("lenet5", (1, 28, 28), 20 * 25 * 24**2 + 50 * 20 * 25 * 8**2 + 800 * 500 + 500 * 10, 431_080),
        ("tiny", (1, 8, 8), 9 * 32 * 64 + 32 * 9 * 64 * 16 + 64 * 9 * 64 * 16 + 640, 56_554),
        ("resnet20", (3, 32, 32), resnet_macs(20), 269_722),
        ("resnet56", (3, 32, 32), resnet_macs(56), 853_018),
    ],
)
def test_macs_and_parameters_against_the_analytic_count(name, shape, macs, params):
    cost = measure_cost(build_model(ModelSpec(ModelConfig(name), shape, 10)), shape)
    assert (cost.macs, cost.params, cost.flops) == (macs, params, 2 * macs)
    assert cost.counter == COUNTER


def test_resnet20_is_the_published_size():
    assert resnet_macs(20) == pytest.approx(40.6e6, rel=0.002)


@pytest.mark.parametrize(("groups", "stride", "dilation"), [(1, 1, 1), (4, 2, 1), (1, 2, 2)])
def test_convolution_against_the_analytic_count(groups, stride, dilation):
    layer = nn.Conv2d(4, 8, 3, groups=groups, stride=stride, dilation=dilation, padding=1)
    side = layer(torch.zeros(1, 4, 13, 13)).shape[-1]
    assert measure_cost(layer, (4, 13, 13)).macs == 4 * 8 * 9 * side * side // groups


def test_operators_that_are_not_counted_are_named():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.GELU(), nn.Flatten(), nn.Linear(2 * 36, 3), nn.Softmax(1)
    )
    cost = measure_cost(model, (1, 8, 8))
    assert any("batch_norm" in name for name in cost.uncounted)
    assert {"aten.gelu", "aten._softmax"} <= set(cost.uncounted)
    assert not any("conv" in name or "addmm" in name for name in cost.uncounted)


def test_measuring_leaves_the_model_as_it_is():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).double()
    model.train()
    measure_cost(model, (1, 8, 8))
    assert model.training
    assert next(model.parameters()).device.type == "cpu"
    assert model[1].num_batches_tracked == 0
