"""How much accuracy does each rank rule keep without any fine-tuning, at equal cost?

A network is trained dense on CIFAR-10; every rule then cuts it to the same budgets: global rules take the budget, the
others reach it by their own number (found by bisection on the spectra, no accuracy is looked at). `greedy` measures the loss
on validation rows; accuracies are those of the test split. Nothing is selected.

    python benchmarks/rank_rules.py --cifar10 DIR --output runs/rank_rules --json FILE --markdown FILE
"""

import argparse
import platform
import time
from pathlib import Path
from typing import Any

import torch
from bench_options import benchmark_parser, write

from trainers.budgets import RULE_RANGES, within_budget
from trainers.config import DataConfig, ModelConfig, RankConfig, TrainingConfig
from trainers.data import load_test, load_train_validation
from trainers.deploy import prune_to_ranks, rank_problem, stored_spectra
from trainers.evaluation import evaluate_split
from trainers.models import ModelSpec
from trainers.rank_rules import RANK_RULES, RankProblem, Ranks, Unit, choose_ranks
from trainers.recipe import MODEL_FILE, Setting, train_dense
from trainers.saved_model import load_model
from trainers.surgery import factorize


def ranks_at(problem: RankProblem, rule: str, budget: float, unit: Unit) -> Ranks:
    """Return the rule's ranks that cost at most `budget` of the dense network, as nearly as its number allows."""
    return choose_ranks(problem, within_budget(problem, RankConfig(rank_rule=rule), budget, unit))


def main() -> None:
    parser = benchmark_parser(__doc__, "cifar10")
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--max-train", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--decomposition", default="spatial")
    parser.add_argument("--unit", default="params")
    parser.add_argument("--budgets", type=float, nargs="*", default=[0.9, 0.8, 0.7, 0.6, 0.5])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/rank_rules"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = DataConfig("parquet", root=options.cifar10, max_train=options.max_train, validation_fraction=0.2)
    data = load_train_validation(config)
    test = load_test(config, data)
    training = TrainingConfig(batch_size=100, learning_rate=2e-3, augmentation="crop_flip", seed=options.seed)
    spec = ModelSpec(ModelConfig(options.model), data.sample_shape, data.num_classes)
    setting = Setting(spec, data, training)
    for result in train_dense(setting, options.epochs, options.output):
        print(f"epoch {result.epoch}: validation accuracy {result.metrics['val_accuracy']:.4f}", flush=True)
    model = load_model(options.output / MODEL_FILE).model
    dense_accuracy = evaluate_split(model, test)["accuracy"]
    factorize(model, options.decomposition, spec.sample_shape)
    spectra = stored_spectra(model)
    problem = rank_problem(model, spectra, spec.sample_shape, lambda cut: evaluate_split(cut, data)["loss"])
    dense = problem.dense_cost(options.unit)
    rows: list[dict[str, Any]] = []
    for rule in RANK_RULES:
        for budget in options.budgets:
            start = time.process_time()
            ranks = ranks_at(problem, rule, budget, options.unit)
            rule_s = time.process_time() - start
            accuracy = evaluate_split(prune_to_ranks(model, ranks, spec.sample_shape, spectra).model, test)["accuracy"]
            cost = problem.cost(ranks, options.unit) / dense
            rows.append({"rule": rule, "budget": budget, "cost": cost, "test_accuracy": accuracy, "rule_s": rule_s})
            print(rows[-1], flush=True)
    write(options, {"dense_test_accuracy": dense_accuracy, "rows": rows}, markdown(rows, options, dense_accuracy))


def markdown(rows: list[dict[str, Any]], options: argparse.Namespace, dense_accuracy: float) -> str:
    """One line a rule: test accuracy at each budget, and the share of cost removed in brackets."""
    unit = {"params": "parameters", "macs": "MACs"}[options.unit]
    lines = [
        f"Test accuracy in % without fine-tuning, in brackets the {unit} removed in %. {options.model}, trained dense for "
        f"{options.epochs} epochs on {options.max_train} CIFAR-10 images (a fifth of them for validation), seed "
        f"{options.seed}, {options.decomposition}-wise; dense {100 * dense_accuracy:.2f} %. {platform.machine()}, torch "
        f"{torch.__version__}, one thread.",
        "",
        "| rule | " + " | ".join(f"<= {100 * budget:g} % kept" for budget in options.budgets) + " |",
        "|---" * (len(options.budgets) + 1) + "|",
    ]
    for rule in RANK_RULES:
        cells = [
            f"{100 * row['test_accuracy']:.2f} ({100 * (1 - row['cost']):.1f})" for row in rows if row["rule"] == rule
        ]
        lines.append(f"| {rule}{'' if rule in RULE_RANGES else ' (global)'} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
