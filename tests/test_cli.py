"""The command line as a user runs it: a process of its own, killed and interrupted."""

import json
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from programs import RANKFRONT

from orchestrator.paths import SweepPaths
from orchestrator.records import read_records

CONFIG = """
name: cli
model: {name: tiny}
data: {name: digits, validation_fraction: 0.2}
search_space: spaces:quick
training: {batch_size: 64, pretrain_epochs: 2, epochs: 30, learning_rate: 2.0e-3}
search: {num_trials: 4, max_concurrent: 2}
scheduler: {name: none}
finetune: {num_models: 2, epochs: 2}
tracking: {log_models: false, log_report: false}
"""
LIMIT_S = 240


def rankfront(*arguments, **options):
    return subprocess.run(
        [RANKFRONT, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=LIMIT_S, **options
    )


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "cli.yaml"
    path.write_text(CONFIG)
    return path


def test_validate_prints_the_resolved_config_and_trains_nothing(config, tmp_path):
    done = rankfront("validate", config, "--set", "search.num_trials=9", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "num_trials: 9" in done.stdout
    assert "# runs of stage 1 that the search space needs: pretrain-channel" in done.stdout
    assert "903,808 MACs (1,807,616 FLOPs), 56,554 parameters" in done.stdout
    assert "aten.native_batch_norm" in done.stdout
    assert "#   3 (Conv2d, 18,432): factorized\n" in done.stdout
    assert "#   4 (BatchNorm2d, 128): skipped, not a linear" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["cli.yaml"]


def test_a_space_in_the_current_folder_is_found_and_a_broken_one_is_an_error(config, tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    config.write_text(CONFIG.replace("spaces:quick", "mine:space"))
    (tmp_path / "mine.py").write_text("def space(trial):\n    return {'decomposition': 'spatial'}\n")
    done = rankfront("validate", "cli.yaml", cwd=tmp_path, env=environment)
    assert "needs: pretrain-spatial" in done.stdout, done.stderr
    (tmp_path / "mine.py").write_text("def space(trial)\n")
    done = rankfront("validate", "cli.yaml", cwd=tmp_path, env=environment)
    assert done.returncode == 2
    assert "SyntaxError" in done.stderr
    assert "Traceback" not in done.stderr


def test_errors_have_no_traceback_and_exit_code_2(config, tmp_path):
    config.write_text(CONFIG + "nonsense: 1\n")
    done = rankfront("sweep", config, "--set", "search.num_trials=0", "--output", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "The configuration is not valid:",
        f"  {config}: search.num_trials: must be >= 1, but got 0",
        f"  {config}:11: nonsense: unknown key 'nonsense'; known: name, model, data, search_space, factorization, latency, "
        "training, search, curve, scheduler, stop, finetune, resources, tracking",
    ]
    assert not (tmp_path / "out").exists()
    done = rankfront("front", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
    assert "must be the output directory of a sweep" in done.stderr
    done = rankfront("ui", tmp_path)
    assert (done.returncode, "mlflow.db" in done.stderr) == (2, True)


def wait_for(condition, process, what):
    for _ in range(LIMIT_S * 10):
        if condition():
            return
        assert process.poll() is None, f"ended with {process.returncode} before {what}"
        time.sleep(0.1)
    raise AssertionError(f"not within {LIMIT_S} s: {what}")


def mid_search(output):
    """Some trial has ended and another has written a checkpoint."""
    done = list(output.glob("runs/trial-*/model.pt"))
    return done and list(output.glob("runs/trial-*/checkpoint.pt"))


@pytest.mark.ray
@pytest.mark.parametrize(
    "ending",
    # test_chaos kills a driver too
    [signal.SIGTERM, *(pytest.param(kind, marks=pytest.mark.slow) for kind in (signal.SIGKILL, signal.SIGINT))],
)
def test_a_sweep_that_is_stopped_goes_on_where_it_was(config, tmp_path, ending):
    output = tmp_path / "out"
    command = [RANKFRONT, "sweep", str(config), "--output", str(output)]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_for(lambda: mid_search(output), process, "a trial has ended")
            os.killpg(process.pid, ending)  # as a terminal does: to the driver and all that share its group
            code = process.wait(LIMIT_S)
        finally:
            process.kill()
    printed = (tmp_path / "log").read_text()
    if ending == signal.SIGKILL:
        assert code == -signal.SIGKILL
    else:
        assert code == 130, printed
        assert f"Go on with:\n  rankfront resume {output}" in printed
        assert "Traceback" not in printed
    ended = {record.name: record for record in read_records(SweepPaths(output).results)}
    finished_files = {path: path.stat().st_mtime_ns for path in output.glob("runs/*/model.pt")}

    done = rankfront("resume", output)
    assert done.returncode == 0, done.stderr
    records = {record.name: record for record in read_records(SweepPaths(output).results)}
    trials = [name for name, record in records.items() if record.stage == "trial"]
    assert len(trials) == 4
    assert {record.state for record in records.values()} == {"COMPLETE"}
    for name, record in ended.items():  # only the run's id in MLflow may have come later
        assert records[name] == replace(record, run_id=record.run_id or records[name].run_id)
    assert all(path.stat().st_mtime_ns == changed for path, changed in finished_files.items())
    assert_mlflow_agrees(output, records)

    shown = rankfront("front", output, "--format", "json")
    points = json.loads(shown.stdout)
    assert points == json.loads((output / "front.json").read_text())
    assert {point["name"] for point in points["finalists"]} == {n for n, r in records.items() if r.stage == "finetune"}
    assert "Finalists, after fine-tuning" in rankfront("front", output).stdout


def assert_mlflow_agrees(output, records):
    """One run each, finished, with each epoch once: nothing lost, nothing double."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{output}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("cli").experiment_id])
    names = sorted(run.data.tags["mlflow.runName"] for run in runs)
    assert names == sorted([*records, "cli"])
    assert {run.info.status for run in runs} == {"FINISHED"}
    for record in records.values():
        history = client.get_metric_history(record.run_id, "val_accuracy")
        assert [metric.step for metric in history] == list(range(1, record.epochs + 1))
        assert history[-1].value == record.val_accuracy
        assert client.get_run(record.run_id).data.tags["mlflow.runName"] == record.name


@pytest.mark.ray
def test_a_worker_that_is_killed_is_replaced_and_goes_on_from_its_checkpoint(config, tmp_path):
    """The trial's process dies; the trial does not, and its epochs are trained once."""
    output = tmp_path / "out"
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [RANKFRONT, "sweep", str(config), "--output", str(output), "--set", "search.num_trials=2"],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            wait_for(lambda: list(output.glob("runs/trial-*/checkpoint.pt")), process, "a trial has begun")
            os.kill(trial_worker(process.pid), signal.SIGKILL)
            code = process.wait(LIMIT_S)
        finally:
            process.kill()
    assert code == 0, (tmp_path / "log").read_text()
    records = {record.name: record for record in read_records(SweepPaths(output).results)}
    assert {record.state for record in records.values()} == {"COMPLETE"}
    assert_mlflow_agrees(output, records)


def trial_worker(driver):
    """The process id of one of Tune's actors below `driver`, found by its title."""
    children = {}
    titles = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                titles[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
            children.setdefault(parent, []).append(int(folder.name))
    below, queue = [], [driver]
    while queue:
        queue += (found := children.get(queue.pop(), []))
        below += found
    return next(pid for pid in below if titles[pid].startswith("ray::ImplicitFunc"))
