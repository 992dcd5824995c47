"""What `rankfront doctor` finds, on a real cluster of one node, and the arithmetic of its estimate."""

from dataclasses import replace
from pathlib import Path

import pytest
from programs import RANKFRONT
from test_cli import CONFIG

from orchestrator.config import FinetuneConfig, ResourcesConfig, SearchConfig
from orchestrator.doctor import examine
from orchestrator.estimate import Timing, room, total
from trainers.config import TrainingConfig


def findings(config, output):
    return {finding.what: finding for finding in examine(config, output)}


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        (ResourcesConfig(), 12),
        (ResourcesConfig(cpus_per_trial=3), 2),
        (ResourcesConfig(gpus_per_trial=1.0), 3),
        (ResourcesConfig(gpus_per_trial=0.4), 6),  # two on each GPU, not five on two of them
        (ResourcesConfig(gpus_per_trial=2.0), 1),
        (ResourcesConfig(gpus_per_trial="auto"), 3),
        (ResourcesConfig(workers_per_trial=5), 2),  # on several nodes
        (ResourcesConfig(workers_per_trial=2, gpus_per_trial=1), 1),
    ],
)
def test_trials_that_fit_on_the_nodes_at_once(resources, expected):
    nodes = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 2.0, "GPU": 1.0}, {"CPU": 2.0}]
    assert room(nodes, resources) == expected


def test_the_cost_of_a_sweep_is_that_of_all_its_runs(small_sweep):
    config = replace(
        small_sweep,
        training=TrainingConfig(pretrain_epochs=4, epochs=2),
        search=SearchConfig(num_trials=10),
        finetune=FinetuneConfig(num_models=3, epochs=5, repeats=2),
    )
    found = total(config, Timing(batch_s=1.0, evaluation_s=10.0, curve_s=40.0), 90, num_starts=2, at_once=4)
    epoch_s = 100.0
    stage_one, trial, tuning, baseline = 4 * epoch_s, 2 * epoch_s + 40, 5 * epoch_s, 11 * epoch_s
    assert 3600 * found.worker_hours == pytest.approx(2 * stage_one + 10 * trial + 6 * tuning + baseline)
    last = max(baseline, (6 * tuning + baseline) / 4)
    assert 3600 * found.wall_hours == pytest.approx(stage_one + 3 * trial + last)
    assert "with 4 at once" in str(found)
    assert "all by one worker where a trial has 3" in str(replace(found, workers=3))


@pytest.mark.ray
def test_a_sweep_that_can_run_is_found_well_and_nothing_is_left(ray_cluster, small_sweep, tmp_path):
    found = findings(small_sweep, tmp_path / "runs" / "sweep")
    assert {finding.state for finding in found.values()} == {"ok"}, found
    assert list(found) == ["configuration", "output directory", "MLflow", "Ray", "node", "resources", "cost"]
    assert "ms a batch" in found["cost"].text
    assert not list(tmp_path.iterdir())


@pytest.mark.ray
def test_each_thing_that_is_missing_is_named(ray_cluster, small_sweep, tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql+psycopg://me:secret@127.0.0.1:1/none")
    monkeypatch.setattr("orchestrator.doctor._versions", lambda: {"python": "2.7"})  # the nodes say their own
    wide = replace(small_sweep, search=replace(small_sweep.search, max_concurrent=64))
    found = findings(wide, tmp_path)
    assert found["output directory"].state == found["MLflow"].state == found["node"].state == "problem"
    assert "secret" not in found["MLflow"].text
    assert "2.7 here" in found["node"].text
    assert found["resources"].state == "warning"
    hungry = replace(small_sweep, resources=ResourcesConfig(cpus_per_trial=64))
    assert "a trial needs 64 CPU" in findings(hungry, tmp_path / "new")["Ray"].text
    many = replace(small_sweep, resources=ResourcesConfig(workers_per_trial=8))
    assert "each of the 8 workers of a trial needs 1 CPU" in findings(many, tmp_path / "new")["Ray"].text


@pytest.mark.ray
def test_the_verb_ends_with_one_where_something_is_missing(tmp_path):
    import subprocess

    config = tmp_path / "sweep.yaml"
    config.write_text(CONFIG)
    command = [RANKFRONT, "doctor", str(config), "--output", str(tmp_path / "out"), "--set", "data.name=mnist"]
    command += ["--set", f"data.root={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("problem  configuration: ")
    assert not Path(tmp_path / "out").exists()
