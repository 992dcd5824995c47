"""Which low-rank method gives the best trade-offs at an equal budget of epochs?

Every method trains each task in the same three stages (full rank, compression, fine-tuning of the cut network), with the
same epochs, batches, optimizer and learning rates, from the same initial weights. Each gives three points: the cuts that
come nearest below three budgets. Where a method takes any rank rule, all take the same one; `arsvd` and `evbmf` reach the
budgets by their own number (found by bisection on the trained spectra, no accuracy is looked at); `lc` and `cuttlefish`
decide while they train, so that each of their points is a compression of its own. Regularizer and strength of `svd_training`
were chosen for each task among four to twelve by validation accuracy with seed 0, and so was the task's rank rule, between
`equal_error` and `log_knapsack`; `lc` and `cuttlefish` have ladders that were chosen to come near the budgets; the other
methods have their defaults. Nothing else is selected: all points are reported, on the test split.

    python benchmarks/methods.py --mnist DIR --cifar10 DIR --output runs/methods --json FILE --markdown FILE --plot FILE
    python benchmarks/methods.py --quick --json FILE      # scikit-learn's digits, one seed, a minute

`core_s` are the CPU seconds of all stages that led to a point, evaluation included; a stage that methods share is trained
once and counted for each. A benchmark that was cut off goes on where it was.
"""

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from trainers.config import DataConfig, MethodConfig, ModelConfig, RankConfig, TrainingConfig, as_record
from trainers.data import load_test, load_train_validation
from trainers.deploy import rank_problem, stored_spectra
from trainers.methods import METHODS, pretraining
from trainers.models import ModelSpec
from trainers.rank_rules import choose_ranks
from trainers.recipe import MODEL_FILE, Setting, compress, dense_model, evaluate_model_file, finetune, pretrain
from trainers.saved_model import load_model
from trainers.surgery import factorize


@dataclass(frozen=True)
class Task:
    """One network on one data set: the same training for every method, and each method's settings.

    `budgets` are shares of the dense network's `unit`. `ladders` are the numbers that stand for them where a method decides
    its ranks while it trains. `floor` is the accuracy from which the hypervolume counts.
    """

    data: DataConfig
    model: ModelConfig
    training: TrainingConfig
    finetune_epochs: int
    finetune_learning_rate: float
    decomposition: str
    unit: str
    budgets: tuple[float, ...]
    rank_rule: str
    floor: float
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    ladders: dict[str, tuple[float, ...]] = field(default_factory=dict)
    methods: tuple[str, ...] = tuple(METHODS)


LADDER_FIELD = {"lc": "rank_cost", "cuttlefish": "rank_scale"}  # decided while training
BISECTED_FIELD = {"arsvd": "entropy", "evbmf": "rank_scale"}  # decided at the cut


def tasks(mnist: str, cifar10: str) -> dict[str, Task]:
    mnist_data = DataConfig("mnist", root=mnist)
    return {
        "mnist_mlp": Task(
            mnist_data,
            ModelConfig("mlp", (300, 100)),
            TrainingConfig(batch_size=128, pretrain_epochs=3, epochs=3, learning_rate=1e-3),
            finetune_epochs=4,
            finetune_learning_rate=1e-3,
            decomposition="channel",
            unit="macs",
            budgets=(0.2, 0.1, 0.05),
            rank_rule="equal_error",
            floor=0.9,
            settings={"svd_training": {"regularizer": "l1", "strength": 0.003}},
            ladders={"lc": (1.3, 3.0, 7.0), "cuttlefish": (0.8, 0.4, 0.2)},
        ),
        "mnist_lenet5": Task(
            mnist_data,
            ModelConfig("lenet5"),
            TrainingConfig(batch_size=128, pretrain_epochs=2, epochs=2, learning_rate=1e-3),
            finetune_epochs=4,
            finetune_learning_rate=5e-3,
            decomposition="spatial",
            unit="params",
            budgets=(0.047, 0.030, 0.022),
            rank_rule="log_knapsack",
            floor=0.9,
            settings={"svd_training": {"regularizer": "l1", "strength": 0.03}},
            ladders={"lc": (6.0, 10.0, 14.0), "cuttlefish": (0.2, 0.14, 0.1)},
        ),
        # twenty epochs, as the published figures that it is held against (DLRT); no other method
        "mnist_lenet5_20_epochs": Task(
            mnist_data,
            ModelConfig("lenet5"),
            TrainingConfig(batch_size=128, pretrain_epochs=3, epochs=3, learning_rate=1e-3),
            finetune_epochs=14,
            finetune_learning_rate=5e-3,
            decomposition="spatial",
            unit="params",
            budgets=(0.047, 0.030, 0.022),
            rank_rule="log_knapsack",
            floor=0.9,
            settings={"svd_training": {"regularizer": "l1", "strength": 0.03}},
            methods=("svd_training",),
        ),
        # a network on which an independent implementation lost 2.5 pp
        "mnist_mlp_128_64": Task(
            mnist_data,
            ModelConfig("mlp", (128, 64)),
            TrainingConfig(batch_size=128, pretrain_epochs=5, epochs=5, learning_rate=1e-3),
            finetune_epochs=5,
            finetune_learning_rate=1e-3,
            decomposition="channel",
            unit="macs",
            budgets=(0.5, 0.25, 0.1),
            rank_rule="equal_error",
            floor=0.9,
            settings={"svd_training": {"regularizer": "l1", "strength": 0.003}},
            methods=("svd_training", "dense"),
        ),
        "cifar10_resnet8": Task(
            DataConfig("parquet", root=cifar10, max_train=5000, validation_fraction=0.2),
            ModelConfig("resnet8"),
            TrainingConfig(batch_size=100, pretrain_epochs=6, epochs=4, learning_rate=2e-3, augmentation="crop_flip"),
            finetune_epochs=4,
            finetune_learning_rate=2e-3,
            decomposition="spatial",
            unit="macs",
            budgets=(0.6, 0.4, 0.25),
            rank_rule="log_knapsack",
            floor=0.3,
            settings={"svd_training": {"regularizer": "l1", "strength": 0.01}},
            ladders={"lc": (4.0, 10.0, 25.0), "cuttlefish": (0.4, 0.25, 0.15)},
        ),
    }


