"""What do schedulers stop, when recorded trials are played back to them?

`--record` trains random trials of the search space to the end, scoring a curve after every epoch, and writes them to a
table. The replay then gives each scheduler the same trials in a random order on any number of simulated workers, as their
epochs would end, and counts: the share of the trials that are on the front when everything is trained to the end and that
the scheduler stops, the share of all epochs that it trains, and the hypervolume that is left. Twenty orders, mean ± standard
deviation. `asha` is asynchronous successive halving on the score of a trial's own cut; `pareto` is `ParetoHalving`, on
curves, or on own cuts alone. Samplers are played the same tables by `replay_samplers.py`.

    python benchmarks/replay.py --record mnist_mlp --mnist DIR --tables FILE       # ten minutes on two cores
    python benchmarks/replay.py --tables FILE FILE --json FILE --markdown FILE
"""

import heapq
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench_options import benchmark_parser, write
from replay_table import NETWORKS, Curves, read_table, record_table, write_table

from orchestrator.config import SchedulerConfig
from orchestrator.halving import ParetoHalving
from orchestrator.pareto import hypervolume, non_dominated
from orchestrator.scheduler import rung_point

FLOOR = 0.8
CONFIG = SchedulerConfig()
DEFAULT = "the default"
MIN_TRIALS = CONFIG.min_trials  # at a rung, before any scheduler stops one
Scheduler = Callable[[str, int, list[list[float]]], bool]  # trial, epoch, its points: does it go on?


def asha(epochs: int, grace_period: int, reduction_factor: float = 3.0) -> Scheduler:
    """Asynchronous successive halving on one score: at a rung a trial goes on if it is in the best 1 / reduction_factor."""
    rungs = {grace_period * round(reduction_factor**k): list[float]() for k in range(9)}

    def goes_on(trial: str, epoch: int, points: list[list[float]]) -> bool:
        if epoch not in rungs or epoch >= epochs:
            return True
        scores = rungs[epoch]
        scores.append(points[0][0])
        if len(scores) < MIN_TRIALS:
            return True
        return points[0][0] >= float(np.quantile(scores, 1 - 1 / reduction_factor))

    return goes_on


def pareto(epochs: int, grace_period: int, *, own: bool = False, **settings: Any) -> Scheduler:
    """`ParetoHalving` on curves, or on a trial's own cut alone."""
    halving = ParetoHalving(("max", "min"), epochs, grace_period, **{"min_trials": MIN_TRIALS, **settings})

    def goes_on(trial: str, epoch: int, points: list[list[float]]) -> bool:
        return halving.record(trial, epoch, [rung_point(*point) for point in (points[:1] if own else points)])

    return goes_on


