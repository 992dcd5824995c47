"""One step in each of its ways: the same numbers, without waiting for the device."""

import os

import pytest
import torch
from small_networks import SHAPE, attached, network
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from trainers.batches import training_batches
from trainers.config import MethodConfig, TrainingConfig
from trainers.data import ImageData
from trainers.distillation import Distillation
from trainers.errors import ConfigError
from trainers.evaluation import evaluate_split
from trainers.loop import Evaluation, Stage, train
from trainers.methods import METHODS
from trainers.optimizers import make_optimizer
from trainers.step import Step

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
WARMED = {"strength": 0.1, "strength_schedule": "warmup"}  # its first step is without the term
# those with terms of their own; the rest train as `dense` does
COMPILED = [
    {"method": "svd_training", "regularizer": "hoyer", **WARMED},
    {"method": "truncated_svd", "regularizer": "spectral_hoyer_square"},
    {"method": "trp", "compression_period": 2},
    {"method": "lc", "compression_period": 2},
    {"method": "lorita", "decomposition": "spatial"},
]


def images_of(count):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, *SHAPE), dtype=torch.uint8, generator=generator)
    rows, labels = torch.arange(count), torch.randint(5, (count,), generator=generator)
    return ImageData(images, labels, rows[: count - 20], rows[count - 20 :], (0.5, 0.4), (0.3, 0.2), tuple("abcde"))


def trained(way, config, device="cpu", teacher=False, **training):
    """The losses of ten steps and the parameters after them."""
    training = TrainingConfig(**{"dtype": "float64", "augmentation": "crop_flip", **training, "step": way})
    method, device = attached(config), torch.device(device)
    method.model.to(device)
    method.bind()
    distillation = Distillation(network().to(device), 0.5, 2.0) if teacher else None
    step = Step(method, make_optimizer(method.model, training), training, device, distillation)
    method.start_epoch(0, 1)
    generator, found = torch.Generator().manual_seed(0), []
    batches = training_batches(images_of(340).to(device), 32, training.augmentation, generator, torch.float64)
    for number, (images, labels) in enumerate(batches):
        found.append(step(images, labels, number / 10).tolist())
        method.after_step(number + 1)
    assert len(found) == 10
    return found, dict(method.model.named_parameters())


def require_equal(one, other, tolerance):
    for losses, expected in zip(one[0], other[0], strict=True):
        assert losses == pytest.approx(expected, rel=tolerance)
    for name, parameter in one[1].items():
        torch.testing.assert_close(parameter, other[1][name], rtol=tolerance, atol=tolerance)


