"""What do the ways of keeping U and V orthonormal cost, and what do they give?

SVD training of an MLP on MNIST with the soft penalty (exact every step, or its gradient renewed every k steps), with
retraction by QR every k steps, with both, and with neither; cut to the same budget and fine-tuned. Mean and standard
deviation over seeds; test accuracies; nothing is selected.

    python benchmarks/orthogonality.py --mnist DIR --json FILE --markdown FILE
"""

import argparse
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from bench_options import benchmark_parser, write

from trainers.config import DataConfig, MethodConfig, ModelConfig, TrainingConfig
from trainers.data import load_test, load_train_validation
from trainers.models import ModelSpec
from trainers.recipe import MODEL_FILE, Setting, compress, evaluate_model_file, finetune, pretrain

BASE = MethodConfig(regularizer="l1", strength=0.003, rank_rule="equal_error", budget=0.1)
VARIANTS = {
    "soft penalty": BASE,
    "soft penalty, gradient renewed every 8 steps": replace(BASE, orthogonality_period=8),
    "soft penalty, gradient renewed every 16 steps": replace(BASE, orthogonality_period=16),
    "retraction every 10 steps": replace(BASE, orthogonality_weight=0.0, retraction_period=10),
    "retraction every 100 steps": replace(BASE, orthogonality_weight=0.0, retraction_period=100),
    "soft penalty, retraction every 100 steps": replace(BASE, retraction_period=100),
    "neither": replace(BASE, orthogonality_weight=0.0),
}


def run(config: MethodConfig, setting: Setting, test: Any, folder: Path, start: Path) -> dict[str, float]:
    """Compress and fine-tune from one common stage 1; CPU seconds are those of the compression."""
    began = time.process_time()
    compressed = list(compress(setting, config, start, folder / "2"))
    core_s = time.process_time() - began
    list(finetune(setting, config, setting.training.epochs, folder / "2" / MODEL_FILE, folder / "3"))
    scores = evaluate_model_file(folder / "3" / MODEL_FILE, test, torch.device("cpu"))
    last = compressed[-1].metrics
    return {
        "orthogonality_error": last["orthogonality_error"],
        "val_accuracy_after_cut": last["val_accuracy"],
        "test_accuracy": scores["accuracy"],
        "macs_ratio": last["macs_ratio"],
        "core_s": core_s,
    }


def main() -> None:
    parser = benchmark_parser(__doc__, "mnist")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4, help="of each stage")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = DataConfig("mnist", root=options.mnist)
    data = load_train_validation(config)
    test = load_test(config, data)
    spec = ModelSpec(ModelConfig("mlp", (300, 100)), data.sample_shape, data.num_classes)
    rows = []
    for seed in range(options.seeds):
        training = TrainingConfig(pretrain_epochs=options.epochs, epochs=options.epochs, seed=seed)
        setting = Setting(spec, data, training)
        with TemporaryDirectory() as name:
            root = Path(name)
            list(pretrain(setting, BASE, root))
            for variant, method in VARIANTS.items():
                found = run(method, setting, test, root / variant, root / MODEL_FILE)
                rows.append({"variant": variant, "seed": seed, **found})
                print(rows[-1], flush=True)
    write(options, rows, markdown(rows, options))


def markdown(rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    lines = [
        f"MLP 784-300-100-10 on MNIST, {options.epochs} epochs a stage, batch 128, Adam 1e-3, L1 0.003, cut to 10 % of the "
        f"MACs by equal_error, {options.seeds} seeds, mean ± standard deviation. {platform.machine()}, torch "
        f"{torch.__version__}, one thread.",
        "",
        "| U and V are kept orthonormal by | distance from orthonormal | validation %, cut | test %, fine-tuned | core-s |",
        "|---|---|---|---|---|",
    ]
    for variant in VARIANTS:
        mine = [row for row in rows if row["variant"] == variant]

        def cell(key: str, scale: float, digits: int, mine: list[dict[str, Any]] = mine) -> str:
            values = [scale * row[key] for row in mine]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            return f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}"

        cells = [
            cell("orthogonality_error", 1, 4),
            cell("val_accuracy_after_cut", 100, 2),
            cell("test_accuracy", 100, 2),
            cell("core_s", 1, 1),
        ]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