def quick_tasks() -> dict[str, Task]:
    training = TrainingConfig(batch_size=64, pretrain_epochs=6, epochs=4, learning_rate=2e-3)
    return {
        "digits_tiny": Task(
            DataConfig("digits", validation_fraction=0.2),
            ModelConfig("tiny"),
            training,
            finetune_epochs=4,
            finetune_learning_rate=2e-3,
            decomposition="channel",
            unit="macs",
            budgets=(0.5, 0.25),
            rank_rule="log_knapsack",
            floor=0.5,
            settings={"svd_training": {"regularizer": "l1", "strength": 0.01}},
            ladders={"lc": (0.3, 1.0), "cuttlefish": (1.0, 0.4)},
        )
    }


def points(task: Task, name: str) -> list[tuple[MethodConfig, float | None]]:
    """The method's settings for each of its points, and the budget that is still to be met at the cut, if any."""
    base = MethodConfig(method=name, decomposition=task.decomposition, budget_unit=task.unit)
    base = replace(base, **task.settings.get(name, {}))
    if name == "dense":
        return [(base, None)]
    if name in LADDER_FIELD:
        return [(replace(base, **{LADDER_FIELD[name]: value}), None) for value in task.ladders[name]]
    if name in BISECTED_FIELD:
        return [(base, budget) for budget in task.budgets]
    return [(replace(base, rank_rule=task.rank_rule, budget=budget), None) for budget in task.budgets]


def fitted(config: MethodConfig, budget: float, setting: Setting, model_file: Path, task: Task) -> MethodConfig:
    """Return `config` with the number of its rank rule that spends `budget` at most, from the trained spectra alone."""
    model = load_model(model_file).model
    factorize(model, task.decomposition, setting.spec.sample_shape, setting.factorization)
    problem = rank_problem(model, stored_spectra(model), setting.spec.sample_shape)  # as the cut will see it
    dense = problem.cost({name: layer.full_rank for name, layer in problem.layers.items()}, task.unit)
    rule, key = METHODS[config.method].rank_rule, BISECTED_FIELD[config.method]
    low, high = (1e-6, 1.0) if key == "entropy" else (1e-3, 1e3)
    for _ in range(40):
        middle = math.sqrt(low * high)
        ranks = choose_ranks(problem, RankConfig(rank_rule=rule, **{key: middle}))
        low, high = (middle, high) if problem.cost(ranks, task.unit) <= budget * dense else (low, middle)
    return replace(config, **{key: low})


def core_seconds(results: Iterator[Any], folder: Path) -> tuple[dict[str, float], float]:
    """Run a stage, or read it; returns its last metrics and the CPU seconds that its training took, in all attempts."""
    record = folder / "core_s.json"
    spent: float = json.loads(record.read_text()) if record.exists() else 0.0
    start = time.process_time()
    for result in results:
        if not result.replayed:
            spent += time.process_time() - start
            record.write_text(json.dumps(spent))
        start = time.process_time()
    return result.metrics, spent


