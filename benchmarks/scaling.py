"""How many workers does one driver keep busy?

Trials that only sleep (`overhead.py`: the whole path of a search, with all its defaults) on 1, 2, 4, ... worker processes of
a Ray cluster of this benchmark's own, which is told that it has as many processors. Efficiency is the least possible wall
time, all sleep divided by the workers, over the real one, from the first trial's beginning to the last one's end; once all
work, it is the share of the workers' time that is slept from the first moment at which all do to the last one: without the
imports of the workers, which share this machine's cores, and without the end, when there are no more trials for all.

    python benchmarks/scaling.py --workers 1 2 4 8 --trials-per-worker 20 --json FILE --markdown FILE     # 15 minutes
    python benchmarks/scaling.py --workers 64 --trials 5000                                               # 13 minutes
"""

import os
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import overhead
from bench_options import benchmark_parser, write

from orchestrator.ray_session import prepare_environment

prepare_environment()


def on_cluster(workers: int, num_trials: int, trial_s: float) -> dict[str, Any]:
    """Run the search on a cluster that has room for `workers` trials."""
    import ray

    # what that file imports, torch too, stays the driver's: 64 workers fit into one machine's memory
    ray.cloudpickle.register_pickle_by_value(overhead)
    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return overhead.measure(num_trials, workers, trial_s, Path(folder))
    finally:
        ray.shutdown()


def markdown(found: list[dict[str, Any]]) -> str:
    """One table."""
    lines = [
        "# How many workers one driver keeps busy",
        "",
        "`benchmarks/scaling.py`: trials that sleep; sampler, scheduler, journal, table and MLflow on SQLite as by default; "
        f"{platform.machine()}, {os.cpu_count()} cores for all processes, ray {version('ray')}.",
        "",
        "| workers | trials | seconds a trial | trials a second | efficiency | once all work | driver's CPU a trial "
        "| memory a trial |",
        "|---" * 8 + "|",
    ]
    lines += [
        f"| {row['workers']} | {row['trials']} | {row['trial_s']:g} | {row['trials'] / row['wall_s']:.2f} "
        f"| {100 / (1 + row['overhead']):.1f} % | {100 * row['busy_share']:.1f} % "
        f"| {1000 * row['driver_cpu_s_per_trial']:.0f} ms | {row['growth_bytes_per_trial'] / 1024:.0f} KiB |"
        for row in found
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--trials-per-worker", type=int, default=20)
    parser.add_argument("--trials", type=int, help="in all, whatever the number of workers")
    parser.add_argument("--trial-s", type=float, default=10.0)
    options = parser.parse_args()
    found = []
    for workers in options.workers:
        num_trials = options.trials or workers * options.trials_per_worker
        found.append(on_cluster(workers, num_trials, options.trial_s))
        print(found[-1], flush=True)
    write(options, found, markdown(found))


if __name__ == "__main__":
    main()
