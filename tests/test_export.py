"""Exports give what the trained network gives, stay low-rank, and say so in one error where they cannot."""

import copy
import json

import numpy as np
import pytest
import torch
from deployed import deployed, noise
from torch import nn

from trainers.batches import normalize
from trainers.config import FactorizationConfig
from trainers.cost import measure_cost
from trainers.errors import ConfigError, ExportError
from trainers.export.folding import fold_batch_norm
from trainers.export.load import load
from trainers.export.options import FORMATS, ExportOptions, export_options
from trainers.export.write import export_model
from trainers.form import ModelForm
from trainers.models import ModelSpec, build_model
from trainers.saved_model import SavedModel, save_model

SHAPES = {"tiny": (1, 8, 8), "lenet5": (1, 28, 28), "mlp": (1, 6, 6), "resnet8": (3, 16, 16)}
WIDE = [
    "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small",
    "resnet18", "shufflenet_v2_x0_5", "squeezenet1_0", "swin_t", "vit_b_16",
]  # fmt: skip


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """By name and format, made when asked for: the trained network, its data and the report of its export."""
    folder, made = tmp_path_factory.mktemp("exports"), {}

    def get(name, format_, **options):
        key = (name, format_, *options.items())
        if key not in made:
            data = noise(SHAPES[name])
            saved = deployed(name, SHAPES[name], data=data)
            file = folder / f"{'-'.join(map(str, options.values()))}{name}.{format_}"
            made[key] = saved, data, export_model(saved, data, file, ExportOptions(format_, **options), {"run": "r"})
        return made[key]

    return get


def trained_logits(saved, data, images):
    with torch.no_grad():
        return saved.model.eval()(normalize(images, data, torch.float32))


def exported_logits(report, images):
    with torch.no_grad():
        return load(report.path)(images)


def operators(report):
    """The operators in a file, as it names them."""
    if report.path.suffix == ".onnx":
        import onnx

        return [node.op_type for node in onnx.load(str(report.path)).graph.node]
    if report.path.suffix == ".pt2":
        nodes = torch.export.load(report.path).graph.nodes
        return [str(node.target) for node in nodes if node.op == "call_function"]
    from safetensors import safe_open

    with safe_open(report.path, "pt") as file:
        return [called for _, called, _, _ in json.loads(file.metadata()["graph"])["nodes"]]


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("name", SHAPES)
class TestEveryFormat:
    def test_it_gives_the_trained_networks_logits_for_any_number_of_images(self, exports, name, format_):
        saved, data, report = exports(name, format_)
        for count in (1, 7):
            images = data.images[data.validation_rows[:count]]
            found, expected = exported_logits(report, images), trained_logits(saved, data, images)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        assert report.measured.max_abs_error <= 1e-4
        assert report.measured.top1_agreement == 1

    def test_it_stays_low_rank_and_batch_norm_is_gone(self, exports, name, format_):
        saved, _, report = exports(name, format_)
        low_rank = [layer for layer in saved.form.layers if layer.form == "low_rank"]
        assert low_rank
        called = [text.lower() for text in operators(report)]
        layers = sum("conv" in text or "gemm" in text or "linear" in text for text in called)
        assert layers == len(saved.form.layers) + len(low_rank)
        assert not any("norm" in text for text in called)
        assert len(called) - report.nodes in (0, 1)  # a record leaves torch.export's check of a type out
        norms = sum(isinstance(module, nn.BatchNorm2d) for module in saved.model.modules())
        assert (report.folded, report.left) == (norms, 0)

    def test_its_size_is_that_of_the_low_rank_weights(self, exports, name, format_):
        saved, _, report = exports(name, format_)
        assert report.size_bytes == report.path.stat().st_size
        params = sum(value.numel() for value in fold_batch_norm(saved.model, SHAPES[name]).model.parameters())
        structure = 2_500 * (report.nodes + 4)  # of pt2, whose parts are padded
        assert 4 * params < report.size_bytes < 4 * params + structure

    def test_its_metadata_say_what_it_is(self, exports, name, format_):
        saved, data, report = exports(name, format_)
        found = load(report.path).metadata
        cost = measure_cost(saved.model, SHAPES[name])
        assert (found["cost"]["macs"], found["cost"]["params"]) == (cost.macs, cost.params)
        assert found["ranks"] == {layer.name: layer.rank for layer in saved.form.layers}
        assert found["model"]["model"]["name"] == name
        assert found["run"] == "r"
        assert found["accuracy"] == {"val_accuracy": 0.5}
        assert found["data"]["licence"].startswith("unknown")
        assert found["output"]["classes"] == list(data.class_names)
        assert found["measured"]["max_abs_error"] == report.measured.max_abs_error


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", WIDE)
def test_torchvisions_classifiers_in_all_formats(name, tmp_path):
    shape = (3, 64, 64)
    data = noise(shape, count=24)
    saved = deployed(name, shape, data=data)
    for module in saved.model.modules():  # a head of zeros would name any class
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.1)
    for format_ in FORMATS:
        report = export_model(saved, data, tmp_path / f"network.{format_}", ExportOptions(format_))
        images = data.images[:3]
        found = exported_logits(report, images)
        torch.testing.assert_close(found, trained_logits(saved, data, images), rtol=0, atol=1e-4)
        print(name, format_, report.nodes, report.size_bytes, report.folded, report.left, report.measured)


