"""Kill a part of a running sweep at random moments, resume it, and compare with what it finds undisturbed.

python tests/chaos.py --victims driver worker --kills 20 --json FILE --markdown FILE
"""

import argparse
import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from mlflow import MlflowClient
from optuna.trial import TrialState
from programs import RANKFRONT
from servers import Postgres, end, free_port, mlflow_server
from sweeps import comparable

from orchestrator.config import load_config
from orchestrator.front import read_front
from orchestrator.paths import SweepPaths
from orchestrator.records import read_records
from orchestrator.study import recorded_trials

CONFIG = """
name: chaos
model: {name: tiny}
data: {name: digits, validation_fraction: 0.2}
search_space: spaces:quick
training: {batch_size: 64, pretrain_epochs: 3, epochs: 4, learning_rate: 2.0e-3}
search: {num_trials: 12, max_concurrent: 1}
curve: {num_points: 3, recovery_steps: 2}
scheduler: {grace_period: 2, exempt_share: 0}
finetune: {num_models: 2, epochs: 4}
resources: {share_stage_one: false, max_retries: 20}
tracking: {log_models: false, log_report: false}
"""
LIMIT_S = 900


class Sweep:
    """A sweep in `folder` as processes of the command line, one after another."""

    def __init__(self, folder, config=CONFIG, **environment):
        folder.mkdir(parents=True, exist_ok=True)
        self.output, self.log = folder / "sweep", folder / "log"
        self._config, self._environment = folder / "sweep.yaml", {**os.environ, **environment}
        self._config.write_text(config)
        self._environment["PYTHONPATH"] = os.pathsep.join(
            [str(Path(__file__).parent), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        )
        self.process, self.num_starts, self.num_syncs = None, 0, 0

    def start(self):
        """Begin it, or take it up from its output directory alone."""
        begun = SweepPaths(self.output).config.exists()
        command = ["resume", self.output] if begun else ["sweep", self._config, "--output", self.output]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [RANKFRONT, *map(str, command)], stdout=log, stderr=log, start_new_session=True, env=self._environment
            )
        self.num_starts += 1

    def kill(self, *, wait=False):
        """Kill the driver, and `wait` for the workers that it leaves: they notice a moment later, and write until then."""
        left = below(self.process.pid) if wait else {}
        self.process.kill()
        self.process.wait()
        while left.keys() & processes().keys():
            time.sleep(0.05)

    def running(self):
        return self.process.poll() is None

    def finish(self):
        """Wait for the end of a sweep that nobody disturbs any more; one that a fault has ended is resumed.

        Where MLflow was away at the very end, what it has missed is sent as the sweep's last message says.
        """
        for _ in range(2):
            if self.process.wait(LIMIT_S) != 0:
                self.start()
        assert self.process.wait(LIMIT_S) == 0, self.log.read_text()
        if f"`rankfront sync {self.output}`" in self.log.read_text():
            command = [RANKFRONT, "sync", str(self.output)]
            subprocess.run(command, check=True, timeout=LIMIT_S, env=self._environment)
            self.num_syncs += 1

    def wait_for(self, pattern):
        """Return when a file of that pattern is there; the process must not end before."""
        limit = time.monotonic() + LIMIT_S
        while not list(self.output.glob(pattern)):
            assert self.running(), f"ended with {self.process.returncode} before {pattern}:\n{self.log.read_text()}"
            assert time.monotonic() < limit, f"{pattern} is not there after {LIMIT_S} s:\n{self.log.read_text()}"
            time.sleep(0.02)


