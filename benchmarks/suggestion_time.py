"""How long does a proposal take, as a study grows?

Each sampler searches the space of SVD training, with synthetic values, in a journal as a sweep does; at each number of
finished trials several proposals are timed one after the other, each asked for and its settings suggested. The Gaussian
process's study is filled with random trials: its own would take hours.

    python benchmarks/suggestion_time.py --json FILE --markdown FILE

The JSON is a list of {"sampler", "finished_trials", "ask_s", "low_s", "high_s"}: median, least and most seconds.
"""

import argparse
import os
import platform
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from bench_options import benchmark_parser, write

from orchestrator.records import RunRecord
from orchestrator.samplers import SAMPLERS, make_sampler
from orchestrator.study import name_of, open_study, tell
from search_spaces import svd_training

SLOW = "gp"


def record(name: str, params: dict[str, Any], rng: random.Random) -> RunRecord:
    """A complete run with the shape of real ones: less energy kept, fewer MACs and, in the end, less accuracy."""
    ratio = max(0.02, 1 - 1.4 * params["energy"] ** 0.3)
    accuracy = 0.9 - 0.3 * (1 - ratio) ** 4 - 20 * abs(params["learning_rate"] - 1e-3) + rng.gauss(0, 0.01)
    return RunRecord(
        name,
        "trial",
        "COMPLETE",
        "",
        val_accuracy=accuracy,
        macs=int(4e7 * ratio),
        macs_ratio=ratio,
        params_ratio=ratio,
    )


def measure(sampler: str, counts: list[int], repeats: int, folder: Path, seed: int) -> list[dict[str, Any]]:
    """Time `repeats` proposals at each of the counts, in one growing study."""
    study = open_study(folder / f"{sampler}.journal", sampler, seed, sampler)
    measured = study.sampler
    filler = make_sampler("random", seed) if sampler == SLOW else measured
    rng = random.Random(seed)
    rows = []
    for count in counts:
        study.sampler = filler
        while (finished := len(study.get_trials(deepcopy=False))) < count:
            trial = study.ask()
            svd_training(trial)
            tell(study, finished, record(name_of(finished), trial.params, rng))
        study.sampler = measured
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            trial = study.ask()
            svd_training(trial)
            times.append(time.perf_counter() - start)
            tell(study, trial.number, record(name_of(trial.number), trial.params, rng))
        ends = {"low_s": min(times), "high_s": max(times)}
        rows.append({"sampler": sampler, "finished_trials": count, "ask_s": statistics.median(times), **ends})
        print(rows[-1], flush=True)
    return rows


def markdown(rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """One line a sampler: milliseconds at each number of finished trials."""
    counts = sorted({row["finished_trials"] for row in rows})
    found = {(row["sampler"], row["finished_trials"]): f"{1000 * row['ask_s']:.0f}" for row in rows}
    lines = [
        f"Milliseconds per proposal, median of {options.repeats}, by the number of finished trials; space `svd_training`, "
        f"journal on disk. {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, one thread.",
        "",
        "| sampler | " + " | ".join(map(str, counts)) + " |",
        "|---" * (len(counts) + 1) + "|",
    ]
    for sampler in dict.fromkeys(row["sampler"] for row in rows):
        lines.append(f"| {sampler} | " + " | ".join(found.get((sampler, count), "-") for count in counts) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--samplers", nargs="+", choices=list(SAMPLERS), default=list(SAMPLERS))
    parser.add_argument("--counts", type=int, nargs="+", default=[50, 200, 500, 1000])
    parser.add_argument("--slow-limit", type=int, default=500, help=f"most finished trials for {SLOW}")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for sampler in options.samplers:
            counts = [count for count in sorted(options.counts) if sampler != SLOW or count <= options.slow_limit]
            rows += measure(sampler, counts, options.repeats, Path(folder), options.seed)
    write(options, rows, markdown(rows, options))


if __name__ == "__main__":
    main()
