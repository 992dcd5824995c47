"""What does a training step of the decomposed network cost, relative to the dense one and to the usual implementation?

Steps (forward, loss, penalties, backward, optimizer) of the dense network, of ours (channel-wise and spatial-wise) and of a
plain implementation are timed in turn, round after round, so that a slow moment of the machine falls on all of them; a
ratio is the median over rounds of paired ratios. The plain implementation is the form in which such methods are usually
published: each layer is two convolutions at full rank, and the penalties are computed layer by layer with autograd's own
gradients. Every comparison is within one data type and one memory format. With one thread on a CPU times are processor
time, which other processes change little; else wall time.

`authors` compares whole steps, each as it comes: that of SVD training's authors (`AuthorsStep`: fp32, contiguous) with ours
(`trainers.step`, channels last) in fp32 and bf16, by `--steps` (`eager`, `compile`, `graph`, `compile_graph`), in images/s.

    python benchmarks/step_cost.py --rounds 15 --json FILE

The JSON has `channel_vs_dense`, `spatial_vs_dense`, `two_conv_vs_channel`, `two_conv_vs_spatial` (ResNet-20, fp32, the
memory format in which the dense network is faster), `throughput_vs_authors_channel` and `_spatial` (our fastest way's
images/s over theirs), `mlp_vs_dense` and `mlp_period16_vs_dense` (784-300-100-10; the second
with the orthogonality gradient renewed every sixteenth step), and the same for each variant under `variants`.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from bench_options import benchmark_parser, write
from torch import Tensor, nn

from trainers.config import FactorizationConfig, MethodConfig, ModelConfig, TrainingConfig
from trainers.layers import SVDConv, SVDLinear
from trainers.methods import Network, make_method
from trainers.models import ModelSpec, build_model
from trainers.optimizers import make_optimizer
from trainers.step import Step as OurStep
from trainers.surgery import factorize, replace_modules

SHAPES = {"lenet5": (1, 28, 28), "mlp": (1, 28, 28), "tiny": (1, 8, 8)}
Step = Callable[[], None]


class TwoConv(nn.Module):
    """A decomposed convolution as it is usually trained: conv with V^T, times s, conv with U, all at full rank."""

    def __init__(self, layer: SVDConv) -> None:
        super().__init__()
        right, left = layer.low_rank(layer.u.detach(), layer.vt.detach())
        self.right, self.left, self.s = right, left, nn.Parameter(layer.s.detach().clone())
        self.spatial = layer.decomposition == "spatial"

    def forward(self, x: Tensor) -> Tensor:
        return self.left(self.right(x) * self.s[:, None, None])

    def factors(self) -> tuple[Tensor, Tensor]:
        """V^T (r, n) and U^T (r, m)."""
        left = self.left.weight.permute(1, 0, 2, 3) if self.spatial else self.left.weight.mT
        return self.right.weight.flatten(1), left.reshape(len(self.s), -1)


def factors_of(module: TwoConv | SVDLinear) -> tuple[Tensor, Tensor]:
    """V^T (r, n) and U^T (r, m)."""
    return module.factors() if isinstance(module, TwoConv) else (module.vt, module.u.mT)


def looped_penalty(model: nn.Module, strength: float, weight: float) -> Tensor:
    """Hoyer and orthogonality penalties, layer by layer."""
    total = torch.zeros((), device=next(model.parameters()).device)
    for module in model.modules():
        if isinstance(module, TwoConv):
            total = total + strength * (module.s.abs().sum() / module.s.square().sum().sqrt() - 1)
            for factor in module.factors():
                gram = factor @ factor.T
                total = (
                    total + weight * (gram - torch.eye(len(gram), device=gram.device)).square().sum() / len(gram) ** 2
                )
    return total


PENALTIES: dict[str, Callable[[Tensor], Tensor]] = {
    "l1": lambda s: s.abs().sum(),
    "hoyer": lambda s: s.abs().sum() / s.square().sum().sqrt() - 1,
    "hoyer_square": lambda s: s.abs().sum().square() / s.square().sum() - 1,
}


class AuthorsStep:
    """A step as the authors of SVD training publish it, on a network of TwoConv layers.

    The penalties are summed layer by layer, where s is not all zero, which the host has to read; the losses are read for
    the log. Adam is PyTorch's default, and nothing is said about memory formats. `method` gives the penalties' kind and
    weights, and the factor on the learning rate of s.
    """

    def __init__(self, model: nn.Module, method: MethodConfig, learning_rate: float = 1e-3) -> None:
        self.model = model
        self.penalty, self.strength = PENALTIES[method.regularizer or "hoyer"], method.strength
        self.orthogonality_weight, self.spectrum_rate = method.orthogonality_weight, method.spectrum_learning_rate
        values = [module.s for module in model.modules() if isinstance(module, TwoConv | SVDLinear)]
        others = [parameter for parameter in model.parameters() if all(parameter is not s for s in values)]
        self.optimizer = torch.optim.Adam([{"params": others}, {"params": values}])
        self.set_learning_rate(learning_rate)
        self.log: dict[str, float] = {}

    def set_learning_rate(self, value: float) -> None:
        """The rate of the steps to come."""
        for group, scale in zip(self.optimizer.param_groups, (1.0, self.spectrum_rate), strict=True):
            group["lr"] = value * scale

    def __call__(self, x: Tensor, y: Tensor) -> None:
        loss = F.cross_entropy(self.model(x), y)
        sparsity, orthogonality = torch.zeros_like(loss), torch.zeros_like(loss)
        for module in self.model.modules():
            if isinstance(module, TwoConv | SVDLinear):
                if module.s.abs().sum() > 0:
                    sparsity = sparsity + self.penalty(module.s)
                for factor in factors_of(module):
                    identity = torch.eye(len(factor), device=factor.device)
                    orthogonality = orthogonality + (factor @ factor.T - identity).square().sum() / len(factor) ** 2
        total = loss + self.strength * sparsity + self.orthogonality_weight * orthogonality
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
        self.log = {"loss": loss.item(), "sparsity": sparsity.item(), "orthogonality": orthogonality.item()}


def authors_network(model: nn.Module, decomposition: str, sample_shape: tuple[int, ...]) -> nn.Module:
    """The dense `model`, in place, with its layers decomposed and each decomposed convolution as two."""
    factorize(model, decomposition, sample_shape)
    replace_modules(model, lambda module: TwoConv(module) if isinstance(module, SVDConv) else None)
    return model


def optimization_step(
    model: nn.Module,
    batch: tuple[Tensor, Tensor],
    bf16: bool,
    penalty: Callable[[], Tensor | None] = lambda: None,
    after_backward: Callable[[], None] = lambda: None,
) -> Step:
    optimizer = make_optimizer(model, TrainingConfig())
    x, y = batch

    def step() -> None:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(model(x), y)
        if (terms := penalty()) is not None:
            loss = loss + terms
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        after_backward()
        optimizer.step()

    return step


def make_steps(
    spec: ModelSpec, batch_size: int, memory_format: torch.memory_format, bf16: bool, device: torch.device
) -> dict[str, Step]:
    """The steps to be compared; for a network without convolutions the decompositions are one, in two variants."""
    x = torch.randn(batch_size, *spec.sample_shape, device=device).contiguous(memory_format=memory_format)
    y = torch.randint(spec.num_classes, (batch_size,), device=device)

    def fresh() -> nn.Module:
        torch.manual_seed(0)
        return build_model(spec)

    def placed(model: nn.Module) -> nn.Module:
        return model.to(device).to(memory_format=memory_format).train()

    def ours(decomposition: str, period: int = 1) -> Step:
        config = MethodConfig(decomposition=decomposition, orthogonality_period=period)
        method = make_method(config, Network(spec.sample_shape, FactorizationConfig()))
        method.prepare(fresh())
        placed(method.model)
        method.bind()

        def penalty() -> Tensor:
            return method.loss_weight(0.5) * method.loss_term()

        return optimization_step(method.model, (x, y), bf16, penalty, method.after_backward)

    def two_conv(decomposition: str) -> Step:
        model = placed(authors_network(fresh(), decomposition, spec.sample_shape))
        return optimization_step(model, (x, y), bf16, lambda: looped_penalty(model, 0.01, 1.0))

    steps = {"dense": optimization_step(placed(fresh()), (x, y), bf16)}
    if spec.model.name == "mlp":
        return {**steps, "svd": ours("channel"), "svd_period16": ours("channel", period=16)}
    return {
        **steps,
        "channel": ours("channel"),
        "spatial": ours("spatial"),
        "two_conv_channel": two_conv("channel"),
        "two_conv_spatial": two_conv("spatial"),
    }


def whole_steps(spec: ModelSpec, batch_size: int, ways: list[str], device: torch.device) -> dict[str, Step]:
    """The authors' step for both decompositions, and ours by each way and data type."""
    x = torch.randn(batch_size, *spec.sample_shape, device=device)
    y = torch.randint(spec.num_classes, (batch_size,), device=device)

    def authors(decomposition: str) -> Step:
        model = authors_network(build_model(spec), decomposition, spec.sample_shape)
        step = AuthorsStep(model.to(device).train(), MethodConfig(strength=0.01))
        return lambda: step(x, y)

    def ours(decomposition: str, way: str, dtype: str) -> Step:
        torch.manual_seed(0)
        method = make_method(MethodConfig(decomposition=decomposition), Network(spec.sample_shape))
        method.prepare(build_model(spec))
        method.model.to(device).to(memory_format=torch.channels_last).train()
        method.bind()
        training = TrainingConfig(step=way, dtype=dtype)
        step = OurStep(method, make_optimizer(method.model, training), training, device)
        images = x.contiguous(memory_format=torch.channels_last)
        return lambda: step(images, y, 0.5)

    steps = {f"authors_{decomposition}": authors(decomposition) for decomposition in ("channel", "spatial")}
    for way, dtype, decomposition in product(ways, ("float32", "bfloat16"), ("channel", "spatial")):
        steps[f"{decomposition}_{dtype}_{way}"] = ours(decomposition, way, dtype)
    return steps


