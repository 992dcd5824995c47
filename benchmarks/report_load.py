"""How long does the report of a large sweep take to write and to open, and how much memory?

A synthetic sweep of `--trials` trials, each with a curve of nine cuts, is written as a sweep leaves it; the command line
makes its report, and headless Chromium opens the file `--repeats` times. Opened means: the table has its rows and the
front is drawn. Then a row is chosen and the table is filtered.

    python benchmarks/report_load.py --trials 2000 --json FILE

The JSON is one object: seconds are medians, of the browser with least and most; sizes are in MB (1e6 bytes). `table_s`
ends when the table has its rows; `open_cpu_s` is the CPU time of the page's main thread alone, which other work on the
machine changes less.
"""

import argparse
import json
import os
import platform
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from orchestrator.config import FinetuneConfig, SearchConfig, SweepConfig, dump_config
from orchestrator.finalists import pick_finalists
from orchestrator.paths import SweepPaths
from orchestrator.records import RunRecord, write_records
from orchestrator.study import open_study
from orchestrator.tuned import finetune_name
from trainers.config import DataConfig, ModelConfig, TrainingConfig

DENSE_MACS, DENSE_PARAMS, EPOCHS, CUTS = 40_000_000, 270_000, 12, 9
SPACE = {
    "regularizer": CategoricalDistribution(["hoyer", "l1"]),
    "strength": FloatDistribution(1e-4, 0.5, log=True),
    "energy": FloatDistribution(1e-4, 0.5, log=True),
}


# until the page has answered: the row is marked, its details are there, and so is its point's mark
CHOOSE = """async () => {
    const begin = performance.now();
    document.querySelectorAll("#table tbody tr[data-name]")[3].click();
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    return performance.now() - begin;
}"""


