"""How much compute does each search strategy need for a front of the same quality?

All strategies train with the same code, data and search space, two trials at once. Every trial's networks are points (share
of the dense MACs, validation score after the same cheap recovery); strategies that get one point from a training have more
trainings. The best front of all strategies and seeds together is the yardstick: reported are the CPU core-seconds after
which a strategy's own points first dominate 90 %, 95 % and 99 % of its hypervolume (all trials until then, those stopped
early and stage 1 included; where a run ends before, its whole cost, a lower bound), the hypervolume in the end, and that of
the test accuracies of the fine-tuned finalists; and how much sooner rankfront has what the other strategy has in the end.
Speedups are geometric means over those paired seeds in which rankfront gets there, with 95 % bootstrap intervals.

    python benchmarks/sweep_efficiency.py --mnist DIR --cifar10 DIR --output runs/efficiency --json FILE --markdown FILE
    python benchmarks/sweep_efficiency.py --mnist DIR --tasks mnist_mlp --strategies "Tune + OptunaSearch" rankfront --longer
    python benchmarks/sweep_efficiency.py --quick --json FILE     # one task on scikit-learn's digits, two seeds, minutes

A benchmark that was cut off goes on where it was.
"""

import json
import math
import platform
import shutil
import statistics
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from bench_options import benchmark_parser, write
from bench_statistics import interval_of_mean
from efficiency_strategies import OTHER_SCORES, STRATEGIES, Outcome, Task, run

from orchestrator.config import FinetuneConfig, ResourcesConfig
from orchestrator.pareto import hypervolume
from orchestrator.ray_session import ray_session
from trainers.config import CurveConfig, DataConfig, ModelConfig, TrainingConfig

OURS = "rankfront"
SHARES = (0.9, 0.95, 0.99)
MOMENTS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1)  # shares of what the costliest strategy spends
LONGER, LONGER_PLAIN = 2.5, 3.25  # plain Tune gets more, so that it is not its cap that ends the comparison


def tasks(mnist: str, cifar10: str) -> dict[str, Task]:
    """The two tasks of the full benchmark.

    Their learning rate is what the dense networks train well with in so few epochs: rankfront's shared stage 1 uses it,
    where the others try another one of the space with each training.
    """
    return {
        "mnist_mlp": Task(
            DataConfig("mnist", root=mnist, max_train=5_000, validation_fraction=0.2),
            ModelConfig("mlp", (300, 100)),
            TrainingConfig(batch_size=100, pretrain_epochs=4, epochs=4, learning_rate=2.5e-3),
            num_trials=20,
            plain_trials=56,
            finetune=FinetuneConfig(num_models=5, epochs=3),
            floor=0.8,
        ),
        "cifar10_resnet8": Task(
            DataConfig("parquet", root=cifar10, image_size=16, max_train=3_000, validation_fraction=0.3),
            ModelConfig("resnet8"),
            TrainingConfig(batch_size=32, pretrain_epochs=6, epochs=6, learning_rate=2.5e-3),
            num_trials=16,
            plain_trials=32,
            finetune=FinetuneConfig(num_models=4, epochs=3),
            floor=0.2,
            curve=CurveConfig(num_points=6, smallest=0.1),
        ),
    }


def quick_tasks() -> dict[str, Task]:
    """One task of seconds a trial."""
    return {
        "digits_tiny": Task(
            DataConfig("digits", validation_fraction=0.2),
            ModelConfig("tiny"),
            TrainingConfig(batch_size=64, pretrain_epochs=6, epochs=4, learning_rate=2e-3),
            num_trials=8,
            plain_trials=32,
            finetune=FinetuneConfig(num_models=3, epochs=3),
            floor=0.5,
        )
    }


def longer(task: Task) -> Task:
    """The same task with LONGER times as many trials, LONGER_PLAIN with one point each, for what its caps leave open."""
    return replace(
        task, num_trials=round(LONGER * task.num_trials), plain_trials=round(LONGER_PLAIN * task.plain_trials)
    )


def volume(points: list[tuple[float, float]], floor: float) -> float:
    """Return the share of (MACs 0..1, accuracy floor..1) that points (MACs ratio, accuracy) dominate."""
    if not points:
        return 0.0
    minimised = np.array([(macs, -accuracy) for macs, accuracy in points])
    return hypervolume(minimised, np.array([1.0, -floor])) / (1 - floor)


def cost_to(outcome: Outcome, target: float, floor: float) -> tuple[float, bool]:
    """Return the core-seconds after which the points dominate `target`, and whether they ever do (else: all of them)."""
    spent, found = 0.0, []
    for event in outcome.events:
        spent += event.core_s
        found += event.points
        if event.points and volume(found, floor) >= target:
            return spent, True
    return spent, False


