"""What does a sweep cost beside its trainings, in time and in the driver's memory?

Trials that only sleep, a second each by default, in two epochs, go through the whole path of a search: Ray Tune on reused
workers, the default sampler, the scheduler, which judges every trial and spares each so that all last as long, the journal,
the table, MLflow on SQLite, the live view. Each reports a curve like those of real trials: five cuts at the rung, nine at
its end. Reported are the wall time from the first trial's beginning to the last one's end over the least possible (all
sleep, divided by the workers), the driver's CPU time per trial, and the growth of its resident memory per trial, from the
first tenth of the trials on.

    python benchmarks/overhead.py --json FILE --markdown FILE      # nine minutes
    python benchmarks/overhead.py --trials 100 --profile           # where the driver's time goes
"""

import cProfile
import math
import os
import platform
import pstats
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench_options import benchmark_parser, write
from rich.console import Console

from orchestrator.config import ResourcesConfig, SchedulerConfig, SearchConfig, SweepConfig
from orchestrator.ledger import Ledger
from orchestrator.paths import SweepPaths
from orchestrator.ray_session import ray_session
from orchestrator.records import RunRecord
from search_spaces import find_search_space
from trainers.config import CurveConfig, DataConfig, ModelConfig, TrainingConfig

EPOCHS = 2
DENSE_MACS, DENSE_PARAMS = 40_000_000, 270_000
LAYERS = ("conv1", "layer1.conv", "layer2.conv", "fc")


def config_of(num_trials: int, workers: int) -> SweepConfig:
    """Return a sweep with all defaults of the search, but that no trial is stopped."""
    return SweepConfig(
        name="overhead",
        model=ModelConfig("tiny"),
        data=DataConfig("digits"),
        training=TrainingConfig(epochs=EPOCHS),
        search=SearchConfig(num_trials=num_trials, max_concurrent=workers),
        scheduler=SchedulerConfig(exempt_share=1),
    )