class Crossings(TorchDispatchMode):
    """Counts copies between host and device, and reads of a value, each of which would wait for the device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        moved = [x.device.type for x in (*args, result) if isinstance(x, torch.Tensor)]
        name = func.overloadpacket.__name__
        self.count += name in ("_to_copy", "copy_") and len(set(moved)) > 1
        self.count += name in ("_local_scalar_dense", "nonzero", "bincount") and "cuda" in moved
        return result


def on_fake_gpu(module):
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    fake = torch.empty_like(tensor, device="cuda")
                    tensors[name] = torch.nn.Parameter(fake) if name in part._parameters else fake


class TestWithoutWaiting:
    """On a GPU that is not there: shapes and devices are real, values are not."""

    def test_the_count_sees_what_waits(self):
        with FakeTensorMode(), Crossings() as crossings:
            on_gpu = torch.ones(3).to("cuda") + 1
            assert crossings.count == 1
            on_gpu.cpu()
            assert crossings.count == 2
            torch.zeros(3, device="cuda").copy_(torch.ones(3))
            assert crossings.count == 3

    @pytest.mark.parametrize("name", METHODS)
    def test_an_epoch_copies_when_it_starts_and_no_more(self, name, monkeypatch):
        training = TrainingConfig(batch_size=32, augmentation="crop_flip", label_smoothing=0.1)
        regularizer = next(iter(METHODS[name].regularizers), None)
        method = attached(MethodConfig(method=name, regularizer=regularizer, strength=0.1), network().float())
        method.start_epoch(0, 1)  # the methods that take an SVD every so many batches take one now
        with FakeTensorMode(allow_non_fake_inputs=True):
            on_fake_gpu(method.model)
            for tensors in (getattr(method, "_polar", []), getattr(method, "_copies", [])):
                tensors[:] = [torch.empty_like(tensor, device="cuda") for tensor in tensors]
            if name in ("svd_training", "lorita"):  # the others look at modules
                method.bind()

            def backward(loss):  # autograd's own needs a real GPU
                for parameter in method.model.parameters():
                    parameter.grad = torch.empty_like(parameter)

            monkeypatch.setattr(torch.Tensor, "backward", backward)
            step = Step(method, make_optimizer(method.model, training), training, torch.device("cuda"))
            data = images_of(180).to(torch.device("cuda"))
            generator = torch.Generator().manual_seed(0)
            batches = training_batches(data, 32, training.augmentation, generator, torch.float32)
            counts = []
            with Crossings() as crossings:
                for number, (images, labels) in enumerate(batches):
                    counts.append(crossings.count)
                    assert step(images, labels, number / 5).device.type == "cuda"
            assert len(counts) == 5
            assert counts[0] == 4  # order, augmentation, mean and deviation
            assert crossings.count == 4


class TestAgreement:
    @pytest.mark.slow
    @pytest.mark.parametrize("settings", COMPILED, ids=lambda settings: settings["method"])
    def test_compiled_on_a_cpu(self, settings, tmp_path, monkeypatch):
        monkeypatch.setattr("trainers.step._CHOSEN_CACHE", str(tmp_path))
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
        config = MethodConfig(**settings)
        require_equal(trained("compile", config), trained("eager", config), 1e-9)

    @pytest.mark.slow
    def test_compiled_with_a_teacher(self, tmp_path, monkeypatch):
        monkeypatch.setattr("trainers.step._CHOSEN_CACHE", str(tmp_path))
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
        config = MethodConfig(method="dense")
        one, other = (trained(way, config, teacher=True, label_smoothing=0.1) for way in ("compile", "eager"))
        require_equal(one, other, 1e-9)

    @pytest.mark.gpu
    @GPU
    @pytest.mark.parametrize("way", ["compile", "graph", "compile_graph"])
    @pytest.mark.parametrize("name", METHODS)
    @pytest.mark.parametrize("optimizer", ["adam", "sgd"])
    def test_on_a_gpu(self, way, name, optimizer):
        """Learning rates are float32 there, in tensors: hence the tolerance."""
        config = MethodConfig(method=name, compression_period=2, **(WARMED if name == "svd_training" else {}))
        one, other = (trained(each, config, "cuda", optimizer=optimizer) for each in (way, "eager"))
        require_equal(one, other, 1e-6)

    @pytest.mark.gpu
    @GPU
    def test_a_gpu_sees_what_a_cpu_sees(self):
        config = MethodConfig()
        one, other = trained("eager", config, "cuda"), trained("eager", config)
        require_equal((one[0], {name: x.cpu() for name, x in one[1].items()}), other, 1e-8)

    @pytest.mark.gpu
    @GPU
    @pytest.mark.parametrize("way", ["eager", "graph"])
    def test_no_step_waits_for_a_gpu(self, way, request):
        request.addfinalizer(lambda: torch.cuda.set_sync_debug_mode("default"))
        training, device = TrainingConfig(step=way, augmentation="crop_flip"), torch.device("cuda")
        method = attached(MethodConfig(), network().float())
        method.model.to(device)
        method.bind()
        step = Step(method, make_optimizer(method.model, training), training, device)
        generator = torch.Generator().manual_seed(0)
        batches = training_batches(images_of(340).to(device), 32, training.augmentation, generator, torch.float32)
        for number, (images, labels) in enumerate(batches):
            if number == 5:  # libraries are loaded and the graph is captured
                torch.cuda.set_sync_debug_mode("error")
            step(images, labels, number / 10)

    @pytest.mark.gpu
    @GPU
    def test_a_captured_training_is_resumed(self, tmp_path):
        def run(checkpoint, epochs):
            method = attached(MethodConfig(), network().float())
            method.model.cuda()
            method.bind()
            training = TrainingConfig(batch_size=32, step="graph")
            stage = Stage("compress", 2, training, {}, checkpoint)
            data = images_of(340).to(torch.device("cuda"))
            results = train(method, data, stage, lambda _: Evaluation(evaluate_split(method.model, data)))
            return [next(results).metrics for _ in range(epochs)], method.model

        whole, expected = run(None, 2)
        run(tmp_path / "checkpoint.pt", 1)
        resumed, model = run(tmp_path / "checkpoint.pt", 2)
        for one, other in zip(resumed, whole, strict=True):
            assert one == pytest.approx(other, rel=1e-4)
        for parameter, other in zip(model.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(parameter, other, rtol=1e-4, atol=1e-5)


class TestRefusals:
    def refused(self, device, config=None, **training):
        method = attached(config or MethodConfig())
        training = TrainingConfig(**training)
        with pytest.raises(ConfigError) as error:
            Step(method, make_optimizer(method.model, training), training, torch.device(device))
        ((place, text),) = error.value.problems
        assert place == "training.step"
        return text

    @pytest.mark.parametrize("way", ["graph", "compile_graph"])
    def test_graphs_need_a_gpu(self, way):
        assert self.refused("cpu", step=way).startswith(f"{way} needs a CUDA device, but the training runs on cpu")

    def test_steps_that_differ_cannot_be_captured(self):
        text = self.refused("cuda", MethodConfig(orthogonality_period=4), step="graph")
        assert "orthogonality_period makes steps differ" in text

    def test_compiling_on_a_cpu_needs_a_compiler(self, monkeypatch):
        monkeypatch.setenv("CXX", "no-such-compiler")
        assert "there is no no-such-compiler" in self.refused("cpu", step="compile")


@pytest.mark.parametrize(("name", "tensors"), [("trp", "_polar"), ("lc", "_copies")])
def test_what_a_captured_step_reads_stays_in_its_place(name, tensors):
    method = attached(MethodConfig(method=name, compression_period=1, strength=0.1 if name == "trp" else None))
    method.start_epoch(0, 1)
    place = [tensor.data_ptr() for tensor in getattr(method, tensors)]
    values = [tensor.clone() for tensor in getattr(method, tensors)]
    with torch.no_grad():
        for parameter in method.model.parameters():
            parameter += torch.randn_like(parameter)
    method.after_step(1)
    assert [tensor.data_ptr() for tensor in getattr(method, tensors)] == place
    for tensor, before in zip(getattr(method, tensors), values, strict=True):
        assert not torch.allclose(tensor, before, rtol=0.1)


@pytest.mark.parametrize("writable", [True, False])
def test_compiled_code_is_kept_where_the_user_keeps_caches(writable, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # undone in the end, whatever the step sets
    monkeypatch.setattr("trainers.step._CHOSEN_CACHE", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path if writable else tmp_path / "file"))
    (tmp_path / "file").write_text("")
    method, training = attached(MethodConfig()), TrainingConfig(step="compile")
    Step(method, make_optimizer(method.model, training), training, torch.device("cpu"))
    ours = str(tmp_path / "rankfront" / "inductor")
    assert (os.environ.get("TORCHINDUCTOR_CACHE_DIR") == ours) == writable  # else torch may have set its own