def volume_after(outcome: Outcome, core_s: float, floor: float) -> float:
    """Return what the points of the trials that ended within so many core-seconds dominate."""
    spent, found = 0.0, []
    for event in outcome.events:
        spent += event.core_s
        if spent > core_s:
            break
        found += event.points
    return volume(found, floor)


def all_points(outcome: Outcome) -> list[tuple[float, float]]:
    """Return every network's point."""
    return [point for event in outcome.events for point in event.points]


def summary(task: Task, outcomes: dict[str, list[Outcome]]) -> dict[str, dict[str, Any]]:
    """Return each strategy's costs, hypervolumes and speedups (of rankfront over it), by paired seeds.

    Of OTHER_SCORES only what they cost in all and the test hypervolume, which do not depend on scores.
    """
    compared = {name: runs for name, runs in outcomes.items() if name not in OTHER_SCORES}
    pooled = [point for runs in compared.values() for outcome in runs for point in all_points(outcome)]
    best = volume(pooled, task.floor)
    longest = max(
        statistics.mean(sum(event.core_s for event in outcome.events) for outcome in runs) for runs in compared.values()
    )
    moments = [float(f"{longest * share:.2g}") for share in MOMENTS]
    found: dict[str, dict[str, Any]] = {}
    for name, runs in outcomes.items():
        found[name] = {
            "total_core_s": statistics.mean(sum(event.core_s for event in outcome.events) for outcome in runs),
            "test_hypervolume": [volume(outcome.finalists, task.floor) for outcome in runs],
        }
        if name not in compared:
            continue
        ends = [volume(all_points(outcome), task.floor) for outcome in runs]
        found[name]["hypervolume"] = [end / best for end in ends]
        found[name]["hypervolume_after"] = {
            f"{moment:g}": statistics.mean(volume_after(outcome, moment, task.floor) for outcome in runs) / best
            for moment in moments
        }
        found[name]["to_its_end"] = _to_the_end(ends, runs, outcomes[OURS], task.floor)
        for share in SHARES:
            costs = [cost_to(outcome, share * best, task.floor) for outcome in runs]
            own = [cost_to(outcome, share * best, task.floor) for outcome in outcomes[OURS]]
            # where rankfront itself does not get there, its cost is no measure
            logs = [math.log(cost[0] / ours[0]) for cost, ours in zip(costs, own, strict=True) if ours[1]]
            found[name][f"to_{share:.0%}"] = {
                "core_s": [cost for cost, _ in costs],
                "reached": sum(reached for _, reached in costs),
                "speedup": math.exp(statistics.mean(logs)) if logs else None,
                "interval": _interval(logs) if logs else None,
                "pairs": len(logs),
                "lower_bound": not all(reached for (_, reached), ours in zip(costs, own, strict=True) if ours[1]),
            }
    return found


def _to_the_end(ends: list[float], runs: list[Outcome], ours: list[Outcome], floor: float) -> dict[str, Any]:
    """How much less rankfront spends for the hypervolume that a strategy has in the end, by pairs."""
    logs = []
    for end, outcome, own in zip(ends, runs, ours, strict=True):
        cost, there = cost_to(own, end, floor)
        if there:
            logs.append(math.log(cost_to(outcome, end, floor)[0] / cost))
    return {
        "speedup": math.exp(statistics.mean(logs)) if logs else None,
        "interval": _interval(logs) if logs else None,
        "pairs": len(logs),
        "lower_bound": False,
    }


def _interval(logs: list[float]) -> tuple[float, float]:
    """The 95 % bootstrap interval of the geometric mean."""
    low, high = interval_of_mean(logs)
    return math.exp(low), math.exp(high)