def slug(config: MethodConfig, *, cut: bool) -> str:
    """A folder name for what a stage depends on; before the cut its settings do not count."""
    changed = {key: value for key, value in as_record(config).items() if value != as_record(MethodConfig())[key]}
    for key in () if cut else ("rank_rule", "energy", "entropy", "budget", "budget_unit"):
        changed.pop(key, None)
    return "-".join(f"{key}={value}" for key, value in sorted(changed.items())) or "default"


def run_seed(name: str, task: Task, seed: int, output: Path, methods: list[str]) -> list[dict[str, Any]]:
    """Run all methods on one task with one seed, in one thread."""
    torch.set_num_threads(1)
    data = load_train_validation(task.data)
    test = load_test(task.data, data)
    spec = ModelSpec(task.model, data.sample_shape, data.num_classes)
    setting = Setting(spec, data, replace(task.training, seed=seed))
    tuning = replace(setting, training=replace(setting.training, learning_rate=task.finetune_learning_rate))
    root = output / name / f"seed{seed}"
    dense_model(setting)  # the first use of torch is not a method's cost
    rows = []
    for method in (method for method in task.methods if method in methods):
        for config, budget in points(task, method):
            stage1 = root / "pretrain" / slug(pretraining(config), cut=False)
            _, first_s = core_seconds(pretrain(setting, config, stage1), stage1)
            trained = compressing(config)
            stage2 = root / "compress" / slug(trained, cut=False)
            _, second_s = core_seconds(compress(setting, trained, stage1 / MODEL_FILE, stage2), stage2)
            final = config if budget is None else fitted(config, budget, setting, stage2 / MODEL_FILE, task)
            stage3 = root / "finetune" / slug(final, cut=True)
            metrics, third_s = core_seconds(
                finetune(tuning, final, task.finetune_epochs, stage2 / MODEL_FILE, stage3), stage3
            )
            scores = evaluate_model_file(stage3 / MODEL_FILE, test, torch.device("cpu"))
            rows.append(
                {
                    "task": name,
                    "method": method,
                    "seed": seed,
                    "test_accuracy": scores["accuracy"],
                    "test_macro_f1": scores["macro_f1"],
                    "val_accuracy": metrics["val_accuracy"],
                    "macs_ratio": metrics["macs_ratio"],
                    "params_ratio": metrics["params_ratio"],
                    "core_s": first_s + second_s + third_s,
                }
            )
    return rows


def compressing(config: MethodConfig) -> MethodConfig:
    """The configuration of the compression stage: one for all cuts of the same training."""
    # these two train as truncated_svd does
    if config.method in ("arsvd", "evbmf"):
        config = replace(config, method="truncated_svd")
    own = METHODS[config.method].owns_rank_rule
    return config if own else replace(config, rank_rule=None, budget=MethodConfig().budget)


def hypervolume(rows: list[dict[str, Any]], task: Task) -> float:
    """The area that a front (cost share, accuracy) dominates within (1, floor) .. (0, 1), as a share of that area."""
    key = f"{task.unit}_ratio"
    area, level = 0.0, task.floor
    for row in sorted(rows, key=lambda row: row[key]):  # from the cheapest: each adds what it is more accurate
        if row["test_accuracy"] > level and row[key] < 1:
            area += (row["test_accuracy"] - level) * (1 - row[key])
            level = row["test_accuracy"]
    return area / (1 - task.floor)


def summary(rows: list[dict[str, Any]], every: dict[str, Task]) -> str:
    """One table a task: a line for each method and budget, mean +- standard deviation over seeds."""
    lines = []
    for name, task in every.items():
        mine = [row for row in rows if row["task"] == name]
        seeds = sorted({row["seed"] for row in mine})
        lines += [f"### {name}", "", _caption(task, seeds), ""]
        lines += [
            "| method | test accuracy % | macro F1 % | MACs removed % | parameters removed % | core-s | hypervolume |"
        ]
        lines += ["|---|---|---|---|---|---|---|"]
        volumes = {
            method: [
                hypervolume([row for row in mine if row["method"] == method and row["seed"] == seed], task)
                for seed in seeds
            ]
            for method in task.methods
        }
        order = sorted((m for m in task.methods if m != "dense"), key=lambda m: -statistics.mean(volumes[m]))
        for method in [*({"dense"} & {*task.methods}), *order]:
            by_seed = [[row for row in mine if row["method"] == method and row["seed"] == seed] for seed in seeds]
            for place, group in enumerate(zip(*by_seed, strict=True)):
                volume = _mean_std(volumes[method], 1, 4) if place == 0 and method != "dense" else ""
                cells = [
                    method if place == 0 else "",
                    _mean_std([row["test_accuracy"] for row in group], 100, 2),
                    _mean_std([row["test_macro_f1"] for row in group], 100, 2),
                    _mean_std([1 - row["macs_ratio"] for row in group], 100, 1),
                    _mean_std([1 - row["params_ratio"] for row in group], 100, 1),
                    f"{statistics.mean(row['core_s'] for row in group):.0f}",
                    volume,
                ]
                lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _caption(task: Task, seeds: list[int]) -> str:
    training = task.training
    epochs = f"{training.pretrain_epochs} + {training.epochs} + {task.finetune_epochs} epochs"
    size = f"{task.data.max_train} images" if task.data.max_train else "all images"
    return (
        f"{task.model.name}, {task.data.name} ({size} of the training split, a share of them for validation), {epochs}, "
        f"batch {training.batch_size}, {training.optimizer} {training.learning_rate:g} (fine-tuning "
        f"{task.finetune_learning_rate:g}), {task.decomposition}-wise, rank rule {task.rank_rule}, seeds "
        f"{', '.join(map(str, seeds))}; svd_training with {_listed(task.settings['svd_training'])}; hypervolume of test "
        f"accuracy against {task.unit} kept, from accuracy {100 * task.floor:g} %."
    )


