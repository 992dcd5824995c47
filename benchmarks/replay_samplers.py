"""Which sampler finds a front with the fewest trials, when recorded trials stand for those that it proposes?

A proposal is answered with the recorded trial whose parameters are nearest to it: each parameter on its (logarithmic) range
from 0 to 1, another category as far away as the other end of a range. One trial runs at a time and each is told to the
study as a sweep does it, with the points of its curve or without. Reported is the hypervolume of all points found after so
many proposals, as a share of that of the whole table; mean ± standard deviation over the seeds.

    python benchmarks/replay_samplers.py --tables FILE FILE --json FILE --markdown FILE

Tables come from `replay.py --record`. The Gaussian process takes seconds for a proposal, and is left out unless named.
"""

import json
import math
import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from bench_options import benchmark_parser, write
from optuna.distributions import BaseDistribution, FloatDistribution
from replay import volume
from replay_table import SPACE, Recorded, read_table

from orchestrator.added_trials import CurveTrials
from orchestrator.curves import final_curve
from orchestrator.records import RunRecord
from orchestrator.samplers import SAMPLERS, make_sampler
from orchestrator.study import DIRECTIONS, name_of, tell
from search_spaces import find_search_space

AFTER = (8, 16, 32)
DENSE = 10**6  # MACs and parameters that shares are of
VARIANTS = {"curves told": True, "own cuts only": False}


def distance(a: dict[str, Any], b: dict[str, Any], ranges: dict[str, BaseDistribution]) -> float:
    """Squared distance of two choices over the parameters of `a`; one that `b` has not counts as another category."""
    total = 0.0
    for name, value in a.items():
        found = ranges[name]
        if isinstance(found, FloatDistribution) and name in b:
            low, high, x, y = (math.log(v) if found.log else v for v in (found.low, found.high, value, b[name]))
            total += ((x - y) / (high - low)) ** 2
        else:
            total += float(name not in b or b[name] != value)
    return total


def nearest(table: Sequence[Recorded], trial: optuna.Trial) -> Recorded:
    """The recorded trial that stands for a proposal."""
    return min(table, key=lambda recorded: distance(trial.params, recorded.params, trial.distributions))


def played(recorded: Recorded, number: int, *, curves: bool) -> RunRecord:
    """The recorded trial as the table's row of trial `number`."""
    points = recorded.curves[-1] if curves else recorded.curves[-1][:1]
    cuts = [
        {"epoch": 1, "settings": settings, "macs": round(DENSE * macs), "params": round(DENSE * macs), "score": score}
        for settings, (score, macs) in zip(recorded.cuts, points, strict=False)
    ]
    (score, macs), *_ = points
    ratios = {"macs": round(DENSE * macs), "macs_ratio": macs, "params": round(DENSE * macs), "params_ratio": macs}
    curve = json.dumps(cuts)
    return RunRecord(
        name_of(number), "trial", "COMPLETE", "", trial_number=number, epochs=1, score=score, curve=curve, **ratios
    )


def search(job: tuple[str, Path, int, bool]) -> tuple[list[float], float]:
    """Run one sampler with one seed; returns the volume after each number of AFTER, and the seconds that it took."""
    sampler, path, seed, curves = job
    table, space = read_table(path), find_search_space(SPACE)
    study = optuna.create_study(directions=DIRECTIONS, sampler=make_sampler(sampler, seed))
    curve_trials = CurveTrials(study)
    found, volumes, start = [], [], time.perf_counter()
    for place in range(max(AFTER)):
        trial = study.ask()
        space(trial)
        recorded = nearest(table, trial)
        record = played(recorded, trial.number, curves=curves)
        tell(study, trial.number, record)
        curve_trials.add({trial.number: final_curve(record)})
        found.append(recorded.curves[-1] if curves else recorded.curves[-1][:1])
        if place + 1 in AFTER:
            volumes.append(volume(found))
    return volumes, time.perf_counter() - start


def markdown(found: dict[str, dict[str, Any]], seeds: int) -> str:
    """One table for each table of trials, a line for each sampler and variant."""
    lines = []
    for name, of_one in found.items():
        columns = " | ".join(f"after {count}" for count in AFTER)
        lines += [
            f"### {name}",
            "",
            f"{of_one['trials']} recorded trials, {seeds} seeds.",
            "",
            f"| sampler | {columns} | seconds |",
            "|---" * (len(AFTER) + 2) + "|",
        ]
        for label, row in of_one["rows"].items():
            cells = [
                f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"
                for values in zip(*row["hypervolume"], strict=True)
            ]
            lines.append(f"| {label} | " + " | ".join(cells) + f" | {statistics.mean(row['seconds']):.1f} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--tables", type=Path, nargs="+", required=True)
    quick = [name for name in SAMPLERS if name != "gp"]
    parser.add_argument("--samplers", nargs="*", default=quick, choices=list(SAMPLERS))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    options = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        for path in options.tables:
            table = read_table(path)
            whole, rows = volume([trial.curves[-1] for trial in table]), {}
            for sampler in options.samplers:
                for variant, curves in VARIANTS.items():
                    jobs = [(sampler, path, seed, curves) for seed in range(options.seeds)]
                    results = list(pool.map(search, jobs))
                    rows[f"{sampler}, {variant}"] = {
                        "hypervolume": [(np.array(volumes) / whole).tolist() for volumes, _ in results],
                        "seconds": [seconds for _, seconds in results],
                    }
            found[path.stem] = {"trials": len(table), "rows": rows}
    write(options, found, markdown(found, options.seeds))


if __name__ == "__main__":
    main()
