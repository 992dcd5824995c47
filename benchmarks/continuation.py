"""What does it change that a trial goes on from a finished neighbour instead of from stage 1?

For each seed stage 1 is trained once, and from it a neighbour, by SVD training with L1. Trials whose strength is 1.5 or 3
times as large, or as small, are then trained four times: from stage 1; from the neighbour; from the neighbour for half of
the epochs; and, as a control, from stage 1 for twice the epochs, which is as much training as neighbour and trial have
together. Each is cut to a curve. Compared is the best score with at most a given share of the MACs, as the difference to the
trial from stage 1, paired by seed and strength, and the CPU seconds of the trial alone.

    python benchmarks/continuation.py --mnist DIR --json FILE --markdown FILE      # five minutes
"""

import argparse
import platform
import statistics
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from bench_options import benchmark_parser, write

from trainers.config import CurveConfig, DataConfig, MethodConfig, ModelConfig, TrainingConfig
from trainers.data import load_train_validation
from trainers.models import ModelSpec
from trainers.recipe import MODEL_FILE, Setting, compress, pretrain

STRENGTH = 0.01  # the neighbour's
FACTORS = (1 / 3, 1 / 1.5, 1.5, 3.0)
BUDGETS = (0.6, 0.3, 0.15, 0.08)
FROM_ONE = "from stage 1"
# name -> whether it starts from the neighbour, and its epochs as a multiple of the stage's
ARMS = {
    FROM_ONE: (False, 1.0),
    "from the neighbour": (True, 1.0),
    "from the neighbour, half of the epochs": (True, 0.5),
    "from stage 1, twice the epochs": (False, 2.0),
}


def tasks(mnist: str) -> dict[str, tuple[DataConfig, ModelConfig, TrainingConfig]]:
    """Data, network and training of each task."""
    return {
        "digits, three convolutions": (
            DataConfig("digits", validation_fraction=0.3),
            ModelConfig("tiny"),
            TrainingConfig(batch_size=64, pretrain_epochs=6, epochs=4, learning_rate=2e-3),
        ),
        "MNIST, MLP": (
            DataConfig("mnist", root=mnist, max_train=8_000, validation_fraction=0.25),
            ModelConfig("mlp", (300, 100)),
            TrainingConfig(batch_size=100, pretrain_epochs=4, epochs=4, learning_rate=1e-3),
        ),
    }


def trial(setting: Setting, method: MethodConfig, start: Path, epochs: int, target: Path | None) -> dict[str, Any]:
    """Train one trial; returns its CPU seconds and its (share of the MACs, score) cuts."""
    longer = replace(setting, training=replace(setting.training, epochs=epochs))
    results = list(compress(longer, method, start, target, CurveConfig()))
    dense = setting.dense_cost.macs
    points = [(cut["macs"] / dense, cut["score"]) for cut in results[-1].curve or []]
    return {"core_s": sum(result.cpu_s for result in results), "points": points}


def best_score(points: list[tuple[float, float]], budget: float) -> float:
    """Return the best score with at most `budget` of the MACs, and a tenth for ranks that do not fit it exactly."""
    return max((score for macs, score in points if macs <= 1.1 * budget), default=0.0)


def run(name: str, data: DataConfig, model: ModelConfig, training: TrainingConfig, seed: int) -> list[dict[str, Any]]:
    """Train all arms of one task with one seed."""
    images = load_train_validation(data)
    spec = ModelSpec(model, images.sample_shape, images.num_classes)
    setting = Setting(spec, images, replace(training, seed=seed))
    base = MethodConfig(regularizer="l1", strength=STRENGTH)
    rows = []
    with TemporaryDirectory() as folder:
        one, near = Path(folder) / "1", Path(folder) / "near"
        list(pretrain(setting, base, one))
        trial(setting, base, one / MODEL_FILE, training.epochs, near)
        for factor in FACTORS:
            method = replace(base, strength=factor * STRENGTH)
            for arm, (continued, multiple) in ARMS.items():
                start, epochs = (near if continued else one) / MODEL_FILE, round(multiple * training.epochs)
                found = trial(setting, method, start, epochs, None)
                scores = {budget: best_score(found["points"], budget) for budget in BUDGETS}
                row = {"task": name, "seed": seed, "factor": factor, "arm": arm}
                rows.append({**row, "core_s": found["core_s"], "scores": scores})
            print(name, seed, f"{factor:.2f}", flush=True)
    return rows


def markdown(rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """One table a task: differences in points of a hundred."""
    lines = [
        f"`python benchmarks/continuation.py --mnist DIR --seeds {options.seeds}`; {platform.machine()}, torch "
        f"{torch.__version__}, one thread. Score with at most a share of the MACs, minus that of the same trial from "
        f"stage 1, in percentage points: mean ± standard error over {options.seeds} seeds, each the mean of strengths that "
        f"are {', '.join(f'{factor:.2f}' for factor in FACTORS)} times the neighbour's. Of trials from stage 1: scores, %.",
        "",
    ]
    for task in dict.fromkeys(row["task"] for row in rows):
        lines += [
            f"### {task}",
            "",
            "| trial | " + " | ".join(f"{budget:.0%} of the MACs" for budget in BUDGETS) + " | core-s |",
            "|---" * (len(BUDGETS) + 2) + "|",
        ]
        own = {(row["seed"], row["factor"]): row for row in rows if row["task"] == task and row["arm"] == FROM_ONE}
        for arm in ARMS:
            found = [row for row in rows if row["task"] == task and row["arm"] == arm]
            cells = []
            for budget in BUDGETS:
                by_seed: dict[int, list[float]] = {}
                for row in found:
                    before = 0.0 if arm == FROM_ONE else own[row["seed"], row["factor"]]["scores"][budget]
                    by_seed.setdefault(row["seed"], []).append(100 * (row["scores"][budget] - before))
                cells.append(
                    _mean_error([statistics.mean(values) for values in by_seed.values()], signed=arm != FROM_ONE)
                )
            lines.append(f"| {arm} | {' | '.join(cells)} | {statistics.mean(row['core_s'] for row in found):.2f} |")
        lines.append("")
    return "\n".join(lines)


def _mean_error(values: list[float], *, signed: bool) -> str:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    mean = statistics.mean(values)
    return f"{mean:+.2f} ± {error:.2f}" if signed else f"{mean:.2f} ± {error:.2f}"


def main() -> None:
    parser = benchmark_parser(__doc__, "mnist")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, task in tasks(options.mnist).items():
        for seed in range(options.seeds):
            rows += run(name, *task, seed)
    write(options, rows, markdown(rows, options))


if __name__ == "__main__":
    main()