def sleeping(params: dict[str, Any], trial_s: float) -> None:
    """One trial: sleeps, and reports what a training would."""
    from ray import tune

    from orchestrator.scheduler import tune_result

    rng = random.Random(params["number"])
    quality = rng.gauss(0, 0.02) - 0.02 * abs(math.log(params["settings"]["learning_rate"] / 1e-3))
    for epoch in range(1, EPOCHS + 1):
        started = time.perf_counter()
        time.sleep(trial_s / EPOCHS)
        slept_s = time.perf_counter() - started  # on a busy machine it wakes late, which is not the search's doing
        cuts = list(_cuts(params["settings"], quality, rng, CurveConfig().num_points // (1 if epoch == EPOCHS else 2)))
        result = {
            "epoch": epoch,
            "metrics": _metrics(cuts[0]),
            "duration_s": slept_s,
            "cpu_s": 0.0,
            "ended_at_s": time.time(),
            "curve": cuts,
            "replayed": False,
        }
        tune.report(tune_result(result if epoch < EPOCHS else {**result, "finished": True}))


def _cuts(settings: dict[str, Any], quality: float, rng: random.Random, num_points: int) -> Iterator[dict[str, Any]]:
    """A curve with the shape of real ones, the trial's own cut first."""
    own = max(0.02, 1 - 1.4 * settings["energy"] ** 0.3)
    for place, ratio in enumerate([own, *(0.8 * 0.65**i for i in range(num_points))]):
        yield {
            "settings": {} if place == 0 else {"energy": ((1 - ratio) / 1.4) ** (1 / 0.3)},
            "macs": int(DENSE_MACS * ratio),
            "params": int(DENSE_PARAMS * ratio),
            "score": 0.9 + quality - 0.3 * (1 - ratio) ** 4 + rng.gauss(0, 0.01),
        }


def _metrics(own: dict[str, Any]) -> dict[str, float]:
    scores = dict.fromkeys(("accuracy", "top5_accuracy", "macro_f1", "loss"), own["score"])
    return {
        "train_loss": 1.0,
        "learning_rate": 1e-3,
        **{f"val_{name}": value for name, value in scores.items()},
        "macs": own["macs"],
        "flops": 2 * own["macs"],
        "macs_ratio": own["macs"] / DENSE_MACS,
        "params": own["params"],
        "params_ratio": own["params"] / DENSE_PARAMS,
        "rank_ratio": 0.5,
        **{f"rank/{layer}": 8.0 for layer in LAYERS},
        "orthogonality_error": 0.01,
        "score": own["score"],
    }


@dataclass
class Watch:
    """The driver's memory by the number of ended trials, when each epoch of a trial was slept, when the first trial began
    and the last one ended, and the driver's CPU time then.
    """

    rss_bytes: dict[int, int] = field(default_factory=dict)
    slept: list[tuple[float, float]] = field(default_factory=list)
    started_s: float = math.nan
    ended_s: float = math.nan
    cpu_at_start_s: float = math.nan
    cpu_at_end_s: float = math.nan


class WatchedLedger(Ledger):
    """The driver's ledger, which notes what it sees in `watch`, its memory every so many trials."""

    def __init__(self, watch: Watch, every: int, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._watch, self._every = watch, every

    def reported(self, name: str, result: dict[str, Any]) -> None:
        if math.isnan(self._watch.started_s):  # when it began to train: before that its worker started
            self._watch.started_s = result["ended_at_s"] - result["duration_s"]
            self._watch.cpu_at_start_s = time.process_time()
        self._watch.slept.append((result["ended_at_s"] - result["duration_s"], result["ended_at_s"]))
        super().reported(name, result)

    def ended(self, name: str, error: str | None, *, stopped: bool = False) -> RunRecord:
        record = super().ended(name, error, stopped=stopped)
        self._watch.ended_s, self._watch.cpu_at_end_s = time.time(), time.process_time()
        if len(self.records()) % self._every == 0:
            self._watch.rss_bytes[len(self.records())] = _rss_bytes()
        return record


def busy_share(slept: list[tuple[float, float]], workers: int) -> float:
    """Return which share of the workers' time is slept, from the first moment at which all of them do to the last one.

    NaN where they never do at once.
    """
    changes = sorted([(start, 1) for start, _ in slept] + [(end, -1) for _, end in slept])
    asleep, full = 0, list[float]()
    for moment, change in changes:
        if workers in (asleep, asleep + change):
            full.append(moment)
        asleep += change
    if not full:
        return math.nan
    low, high = full[0], full[-1]
    return sum(max(0.0, min(end, high) - max(start, low)) for start, end in slept) / (workers * (high - low))


def _rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(
    num_trials: int, workers: int, trial_s: float, output: Path, profile: cProfile.Profile | None = None
) -> dict[str, Any]:
    """Run the search in an empty folder; returns the figures."""
    from ray import tune

    from orchestrator.search import run_trials
    from orchestrator.study import open_study
    from orchestrator.tracking.target import tracking_target
    from orchestrator.tracking.tracker import Tracker
    from orchestrator.view import SweepView

    config, paths, watch = config_of(num_trials, workers), SweepPaths(output), Watch()
    target = tracking_target(config.name, paths.mlflow_db, paths.mlflow_artifacts)
    tracker = Tracker(target, "overhead", paths.root, paths.tracking)
    ledger = WatchedLedger(watch, max(1, num_trials // 20), config, paths, tracker, [])
    study = open_study(paths.study, config.name, config.search.seed, config.search.sampler)
    with (output / "log").open("w") as log, SweepView(Console(file=log), config, 0).showing(ledger), _profiled(profile):
        space = find_search_space(config.search_space)
        trainable = tune.with_parameters(sleeping, trial_s=trial_s)
        run_trials(trainable, study, space, num_trials, config, paths, ledger)
    tracker.close()
    slept_s = sum(record.duration_s or 0.0 for record in ledger.records())
    wall_s = watch.ended_s - watch.started_s
    counts = sorted(watch.rss_bytes)
    first = next(count for count in counts if count >= num_trials // 10)
    states = [record.state for record in ledger.records()]
    return {
        "trials": num_trials,
        "workers": workers,
        "trial_s": trial_s,
        "complete": states.count("COMPLETE"),
        "stopped": states.count("PRUNED"),
        "study_trials": len(study.get_trials(deepcopy=False)),
        "slept_s": slept_s,
        "wall_s": wall_s,
        "least_s": slept_s / workers,
        "overhead": wall_s / (slept_s / workers) - 1,
        "busy_share": busy_share(watch.slept, workers),
        "driver_cpu_s_per_trial": (watch.cpu_at_end_s - watch.cpu_at_start_s) / num_trials,
        "rss_bytes": watch.rss_bytes,
        "growth_bytes_per_trial": (watch.rss_bytes[counts[-1]] - watch.rss_bytes[first]) / max(1, counts[-1] - first),
    }


@contextmanager
def _profiled(profile: cProfile.Profile | None) -> Iterator[None]:
    if profile is not None:
        profile.enable()
    yield
    if profile is not None:
        profile.disable()


def markdown(found: dict[str, Any]) -> str:
    """One table."""
    return "\n".join(
        [
            "# What a search costs beside its trainings",
            "",
            f"`python benchmarks/overhead.py --trials {found['trials']}`: trials that sleep for {found['trial_s']:g} s in "
            f"{EPOCHS} epochs, on {found['workers']} workers; {platform.machine()}, {os.cpu_count()} cores, ray "
            f"{version('ray')}. Sampler, scheduler, journal, table, MLflow on SQLite and the live view as by default.",
            "",
            "| | |",
            "|---|---|",
            f"| trials complete / stopped early | {found['complete']} / {found['stopped']} |",
            f"| trials of the study, with points of curves | {found['study_trials']} |",
            f"| least possible wall time | {found['least_s']:.1f} s |",
            f"| wall time, without the start of workers | {found['wall_s']:.1f} s |",
            f"| overhead | {100 * found['overhead']:.1f} % |",
            f"| driver's CPU time | {1000 * found['driver_cpu_s_per_trial']:.0f} ms a trial |",
            f"| growth of the driver's memory | {found['growth_bytes_per_trial'] / 1024:.0f} KiB a trial |",
            "",
        ]
    )


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--trial-s", type=float, default=1.0, help="seconds that a trial sleeps")
    parser.add_argument("--profile", action="store_true", help="print where the driver's main thread spends its time")
    options = parser.parse_args()
    profile = cProfile.Profile() if options.profile else None
    with tempfile.TemporaryDirectory() as folder, ray_session(ResourcesConfig()):
        found = measure(options.trials, options.workers, options.trial_s, Path(folder), profile)
    if profile is not None:
        pstats.Stats(profile).sort_stats("cumtime").print_stats(70)
    write(options, found, markdown(found))


if __name__ == "__main__":
    main()
