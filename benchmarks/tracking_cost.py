"""What does recording in MLflow cost a sweep?

The same sweep with recording on and off (the spool and its delivery do nothing then), same seeds, in turns, on SQLite and on
an MLflow server: core-seconds of the sweep's driver and workers, and how many calls the store got for how many reports.

The sweep is of epochs of a third of a second, the worst case; with --mnist of epochs of two or three, as small sweeps are.

    python benchmarks/tracking_cost.py --rounds 5 --json FILE
    python benchmarks/tracking_cost.py --mnist DIR --stores sqlite --rounds 3
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CONFIG_FILE = "config.yaml"
CONFIG = """
name: tracking
model: {name: tiny}
data: {name: digits, validation_fraction: 0.2}
search_space: svd_training
training: {batch_size: 32, pretrain_epochs: 10, epochs: 20, learning_rate: 2.0e-3}
search: {num_trials: 8, max_concurrent: 2}
scheduler: {name: none}
finetune: {num_models: 2, epochs: 5}
tracking: {log_models: false, log_report: false}
"""

MNIST_CONFIG = """
name: tracking
model: {name: lenet5}
data: {name: mnist, root: DIR, max_train: 6000}
search_space: svd_training
training: {batch_size: 100, pretrain_epochs: 3, epochs: 5}
search: {num_trials: 8, max_concurrent: 2}
scheduler: {name: none}
finetune: {num_models: 2, epochs: 3}
tracking: {log_models: false, log_report: false}
"""


def one_sweep(mode: str, folder: Path, uri: str | None, config: str) -> dict[str, Any]:
    """Run the sweep in a process of its own; returns its core-seconds, epochs reported and calls to the store."""
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    if uri is not None:
        environment["MLFLOW_TRACKING_URI"] = uri
    (folder / CONFIG_FILE).write_text(config)
    command = [sys.executable, __file__, "--one", mode, "--folder", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_here(mode: str, folder: Path) -> None:
    """The sweep itself, with what is measured in the last line of its output."""
    from rich.console import Console

    from orchestrator.config import load_config
    from orchestrator.paths import SweepPaths
    from orchestrator.pipeline import run_sweep
    from orchestrator.records import read_records
    from orchestrator.tracking import tracker as module

    calls = 0
    if mode == "off":
        module.Tracker._put = lambda *_, **__: None  # type: ignore[method-assign]
    else:
        from mlflow import MlflowClient  # noqa: TID251  # to count its calls

        log_batch = MlflowClient.log_batch

        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            return log_batch(*arguments, **options)

        MlflowClient.log_batch = counted  # type: ignore[method-assign]
    config_file = folder / CONFIG_FILE
    start = time.perf_counter()
    with (folder / "log").open("w") as log:
        run_sweep(load_config(config_file, []), folder / "out", Console(file=log))
    wall_s = time.perf_counter() - start
    records = read_records(SweepPaths(folder / "out").results)
    driver = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "driver_core_s": driver.ru_utime + driver.ru_stime,
                "training_core_s": sum(record.cpu_s or 0.0 for record in records),
                "reports": sum(record.epochs or 0 for record in records),
                "runs": len(records),
                "log_batch_calls": calls,
                "wall_s": wall_s,
            }
        )
    )


@contextmanager
def server(folder: Path, port: int) -> Iterator[str]:
    """An MLflow server on SQLite."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/server.db",
        "--artifacts-destination",
        str(folder / "files"),
    ]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def summary(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Return, for each store, the paired relative cost of recording and the calls for each report."""
    found: dict[str, Any] = {}
    for store in (name for name in rounds[0] if name != "off"):
        extra = [
            (one[store]["driver_core_s"] - one["off"]["driver_core_s"]) / one["off"]["training_core_s"]
            for one in rounds
        ]
        found[store] = {
            "extra_share_of_training": statistics.median(extra),
            "each": extra,
            "training_core_s": statistics.median(one[store]["training_core_s"] for one in rounds),
            "reports": rounds[0][store]["reports"],
            "runs": rounds[0][store]["runs"],
            "calls_per_report": statistics.median(
                (one[store]["log_batch_calls"] - 2 * one[store]["runs"]) / one[store]["reports"] for one in rounds
            ),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--port", type=int, default=5951)
    parser.add_argument("--mnist", help="folder of torchvision's MNIST: LeNet-5 on 6,000 images in place of digits")
    parser.add_argument("--stores", nargs="*", default=["sqlite", "server"], choices=["sqlite", "server"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", choices=["on", "off"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        run_here(options.one, options.folder)
        return
    config = CONFIG if options.mnist is None else MNIST_CONFIG.replace("DIR", str(Path(options.mnist).absolute()))
    rounds = []
    with tempfile.TemporaryDirectory() as place, server(Path(place), options.port) as uri:
        for number in range(options.rounds + 1):
            one = {}
            for name in ("off", *options.stores):
                folder = Path(place) / f"{number}-{name}"
                folder.mkdir()
                one[name] = one_sweep(
                    "off" if name == "off" else "on", folder, uri if name == "server" else None, config
                )
            print(number, json.dumps(one), flush=True)
            if number > 0:  # the first has cold caches
                rounds.append(one)
    found = summary(rounds)
    print(json.dumps(found, indent=1))
    if options.json is not None:
        options.json.write_text(json.dumps({"rounds": rounds, "summary": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