def markdown(every: dict[str, Task], found: dict[str, dict[str, dict[str, Any]]], seeds: int) -> str:
    """One table a task, a line for each strategy."""
    lines = [
        f"{platform.machine()}, one core a trial, two trials at once, {seeds} paired seeds; mean ± standard deviation.",
        "",
    ]
    for name, task in every.items():
        training = task.training
        lines += [
            f"### {name}",
            "",
            f"{task.model.name} on {task.data.name}, {training.pretrain_epochs} + {training.epochs} epochs, "
            f"{task.num_trials} trials ({task.plain_trials} where each gives one point) of the space {task.search_space}, "
            f"{task.finetune.num_models} finalists fine-tuned "
            f"for {task.finetune.epochs} epochs; hypervolume above accuracy {task.floor:g}, as a share of the pooled "
            "front's (test: of the whole area). In brackets: seeds that got there; the others count with all they spent. "
            "Without recovery, scores are another quantity: only what does not depend on them is given.",
            "",
            "| strategy | "
            + "".join(f"core-s to {100 * share:.0f} % | rankfront is faster by | " for share in SHARES)
            + "core-s in all | hypervolume | rankfront has that sooner by | test hypervolume |",
            "|---" * (5 + 2 * len(SHARES)) + "|",
        ]
        for strategy, row in found[name].items():
            cells = [strategy]
            for share in SHARES:
                if (part := row.get(f"to_{share:.0%}")) is None:
                    cells += ["-", "-"]
                    continue
                cells.append(f"{statistics.mean(part['core_s']):.0f} ({part['reached']} of {seeds})")
                cells.append("" if strategy == OURS else _speedup(part))
            hypervolume = _mean_std(row["hypervolume"]) if "hypervolume" in row else "-"
            sooner = "" if strategy == OURS else _speedup(row["to_its_end"]) if "to_its_end" in row else "-"
            cells += [f"{row['total_core_s']:.0f}", hypervolume, sooner, _mean_std(row["test_hypervolume"])]
            lines.append("| " + " | ".join(cells) + " |")
        over_time = {
            strategy: row["hypervolume_after"] for strategy, row in found[name].items() if "hypervolume" in row
        }
        moments = list(over_time[OURS])
        lines += ["", "Hypervolume after so many core-seconds, mean over the seeds:", ""]
        lines += [f"| strategy | {' | '.join(moments)} |", "|---" * (1 + len(moments)) + "|"]
        for strategy, after in over_time.items():
            lines.append(f"| {strategy} | " + " | ".join(f"{after[moment]:.3f}" for moment in moments) + " |")
        lines.append("")
    return "\n".join(lines)


def _speedup(part: dict[str, Any]) -> str:
    if part["interval"] is None:
        return "-"
    low, high = part["interval"]
    bound = ">= " if part["lower_bound"] else ""
    return f"{bound}{part['speedup']:.1f} ({low:.1f} to {high:.1f}; {part['pairs']} pairs)"


def _mean_std(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} ± {spread:.4f}"


def outcome_of(name: str, strategy: str, task: Task, seed: int, output: Path) -> Outcome:
    """Run one strategy with one seed, or read what it found before."""
    folder = output / name / f"seed{seed}" / strategy.replace(" ", "_").replace("+", "and")
    file = folder.with_suffix(".json")
    if not file.exists():
        shutil.rmtree(folder, ignore_errors=True)  # one that was cut off begins anew: its costs would be a mixture
        folder.parent.mkdir(parents=True, exist_ok=True)
        outcome, wall_s = run(strategy, task, seed, folder)
        file.write_text(json.dumps({**asdict(outcome), "wall_s": wall_s}) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        print(f"{name}, seed {seed}, {strategy}: {wall_s:.0f} s", flush=True)
    return Outcome.read(json.loads(file.read_text()))


def main() -> None:
    parser = benchmark_parser(__doc__, "mnist", "cifar10")
    parser.add_argument("--quick", action="store_true", help="scikit-learn's digits, two seeds")
    parser.add_argument("--tasks", nargs="*", help="only these")
    parser.add_argument(
        "--longer",
        action="store_true",
        help=f"{LONGER:g} times as many trials, {LONGER_PLAIN:g} where each gives one point",
    )
    parser.add_argument("--strategies", nargs="*", default=list(STRATEGIES), choices=list(STRATEGIES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("runs/efficiency"), help="outcomes, to go on from")
    options = parser.parse_args()
    every = quick_tasks() if options.quick else tasks(options.mnist, options.cifar10)
    every = {name: task for name, task in every.items() if not options.tasks or name in options.tasks}
    if options.longer:
        every = {f"{name}_longer": longer(task) for name, task in every.items()}
    seeds = 2 if options.quick else options.seeds
    output = options.output / "quick" if options.quick else options.output
    found = {}
    with ray_session(ResourcesConfig()):
        for name, task in every.items():
            # seeds outside: what is there of a benchmark that is cut off is paired
            runs: dict[str, list[Outcome]] = {strategy: [] for strategy in options.strategies}
            for seed in range(seeds):
                for strategy in options.strategies:
                    runs[strategy].append(outcome_of(name, strategy, task, seed, output))
                runs.setdefault("without a shared stage 1", []).append(runs[OURS][-1].with_own_stage_one())
            found[name] = summary(task, runs)
    write(options, _for_programs(found) if options.quick else found, markdown(every, found, seeds))


def _for_programs(found: dict[str, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """The one task's speedups over each baseline, and final hypervolumes."""
    (every,) = found.values()
    rows = {name: row for name, row in every.items() if name not in OTHER_SCORES}
    return {
        "speedup_to_95": {name: row["to_95%"]["speedup"] for name, row in rows.items() if name != OURS},
        "final_hypervolume": {name: statistics.mean(row["hypervolume"]) for name, row in rows.items()},
    }


if __name__ == "__main__":
    main()
