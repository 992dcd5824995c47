"""Which cheap score of a network that was just cut predicts its accuracy after fine-tuning?

Networks are trained fully, by SGD and by Adam, with BatchNorm (digits, ResNet-20) and without (MLP, LeNet-5), and cut at
budgets from 95 to 10 % of the MACs. Each cut is scored right away and after recoveries of several lengths
(`trainers.recovery`), and is then fine-tuned until its validation accuracy does not rise any more. For each network and
score:

- Spearman's rank correlation of score and fine-tuned validation accuracy over all cuts. Where cuts hardly differ after
  fine-tuning their order is noise: the correlation of two fine-tunings that differ by their seed alone stands beside it;
- order: the share of pairs of nearly equal cost (within a factor of 1.5) and of different fine-tuned accuracy that the score
  orders rightly;
- bias: the mean of fine-tuned accuracy minus score, in percentage points;
- below start: how many cuts have a score below their accuracy right after the cut.

Trained networks and the rows of finished cuts are kept in --work: the same command goes on where it was interrupted.

    python benchmarks/score_correlation.py --mnist DIR --cifar10 DIR --work DIR --json FILE --markdown FILE
    python benchmarks/score_correlation.py --quick --work DIR --json FILE     # digits and a small MLP, a few minutes
"""

import copy
import itertools
import json
import platform
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from bench_options import benchmark_parser, write
from scipy.stats import spearmanr

from trainers.config import CurveConfig, DataConfig, MethodConfig, ModelConfig, TrainingConfig
from trainers.curve import ladder, scoring_rows
from trainers.data import ImageData, load_train_validation
from trainers.deploy import prune_to_ranks
from trainers.evaluation import evaluate_split
from trainers.methods import make_method
from trainers.models import ModelSpec
from trainers.recipe import MODEL_FILE, Setting, compress, finetune, pretrain
from trainers.recovery import recover
from trainers.saved_model import load_model

DEFAULT = CurveConfig()
SCORES = {
    "after the cut": (0, 0),
    "BatchNorm": (DEFAULT.batch_norm_batches, 0),
    **{f"BatchNorm, {steps} steps": (DEFAULT.batch_norm_batches, steps) for steps in (5, 10, 20, 40)},
}
SHIPPED = f"BatchNorm, {DEFAULT.recovery_steps} steps"


@dataclass(frozen=True)
class Case:
    """A network and how it is trained: by `method` with each of `strengths`, or dense where there are none; then its cuts.

    `repeats` fine-tunings of each cut, with seeds of their own, for `epochs`.
    """

    data: DataConfig
    model: ModelConfig
    training: TrainingConfig
    method: MethodConfig
    epochs: int
    repeats: int = 2
    strengths: tuple[float, ...] = ()
    finetune_rate: float | None = None
    num_cuts: int = 16

    @property
    def curve(self) -> CurveConfig:
        """The budgets at which each of its trainings is cut."""
        points = self.num_cuts // max(1, len(self.strengths))
        return replace(DEFAULT, num_points=points, largest=0.95, smallest=0.1)


def cases(mnist: str, cifar10: str) -> dict[str, Case]:
    """All networks by name."""
    digits, numbers = DataConfig("digits", validation_fraction=0.3), DataConfig("mnist", root=mnist)
    images = DataConfig("parquet", root=cifar10)
    dense = MethodConfig(method="truncated_svd", rank_rule="knapsack")
    svd = MethodConfig(regularizer="hoyer_square", rank_rule="knapsack", orthogonality_weight=0.5)
    l1 = MethodConfig(regularizer="l1", rank_rule="knapsack")
    adam = TrainingConfig(batch_size=128, learning_rate=1e-3)
    sgd = TrainingConfig(batch_size=128, optimizer="sgd", weight_decay=1e-4)
    of_digits = TrainingConfig(
        batch_size=64, pretrain_epochs=40, epochs=20, learning_rate=2e-3, augmentation="crop", schedule="cosine"
    )
    of_resnet = replace(
        adam, pretrain_epochs=8, epochs=5, augmentation="crop_flip", dtype="bfloat16", learning_rate=2e-3
    )
    tiny, mlp, lenet, resnet = (
        ModelConfig("tiny"),
        ModelConfig("mlp", (300, 100)),
        ModelConfig("lenet5"),
        ModelConfig("resnet20"),
    )
    by_sgd = replace(of_resnet, pretrain_epochs=15, optimizer="sgd", learning_rate=0.1, weight_decay=5e-4)
    return {
        "digits, Adam": Case(
            digits, tiny, of_digits, replace(svd, spectrum_learning_rate=10.0), 40, strengths=(0.001, 0.01)
        ),
        "digits, SGD": Case(
            digits, tiny, replace(of_digits, optimizer="sgd", learning_rate=0.05), dense, 40, finetune_rate=0.02
        ),
        "MLP, Adam": Case(numbers, mlp, replace(adam, pretrain_epochs=8, epochs=4), l1, 6, strengths=(0.001, 0.01)),
        "MLP, SGD": Case(
            numbers, mlp, replace(sgd, pretrain_epochs=12, learning_rate=0.1), dense, 6, finetune_rate=0.03
        ),
        "LeNet-5, Adam": Case(
            numbers,
            lenet,
            replace(adam, pretrain_epochs=5, epochs=4),
            replace(l1, decomposition="spatial"),
            5,
            1,
            strengths=(0.003, 0.03),
        ),
        "LeNet-5, SGD": Case(
            numbers, lenet, replace(sgd, pretrain_epochs=8, learning_rate=0.05), dense, 5, 1, finetune_rate=0.02
        ),
        "ResNet-20, SGD": Case(images, resnet, by_sgd, dense, 4, 1, finetune_rate=0.02),
        "ResNet-20, Adam": Case(
            images,
            resnet,
            of_resnet,
            replace(svd, spectrum_learning_rate=10.0),
            4,
            1,
            strengths=(0.0005, 0.003),
            finetune_rate=1e-3,
        ),
    }


