"""What is the fastest way to fine-tune finalists of different ranks: one by one, or as arrays of common shapes?

`--finalists` low-rank networks whose ranks differ, each layer's at random around a share of the rank at which it would cost
what the dense layer does. `one by one` trains each by `trainers.step`, in each of `--steps`. `array of K` puts K of similar
size together: their ranks are rounded up to the largest among them, layer by layer (zeros in both factors stay zero, so that
the networks are the same), and one grouped program trains them on one batch; with `graph` it is captured. Its optimizer is
one Adam over all, without settings of their own: less than a real one would do. A step of all finalists is timed, way by way
in turn, after three that warm up or compile; what compiling takes is given beside it. On a CPU it is processor time of one
thread, on a GPU wall time.

    python benchmarks/finetuning_cost.py --device cpu --json FILE --markdown FILE
    python benchmarks/finetuning_cost.py --device cuda --finalists 16 --arrays 4 16
"""

import argparse
import random
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from bench_options import benchmark_parser, write
from epoch_time import seconds_of
from torch import Tensor, nn

from trainers.arrays.network import array_form, stack_state
from trainers.captured import WARM_UP, Captured
from trainers.config import FactorizationConfig, MethodConfig, ModelConfig, TrainingConfig
from trainers.cost import measure_cost
from trainers.deploy import plan_deployment, prune_to_ranks, stored_spectra
from trainers.layers import svd_layers
from trainers.methods import Network, make_method
from trainers.models import ModelSpec, build_model
from trainers.optimizers import learning_rates_on, make_optimizer
from trainers.step import Step
from trainers.surgery import factorize

NETWORKS = {
    "mlp": (ModelSpec(ModelConfig("mlp", (300, 100)), (1, 28, 28), 10), 32),
    "resnet20": (ModelSpec(ModelConfig("resnet20"), (3, 32, 32), 10), 128),
}
OUTER = FactorizationConfig(first_layer=False, last_layer=False)  # too narrow to gain by being cut
Run = Callable[[], object]


class Finalists:
    """Networks of one architecture, cut to ranks of their own; `ranks` from the smallest network to the largest."""

    def __init__(self, spec: ModelSpec, count: int) -> None:
        torch.manual_seed(0)
        self.spec, self.model = spec, build_model(spec)
        factorize(self.model, "channel", spec.sample_shape, OUTER)
        self._spectra = stored_spectra(self.model)
        layers = svd_layers(self.model)
        draws = random.Random(0)
        self.ranks = []
        for number in range(count):
            share = 0.2 + 0.5 * number / max(1, count - 1)  # of the break-even rank, m n / (m + n)
            drawn = {}
            for name, layer in layers.items():
                m, n = layer.u.shape[0], layer.vt.shape[1]
                drawn[name] = max(1, int(m * n / (m + n) * share * draws.uniform(0.75, 1.25)))
            self.ranks.append(drawn)
        for ranks in self.ranks:
            assert all(one.form == "low_rank" for one in plan_deployment(self.model, ranks, spec.sample_shape))

    def network(self, ranks: dict[str, int]) -> nn.Module:
        return prune_to_ranks(self.model, ranks, self.spec.sample_shape, self._spectra).model

    def macs(self, ranks: dict[str, int]) -> int:
        return measure_cost(self.network(ranks), self.spec.sample_shape).macs


def common(ranks: list[dict[str, int]]) -> dict[str, int]:
    """The largest rank of each layer."""
    return {name: max(one[name] for one in ranks) for name in ranks[0]}


def alone(found: Finalists, batch: tuple[Tensor, Tensor], way: str, dtype: str) -> Run:
    """A step of each finalist, one after the other."""
    images, labels = batch
    steps = []
    for ranks in found.ranks:
        method = make_method(MethodConfig(method="dense"), Network(found.spec.sample_shape))
        method.attach(
            found.network(ranks).to(images.device).to(memory_format=torch.channels_last).train(), method.trained_form()
        )
        method.bind()
        training = TrainingConfig(step=way, dtype=dtype)
        steps.append(Step(method, make_optimizer(method.model, training), training, images.device))

    def run() -> None:
        for step in steps:
            step(images, labels, 0.5)

    return run


def arrays(found: Finalists, batch: tuple[Tensor, Tensor], size: int, captured: bool, dtype: str) -> Run:
    """A step of all finalists as arrays of `size`."""
    parts = [found.ranks[place : place + size] for place in range(0, len(found.ranks), size)]
    steps = [ArrayStep([found.network(common(part)) for _ in part], batch, captured, dtype) for part in parts]

    def run() -> None:
        for step in steps:
            step()

    return run


