"""What do int8 weights and activations cost a low-rank network, in accuracy and bytes, beside the dense one?

LeNet-5 on MNIST and a CIFAR ResNet on CIFAR-10 are trained dense and, in as many epochs, low-rank at two budgets of MACs by
SVD training; each is exported to ONNX in fp32, fp16 and int8 by `trainers.export_model`, and its files are run on the test
split. Nothing is selected.

    python benchmarks/quantization.py --mnist DIR --cifar10 DIR --output runs/quantization --json FILE --markdown FILE
"""

import argparse
import platform
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from bench_options import benchmark_parser, write

from trainers.config import DataConfig, MethodConfig, ModelConfig, TrainingConfig
from trainers.data import load_test, load_train_validation
from trainers.export.load import load
from trainers.export.measure import export_accuracy
from trainers.export.options import ExportOptions, Weights
from trainers.export.write import export_model
from trainers.models import ModelSpec
from trainers.recipe import MODEL_FILE, Setting, compress, finetune, pretrain, train_dense
from trainers.saved_model import load_model

WEIGHTS: tuple[Weights, ...] = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class Task:
    """A network, its data, the epochs of the three stages, and the budgets of MACs it is cut to."""

    name: str
    model: str
    data: DataConfig
    training: TrainingConfig
    epochs: int
    budgets: tuple[float, ...]


def tasks(options: argparse.Namespace) -> list[Task]:
    if options.quick:
        training = TrainingConfig(batch_size=64, pretrain_epochs=3, epochs=2, learning_rate=2e-3, seed=options.seed)
        return [Task("digits, tiny", "tiny", DataConfig("digits"), training, 2, (0.5,))]
    mnist = TrainingConfig(batch_size=128, pretrain_epochs=2, epochs=2, learning_rate=1e-3, seed=options.seed)
    cifar = TrainingConfig(
        batch_size=100, pretrain_epochs=8, epochs=4, learning_rate=2e-3, augmentation="crop_flip", seed=options.seed
    )
    return [
        Task(
            "MNIST, LeNet-5",
            "lenet5",
            DataConfig("mnist", root=options.mnist, max_train=options.max_train),
            mnist,
            2,
            (0.3, 0.15),
        ),
        Task(
            f"CIFAR-10, {options.resnet}",
            options.resnet,
            DataConfig("parquet", root=options.cifar10, max_train=options.max_train),
            cifar,
            4,
            (0.7, 0.5),
        ),
    ]


def trained(setting: Setting, task: Task, folder: Path) -> Iterator[tuple[str, Path]]:
    """Train the dense network and one a budget, equal in epochs; yield each one's name and model file."""
    training = task.training
    total = training.pretrain_epochs + training.epochs + task.epochs
    exhaust(train_dense(setting, total, folder / "dense"))
    yield "dense", folder / "dense" / MODEL_FILE
    method = MethodConfig(regularizer="l1", strength=0.01, rank_rule="knapsack")
    exhaust(pretrain(setting, method, folder / "pretrain"))
    for budget in task.budgets:
        cut = replace(method, budget=budget)
        source, target = folder / f"compress-{budget}", folder / f"finetune-{budget}"
        exhaust(compress(setting, cut, folder / "pretrain" / MODEL_FILE, source))
        exhaust(finetune(setting, cut, task.epochs, source / MODEL_FILE, target))
        yield f"{100 * budget:g} % of MACs", target / MODEL_FILE


def exhaust(results: Iterator[Any]) -> None:
    for result in results:
        print(f"  epoch {result.epoch}: validation accuracy {result.metrics['val_accuracy']:.4f}", flush=True)


def measure(task: Task, folder: Path) -> Iterator[dict[str, Any]]:
    data = load_train_validation(task.data)
    test = load_test(task.data, data)
    setting = Setting(ModelSpec(ModelConfig(task.model), data.sample_shape, data.num_classes), data, task.training)
    for name, model_file in trained(setting, task, folder):
        saved = load_model(model_file)
        for weights in WEIGHTS:
            file = model_file.with_name(f"network-{weights}.onnx")
            report = export_model(saved, data, file, ExportOptions("onnx", weights))
            yield {
                "task": task.name,
                "network": name,
                "weights": weights,
                "macs_ratio": report.metadata["cost"]["macs_ratio"],
                "params": report.metadata["cost"]["params"],
                "nodes": report.nodes,
                "size_bytes": report.size_bytes,
                "test_accuracy": export_accuracy(load(file), test, "pixels"),
                "max_abs_error": report.measured.max_abs_error,
            }


def main() -> None:
    parser = benchmark_parser(__doc__, "mnist", "cifar10")
    parser.add_argument("--quick", action="store_true", help="digits alone, in seconds")
    parser.add_argument("--resnet", default="resnet20")
    parser.add_argument("--max-train", type=int, default=60_000, help="training images of either set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/quantization"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for task in tasks(options):
        for row in measure(task, options.output / task.model):
            print(row, flush=True)
            rows.append(row)
    write(options, rows, markdown(rows, options))


def markdown(rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    lines = [
        f"Test accuracy and bytes of ONNX files, run by ONNX Runtime on {platform.machine()}, one thread; seed "
        f"{options.seed}, one run each, at most {options.max_train:,} training images. Sizes are to the "
        "dense network's fp32 file.",
        "",
        "| task | network | MACs | weights | test accuracy | file | of dense fp32 |",
        "|---|---|---|---|---|---|---|",
    ]
    dense = {row["task"]: row["size_bytes"] for row in rows if (row["network"], row["weights"]) == ("dense", "fp32")}
    for row in rows:
        size = row["size_bytes"]
        lines.append(
            f"| {row['task']} | {row['network']} | {100 * row['macs_ratio']:.1f} % | {row['weights']} | "
            f"{100 * row['test_accuracy']:.2f} % | {size / 1000:,.1f} kB | {100 * size / dense[row['task']]:.1f} % |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