def quick_cases() -> dict[str, Case]:
    """Two small networks on the digits, one with BatchNorm and one without."""
    found = cases(".", ".")["digits, Adam"]
    fewer = replace(found.training, pretrain_epochs=20, epochs=8)
    tiny = replace(found, training=fewer, epochs=10, repeats=1)
    mlp = replace(tiny, model=ModelConfig("mlp", (100,)), training=replace(fewer, augmentation="none"))
    return {"digits, Adam": tiny, "digits MLP, Adam": mlp}


def trained(case: Case, setting: Setting, root: Path) -> Iterator[tuple[MethodConfig, Path]]:
    """Train what is not there yet; yield each training's method and its folder."""
    for _ in pretrain(setting, case.method, root / "1"):
        pass
    if not case.strengths:
        yield case.method, root / "1"
    for strength in case.strengths:
        method, folder = replace(case.method, strength=strength), root / f"{strength}"
        for _ in compress(setting, method, root / "1" / MODEL_FILE, folder):
            pass
        yield method, folder


def rows_of(name: str, case: Case, root: Path) -> list[dict[str, Any]]:
    """Return every cut of one network: its cost, its scores with their CPU seconds, its fine-tuned accuracies."""
    data = load_train_validation(case.data)
    setting = Setting(ModelSpec(case.model, data.sample_shape, data.num_classes), data, case.training)
    kept = root / "rows.json"
    rows: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else []
    for config, folder in trained(case, setting, root):
        saved = load_model(folder / MODEL_FILE)
        method = make_method(config, setting.network)
        method.attach(saved.model, saved.form)
        decomposed, spectra = method.decomposed()
        shown = scoring_rows(data, DEFAULT)
        uncut = evaluate_split(saved.model, shown, case.training.dtype)["accuracy"]
        steps = list(ladder(method, decomposed, spectra, case.curve))
        for settings, ranks in [*steps[::2], *steps[1::2]]:  # an interrupted run has cuts of all sizes, too
            place = {"training": folder.name, **settings}
            if any(place.items() <= row.items() for row in rows):
                continue
            pruned = prune_to_ranks(decomposed, ranks, data.sample_shape, spectra).model
            row: dict[str, Any] = {**place, "uncut": uncut, **_scores(pruned, shown, case.training, uncut)}
            row |= _finetuned(case, setting, replace(config, **settings), folder)
            rows.append(row)
            kept.write_text(json.dumps(rows))
            print(name, json.dumps(row), flush=True)
    return rows


def _scores(pruned: torch.nn.Module, data: ImageData, training: TrainingConfig, uncut: float) -> dict[str, Any]:
    found: dict[str, Any] = {"scores": {}, "core_s": {}}
    for score, (batches, steps) in SCORES.items():
        tried = copy.deepcopy(pruned).to(memory_format=torch.channels_last)
        recovery = replace(DEFAULT, batch_norm_batches=batches, recovery_steps=steps)
        start = time.process_time()
        recovered = recover(tried, data, training, recovery, uncut)
        found["core_s"][score] = time.process_time() - start
        found["scores"][score] = recovered.accuracy
    return found