def found(output, store=None):
    """All that has to be equal after any kills: runs, study, front, and what MLflow holds of each; nothing is running.

    The front's hypervolume is read off MLflow after each trial, so that a lost or doubled step shows.
    """
    paths = SweepPaths(output)
    records = {record.name: record for record in read_records(paths.results)}
    trials = recorded_trials(paths.study)[1]
    assert not [trial.number for trial in trials if trial.state in (TrialState.RUNNING, TrialState.WAITING)]
    client = MlflowClient(store or f"sqlite:///{paths.mlflow_db}")
    sweep_id = json.loads(paths.state.read_text())["sweep_id"]
    experiment = client.get_experiment_by_name(load_config(paths.config).name).experiment_id
    runs = client.search_runs([experiment], f"tags.sweep_id = '{sweep_id}'")
    names = [run.data.tags["mlflow.runName"] for run in runs]
    assert sorted(names) == sorted([*records, "chaos"]), "a run of MLflow is missing or double"
    states = {name: (run.info.status, run.data.tags.get("error")) for name, run in zip(names, runs, strict=True)}
    assert {status for status, _ in states.values()} == {"FINISHED"}, states
    by_name = dict(zip(names, runs, strict=True))
    histories = {}
    for name, record in records.items():
        assert by_name[name].info.run_id == record.run_id, f"the id of {name} in the table"
        history = client.get_metric_history(record.run_id, "val_accuracy")
        assert [metric.step for metric in history] == list(range(1, record.epochs + 1)), f"epochs of {name} in MLflow"
        histories[name] = [metric.value for metric in history]
    front = read_front(output)
    curve = client.get_metric_history(by_name["chaos"].info.run_id, "hypervolume")
    return {
        "runs": comparable(output),
        "study": [(trial.number, trial.state.name, trial.params, trial.values) for trial in trials],
        "front": [point.name for point in front.front],
        "finalists": [(point.name, point.test_accuracy) for point in front.finalists],
        "hypervolume": sorted((metric.step, metric.value) for metric in curve),
        "histories": histories,
    }


def processes():
    """The parent and the title of each process of this machine, by its id."""
    there = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
                if state != "Z":
                    there[int(folder.name)] = int(parent), (folder / "cmdline").read_text().replace("\0", " ")
    return there


def below(process):
    """The titles of the processes that `process` has started, and those have, by their ids."""
    there, titles, queue = processes(), {}, [process]
    while queue:
        parent = queue.pop()
        mine = {pid: title for pid, (its, title) in there.items() if its == parent}
        titles |= mine
        queue += mine
    return titles


class Driver:
    """The sweep's own process. Nobody else dies with it at once: its workers notice a moment later."""

    environment, store = {}, None

    def kill(self, sweep):
        sweep.kill()
        sweep.start()
        return True

    def close(self):
        pass