class ArrayStep:
    """A step of networks of one shape, as one program."""

    def __init__(self, models: list[nn.Module], batch: tuple[Tensor, Tensor], captured: bool, dtype: str) -> None:
        self._batch, self._dtype, self._count = batch, dtype, len(models)
        self._array = array_form(models[0], len(models))
        stack_state(self._array, models)
        device = batch[0].device
        self._array.to(device)
        self._optimizer = torch.optim.Adam([{"params": [*self._array.parameters()], "scale": 1.0}], lr=1e-3, fused=True)
        self._run: Callable[..., Tensor] = self._update
        if captured:
            learning_rates_on(self._optimizer, device)
            self._run = Captured(self._update, self._set_capturable)

    def __call__(self) -> None:
        self._run(*self._batch)

    def _update(self, images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self._dtype == "bfloat16"):
            each = self._array(images).unflatten(1, (self._count, -1)).flatten(0, 1)
            losses = F.cross_entropy(each, labels.repeat_interleave(self._count), reduction="none")
            loss = losses.unflatten(0, (-1, self._count)).mean(0).sum()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        return loss.detach()

    def _set_capturable(self, capturing: bool) -> None:
        for group in self._optimizer.param_groups:
            group["capturable"] = capturing


def measured(ways: dict[str, Run], rounds: int, device: torch.device) -> dict[str, dict[str, Any]]:
    """Milliseconds of each way and what it took until it was warm, and its paired ratio to eager steps one by one."""
    warm, times = {}, {name: [] for name in ways}
    for name, run in ways.items():
        started = seconds_of(device)
        for _ in range(WARM_UP + 1):
            run()
        warm[name] = seconds_of(device) - started
    for _ in range(rounds):
        for name, run in ways.items():
            started = seconds_of(device)
            run()
            times[name].append(seconds_of(device) - started)
    first = times["one by one, eager"]
    return {
        name: {
            "ms": 1000 * statistics.median(values),
            "times_eager": statistics.median(a / b for a, b in zip(first, values, strict=True)),
            "warm_up_s": warm[name],
        }
        for name, values in times.items()
    }


def row(name: str, device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    """One network: all ways."""
    spec, batch_size = NETWORKS[name]
    found = Finalists(spec, options.finalists)
    images = torch.randn(batch_size, *spec.sample_shape, device=device).contiguous(memory_format=torch.channels_last)
    batch = images, torch.randint(spec.num_classes, (batch_size,), device=device)
    ways = {f"one by one, {way}": alone(found, batch, way, options.dtype) for way in options.steps}
    own = [found.macs(ranks) for ranks in found.ranks]
    padding = {}
    for size in options.arrays:
        parts = [found.ranks[place : place + size] for place in range(0, len(own), size)]
        padding[size] = sum(len(part) * found.macs(common(part)) for part in parts) / sum(own)
        for captured in (False, True)[: 1 + (device.type == "cuda")]:
            text = f"array of {size}, {'graph' if captured else 'eager'}"
            ways[text] = arrays(found, batch, size, captured, options.dtype)
    dense = measure_cost(build_model(spec), spec.sample_shape).macs
    return {
        "network": name,
        "finalists": options.finalists,
        "macs_ratios": [macs / dense for macs in own],
        "macs_with_padding": padding,
        "ways": measured(ways, options.rounds, device),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| network | finalists | way | ms a step of all | times as fast as eager | s to be warm |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for found in rows:
        for way, figures in found["ways"].items():
            lines.append(
                f"| {found['network']} | {found['finalists']} | {way} | {figures['ms']:.1f} | "
                f"{figures['times_eager']:.2f} | {figures['warm_up_s']:.1f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--finalists", type=int, default=8)
    parser.add_argument("--arrays", nargs="+", type=int, default=[2, 8], help="numbers of finalists in one array")
    parser.add_argument("--steps", nargs="+", help="[default: eager and compile on a CPU, all four on a GPU]")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    on_gpu = device.type == "cuda"
    options.steps = options.steps or ["eager", "compile", "graph", "compile_graph"][: 4 if on_gpu else 2]
    rows = [row(name, device, options) for name in options.networks]
    figures = {"device": options.device, "dtype": options.dtype, "rounds": options.rounds, "rows": rows}
    write(options, figures, table(rows))


if __name__ == "__main__":
    main()