def _finetuned(case: Case, setting: Setting, method: MethodConfig, folder: Path) -> dict[str, Any]:
    """The validation accuracy of each fine-tuning's best epoch, and how much of it the last quarter of its epochs gave."""
    accuracies, late = [], []
    for seed in range(case.repeats):
        rate = case.finetune_rate or case.training.learning_rate
        tuning = replace(setting, training=replace(case.training, learning_rate=rate, seed=seed))
        *way, last = finetune(tuning, method, case.epochs, folder / MODEL_FILE, curve=DEFAULT)
        accuracies.append(last.metrics["val_accuracy"])
        early = way[: 3 * case.epochs // 4]
        late.append(accuracies[-1] - max(result.metrics["val_accuracy"] for result in early))
    return {"macs_ratio": last.metrics["macs_ratio"], "finetuned": accuracies, "late_rise": late}


def order(rows: list[dict[str, Any]], score: str) -> float | None:
    """The share of pairs of nearly equal cost, and of different fine-tuned accuracy, that `score` orders rightly."""
    right = []
    for a, b in itertools.combinations(rows, 2):
        near = max(a["macs_ratio"], b["macs_ratio"]) <= 1.5 * min(a["macs_ratio"], b["macs_ratio"])
        difference = statistics.mean(a["finetuned"]) - statistics.mean(b["finetuned"])
        if near and difference != 0:
            right.append((a["scores"][score] - b["scores"][score]) * difference)
    return statistics.mean(0.5 if one == 0 else float(one > 0) for one in right) if right else None


def summary(rows: list[dict[str, Any]], score: str) -> dict[str, Any]:
    """What one score is worth on one network."""
    tuned, scores = [statistics.mean(row["finetuned"]) for row in rows], [row["scores"][score] for row in rows]
    return {
        "spearman": float(spearmanr(scores, tuned).statistic),
        "order": order(rows, score),
        "bias_points": 100 * statistics.mean(a - b for a, b in zip(tuned, scores, strict=True)),
        "core_s": statistics.median(row["core_s"][score] for row in rows),
        "below_start": sum(row["scores"][score] < row["scores"]["after the cut"] for row in rows),
    }


def between_seeds(rows: list[dict[str, Any]]) -> float | None:
    """Spearman's correlation of two fine-tunings of the same cuts; None where each was fine-tuned once."""
    if len(rows[0]["finetuned"]) < 2:
        return None
    first, second = ([row["finetuned"][seed] for row in rows] for seed in (0, 1))
    return float(spearmanr(first, second).statistic)


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What is written of one network: the shipped score's figures, those of all scores, and every cut."""
    return {
        **summary(rows, SHIPPED),
        "cuts": len(rows),
        "between_seeds": between_seeds(rows),
        "late_rise_points": 100 * statistics.mean(rise for row in rows for rise in row["late_rise"]),
        "scores": {score: summary(rows, score) for score in SCORES},
        "rows": rows,
    }


def markdown(found: dict[str, dict[str, Any]]) -> str:
    """A line for each network and score."""
    lines = [
        f"{platform.machine()}, torch {torch.__version__}, one thread, one seed of each network. The default is "
        f"«{SHIPPED}».",
        "",
        "| network | cuts | score | Spearman | between two seeds | order | bias, points | below start | CPU s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in found.items():
        ceiling = "" if one["between_seeds"] is None else f"{one['between_seeds']:.3f}"
        for score, of in one["scores"].items():
            right = "" if of["order"] is None else f"{of['order']:.2f}"
            cells = (name, one["cuts"], score, f"{of['spearman']:.3f}", ceiling, right, f"{of['bias_points']:.2f}")
            lines.append(f"| {' | '.join(map(str, cells))} | {of['below_start']} | {of['core_s']:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = benchmark_parser(__doc__, "mnist", "cifar10")
    parser.add_argument("--work", type=Path, required=True, help="folder for trained networks and finished cuts")
    parser.add_argument("--networks", nargs="+", metavar="NAME", help="these alone, such as 'MLP, SGD'")
    parser.add_argument("--quick", action="store_true", help="two small networks on scikit-learn's digits")
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = quick_cases() if options.quick else cases(options.mnist, options.cifar10)
    names = options.networks or list(known)
    if unknown := set(names) - known.keys():
        parser.error(f"unknown networks {sorted(unknown)}; known: {', '.join(known)}")
    kind = "quick" if options.quick else "full"
    found = {name: figures(rows_of(name, known[name], options.work / f"{kind}, {name}")) for name in names}
    write(options, found, markdown(found))


if __name__ == "__main__":
    main()