class Worker(Driver):
    """A process that trains."""

    def kill(self, sweep):
        training = [
            pid for pid, title in below(sweep.process.pid).items() if title.startswith(("ray::Impl", "ray::_task"))
        ]
        for pid in training[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(training)


class Raylet(Driver):
    """The raylet of a cluster's only node that trains; a new node takes its place."""

    def __init__(self):
        self._folder = Path(tempfile.mkdtemp(prefix="rk", dir="/tmp"))  # short: Ray's sockets lie below it
        self._own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
        self._address, self._log = f"127.0.0.1:{free_port()}", (self._folder / "log").open("w")
        self.environment = {**self._own, "RAY_ADDRESS": self._address}
        options = {"head": "", "port": self._address.rpartition(":")[2], "num-cpus": 0, "include-dashboard": "false"}
        self._head, self._node = self._start(**options), None
        self._wait()
        self._join()

    def _start(self, **options):
        ray = Path(sys.executable).parent / "ray"
        options |= {"temp-dir": self._folder, "object-store-memory": 100_000_000, "node-ip-address": "127.0.0.1"}
        if "address" in options:
            del options["temp-dir"]
        given = [f"--{name}={value}" if value != "" else f"--{name}" for name, value in options.items()]
        return subprocess.Popen(
            [str(ray), "start", "--block", *given], stdout=self._log, stderr=self._log, start_new_session=True,
            env={**os.environ, **self._own, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def _wait(self):
        ray, limit = Path(sys.executable).parent / "ray", time.monotonic() + 120
        command = [str(ray), "health-check", "--address", self._address]
        while subprocess.run(command, env={**os.environ, **self._own}, capture_output=True, check=False).returncode:
            assert time.monotonic() < limit, (self._folder / "log").read_text()

    def _join(self):
        self._node = self._start(**{"address": self._address, "num-cpus": 1})

    def kill(self, sweep):
        raylets = [pid for pid, title in below(self._node.pid).items() if "/raylet/raylet " in title]
        for pid in raylets:
            os.kill(pid, signal.SIGKILL)
        if raylets:
            end(self._node)
            self._join()
        return bool(raylets)

    def close(self):
        end(self._node)
        end(self._head)
        self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class MlflowServer(Driver):
    """An MLflow server on SQLite, all its processes; it is back after a few seconds."""

    def __init__(self):
        self._folder, self._port = Path(tempfile.mkdtemp(prefix="rankfront-mlflow-")), free_port()
        self.store = f"http://127.0.0.1:{self._port}"
        self.environment = {"MLFLOW_TRACKING_URI": self.store}
        self._there = ExitStack()
        self._start()

    def _start(self):
        self._there.enter_context(mlflow_server(f"sqlite:///{self._folder}/server.db", self._folder, port=self._port))

    def kill(self, sweep):
        for pid in (pid for pid, (_, title) in processes().items() if f"--port {self._port} " in title):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # the first of them leads the group
        self._there.close()
        self._start()
        return True

    def close(self):
        self._there.close()
        shutil.rmtree(self._folder)


class Database(Driver):
    """PostgreSQL, which the driver writes to itself."""

    def __init__(self):
        self._server = Postgres()
        self._server.start()
        self.store = self._server.uri
        self.environment = {"MLFLOW_TRACKING_URI": self.store}

    def kill(self, sweep):
        self._server.kill()
        limit = time.monotonic() + LIMIT_S
        while True:
            try:
                self._server.start()
            except AssertionError:  # its other processes are still there
                assert time.monotonic() < limit
                time.sleep(0.2)
            else:
                return True

    def close(self):
        self._server.close()


VICTIMS = {"driver": Driver, "worker": Worker, "raylet": Raylet, "mlflow": MlflowServer, "postgres": Database}


def undisturbed(folder, config=CONFIG):
    """Run the sweep in peace; returns what it found and how long it took, in seconds."""
    sweep, started = Sweep(folder, config), time.monotonic()
    sweep.start()
    sweep.finish()
    return found(sweep.output), time.monotonic() - started


def disturbed(victim, kills, per_sweep, seed, folder, expected, duration_s, config=CONFIG):
    """Kill the victim `kills` times, at moments that are uniform over a sweep's duration; returns a row of the table.

    Each sweep has `per_sweep` of them and is then left to end; AssertionError unless it has found what is expected.
    """
    moments, row = random.Random(seed), {"victim": victim, "kills": 0, "sweeps": 0, "starts": 0, "syncs": 0, "equal": 0}
    killer, started = VICTIMS[victim](), time.monotonic()
    longest = (
        duration_s if victim == "driver" else 2 * duration_s / (per_sweep + 1)
    )  # a new driver begins with its imports
    try:
        while row["kills"] < kills:
            sweep = Sweep(folder / f"{victim}-{row['sweeps']}", config, **killer.environment)
            sweep.start()
            for _ in range(min(per_sweep, kills - row["kills"])):
                until = time.monotonic() + moments.uniform(0, longest)
                while time.monotonic() < until and sweep.running():
                    time.sleep(0.05)
                while sweep.running() and not killer.kill(sweep):
                    time.sleep(0.05)
                row["kills"] += sweep.running()
            sweep.finish()
            row["sweeps"], row["starts"] = row["sweeps"] + 1, row["starts"] + sweep.num_starts
            row["syncs"] += sweep.num_syncs
            outcome = found(sweep.output, killer.store)
            for what, value in expected.items():
                assert outcome[what] == value, f"{what} after kills of {victim} in {sweep.output}"
            row["equal"] += 1
    finally:
        killer.close()
    return {**row, "duration_s": round(time.monotonic() - started)}


def table(rows):
    """The rows as a Markdown table."""
    lines = [
        "| killed | kills | sweeps | starts | sent afterwards | sweeps equal to the undisturbed one | duration |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            *(row[key] for key in ("victim", "kills", "sweeps", "starts", "syncs", "equal")),
            f"{row['duration_s']} s",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--victims", nargs="+", choices=VICTIMS, default=list(VICTIMS))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--per-sweep", type=int, default=4)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--markdown", type=Path, help="file for the table")
    options = parser.parse_args()
    config = CONFIG.replace("num_trials: 12", f"num_trials: {options.trials}")
    folder = Path(tempfile.mkdtemp(prefix="rankfront-chaos-"))
    expected, duration_s = undisturbed(folder / "undisturbed", config)
    print(f"undisturbed: {len(expected['runs'])} runs in {duration_s:.0f} s", flush=True)
    rows = []
    for victim in options.victims:
        how = (options.kills, options.per_sweep, options.seed)
        rows.append(disturbed(victim, *how, folder, expected, duration_s, config))
        print(table(rows[-1:]).splitlines()[-1], flush=True)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1) + "\n")
        if options.markdown:
            options.markdown.write_text(table(rows))
    shutil.rmtree(folder)  # after a failure it stays, to be looked at
    print(table(rows))


if __name__ == "__main__":
    main()
