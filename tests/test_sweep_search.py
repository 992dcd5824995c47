"""What a search makes of its trials, in whole sweeps on digits."""

import json
import shutil
from dataclasses import replace

import pytest
from mlflow import MlflowClient
from optuna.trial import TrialState
from sweeps import comparable, run, study_states, study_trials, trials_of

from orchestrator.config import SchedulerConfig, StopConfig
from orchestrator.output import change_state
from orchestrator.paths import SweepPaths
from orchestrator.records import Table, read_records
from orchestrator.scheduler import make_scheduler
from orchestrator.study import ADDED
from trainers.config import CurveConfig, DistillationConfig
from trainers.saved_model import load_model

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def test_a_sweep_over_methods_shares_stage_one_and_finetunes_with_a_teacher(small_sweep, tmp_path):
    output = tmp_path / "methods"
    config = replace(
        small_sweep,
        search_space="spaces:every_method",
        search=replace(small_sweep.search, num_trials=10),
        finetune=replace(small_sweep.finetune, distillation=DistillationConfig(weight=0.5)),
    )
    front = run(config, output)
    rows = {row["name"]: row for row in comparable(output)}
    assert {row["state"] for row in rows.values()} == {"COMPLETE"}
    stage_one = {name for name, row in rows.items() if row["stage"] == "pretrain"}
    assert stage_one == {"pretrain-channel", "pretrain-dense", "pretrain-lorita2-channel"}
    starts = {"svd_training": "pretrain-channel", "lorita": "pretrain-lorita2-channel"}
    trials = [row for row in rows.values() if row["stage"] == "trial"]
    assert len({row["method"] for row in trials}) >= 4
    for row in trials:
        source = row["source"]
        while source not in stage_one:  # it goes on from a trial of its own method
            assert rows[source]["method"] == row["method"]
            source = rows[source]["source"]
        assert source == starts.get(row["method"], "pretrain-dense")
        assert (row["budget"] == 0.5) == (row["rank_rule"] == "equal_error")
        if row["budget"] is not None:
            assert row["macs_ratio"] <= 0.5
        assert 0 < row["val_macro_f1"] <= 1
    for point in front.finalists:
        assert rows[point.name]["test_top5_accuracy"] >= rows[point.name]["test_accuracy"] == point.test_accuracy
        saved = load_model(SweepPaths(output).run(point.name) / "model.pt")
        assert saved.config["distillation"]["weight"] == 0.5
    client = MlflowClient(f"sqlite:///{output}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("small").experiment_id], "tags.stage = 'trial'")
    assert {found.data.tags["method"] for found in runs} == {row["method"] for row in trials}


def test_a_trial_whose_loss_is_nan_ends_fail_and_the_sweep_goes_on(small_sweep, tmp_path):
    output = tmp_path / "nan"
    curve = CurveConfig(num_points=0)  # cuts in the study would shift the numbers that the space goes by
    front = run(replace(small_sweep, search_space="spaces:sometimes_diverges", curve=curve), output)
    rows = {row["name"]: row for row in comparable(output)}
    assert {rows[name]["state"] for name in ("trial-0000", "trial-0002")} == {"FAIL"}
    assert "NonFiniteError: the loss must stay finite" in rows["trial-0000"]["error"]
    assert {rows[name]["state"] for name in ("trial-0001", "trial-0003")} == {"COMPLETE"}
    assert study_states(output) == [TrialState.FAIL, TrialState.COMPLETE] * 2
    assert {point.name for point in front.front} <= {"trial-0001", "trial-0003"}
    assert front.finalists
    client = MlflowClient(f"sqlite:///{output}/mlflow.db")
    failed = {record.name: record for record in read_records(SweepPaths(output).results)}["trial-0000"]
    found = client.get_run(failed.run_id)
    assert found.info.status == "FAILED"
    assert "NonFiniteError" in found.data.tags["error"]
    assert found.data.tags["state"] == "FAIL"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, ray_cluster, small_sweep):
    output = tmp_path_factory.mktemp("stopped") / "sweep"
    # from stage 1: one that learns nothing is not behind where it starts from the best
    search = replace(small_sweep.search, num_trials=10, continuation=0, seed=4)  # whose draws are of both kinds
    scheduler = SchedulerConfig(grace_period=1, reduction_factor=3, exempt_share=0, min_trials=2)
    config = replace(
        small_sweep,
        search_space="spaces:sometimes_idle",
        search=search,
        curve=CurveConfig(num_points=2, largest=0.8, smallest=0.4),
        scheduler=scheduler,
    )
    return output, config, run(config, output)


