"""What does a training step of the decomposed network cost, relative to the dense one?

Dense, channel-wise and spatial-wise steps (forward, loss, penalties, backward, optimizer) are timed in turn, round after
round, so that a slow moment of the machine falls on all of them; a ratio is the median over rounds of paired ratios.

    python benchmarks/step_cost.py --model resnet20 --batch-size 128 --rounds 15 --json FILE
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from trainers.config import ModelConfig, SVDTrainingConfig, TrainingConfig
from trainers.models import ModelSpec, build_model
from trainers.optimizers import make_optimizer
from trainers.regularizers import Penalty
from trainers.surgery import factorize

SHAPES = {"lenet5": (1, 28, 28), "mlp": (1, 28, 28), "tiny": (1, 8, 8)}


def make_step(spec: ModelSpec, decomposition: str | None, batch_size: int, device: torch.device) -> Callable[[], None]:
    torch.manual_seed(0)
    model = build_model(spec)
    if decomposition is not None:
        factorize(model, decomposition, spec.sample_shape)
    model = model.to(device).to(memory_format=torch.channels_last).train()
    penalty = None if decomposition is None else Penalty(model, SVDTrainingConfig(decomposition))
    optimizer = make_optimizer(model, TrainingConfig())
    x = torch.randn(batch_size, *spec.sample_shape, device=device).contiguous(memory_format=torch.channels_last)
    y = torch.randint(spec.num_classes, (batch_size,), device=device)

    def step() -> None:
        loss = F.cross_entropy(model(x), y)
        if penalty is not None:
            loss = loss + penalty()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def seconds(step: Callable[[], None], repeats: int, device: torch.device) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=3, help="steps timed together")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    spec = ModelSpec(ModelConfig(options.model), SHAPES.get(options.model, (3, 32, 32)), 10)
    steps = {
        "dense": make_step(spec, None, options.batch_size, device),
        "channel": make_step(spec, "channel", options.batch_size, device),
        "spatial": make_step(spec, "spatial", options.batch_size, device),
    }
    for step in steps.values():
        seconds(step, options.repeats, device)  # warm-up
    times = {name: [] for name in steps}
    for _ in range(options.rounds):
        for name, step in steps.items():
            times[name].append(seconds(step, options.repeats, device))
    found = {
        "model": options.model,
        "batch_size": options.batch_size,
        "rounds": options.rounds,
        "threads": options.threads,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "dense_ms": 1000 * statistics.median(times["dense"]),
    }
    for name in ("channel", "spatial"):
        ratios = sorted(other / dense for other, dense in zip(times[name], times["dense"], strict=True))
        quarter = len(ratios) // 4
        found[f"{name}_vs_dense"] = statistics.median(ratios)
        found[f"{name}_vs_dense_quartiles"] = [ratios[quarter], ratios[-1 - quarter]]
    text = json.dumps(found, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