def _listed(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items())


def _mean_std(values: list[float], scale: float, digits: int) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{scale * statistics.mean(values):.{digits}f} ± {scale * spread:.{digits}f}"


def plot(rows: list[dict[str, Any]], every: dict[str, Task], path: Path) -> None:
    """One panel for each task that all methods train: mean test accuracy against the share of the unit that is kept."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    every = {name: task for name, task in every.items() if set(task.methods) == set(METHODS)}
    figure, axes = plt.subplots(1, len(every), figsize=(5.4 * len(every), 4.6), squeeze=False)
    styles = dict(zip(METHODS, "osvD^<>Px", strict=True))
    for axis, (name, task) in zip(axes[0], every.items(), strict=True):
        for method in METHODS:
            mine = [row for row in rows if row["task"] == name and row["method"] == method]
            seeds = sorted({row["seed"] for row in mine})
            groups = list(zip(*[[row for row in mine if row["seed"] == seed] for seed in seeds], strict=True))
            means = sorted(
                (
                    100 * statistics.mean(row[f"{task.unit}_ratio"] for row in group),
                    100 * statistics.mean(row["test_accuracy"] for row in group),
                )
                for group in groups
            )
            if method == "dense":
                axis.axhline(means[0][1], color="0.6", linestyle="--", linewidth=1, label="dense")
                continue
            front = method == "svd_training"
            axis.plot(
                *zip(*means, strict=True), marker=styles[method], label=method, linewidth=2.4 if front else 1.2,
                zorder=3 if front else 2, markersize=6,
            )  # fmt: skip
        axis.set_title(name)
        axis.set_xscale("log")
        ticks = sorted({round(100 * budget, 1) for budget in task.budgets})
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.set_xlabel(f"{'MACs' if task.unit == 'macs' else 'parameters'} kept, %")
        axis.set_ylim(bottom=100 * task.floor)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("test accuracy, %")
    axes[0][-1].legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="scikit-learn's digits, one seed")
    parser.add_argument("--mnist", default="~/data", help="folder of torchvision's MNIST")
    parser.add_argument(
        "--cifar10", default="~/data/cifar10", help="folder of CIFAR-10's train.parquet and test.parquet"
    )
    parser.add_argument("--tasks", nargs="*", help="only these")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--output", type=Path, default=Path("runs/methods"), help="models, to go on from")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    every = quick_tasks() if options.quick else tasks(options.mnist, options.cifar10)
    every = {name: task for name, task in every.items() if not options.tasks or name in options.tasks}
    seeds = 1 if options.quick else options.seeds
    output = options.output / "quick" if options.quick else options.output
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        jobs = {
            pool.submit(run_seed, name, task, seed, output, options.methods): (name, seed)
            for seed in range(seeds)
            for name, task in every.items()
        }
        for job in as_completed(jobs):
            print("done:", *jobs[job], flush=True)
            rows += job.result()
    rows.sort(key=lambda row: (list(every).index(row["task"]), list(METHODS).index(row["method"]), row["seed"]))
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    if set(options.methods) == set(METHODS):
        versions = f"{platform.machine()}, torch {torch.__version__}, one thread each."
        table = f"{versions} {' '.join(__doc__.split('    python')[0].split())}\n\n{summary(rows, every)}"
        print(table)
        if options.markdown is not None:
            options.markdown.write_text(table)
        if options.plot is not None:
            plot(rows, every, options.plot)
    else:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
