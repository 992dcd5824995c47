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

import json
import platform
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from bench_options import benchmark_parser, write
from method_report import plot, summary
from method_tasks import Task, quick_tasks, tasks

from trainers.budgets import within_budget
from trainers.config import MethodConfig, as_record
from trainers.data import load_test, load_train_validation
from trainers.deploy import rank_problem, stored_spectra
from trainers.methods import METHODS, make_method, pretraining, resolve
from trainers.models import ModelSpec
from trainers.recipe import MODEL_FILE, Setting, compress, dense_model, evaluate_model_file, finetune, pretrain
from trainers.saved_model import load_model

LADDER_FIELD = {"lc": "rank_cost", "cuttlefish": "rank_scale"}  # decided while training
FITTED = ("arsvd", "evbmf")  # their own number is decided at the cut


def points(task: Task, name: str) -> list[tuple[MethodConfig, float | None]]:
    """The method's settings for each of its points, and the budget that is still to be met at the cut, if any."""
    base = MethodConfig(method=name, decomposition=task.decomposition, budget_unit=task.unit)
    base = replace(base, **task.settings.get(name, {}))
    if name == "dense":
        return [(base, None)]
    if name in LADDER_FIELD:
        return [(replace(base, **{LADDER_FIELD[name]: value}), None) for value in task.ladders[name]]
    if name in FITTED:
        return [(base, budget) for budget in task.budgets]
    return [(replace(base, rank_rule=task.rank_rule, budget=budget), None) for budget in task.budgets]


def fitted(config: MethodConfig, budget: float, setting: Setting, model_file: Path, unit: Any) -> MethodConfig:
    """Return `config` with the number of its rank rule that spends `budget` at most, from the trained spectra alone."""
    saved = load_model(model_file)
    method = make_method(config, setting.network)
    method.attach(saved.model, saved.form)
    model = method.decomposed_copy()
    problem = rank_problem(model, stored_spectra(model), setting.spec.sample_shape)  # as the cut will see it
    found = within_budget(problem, resolve(config), budget, unit)
    return replace(config, entropy=found.entropy, rank_scale=found.rank_scale)


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
            final = config if budget is None else fitted(config, budget, setting, stage2 / MODEL_FILE, task.unit)
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
    if config.method in FITTED:
        config = replace(config, method="truncated_svd")
    own = METHODS[config.method].owns_rank_rule
    return config if own else replace(config, rank_rule=None, budget=MethodConfig().budget)


def main() -> None:
    parser = benchmark_parser(__doc__, "mnist", "cifar10")
    parser.add_argument("--quick", action="store_true", help="scikit-learn's digits, one seed")
    parser.add_argument("--tasks", nargs="*", help="only these")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--output", type=Path, default=Path("runs/methods"), help="models, to go on from")
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
    if set(options.methods) != set(METHODS):
        write(options, rows, None)
        return
    versions = f"{platform.machine()}, torch {torch.__version__}, one thread each."
    write(options, rows, f"{versions} {' '.join(__doc__.split('    python')[0].split())}\n\n{summary(rows, every)}")
    if options.plot is not None:
        plot(rows, every, options.plot)


if __name__ == "__main__":
    main()