class TestWeights:
    @pytest.mark.parametrize(
        ("format_", "weights"), [("pt2", "fp16"), ("pt2", "bf16"), ("safetensors", "bf16"), ("onnx", "fp16")]
    )
    def test_halves_take_half_the_bytes_and_are_measured(self, exports, format_, weights):
        saved, data, report = exports("lenet5", format_, weights=weights)
        assert report.size_bytes < 0.55 * exports("lenet5", format_)[2].size_bytes
        images = data.images[data.validation_rows]
        found = exported_logits(report, images)
        assert found.dtype == torch.float32
        expected = trained_logits(saved, data, images)
        assert 0 < float((found - expected).abs().max()) < 0.02 * float(expected.abs().max())
        assert report.measured.max_abs_error == pytest.approx(float((found - expected).abs().max()), rel=1e-3)
        accuracy = float((found.argmax(1) == data.labels[data.validation_rows]).double().mean())
        assert report.measured.val_accuracy == load(report.path).metadata["measured"]["val_accuracy"] == accuracy

    def test_int8_weights_are_int8_and_its_accuracy_is_measured(self, exports):
        import onnx

        saved, data, report = exports("lenet5", "onnx", weights="int8")
        assert report.size_bytes < 0.35 * exports("lenet5", "onnx")[2].size_bytes
        held = onnx.load(str(report.path)).graph.initializer
        stored = [tensor for tensor in held if np.prod(tensor.dims) > 1_000]
        assert len(stored) >= 4
        assert {tensor.data_type for tensor in stored} == {onnx.TensorProto.INT8}
        images = data.images[data.validation_rows]
        found, expected = exported_logits(report, images), trained_logits(saved, data, images)
        assert float((found - expected).abs().max()) < 0.1 * float(expected.abs().max())
        assert report.measured.val_accuracy == float(
            (found.argmax(1) == data.labels[data.validation_rows]).double().mean()
        )

    def test_numbers_that_are_too_large_for_fp16_are_an_error(self, tmp_path):
        data = noise(SHAPES["mlp"])
        saved = deployed("mlp", SHAPES["mlp"], data=data)
        with torch.no_grad():
            list(saved.model.parameters())[-1].fill_(1e5)
        with pytest.raises(ExportError, match="must give finite logits, but with weights fp16 does not"):
            export_model(saved, data, tmp_path / "n.pt2", ExportOptions("pt2", "fp16"))
        assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("format_", FORMATS)
def test_normalized_images_can_be_what_it_takes(exports, format_):
    saved, data, report = exports("tiny", format_, input="normalized")
    network, images = load(report.path), data.images[:5]
    found = network(normalize(images, data, torch.float32).contiguous())
    torch.testing.assert_close(found, trained_logits(saved, data, images), rtol=0, atol=1e-4)
    given = network.metadata["input"]
    assert (given["kind"], given["dtype"], given["normalisation"]["inside"]) == ("normalized", "float32", False)
    assert given["normalisation"]["mean"] == list(data.mean)


class Untraceable(nn.Module):
    """A layer that torch.fx cannot see through, one BatchNorm that can be folded and two that cannot."""

    def __init__(self):
        super().__init__()
        self.low_rank = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.Conv2d(2, 6, 3))
        self.after_two = nn.BatchNorm2d(6)
        self.branch = nn.Conv2d(6, 6, 1)
        self.taken_twice = nn.BatchNorm2d(6)
        self.before_relu = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 4)
        self.after_linear = nn.BatchNorm1d(4)

    def forward(self, x):
        if x.shape[0] > 0:
            x = self.after_two(self.low_rank(x))
        out = self.branch(x)
        x = self.taken_twice(out) + out.relu()
        return self.after_linear(self.fc(self.before_relu(x).relu().mean((2, 3))))


