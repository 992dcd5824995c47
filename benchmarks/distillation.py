"""Does fine-tuning with distillation from the full-rank network give better low-rank networks?

Per seed: stage 1, then stage 2 with a strong penalty, then three cuts by budget, each fine-tuned from the same weights with
the same batches: by the labels alone, and with distillation, from stage 1's network or from stage 2's before the cut.
Differences of validation accuracy are paired; 95 % bootstrap intervals of the mean, over the seeds.

    python benchmarks/distillation.py --mnist DIR --cifar10 DIR --json FILE --markdown FILE
"""

import platform
import statistics
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from bench_options import benchmark_parser, write
from bench_statistics import interval_of_mean

from trainers.config import DataConfig, DistillationConfig, MethodConfig, ModelConfig, TrainingConfig
from trainers.data import load_train_validation
from trainers.evaluation import evaluate_split
from trainers.models import ModelSpec
from trainers.recipe import MODEL_FILE, Setting, compress, finetune, pretrain
from trainers.saved_model import load_model

BUDGETS = (0.5, 0.25, 0.12)
TAUGHT = {"stage 1, weight 0.5": ("1", 0.5), "uncut, weight 0.5": ("2", 0.5), "uncut, weight 0.9": ("2", 0.9)}


def networks(mnist: str, cifar10: str) -> dict[str, tuple[DataConfig, ModelConfig, TrainingConfig, int]]:
    """Data, model, training and fine-tuning epochs of each network."""
    digits = DataConfig("mnist", root=mnist, max_train=5_000, validation_fraction=0.4)
    images = DataConfig("parquet", root=cifar10, image_size=16, max_train=4_000, validation_fraction=0.4)
    training = TrainingConfig(batch_size=100, pretrain_epochs=6, epochs=4, learning_rate=2.5e-3)
    return {
        "MLP on MNIST": (digits, ModelConfig("mlp", (300, 100)), training, 6),
        "ResNet-8 on CIFAR-10, 16x16": (images, ModelConfig("resnet8"), replace(training, batch_size=32, epochs=6), 6),
    }


def one_seed(data: DataConfig, model: ModelConfig, training: TrainingConfig, epochs: int) -> list[dict[str, Any]]:
    """Return one row a cut: its share of MACs, and its accuracy after fine-tuning with each weight of distillation."""
    images = load_train_validation(data)
    setting = Setting(ModelSpec(model, images.sample_shape, images.num_classes), images, training)
    config = MethodConfig(
        regularizer="hoyer_square", strength=0.01, decomposition="spatial", spectrum_learning_rate=10.0
    )
    rows = []
    with TemporaryDirectory() as folder:
        root = Path(folder)
        first = list(pretrain(setting, config, root / "1"))[-1]
        list(compress(setting, config, root / "1" / MODEL_FILE, root / "2"))
        whole = evaluate_split(load_model(root / "2" / MODEL_FILE).model, images)
        for budget in BUDGETS:
            cut = replace(config, rank_rule="log_knapsack", budget=budget)
            row: dict[str, Any] = {"stage 1": first.metrics["val_accuracy"], "uncut": whole["accuracy"], "accuracy": {}}
            for name, (stage, weight) in {"labels": ("1", 0.0), **TAUGHT}.items():
                distillation = DistillationConfig(weight)
                start, teacher = root / "2" / MODEL_FILE, root / stage / MODEL_FILE
                last = list(finetune(setting, cut, epochs, start, None, None, distillation, teacher))[-1]
                row["macs_ratio"] = last.metrics["macs_ratio"]
                row["accuracy"][name] = last.metrics["val_accuracy"]
            rows.append(row)
    return rows


def markdown(found: dict[str, list[list[dict[str, Any]]]]) -> str:
    """One line a network, budget and weight."""
    lines = [
        f"{platform.machine()}, torch {torch.__version__}; validation accuracy, %, mean over the seeds; differences to "
        "labels alone in percentage points, with 95 % bootstrap intervals over the seeds.",
        "",
        "| network | seeds | MACs | labels alone | " + " | ".join(f"taught by {name}" for name in TAUGHT) + " |",
        "|---" * (4 + len(TAUGHT)) + "|",
    ]
    for name, seeds in found.items():
        for place in [*range(len(BUDGETS)), None]:
            of_seed = [rows if place is None else [rows[place]] for rows in seeds]
            plain = [statistics.mean(row["accuracy"]["labels"] for row in rows) for rows in of_seed]
            macs = statistics.mean(row["macs_ratio"] for rows in of_seed for row in rows)
            cells = [name, str(len(seeds)), "all three" if place is None else f"{100 * macs:.0f} %"]
            cells.append(f"{100 * statistics.mean(plain):.2f}")
            for variant in TAUGHT:
                taught = [statistics.mean(row["accuracy"][variant] for row in rows) for rows in of_seed]
                gains = [100 * (a - b) for a, b in zip(taught, plain, strict=True)]
                low, high = interval_of_mean(gains)
                cells.append(f"{statistics.mean(gains):+.2f} ({low:+.2f} to {high:+.2f})")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = benchmark_parser(__doc__, "mnist", "cifar10")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[list[dict[str, Any]]]] = {}
    for name, (data, model, training, epochs) in networks(options.mnist, options.cifar10).items():
        found[name] = []
        for seed in range(options.seeds):
            found[name].append(one_seed(data, model, replace(training, seed=seed), epochs))
            print(name, seed, found[name][-1], flush=True)
    write(options, found, markdown(found))


if __name__ == "__main__":
    main()
