"""Attention modules with open projections compute what torchvision's do, with the same weights."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2
from torchvision.models.vision_transformer import vit_b_16

from trainers.attention import SelfAttention, WindowAttention, open_attention
from trainers.config import RankConfig
from trainers.cost import measure_cost
from trainers.deploy import prune
from trainers.surgery import factorize


def params(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("bias", [True, False])
def test_self_attention_equals_multihead_attention(bias):
    fused = nn.MultiheadAttention(12, 3, bias=bias, batch_first=True).double().eval()
    opened = SelfAttention(fused).eval()
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    expected, _ = fused(x, x, x, need_weights=False)
    found, weights = opened(x, x, x, need_weights=False)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert weights is None
    assert params(opened) == params(fused)


def test_self_attention_refuses_what_it_is_not_for():
    opened = SelfAttention(nn.MultiheadAttention(4, 2, batch_first=True))
    x = torch.randn(1, 3, 4)
    with pytest.raises(ValueError, match="must be one tensor"):
        opened(x, x + 1, x)
    with pytest.raises(ValueError, match="need_weights must be False"):
        opened(x, x, x, need_weights=True)


@pytest.mark.parametrize("version", [ShiftedWindowAttention, ShiftedWindowAttentionV2])
@pytest.mark.parametrize("shift", [(0, 0), (2, 2), (0, 2)])
@pytest.mark.parametrize("size", [(8, 8), (9, 11), (4, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_window_attention_equals_torchvisions(version, shift, size, bias):
    torch.manual_seed(0)
    swin = version(12, [4, 4], list(shift), 3, qkv_bias=bias).double().eval()
    with torch.no_grad():
        for parameter in swin.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    x = torch.randn(2, *size, 12, dtype=torch.float64)
    expected, count = swin(x), params(swin)
    opened = WindowAttention(copy.deepcopy(swin)).eval()
    torch.testing.assert_close(opened(x), expected, rtol=1e-9, atol=1e-11)
    assert params(opened) == count


def test_gradients_of_window_attention_are_torchvisions():
    torch.manual_seed(0)
    swin = ShiftedWindowAttentionV2(12, [4, 4], [2, 2], 3).double()
    opened = WindowAttention(copy.deepcopy(swin))
    x = torch.randn(1, 8, 8, 12, dtype=torch.float64)
    swin(x).square().sum().backward()
    opened(x).square().sum().backward()
    torch.testing.assert_close(opened.qkv.weight.grad, swin.qkv.weight.grad, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(opened.qkv.bias.grad, swin.qkv.bias.grad, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(opened.logit_scale.grad, swin.logit_scale.grad, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("version", [ShiftedWindowAttention, ShiftedWindowAttentionV2])
def test_projections_of_windows_are_decomposed_and_deployed(version):
    torch.manual_seed(0)
    model = open_attention(nn.Sequential(version(16, [4, 4], [2, 2], 4))).double().eval()
    with torch.no_grad():
        model[0].qkv.bias.normal_()
    x = torch.randn(2, 8, 8, 16, dtype=torch.float64)
    expected, dense = model(x), measure_cost(model, (8, 8, 16))
    reports = {report.name: report for report in factorize(model, "channel", (8, 8, 16))}
    assert reports["0.qkv"].status == reports["0.proj"].status == "factorized"
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-11)
    pruned = prune(model, RankConfig(rank_rule="fixed_ratio", rank_fraction=0.25), (8, 8, 16))
    assert isinstance(pruned.model[0].qkv, nn.Sequential)
    assert pruned.model(x).shape == x.shape
    assert measure_cost(pruned.model, (8, 8, 16)).macs < dense.macs


def test_a_whole_vision_transformer_stays_equal_and_accounts_for_every_parameter():
    torch.manual_seed(0)
    model = vit_b_16(image_size=32, num_classes=5).eval()
    x = torch.randn(1, 3, 32, 32)
    expected, count = model(x), params(model)
    assert open_attention(model) is model
    assert not any(isinstance(module, nn.MultiheadAttention) for module in model.modules())
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    with torch.device("meta"):
        shapes = copy.deepcopy(model).to("meta")
        reports = factorize(shapes, "channel", (3, 32, 32))
    assert sum(report.params for report in reports) == count
    status = {report.name: report.status for report in reports}
    for projection in ("in_proj", "out_proj"):
        assert status[f"encoder.layers.encoder_layer_0.self_attention.{projection}"] == "factorized"


def test_opening_twice_changes_nothing():
    model = open_attention(nn.Sequential(ShiftedWindowAttention(8, [4, 4], [2, 2], 2)))
    before = str(model)
    assert str(open_attention(model)) == before


def test_modes_stay_and_a_module_used_twice_stays_one():
    block = ShiftedWindowAttention(8, [4, 4], [2, 2], 2, dropout=0.5)
    model = nn.Sequential(block, block).eval()
    x = torch.randn(1, 8, 8, 8)
    expected = model(x)
    open_attention(model)
    assert model[0] is model[1]
    assert not any(module.training for module in model.modules())
    torch.testing.assert_close(model(x), expected)


def test_other_peoples_attention_is_left_alone():
    layer = nn.TransformerEncoderLayer(8, 2, batch_first=True).eval()
    x = torch.randn(1, 5, 8)
    expected = layer(x)
    assert type(open_attention(layer).self_attn) is nn.MultiheadAttention
    assert torch.equal(layer(x), expected)


def test_attention_that_is_left_fused_is_reported_with_its_reason():
    class Cross(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, kdim=4, vdim=4, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            out, _ = self.attention(x, x[..., :4], x[..., :4], need_weights=False)
            return self.head(out)

    model = open_attention(Cross())
    reports = {report.name: report for report in factorize(model, "channel", (5, 8))}
    assert reports["attention"].status == "skipped"
    assert "fused attention" in reports["attention"].reason
    assert reports["head"].status == "factorized"