def test_batch_norm_is_folded_where_nothing_else_takes_its_input_even_if_fx_cannot_trace(tmp_path):
    torch.manual_seed(0)
    model = Untraceable().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
    with pytest.raises(torch.fx.proxy.TraceError):
        torch.fx.symbolic_trace(model)
    before = copy.deepcopy(model.state_dict())
    found = fold_batch_norm(model, (3, 8, 8))
    assert found.folded == {"after_two": "low_rank.1", "after_linear": "fc"}
    assert found.left == ["taken_twice", "before_relu"]
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(found.model(x), model.eval()(x), rtol=1e-12, atol=1e-12)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            (("n.pt2", None, "int8"), "weights: int8 must go with the format onnx, but got pt2"),
            (("n.onnx", None, "bf16"), "weights: bf16 must go with pt2 or safetensors"),
            (("n.bin",), r"output: must end in .pt2, .onnx, .safetensors, but got 'n.bin'"),
            (("n.pt2", "onnx"), "output: must end in .onnx, but got 'n.pt2'"),
            (("n.pt2", None, "fp8"), "weights: unknown value 'fp8'"),
        ],
    )
    def test_what_does_not_go_together(self, tmp_path, arguments, text):
        name, *rest = arguments
        with pytest.raises(ConfigError, match=text.replace(f"'{name}'", f"'.*{name}'")):
            export_options(tmp_path / name, *rest)

    def test_a_network_that_is_not_deployed(self, tmp_path):
        data = noise((1, 8, 8))
        spec = deployed("tiny", (1, 8, 8)).spec
        in_training = ModelForm("channel", FactorizationConfig()), {}
        uncut = ModelForm(), {"stage": "compress"}  # of a method that trains the dense network and cuts it then
        for form, config in (in_training, uncut):
            saved = SavedModel(build_model(spec), spec, form, config, [])
            with pytest.raises(ExportError, match="must be in the form that is deployed"):
                export_model(saved, data, tmp_path / "n.pt2", ExportOptions("pt2"))

    def test_other_data_than_it_was_trained_on(self, tmp_path, digits):
        saved = deployed("tiny", (1, 8, 8), data=noise((1, 8, 8)))
        with pytest.raises(ExportError, match=r"the data must be what the network was trained on \(digest"):
            export_model(saved, digits, tmp_path / "n.pt2", ExportOptions("pt2"))
        with pytest.raises(ExportError, match=r"images must have the shape \(1, 8, 8\)"):
            export_model(saved, noise((3, 8, 8)), tmp_path / "n.pt2", ExportOptions("pt2"))

    def test_an_export_that_differs_is_not_written_and_what_was_there_stays(self, tmp_path, monkeypatch):
        """Logits of 1e5 cannot be had to 1e-4 in float32."""
        data = noise(SHAPES["tiny"])
        saved = deployed("tiny", SHAPES["tiny"], data=data)
        with torch.no_grad():
            for parameter in saved.model[-1].parameters():
                parameter *= 1e6
        file = tmp_path / "n.safetensors"
        file.write_text("before")
        with pytest.raises(ExportError, match=r"logits must be within 0.0001 of the trained network's"):
            export_model(saved, data, file, ExportOptions("safetensors"))
        assert [path.name for path in tmp_path.iterdir()] == ["n.safetensors"]
        assert file.read_text() == "before"

    def test_a_network_for_one_number_of_images(self, tmp_path):
        class Fixed(nn.Sequential):
            def forward(self, x):
                return super().forward(x) * len(x)

        data = noise((1, 8, 8))
        saved = deployed("tiny", (1, 8, 8), data=data)
        fixed = SavedModel(Fixed(*saved.model), saved.spec, saved.form, saved.config, saved.history)
        with pytest.raises(
            ExportError, match="torch.export must be able to follow the network for any number of images"
        ):
            export_model(fixed, data, tmp_path / "n.pt2", ExportOptions("pt2"))


def test_a_model_file_loads_as_the_plain_module(tmp_path):
    saved = deployed("lenet5", (1, 28, 28))
    save_model(saved, tmp_path / "model.pt")
    found, x = load(tmp_path / "model.pt"), torch.randn(2, 1, 28, 28)
    torch.testing.assert_close(found(x), saved.model.eval()(x))
    assert found.metadata["input"]["kind"] == "normalized"
    assert ModelSpec(saved.spec.model, tuple(found.metadata["input"]["shape"][1:]), 10) == saved.spec
    assert not found.eval().training
    with pytest.raises(ValueError, match="must stay in evaluation mode"):
        found.train()


def test_a_model_that_was_trained_in_another_type_takes_float32_as_its_metadata_say(tmp_path):
    saved = deployed("lenet5", (1, 28, 28))
    saved.model.double()
    save_model(saved, tmp_path / "model.pt")
    found, x = load(tmp_path / "model.pt"), torch.randn(2, 1, 28, 28)
    logits = found(x)
    assert (logits.dtype, found.metadata["input"]["dtype"]) == (torch.float32, "float32")
    torch.testing.assert_close(logits, saved.model.eval()(x.double()).float())
