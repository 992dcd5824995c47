"""What does it give to train K trials as one array, in throughput and memory?

An epoch of SVD training of K networks, as an array and one after the other, is timed in turn, round after round; a ratio is
the median over rounds of paired ratios. Trials differ in learning rate, regularizer and strength. `shared`: all see the
same batches, as trials of one sweep that began together do; `own`: each has a seed of its own. Images are random. Without
a GPU one thread computes, its processor time counts, and the peak memory is the process's so far.

    python benchmarks/array_scaling.py --json FILE --markdown FILE
    python benchmarks/array_scaling.py --counts 1 2 4 8 16 32 64 --steps 100 --rounds 5   # a GPU
"""

import argparse
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from bench_options import benchmark_parser, write

from trainers.arrays import train_epochs
from trainers.config import MethodConfig, ModelConfig, TrainingConfig
from trainers.data import ImageData
from trainers.loop import PendingEpoch, Stage
from trainers.methods import Network, make_method
from trainers.models import ModelSpec, build_model
from trainers.optimizers import make_optimizer
from trainers.step import Step

NETWORKS = {
    "mlp": (ModelConfig("mlp", (64, 64)), (1, 28, 28), 32),
    "resnet20": (ModelConfig("resnet20"), (3, 32, 32), 128),
}
REGULARIZERS = ("hoyer", "l1", "hoyer_square")


def images(shape: tuple[int, int, int], count: int, device: torch.device) -> ImageData:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, *shape), dtype=torch.uint8, generator=generator)
    labels = torch.randint(10, (count,), generator=generator)
    rows, channels = torch.arange(count), (0.5,) * shape[0]
    return ImageData(pixels, labels, rows, rows[:1], channels, channels, tuple("0123456789")).to(device)


def epoch(network: str, k: int, seed: int, data: ImageData, dtype: str) -> PendingEpoch:
    """The first epoch of trial k."""
    model, shape, batch_size = NETWORKS[network]
    training = TrainingConfig(batch_size=batch_size, learning_rate=1e-3 / (1 + k), dtype=dtype, seed=seed)
    torch.manual_seed(k)
    method = make_method(MethodConfig(regularizer=REGULARIZERS[k % 3], strength=1e-3 * (1 + k)), Network(shape))
    method.prepare(build_model(ModelSpec(model, shape, 10)))
    method.model.to(data.images.device).to(memory_format=torch.channels_last)
    method.bind()
    optimizer = make_optimizer(method.model, training, method.learning_rate_scales())
    stage = Stage("compress", 20, training, {"model": network})
    step = Step(method, optimizer, training, data.images.device)
    return PendingEpoch(method, optimizer, step, data, stage, 0)


def seconds(run: Callable[[], Any], device: torch.device) -> float:
    """Elapsed time on a GPU; without one the processor time, which other programs on the machine disturb less."""
    if device.type == "cuda":
        began = time.perf_counter()
        run()
        torch.cuda.synchronize()
        return time.perf_counter() - began
    began = time.process_time()
    run()
    return time.process_time() - began


def peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(
    network: str, batches: str, count: int, data: ImageData, device: torch.device, options: argparse.Namespace
) -> dict[str, Any]:
    """One row: K trainings as one, beside one of them alone."""
    trials = [epoch(network, k, k if batches == "own" else 0, data, options.dtype) for k in range(count)]
    alone = trials[0]
    train_epochs(trials)  # warm-up, and the trial run that finds the array form
    alone.train()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times, ratios = [], []
    for _ in range(options.rounds):
        times.append(seconds(lambda: train_epochs(trials), device))
        peak = peak_bytes(device)
        ratios.append(count * seconds(alone.train, device) / times[-1])
    return {
        "network": network,
        "batches": batches,
        "trials": count,
        "ms_per_step": 1000 * statistics.median(times) / options.steps,
        "images_per_s": count * len(data.train_rows) / statistics.median(times),
        "times_one_by_one": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "peak_bytes": peak,
    }


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--counts", nargs="+", type=int, help="default: 1 to 32 for the MLP, 1 to 4 for the ResNet")
    parser.add_argument("--batches", nargs="+", default=["shared", "own"], choices=["shared", "own"])
    parser.add_argument("--steps", type=int, default=20, help="in an epoch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    rows = []
    for network in options.networks:
        _, shape, batch_size = NETWORKS[network]
        data = images(shape, options.steps * batch_size, device)
        for count in options.counts or ([1, 2, 4, 8, 16, 32] if network == "mlp" else [1, 2, 4]):
            for batches in options.batches:
                rows.append(measure(network, batches, count, data, device, options))
                print(rows[-1], flush=True)
    cores = f"{platform.machine()}, {os.cpu_count()} cores"
    machine = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else cores,
        "torch": torch.__version__,
        "dtype": options.dtype,
        "steps": options.steps,
        "rounds": options.rounds,
    }
    write(options, {**machine, "rows": rows}, markdown(machine, rows))


def markdown(machine: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    facts = ", ".join(f"{key} {value}" for key, value in machine.items())
    lines = [
        f"SVD training, channel-wise; mlp is 784-64-64-10 with batches of 32, resnet20 has batches of 128. {facts}. Peak",
        "memory is that of the GPU, or of the whole process so far where there is none.",
        "",
        "| network | batches | trials | ms per step of the array | images/s | throughput to one by one | peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratio = f"{row['times_one_by_one']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f})"
        sizes = (
            f"{row['ms_per_step']:.2f} | {row['images_per_s']:,.0f} | {ratio} | {row['peak_bytes'] / 2**20:,.0f} MiB"
        )
        lines.append(f"| {row['network']} | {row['batches']} | {row['trials']} | {sizes} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