class TestStoppedTrials:
    def test_a_trial_that_is_behind_everywhere_is_pruned_and_told_so(self, stopped):
        output, _, front = stopped
        pruned = [record for record in trials_of(output) if record.state == "PRUNED"]
        told = [trial for trial in study_trials(output) if trial.state == TrialState.PRUNED]
        assert {record.name for record in pruned} == {trial.user_attrs["run"] for trial in told} != set()
        assert TrialState.RUNNING not in study_states(output)
        assert {trial.user_attrs["epochs"] for trial in told} == {record.epochs for record in pruned} == {1}
        client = MlflowClient(f"sqlite:///{output}/mlflow.db")
        for record in pruned:
            assert json.loads(record.settings)["learning_rate"] == 1e-9
            assert not (SweepPaths(output).run(record.name) / "model.pt").exists()
            found = client.get_run(record.run_id)
            assert (found.info.status, found.data.tags["state"]) == ("FINISHED", "PRUNED")
        assert not {record.name for record in pruned} & {point.name.partition("-cut-")[0] for point in front.front}

    def test_a_stopped_trial_is_not_run_again_and_counts_at_its_rung(self, stopped, tmp_path):
        output, config, front = stopped
        before = comparable(output)
        assert run(config, output) == front
        assert comparable(output) == before
        scheduler = make_scheduler(config, trials_of(output))
        assert scheduler.halving.num_recorded() == {1: 10}


def test_a_stop_rule_ends_the_search_and_the_final_stage_follows(small_sweep, tmp_path):
    output = tmp_path / "target"
    config = replace(
        small_sweep, stop=StopConfig(target_accuracy=0.05), search=replace(small_sweep.search, num_trials=20)
    )
    front = run(config, output)
    assert 1 <= len(trials_of(output)) <= 2
    assert front.finalists
    assert TrialState.RUNNING not in study_states(output)
    longer = replace(config, stop=StopConfig(), search=replace(config.search, num_trials=3))
    run(longer, output)
    assert len(trials_of(output)) == 3


def test_another_sweep_in_the_same_folder_takes_stage_one_over(finished, tmp_path):
    output, config, _ = finished
    (first,) = [record for record in read_records(SweepPaths(output).results) if record.stage == "pretrain"]
    sibling = output.parent / "sibling"
    run(replace(config, search=replace(config.search, num_trials=1)), sibling)
    (second,) = [record for record in read_records(SweepPaths(sibling).results) if record.stage == "pretrain"]
    assert (second.ended_at_s, second.val_accuracy) == (first.ended_at_s, first.val_accuracy)


def test_trials_go_on_from_the_best_finished_one_and_say_so(small_sweep, tmp_path):
    output = tmp_path / "continued"
    config = replace(small_sweep, search=replace(small_sweep.search, num_trials=3, continuation=1))
    front = run(config, output)
    trials = {record.name: record for record in trials_of(output)}
    assert {record.state for record in trials.values()} == {"COMPLETE"}
    # the first alone may be gone on from: the others went through another trial before
    assert [record.source for record in trials.values()] == ["pretrain-channel", "trial-0000", "trial-0000"]
    first, second, _ = trials.values()
    start = load_model(SweepPaths(output).run(second.name) / "model.pt").config["start"]
    assert start["config"] == load_model(SweepPaths(output).run(first.name) / "model.pt").config
    client = MlflowClient(f"sqlite:///{output}/mlflow.db")
    assert client.get_run(second.run_id).data.tags["source_run_id"] == first.run_id
    assert front.finalists
    rows = read_records(SweepPaths(output).results)
    (dense,) = [record for record in rows if record.stage == "dense"]
    sources = {record.source for record in rows if record.stage == "finetune"}
    longest = 1 if sources == {"trial-0000"} else 2
    assert dense.epochs == 2 + longest * 2 + 1  # as many as the finalist that was trained for longest


def test_a_baseline_that_has_begun_stays_as_long_as_it_was_to_be(finished, tmp_path):
    """The checkpoint of one that was cut off is of a run of that length, whatever the front has become since."""
    output, config, _ = finished
    shutil.copytree(output, tmp_path / "copy")
    paths = SweepPaths(tmp_path / "copy")
    rows = read_records(paths.results)
    Table(paths.results).write([row for row in rows if row.stage != "dense"])
    shutil.rmtree(paths.run("dense"))
    change_state(paths, finished=False, baseline_trials=3)
    run(config, paths.root)
    (dense,) = [row for row in read_records(paths.results) if row.stage == "dense"]
    training = config.training
    assert dense.epochs == training.pretrain_epochs + 3 * training.epochs + config.finetune.epochs


def test_two_trials_at_once_are_all_written_down(small_sweep, tmp_path):
    output = tmp_path / "two"
    search = replace(small_sweep.search, num_trials=5, max_concurrent=2)
    run(replace(small_sweep, search=search), output)
    assert study_states(output) == [TrialState.COMPLETE] * 5
    runs = {record.name: record for record in trials_of(output)}
    assert len(runs) == 5
    for trial in study_trials(output):
        if ADDED not in trial.user_attrs:
            assert trial.values == [runs[trial.user_attrs["run"]].score, runs[trial.user_attrs["run"]].macs]