def throughput(times: dict[str, list[float]], batch_size: int) -> dict[str, Any]:
    """Images/s of each step, and each of ours over the authors' of its decomposition."""
    ratios = {
        name: ratio(times, f"authors_{name.partition('_')[0]}", name)
        for name in times
        if not name.startswith("authors")
    }
    images_s = {name: 1000 * batch_size / statistics.median(values) for name, values in times.items()}
    best = {
        f"throughput_vs_authors_{form}": max(found["median"] for name, found in ratios.items() if name.startswith(form))
        for form in ("channel", "spatial")
    }
    return {"images_s": images_s, "ratios": ratios, **best}


def measure(steps: dict[str, Step], rounds: int, repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Milliseconds per step of each, one figure a round, measured in turn."""
    for step in steps.values():
        seconds(
            step, max(repeats, 4 if device.type == "cuda" else 1), device
        )  # warm-up: a graph is captured at the fourth
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(1000 * seconds(step, repeats, device))
    return times


def seconds(step: Step, repeats: int, device: torch.device) -> float:
    on_gpu = device.type == "cuda"
    clock = time.process_time if not on_gpu and torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    for _ in range(repeats):
        step()
    if on_gpu:
        torch.cuda.synchronize()
    return (clock() - start) / repeats


def ratio(times: dict[str, list[float]], one: str, other: str) -> dict[str, float]:
    """Median and quartiles of the paired ratios one / other."""
    ratios = sorted(a / b for a, b in zip(times[one], times[other], strict=True))
    quarter = len(ratios) // 4
    return {"median": statistics.median(ratios), "low": ratios[quarter], "high": ratios[-1 - quarter]}


def compare(times: dict[str, list[float]]) -> dict[str, Any]:
    """Every ratio that is asked for, and the milliseconds behind them."""
    pairs = {
        "channel_vs_dense": ("channel", "dense"),
        "spatial_vs_dense": ("spatial", "dense"),
        "two_conv_vs_channel": ("two_conv_channel", "channel"),
        "two_conv_vs_spatial": ("two_conv_spatial", "spatial"),
        "mlp_vs_dense": ("svd", "dense"),
        "mlp_period16_vs_dense": ("svd_period16", "dense"),
    }
    found = {key: ratio(times, one, other) for key, (one, other) in pairs.items() if one in times}
    return {"ms": {name: statistics.median(values) for name, values in times.items()}, "ratios": found}


def table(found: dict[str, Any]) -> str:
    """Markdown: a row for each ratio."""
    labels = {
        "channel_vs_dense": "channel-wise / dense",
        "spatial_vs_dense": "spatial-wise / dense",
        "two_conv_vs_channel": "two convolutions / channel-wise",
        "two_conv_vs_spatial": "two convolutions / spatial-wise",
        "mlp_vs_dense": "MLP 784-300-100-10 / dense",
        "mlp_period16_vs_dense": "the same, orthogonality every 16 steps / dense",
    }
    lines = ["| time of a step | median | quartiles |", "|---|---:|---:|"]
    for variant, result in found["variants"].items():
        for name, row in result["ratios"].items():
            lines.append(f"| {labels[name]}, {variant} | {row['median']:.2f} | {row['low']:.2f} to {row['high']:.2f} |")
    authors = found["authors"]
    lines += ["", "| whole step | images/s | over the authors' |", "|---|---:|---:|"]
    for name, images_s in authors["images_s"].items():
        over = authors["ratios"].get(name)
        lines.append(f"| {name} | {images_s:.0f} | {'' if over is None else format(over['median'], '.2f')} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--model", default="resnet20", help="the convolutional network")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=3, help="steps timed together")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--steps", nargs="+", default=["eager"], help="ways of running our step, of TrainingConfig.step"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    network = ModelSpec(ModelConfig(options.model), SHAPES.get(options.model, (3, 32, 32)), 10)
    mlp = ModelSpec(ModelConfig("mlp", (300, 100)), SHAPES["mlp"], 10)
    variants = {
        "fp32_channels_last": (network, torch.channels_last, False),
        "fp32_contiguous": (network, torch.contiguous_format, False),
        "bf16_channels_last": (network, torch.channels_last, True),
        "mlp_fp32": (mlp, torch.contiguous_format, False),
    }
    results = {}
    for name, (spec, memory_format, bf16) in variants.items():
        steps = make_steps(spec, options.batch_size, memory_format, bf16, device)
        repeats = options.repeats * (10 if spec is mlp else 1)
        results[name] = compare(measure(steps, options.rounds, repeats, device))
        print(name, json.dumps(results[name], indent=1), flush=True)
    steps = whole_steps(network, options.batch_size, options.steps, device)
    authors = throughput(measure(steps, options.rounds, options.repeats, device), options.batch_size)
    print("authors", json.dumps(authors, indent=1), flush=True)
    best = min(("fp32_channels_last", "fp32_contiguous"), key=lambda name: results[name]["ms"]["dense"])
    headline = {**results[best]["ratios"], **results["mlp_fp32"]["ratios"]}
    found = {
        **{key: value["median"] for key, value in headline.items()},
        **{key: value for key, value in authors.items() if key.startswith("throughput")},
        "memory_format": best,
        "model": options.model,
        "batch_size": options.batch_size,
        "rounds": options.rounds,
        "threads": options.threads,
        "device": torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "variants": results,
        "authors": authors,
    }
    write(options, found, table(found))


if __name__ == "__main__":
    main()
