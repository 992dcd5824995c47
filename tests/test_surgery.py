import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from trainers.config import FactorizationConfig, RankConfig
from trainers.cost import measure_cost
from trainers.deploy import prune
from trainers.layers import SVDConv, SVDLinear
from trainers.surgery import factorize, layer_geometry


class Shared(nn.Module):
    """One layer called twice, two layers of one weight, and a weight used without its layer's forward."""

    def __init__(self):
        super().__init__()
        self.twice = nn.Linear(4, 4)
        self.tied_a, self.tied_b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.tied_b.weight = self.tied_a.weight
        self.functional = nn.Linear(4, 4)
        self.again = self.twice

    def forward(self, x):
        x = self.tied_b(self.tied_a(self.again(self.twice(x))))
        return nn.functional.linear(x, self.functional.weight)


def reasons(model, shape, **options):
    reports = factorize(model, "channel", shape, FactorizationConfig(**options))
    return {report.name: report.reason for report in reports}


def convolutions():
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


@pytest.mark.parametrize("decomposition", ["channel", "spatial"])
def test_outputs_stay_equal_and_every_parameter_is_in_the_report(decomposition):
    model = convolutions().double().eval()
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    expected, params = model(x), sum(parameter.numel() for parameter in model.parameters())
    reports = factorize(model, decomposition, (4, 6, 6))
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-12)
    assert sum(report.params for report in reports) == params
    assert [report.name for report in reports] == ["0", "1", "2", "3", "4.0", "7"]
    assert all((report.status == "skipped") == bool(report.reason) for report in reports)


def test_what_cannot_be_factorized_is_reported_with_its_reason():
    model = convolutions()
    found = reasons(model, (4, 6, 6))
    assert found["1"] == "not a linear, 1-d or 2-d convolutional layer (BatchNorm2d)"
    assert found["2"] == "grouped convolution (groups=2)"
    assert found["3"] == "depthwise convolution (groups=8)"
    assert type(model[2]) is nn.Conv2d
    assert isinstance(model[0], SVDConv)
    assert isinstance(model[4][0], SVDConv)
    assert isinstance(model[7], SVDLinear)


def test_first_and_last_layer_rules():
    found = reasons(convolutions(), (4, 6, 6), first_layer=False, last_layer=False)
    assert found["0"] == "first layer (first_layer: false)"
    assert found["7"] == "last layer (last_layer: false)"
    assert found["4.0"] == ""


def test_include_and_exclude_patterns():
    found = reasons(convolutions(), (4, 6, 6), include=("0", "4.*"), exclude=("0",))
    assert found["0"] == "matches exclude pattern '0'"
    assert found["4.0"] == ""
    assert found["7"] == "matches no include pattern ['0', '4.*']"


def test_a_layer_used_twice_is_replaced_once_and_tied_or_functional_weights_stay():
    model = Shared().double()
    x = torch.randn(3, 4, dtype=torch.float64)
    expected = model(x)
    found = reasons(model, (4,))
    assert found["twice"] == ""
    assert model.twice is model.again
    assert isinstance(model.twice, SVDLinear)
    assert found["tied_a"] == found["tied_b"] == "its weight is shared with another module"
    assert found["functional"] == "its forward is never called: its parent uses the weight directly"
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-12)


def test_attention_keeps_its_projections_and_says_so():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.attention(x, x, x)[0])

    found = reasons(Attention(), (5, 8))
    assert "fused attention layer" in found["attention"]
    assert "subclass of nn.Linear" in found["attention.out_proj"]
    assert found["head"] == ""


def test_a_parametrized_weight_is_left_alone():
    found = reasons(nn.Sequential(weight_norm(nn.Linear(3, 3)), nn.Linear(3, 2)), (3,))
    assert found["0"] == "its weight is parametrized"
    assert all(reason for name, reason in found.items() if name.startswith("0."))
    assert found["1"] == ""


def test_geometry_counts_positions_and_calls():
    model = nn.Sequential(nn.Conv2d(1, 2, (3, 5), stride=(2, 1)), nn.Linear(8, 3))
    geometry = layer_geometry(model, (1, 9, 12))
    assert (geometry["0"].calls, geometry["0"].positions, geometry["0"].wide_positions) == (1, 4 * 8, 4 * 12)
    assert (geometry["1"].calls, geometry["1"].positions) == (1, 2 * 4)
    assert layer_geometry(Shared(), (4,))["twice"].calls == 2


def test_a_model_that_is_one_dense_layer_is_refused():
    with pytest.raises(ValueError, match=r"is one Linear; wrap it in nn\.Sequential"):
        factorize(nn.Linear(3, 2), "channel", (3,))


def test_recurrent_layers_and_embeddings_are_reported_as_skipped():
    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(11, 6)
            self.lstm = nn.LSTM(6, 5, batch_first=True)
            self.head = nn.Linear(5, 3)

        def forward(self, x):
            return self.head(self.lstm(self.embedding(x.long()))[0][:, -1])

    model = Text()
    params = sum(parameter.numel() for parameter in model.parameters())
    reports = {report.name: report for report in factorize(model, "channel", (7,))}
    assert sum(report.params for report in reports.values()) == params
    assert reports["embedding"].reason == "not a linear, 1-d or 2-d convolutional layer (Embedding)"
    assert reports["lstm"].reason == "not a linear, 1-d or 2-d convolutional layer (LSTM)"
    assert reports["head"].status == "factorized"


@pytest.mark.parametrize("decomposition", ["channel", "spatial"])
def test_one_dimensional_convolutions_convert_cut_and_deploy(decomposition):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(3, 8, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv1d(8, 8, 3, padding="same", dilation=2, padding_mode="circular"),
        nn.Conv1d(8, 8, 3, groups=4),
        nn.Flatten(),
        nn.Linear(8 * 8, 4),
    ).double()
    x = torch.randn(2, 3, 20, dtype=torch.float64)
    expected = model(x)
    reports = {report.name: report for report in factorize(model, decomposition, (3, 20))}
    assert [name for name, report in reports.items() if report.status == "factorized"] == ["0", "2", "5"]
    assert reports["3"].reason == "grouped convolution (groups=4)"
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-12)
    whole = prune(model, RankConfig(energy=0.0), (3, 20)).model
    torch.testing.assert_close(whole(x), expected, rtol=1e-9, atol=1e-11)
    pruned = prune(model, RankConfig(rank_rule="fixed_ratio", rank_fraction=0.4), (3, 20))
    cost = measure_cost(pruned.model, (3, 20))
    assert isinstance(pruned.model[2], nn.Sequential)
    for name in ("0", "2"):
        matrix = model.get_submodule(name).matrix().detach()
        first, second = pruned.model.get_submodule(name)
        product = second.weight.squeeze(2) @ first.weight.flatten(1)
        tail = torch.linalg.svdvals(matrix)[pruned.ranks[name] :].square().sum()
        torch.testing.assert_close((matrix - product).square().sum(), tail, rtol=1e-8, atol=1e-12)
    ranks = pruned.ranks
    macs = 10 * ranks["0"] * (15 + 8) + 10 * ranks["2"] * (24 + 8) + 8 * 8 * 2 * 3 + ranks["5"] * (64 + 4)
    assert cost.macs == macs