SCHEDULERS: dict[str, Callable[[int], Scheduler]] = {
    "none": lambda _: lambda *_: True,
    "asha, from epoch 1": lambda epochs: asha(epochs, 1),
    "asha, from epoch 3": lambda epochs: asha(epochs, 3),
    "pareto, own cuts, from epoch 1": lambda epochs: pareto(epochs, 1, own=True),
    "pareto, own cuts, from epoch 3": lambda epochs: pareto(epochs, 3, own=True),
    "pareto, curves, from epoch 1": lambda epochs: pareto(epochs, 1),
    "pareto, curves, from epoch 3": lambda epochs: pareto(epochs, 3),
    "pareto, curves, from epoch 3, front not spared": lambda epochs: pareto(epochs, 3, spare_front=False),
    "pareto, curves, from epoch 3, two of three go on": lambda epochs: pareto(epochs, 3, reduction_factor=1.5),
    "pareto, curves, from epoch 5": lambda epochs: pareto(epochs, 5),
    "pareto, curves, from epoch 5, two of three go on": lambda epochs: pareto(epochs, 5, reduction_factor=1.5),
    "the same, a tenth exempt": lambda epochs: pareto(epochs, 5, reduction_factor=1.5, exempt_share=0.1),
    DEFAULT: lambda epochs: pareto(
        epochs, -(-epochs // 2), reduction_factor=CONFIG.reduction_factor, exempt_share=CONFIG.exempt_share
    ),
}


def replay(table: Sequence[Curves], order: Sequence[int], scheduler: Scheduler, workers: int) -> dict[int, int]:
    """Play trials of the table back in `order`; returns how many epochs each of them was trained, by place in the order.

    Every epoch takes the same time; a worker takes the next trial as soon as its own has ended.
    """
    trained: dict[int, int] = {}
    waiting = iter(range(len(order)))
    events: list[tuple[int, int, int]] = []  # time, place in the order, epoch that ends then

    def start(now: int) -> None:
        place = next(waiting, None)
        if place is not None:
            heapq.heappush(events, (now + 1, place, 1))

    for _ in range(workers):
        start(0)
    while events:
        now, place, epoch = heapq.heappop(events)
        curves = table[order[place]]
        trained[place] = epoch
        if scheduler(str(place), epoch, curves[epoch - 1]) and epoch < len(curves):
            heapq.heappush(events, (now + 1, place, epoch + 1))
        else:
            start(now)
    return trained


def front_trials(table: Sequence[Curves]) -> set[int]:
    """The trials with a point on the front when everything is trained to the end."""
    points = [(-score, macs, trial) for trial, curves in enumerate(table) for score, macs in curves[-1]]
    keep = non_dominated(np.array([point[:2] for point in points]))
    return {point[2] for point, kept in zip(points, keep, strict=True) if kept}


def volume(curves: Sequence[list[list[float]]]) -> float:
    """Hypervolume above FLOOR of all points."""
    points = np.array([(-score, macs) for curve in curves for score, macs in curve]).reshape(-1, 2)
    return hypervolume(points, np.array([-FLOOR, 1.0])) / (1 - FLOOR)


def compare(table: list[Curves], seeds: int, workers: int) -> list[dict[str, Any]]:
    """One row a scheduler."""
    front, epochs = front_trials(table), len(table[0])
    whole = volume([curves[-1] for curves in table])
    rows = []
    for name, make in SCHEDULERS.items():
        stopped, share, left = [], [], []
        for seed in range(seeds):
            order = np.random.default_rng(seed).permutation(len(table)).tolist()
            trained = replay(table, order, make(epochs), workers)
            ended = {order[place] for place, count in trained.items() if count == epochs}
            stopped.append(len(front - ended) / len(front))
            share.append(sum(trained.values()) / (epochs * len(table)))
            left.append(volume([table[trial][-1] for trial in ended]) / whole)
        rows.append({"scheduler": name, "front_stopped": stopped, "epochs_trained": share, "hypervolume": left})
    return rows


def at_scale(table: list[Curves], num_trials: int, workers: int) -> float:
    """Seconds for `num_trials` trials, drawn from the table with a little noise, by the default scheduler."""
    generator = np.random.default_rng(0)
    drawn = [table[i] for i in generator.integers(len(table), size=num_trials)]
    noisy = [
        [[[score + noise, macs] for score, macs in curve] for curve in curves]
        for curves, noise in zip(drawn, generator.normal(0, 1e-3, num_trials), strict=True)
    ]
    start = time.perf_counter()
    scheduler = SCHEDULERS[DEFAULT](len(table[0]))
    trained = replay(noisy, range(num_trials), scheduler, workers)
    assert len(trained) == num_trials
    return time.perf_counter() - start


def markdown(found: dict[str, dict[str, Any]], seeds: int, workers: int) -> str:
    """One table of schedulers for each table of trials."""
    lines = []
    for name, of_one in found.items():
        lines += [
            f"### {name}",
            "",
            f"{of_one['trials']} recorded trials of {of_one['epochs']} epochs, {of_one['front']} of them on the front in "
            f"the end, {workers} simulated workers, {seeds} orders; mean ± standard deviation, %.",
            "",
            "| scheduler | trials of the true front stopped | epochs trained | hypervolume left |",
            "|---|---|---|---|",
        ]
        for row in of_one["rows"]:
            cells = [
                f"{100 * statistics.mean(row[key]):.1f} ± {100 * statistics.stdev(row[key]):.1f}"
                for key in ("front_stopped", "epochs_trained", "hypervolume")
            ]
            lines.append(f"| {row['scheduler']} | " + " | ".join(cells) + " |")
        for count, seconds in of_one["replay_s"].items():
            lines += ["", f"{count:,} trials on 500 simulated workers were replayed in {seconds:.0f} s."]
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = benchmark_parser(__doc__, "mnist")
    parser.add_argument("--record", choices=list(NETWORKS), help="train trials of this network and write the one table")
    parser.add_argument("--tables", type=Path, nargs="+", required=True)
    parser.add_argument("--trials", type=int, default=60, help="to record")
    parser.add_argument("--seed", type=int, default=0, help="of the trials to record")
    parser.add_argument("--workers", type=int, default=2, help="processes that record, of one thread each")
    parser.add_argument("--simulated-workers", type=int, default=8)
    parser.add_argument("--scale", type=int, nargs="*", default=[1_000, 10_000], help="numbers of trials to time")
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    if options.record:
        recorded = record_table(options.record, options.mnist, options.trials, options.seed, options.workers)
        write_table(recorded, options.tables[0])
        print(f"{len(recorded)} trials of {options.trials} recorded in {options.tables[0]}")
        return
    found = {}
    for path in options.tables:
        table = [trial.curves for trial in read_table(path)]
        found[path.stem] = {
            "trials": len(table),
            "epochs": len(table[0]),
            "front": len(front_trials(table)),
            "rows": compare(table, options.seeds, options.simulated_workers),
            "replay_s": {count: at_scale(table, count, 500) for count in options.scale},
        }
    write(options, found, markdown(found, options.seeds, options.simulated_workers))


if __name__ == "__main__":
    main()
