"""What does a training step of the decomposed network cost, relative to the dense one and to the usual implementation?

Steps (forward, loss, penalties, backward, optimizer) of the dense network, of ours (channel-wise and spatial-wise) and of a
plain implementation are timed in turn, round after round, so that a slow moment of the machine falls on all of them; a
ratio is the median over rounds of paired ratios. The plain implementation is the form in which such methods are usually
published: each layer is two convolutions at full rank, and the penalties are computed layer by layer with autograd's own
gradients. Every comparison is within one data type and one memory format.

    python benchmarks/step_cost.py --rounds 15 --json FILE

The JSON has `channel_vs_dense`, `spatial_vs_dense`, `two_conv_vs_channel`, `two_conv_vs_spatial` (ResNet-20, fp32, the
memory format in which the dense network is faster), `mlp_vs_dense` and `mlp_period16_vs_dense` (784-300-100-10; the second
with the orthogonality gradient renewed every sixteenth step), and the same for each variant under `variants`.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.config import FactorizationConfig, MethodConfig, ModelConfig, TrainingConfig
from trainers.layers import SVDConv
from trainers.methods import Network, make_method
from trainers.models import ModelSpec, build_model
from trainers.optimizers import make_optimizer
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


def looped_penalty(model: nn.Module, strength: float, weight: float) -> Tensor:
    """Hoyer and orthogonality penalties, layer by layer."""
    total = torch.zeros(())
    for module in model.modules():
        if isinstance(module, TwoConv):
            total = total + strength * (module.s.abs().sum() / module.s.square().sum().sqrt() - 1)
            for factor in module.factors():
                gram = factor @ factor.T
                total = total + weight * (gram - torch.eye(len(gram))).square().sum() / len(gram) ** 2
    return total


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
        return optimization_step(method.model, (x, y), bf16, lambda: method.loss_terms(0.5), method.after_backward)

    def two_conv(decomposition: str) -> Step:
        model = fresh()
        factorize(model, decomposition, spec.sample_shape)
        replace_modules(model, lambda module: TwoConv(module) if isinstance(module, SVDConv) else None)
        placed(model)
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


def measure(steps: dict[str, Step], rounds: int, repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Milliseconds per step of each, one figure a round, measured in turn."""
    for step in steps.values():
        seconds(step, repeats, device)  # warm-up
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(1000 * seconds(step, repeats, device))
    return times


def seconds(step: Step, repeats: int, device: torch.device) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20", help="the convolutional network")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=3, help="steps timed together")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
    best = min(("fp32_channels_last", "fp32_contiguous"), key=lambda name: results[name]["ms"]["dense"])
    headline = {**results[best]["ratios"], **results["mlp_fp32"]["ratios"]}
    found = {
        **{key: value["median"] for key, value in headline.items()},
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
    }
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
