"""What `methods.py` found, as a table in Markdown and as a plot of fronts."""

import statistics
from pathlib import Path
from typing import Any

import numpy as np
from method_tasks import Task

from orchestrator import pareto
from trainers.methods import METHODS


def hypervolume(rows: list[dict[str, Any]], task: Task) -> float:
    """The area that a front (cost share, accuracy) dominates within (1, floor) .. (0, 1), as a share of that area."""
    points = np.array([(row[f"{task.unit}_ratio"], -row["test_accuracy"]) for row in rows])
    return pareto.hypervolume(points, np.array([1.0, -task.floor])) / (1 - task.floor)


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