def write_sweep(folder: Path, trials: int, study: bool = True, seed: int = 0) -> SweepConfig:
    """Leave in `folder` what a sweep of `trials` trials leaves, except for models: a tenth of them failed or were stopped.

    `study` says whether Optuna's journal is written too, which takes longest.
    """
    rng = random.Random(seed)
    config = SweepConfig(
        "synthetic", ModelConfig("resnet20"), DataConfig("cifar10"), training=TrainingConfig(epochs=EPOCHS),
        search=SearchConfig(num_trials=trials), finetune=FinetuneConfig(6, 20),
    )  # fmt: skip
    records = [_run("pretrain-channel", "pretrain", 0.91, DENSE_MACS, 1)]
    records += [_trial(number, rng) for number in range(trials)]
    picks = pick_finalists(records[1:], config.finetune)
    for i, pick in enumerate(picks):
        tuned = _run(
            finetune_name(pick.name), "finetune", min(0.93, (pick.score or 0) + 0.03), pick.macs or 1, trials + i
        )
        source = f"trial-{pick.trial_number:04d}"
        records.append(replace(tuned, source=source, trial_number=pick.trial_number, settings=pick.settings))
    records.append(_run("dense", "dense", 0.915, DENSE_MACS, trials + len(picks)))
    paths = SweepPaths(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths.config.write_text(dump_config(config))
    write_records(records, paths.results)
    layers = [{"name": "conv1", "kind": "Conv2d", "params": 432, "status": "factorized", "reason": ""}]
    paths.layers.write_text(json.dumps(layers))
    paths.state.write_text(json.dumps({"sweep_id": "0" * 32, "tracking_uri": "", "parent_run_id": ""}))
    if study:
        _write_study(paths, records)
    return config


def _trial(number: int, rng: random.Random) -> RunRecord:
    params = {
        "regularizer": rng.choice(["hoyer", "l1"]),
        "strength": 10 ** rng.uniform(-4, -0.31),
        "energy": 10 ** rng.uniform(-4, -0.31),
    }
    quality = rng.gauss(0, 0.01)
    base = _run(f"trial-{number:04d}", "trial", 0.0, DENSE_MACS, number)
    base = replace(base, source="pretrain-channel", trial_number=number, settings=json.dumps(params), **params)
    fate = rng.random()
    if number > 3 and fate < 0.02:
        return replace(base, state="FAIL", macs=None, macs_ratio=None, val_accuracy=None, score=None, error="Traceback:\nno </script> here")  # fmt: skip  # noqa: E501
    cuts = []
    for place in range(CUTS):
        ratio = rng.uniform(0.05, 1) if place == 0 else 0.8 * 0.66 ** (place - 1) * rng.uniform(0.97, 1.03)
        score = max(0.1, 0.91 + quality - 0.5 * (1 - ratio) ** 6 - abs(rng.gauss(0, 0.01)))
        settings = {} if place == 0 else {"energy": 10 ** rng.uniform(-4, -0.1)}
        cuts.append({"epoch": EPOCHS, "settings": settings, "macs": int(DENSE_MACS * ratio), "params": int(DENSE_PARAMS * ratio), "score": score})  # fmt: skip  # noqa: E501
    own = cuts[0]
    return replace(
        base,
        state="PRUNED" if number > 3 and fate < 0.1 else "COMPLETE",
        score=own["score"],
        val_accuracy=max(0.1, own["score"] - 0.1),
        macs=own["macs"],
        macs_ratio=own["macs"] / DENSE_MACS,
        params=own["params"],
        params_ratio=own["params"] / DENSE_PARAMS,
        layers=[f"layer{i}" for i in range(20)],
        ranks=[rng.randint(1, 64) for _ in range(20)],
        curve=json.dumps(cuts),
    )


def _run(name: str, stage: Any, accuracy: float, macs: int, order: int) -> RunRecord:
    ratio = macs / DENSE_MACS
    return RunRecord(
        name, stage, "COMPLETE", f"{order:032x}", settings="{}", method="svd_training", decomposition="channel",
        epochs=EPOCHS, val_accuracy=accuracy, test_accuracy=accuracy - 0.005 if stage in ("finetune", "dense") else None,
        macs=macs, macs_ratio=ratio, params=int(DENSE_PARAMS * ratio), params_ratio=ratio, duration_s=60.0, cpu_s=55.0,
        ended_at_s=1.7e9 + 30.0 * order,
    )  # fmt: skip


def _write_study(paths: SweepPaths, records: list[RunRecord]) -> None:
    study = open_study(paths.study, "synthetic", 0)
    for record in records:
        if record.stage == "trial":
            params = json.loads(record.settings or "{}")
            done = record.state == "COMPLETE"
            state = TrialState.COMPLETE if done else TrialState.PRUNED if record.state == "PRUNED" else TrialState.FAIL
            values = [record.score, record.macs] if done else None
            study.add_trial(create_trial(state=state, values=values, params=params, distributions=SPACE))


def write_report(folder: Path, page: Path) -> dict[str, float]:
    """Time the command in a process of its own."""
    rankfront = str(Path(sys.executable).parent / "rankfront")
    begin = time.perf_counter()
    subprocess.run([rankfront, "report", str(folder), "--output", str(page)], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return {
        "write_s": round(seconds, 2),
        "write_peak_mb": round(peak / 1e6, 1),
        "page_mb": round(page.stat().st_size / 1e6, 2),
    }


def open_page(page_file: Path, repeats: int) -> dict[str, Any]:
    """Open the page in headless Chromium, each time in a context of its own."""
    from playwright.sync_api import sync_playwright

    executable = shutil.which("chromium") or shutil.which("google-chrome")
    times: dict[str, list[float]] = {
        "table_s": [],
        "open_s": [],
        "open_cpu_s": [],
        "choose_s": [],
        "filter_s": [],
        "heap_mb": [],
    }
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        for _ in range(repeats):
            context = browser.new_context(viewport={"width": 1400, "height": 1600})
            page = context.new_page()
            session = context.new_cdp_session(page)
            session.send("Performance.enable", {"timeDomain": "threadTicks"})
            begin = time.perf_counter()
            page.goto(page_file.as_uri(), wait_until="commit")
            page.wait_for_selector("#table tbody tr[data-name]")
            times["table_s"].append(time.perf_counter() - begin)
            page.wait_for_selector("#front .main-svg")
            times["open_s"].append(time.perf_counter() - begin)
            metrics = {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}
            times["open_cpu_s"].append(metrics["TaskDuration"])
            times["choose_s"].append(page.evaluate(CHOOSE) / 1000)
            page.wait_for_selector("#table tr[aria-selected=true]")
            begin = time.perf_counter()
            page.fill("#query", "macs<30 regularizer=l1")
            page.wait_for_selector("#table tbody tr[data-name]")
            times["filter_s"].append(time.perf_counter() - begin)
            session.send("HeapProfiler.collectGarbage")
            times["heap_mb"].append(session.send("Runtime.getHeapUsage")["usedSize"] / 1e6)
            context.close()
        version = browser.version
        browser.close()
    medians = {key: round(statistics.median(values), 3) for key, values in times.items()}
    return {**medians, "open_low_s": round(min(times["open_s"]), 3), "open_high_s": round(max(times["open_s"]), 3), "chromium": version}  # fmt: skip  # noqa: E501


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--no-study", action="store_true", help="leave out Optuna's journal, which takes longest to make"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sweep, page = Path(folder) / "sweep", Path(folder) / "report.html"
        config = write_sweep(sweep, options.trials, study=not options.no_study)
        found = {
            "trials": options.trials,
            "curve_points": options.trials * CUTS,
            "finalists": asdict(config.finetune)["num_models"],
            **write_report(sweep, page),
            **open_page(page, options.repeats),
            "repeats": options.repeats,
            "cpus": os.cpu_count(),
            "machine": platform.machine(),
        }
    print(json.dumps(found, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
