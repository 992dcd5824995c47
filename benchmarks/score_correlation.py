"""Which cheap score of a network that was just cut foresees its accuracy after fine-tuning?

For three networks, trainings of three strengths are cut at seven budgets each. Every cut is scored right away, after
BatchNorm re-estimation, and after 5 to 80 steps of training besides, and is then fine-tuned. Spearman's rank correlation of
score and fine-tuned validation accuracy over all cuts of a network, and the share of pairs of nearly equal cost (within a
factor of 1.5) that the score orders rightly, which is what choosing finalists needs. Nothing is selected.

    python benchmarks/score_correlation.py --mnist DIR --cifar10 DIR --json FILE --markdown FILE
"""

import copy
import itertools
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from bench_options import benchmark_parser, write
from scipy.stats import spearmanr

from trainers.config import CurveConfig, DataConfig, MethodConfig, ModelConfig, TrainingConfig
from trainers.curve import ladder
from trainers.data import load_train_validation
from trainers.deploy import prune_to_ranks
from trainers.evaluation import evaluate_split
from trainers.methods import make_method
from trainers.models import ModelSpec
from trainers.recipe import MODEL_FILE, Setting, compress, finetune, pretrain
from trainers.recovery import recover
from trainers.saved_model import load_model

_BATCHES = CurveConfig().batch_norm_batches
SCORES = {
    "after the cut": (0, 0),
    "BatchNorm": (_BATCHES, 0),
    **{f"BatchNorm, {steps} steps": (_BATCHES, steps) for steps in (5, 10, 20, 40, 80)},
}
STRENGTHS = (0.001, 0.01, 0.1)
CURVE = CurveConfig(num_points=7, largest=0.7, smallest=0.05)


def networks(mnist: str, cifar10: str) -> dict[str, tuple[DataConfig, ModelConfig, TrainingConfig, int]]:
    """Data, model, training and fine-tuning epochs of each network."""
    digits = DataConfig("mnist", root=mnist, max_train=12_000, validation_fraction=1 / 6)
    images = DataConfig("parquet", root=cifar10, max_train=5_000, validation_fraction=0.3)
    training = TrainingConfig(batch_size=100, pretrain_epochs=4, epochs=3, learning_rate=1e-3)
    return {
        "MLP": (digits, ModelConfig("mlp", (300, 100)), training, 4),
        "LeNet-5": (digits, ModelConfig("lenet5"), training, 4),
        "ResNet-8": (images, ModelConfig("resnet8"), replace(training, pretrain_epochs=8, learning_rate=2e-3), 6),
    }


def cuts(data: DataConfig, model: ModelConfig, training: TrainingConfig, epochs: int) -> list[dict[str, Any]]:
    """Return every cut of one network: its cost, its scores with their CPU seconds, its fine-tuned accuracy."""
    images = load_train_validation(data)
    setting = Setting(ModelSpec(model, images.sample_shape, images.num_classes), images, training)
    rows = []
    with TemporaryDirectory() as name:
        root = Path(name)
        base = MethodConfig(regularizer="l1", decomposition="spatial")
        list(pretrain(setting, base, root / "1"))
        for strength in STRENGTHS:
            config, folder = replace(base, strength=strength), root / f"{strength}"
            list(compress(setting, config, root / "1" / MODEL_FILE, folder))
            saved = load_model(folder / MODEL_FILE)
            method = make_method(config, setting.network)
            method.attach(saved.model, saved.form)
            decomposed, spectra = method.decomposed()
            for settings, ranks in ladder(method, decomposed, spectra, CURVE):
                pruned = prune_to_ranks(decomposed, ranks, images.sample_shape, spectra).model
                row: dict[str, Any] = {"strength": strength, **settings, "scores": {}, "core_s": {}}
                for score, (batches, steps) in SCORES.items():
                    start = time.process_time()
                    tried = copy.deepcopy(pruned)
                    recovery = replace(CURVE, batch_norm_batches=batches, recovery_steps=steps)
                    recover(tried, images, training, recovery)
                    row["scores"][score] = evaluate_split(tried, images)["accuracy"]
                    row["core_s"][score] = time.process_time() - start
                tuned = list(finetune(setting, replace(config, **settings), epochs, folder / MODEL_FILE))[-1]
                row |= {"macs_ratio": tuned.metrics["macs_ratio"], "finetuned": tuned.metrics["val_accuracy"]}
                rows.append(row)
                print(model.name, row, flush=True)
    return rows


def concordance(rows: list[dict[str, Any]], score: str) -> float:
    """The share of pairs of nearly equal cost, and of different fine-tuned accuracy, that `score` orders rightly."""
    right = []
    for a, b in itertools.combinations(rows, 2):
        near = max(a["macs_ratio"], b["macs_ratio"]) <= 1.5 * min(a["macs_ratio"], b["macs_ratio"])
        difference = a["finetuned"] - b["finetuned"]
        if near and difference != 0:
            order = (a["scores"][score] - b["scores"][score]) * difference
            right.append(0.5 if order == 0 else float(order > 0))
    return statistics.mean(right)


def markdown(found: dict[str, list[dict[str, Any]]]) -> str:
    """One line a score: correlation and concordance for each network, and the median CPU seconds of a score."""
    count = {name: len(rows) for name, rows in found.items()}
    lines = [
        f"Cuts: {', '.join(f'{name} {number}' for name, number in count.items())}. Spearman's correlation with validation "
        "accuracy after fine-tuning / share of pairs of nearly equal cost in the right order / median CPU seconds for one "
        f"score. {platform.machine()}, torch {torch.__version__}, one thread, one seed.",
        "",
        "| score | " + " | ".join(found) + " |",
        "|---" * (len(found) + 1) + "|",
    ]
    for score in SCORES:
        cells = []
        for rows in found.values():
            tuned, scores = [row["finetuned"] for row in rows], [row["scores"][score] for row in rows]
            seconds = statistics.median(row["core_s"][score] for row in rows)
            cells.append(f"{spearmanr(scores, tuned).statistic:.3f} / {concordance(rows, score):.2f} / {seconds:.2f}")
        lines.append(f"| {score} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = benchmark_parser(__doc__, "mnist", "cifar10")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {name: cuts(*network) for name, network in networks(options.mnist, options.cifar10).items()}
    write(options, found, markdown(found))


if __name__ == "__main__":
    main()
