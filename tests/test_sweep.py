"""The whole job on digits: real Ray, real Optuna, real MLflow, real training."""

import fcntl
import json
import shutil
from dataclasses import asdict, replace

import pytest
import torch
from mlflow import MlflowClient
from optuna.trial import TrialState
from rich.console import Console

from orchestrator.config import SchedulerConfig, StopConfig, load_config
from orchestrator.paths import SweepPaths
from orchestrator.pipeline import run_sweep
from orchestrator.records import read_records, write_records
from orchestrator.scheduler import make_scheduler
from orchestrator.study import ADDED, open_study
from trainers.config import CurveConfig, DataConfig, DistillationConfig
from trainers.cost import measure_cost
from trainers.data import load_test
from trainers.errors import ConfigError, DataError, SweepError
from trainers.recipe import evaluate_model_file
from trainers.saved_model import load_model

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

# what differs between two equal sweeps: when and how long they ran, and MLflow's ids
NOT_COMPARED = ("run_id", "duration_s", "cpu_s", "ended_at_s")


def run(config, output):
    with open(output.with_suffix(".log"), "w") as log:
        return run_sweep(config, output, Console(file=log))


def comparable(output):
    rows = [asdict(record) for record in read_records(SweepPaths(output).results)]
    return sorted(
        ({key: value for key, value in row.items() if key not in NOT_COMPARED} for row in rows),
        key=lambda row: row["name"],
    )


def study_trials(output):
    return open_study(SweepPaths(output).study, "small", 0).trials


def study_states(output):
    """The states of the trials that were run; those of curve points are left out."""
    return [trial.state for trial in study_trials(output) if ADDED not in trial.user_attrs]


def trials_of(output):
    return [record for record in read_records(SweepPaths(output).results) if record.stage == "trial"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, ray_cluster, small_sweep):
    """A finished sweep: its output directory and what it returned."""
    output = tmp_path_factory.mktemp("finished") / "sweep"
    return output, small_sweep, run(small_sweep, output)


class TestFinishedSweep:
    def test_every_run_is_one_complete_row(self, finished):
        output, _, front = finished
        rows = {row["name"]: row for row in comparable(output)}
        trials = [name for name in rows if rows[name]["stage"] == "trial"]
        assert len(trials) == 4
        finetunes = [point.name for point in front.finalists]
        assert sorted(rows) == sorted(["pretrain-channel", *trials, *finetunes, "dense"])
        assert 1 <= len(finetunes) <= 2
        assert {row["state"] for row in rows.values()} == {"COMPLETE"}
        assert rows["dense"]["epochs"] == 2 + 2 + 1
        assert rows[trials[0]]["source"] == "pretrain-channel"
        assert rows[trials[0]]["layers"] == ["0", "3", "6", "11"]
        assert len(rows[trials[0]]["ranks"]) == 4
        assert rows[finetunes[0]]["source"] == finetunes[0].replace("finetune", "trial").partition("-cut-")[0]

    def test_the_test_split_is_seen_by_the_final_stage_alone(self, finished):
        output, _, _ = finished
        tested = {row["stage"] for row in comparable(output) if row["test_accuracy"] is not None}
        assert tested == {"finetune", "dense"}
        assert all(row["test_accuracy"] is not None for row in comparable(output) if row["stage"] in tested)

    def test_reported_figures_are_those_of_the_saved_models(self, finished, digits):
        output, config, front = finished
        test = load_test(config.data, digits)
        for point in [*front.finalists, front.dense]:
            file = SweepPaths(output).run(point.name) / "model.pt"
            cost = measure_cost(load_model(file).model, (1, 8, 8))
            assert (cost.macs, cost.params) == (point.macs, point.params)
            assert evaluate_model_file(file, test, torch.device("cpu"))["accuracy"] == point.test_accuracy
            assert point.macs_ratio == point.macs / front.dense.macs

    def test_the_study_has_each_trial_complete(self, finished):
        output, _, _ = finished
        assert study_states(output) == [TrialState.COMPLETE] * 4

    def test_each_cut_of_a_curve_is_a_trial_of_the_study_with_its_threshold_and_values(self, finished):
        output, _, _ = finished
        added = [trial for trial in study_trials(output) if ADDED in trial.user_attrs]
        found = {(trial.user_attrs["source"], trial.params["energy"], *trial.values) for trial in added}
        expected = set()
        for record in trials_of(output):
            cuts = [cut for cut in json.loads(record.curve) if cut["epoch"] == record.epochs]
            assert (cuts[0]["settings"], cuts[0]["macs"], cuts[0]["score"]) == ({}, record.macs, record.score)
            expected |= {(record.name, cut["settings"]["energy"], cut["score"], cut["macs"]) for cut in cuts[1:]}
        assert len(added) >= 4
        assert found == {point for point in expected if 0.01 <= point[1] <= 0.6}  # those that the space could choose

    def test_a_curve_is_one_artifact_of_its_trial_that_mlflow_shows_as_a_table(self, finished):
        output, _, _ = finished
        client = MlflowClient(f"sqlite:///{output}/mlflow.db")
        record = trials_of(output)[0]
        assert [item.path for item in client.list_artifacts(record.run_id)] == ["curve.json"]
        tag = client.get_run(record.run_id).data.tags["mlflow.loggedArtifacts"]
        assert json.loads(tag) == [{"path": "curve.json", "type": "table"}]
        table = json.loads(SweepPaths(output).curve(record.name).read_text())
        assert [row[-1] for row in table["data"]] == [cut["score"] for cut in json.loads(record.curve)]

    def test_mlflow_has_the_same_runs_metrics_and_tags(self, finished):
        output, _, front = finished
        state = json.loads(SweepPaths(output).state.read_text())
        client = MlflowClient(state["tracking_uri"])
        assert state["tracking_uri"] == f"sqlite:///{output}/mlflow.db"
        experiment = client.get_experiment_by_name("small")
        runs = {run.data.tags["mlflow.runName"]: run for run in client.search_runs([experiment.experiment_id])}
        records = {record.name: record for record in read_records(SweepPaths(output).results)}
        assert runs.keys() == records.keys() | {"small"}
        parent_id = runs["small"].info.run_id
        assert {
            "config.yaml",
            "environment.json",
            "front.json",
            "layers.json",
            "points.parquet",
            "results.parquet",
        } <= {item.path for item in client.list_artifacts(parent_id)}
        for name, record in records.items():
            found = runs[name]
            assert (found.info.run_id, found.info.status) == (record.run_id, "FINISHED")
            assert found.data.tags["mlflow.parentRunId"] == parent_id
            assert found.data.tags["stage"] == record.stage
            for key in ("val_accuracy", "train_loss", "macs", "macs_ratio", "params"):
                assert found.data.metrics[key] == getattr(record, key)
            steps = [metric.step for metric in client.get_metric_history(record.run_id, "val_accuracy")]
            assert steps == list(range(1, record.epochs + 1))
        parent = runs["small"].data
        assert parent.params["training.batch_size"] == "64"
        assert (
            parent.tags["version_torch"] == json.loads(SweepPaths(output).environment.read_text())["packages"]["torch"]
        )
        assert parent.metrics["hypervolume"] == pytest.approx(front.hypervolume)
        assert parent.metrics["best_test_accuracy"] == max(point.test_accuracy for point in front.finalists)
        assert f"| {front.finalists[0].name} |" in parent.tags["mlflow.note.content"]
        assert parent.tags["macs_counter"] == "torch.utils.flop_counter.FlopCounterMode"
        assert "aten.relu" in parent.tags["macs_uncounted_operators"]
        trial = runs["trial-0000"].data
        assert trial.metrics["rank/3"] == records["trial-0000"].ranks[1]
        assert trial.params["energy"] == str(records["trial-0000"].energy)
        assert {"orthogonality_error", "rank_ratio"} <= trial.metrics.keys()
        pareto = {
            name: found.data.tags.get("pareto") for name, found in runs.items() if found.data.tags["stage"] == "trial"
        }
        members = {point.name.partition("-cut-")[0] for point in front.front}
        assert pareto == {name: str(name in members).lower() for name in pareto}
        finetune = runs[front.finalists[0].name].data.tags
        assert finetune["source_run_id"] == records[records[front.finalists[0].name].source].run_id

    def test_running_it_again_trains_nothing_and_finds_the_same(self, finished):
        output, config, front = finished
        before = comparable(output)
        files = {path: path.stat().st_mtime_ns for path in SweepPaths(output).root.glob("runs/*/model.pt")}
        assert run(config, output) == front
        assert comparable(output) == before
        assert {path: path.stat().st_mtime_ns for path in files} == files

    def test_the_same_seed_gives_the_same_trials_and_bit_identical_results(self, finished, tmp_path):
        output, config, _ = finished
        run(config, tmp_path / "again")
        assert comparable(tmp_path / "again") == comparable(output)

    def test_another_configuration_is_refused_in_its_directory(self, finished):
        output, config, _ = finished
        other = replace(config, training=replace(config.training, epochs=3))
        with pytest.raises(SweepError, match=r"training\.epochs: 2 there, 3 here\); use another --output"):
            run(other, output)
        assert load_config(SweepPaths(output).config) == config

    def test_more_trials_extend_it(self, finished, tmp_path):
        output, config, _ = finished
        copied = tmp_path / "longer"
        shutil.copytree(output, copied)
        run(replace(config, search=replace(config.search, num_trials=6)), copied)
        rows = [row for row in comparable(copied) if row["stage"] == "trial"]
        assert len(rows) == 6
        assert rows[:4] == [row for row in comparable(output) if row["stage"] == "trial"]


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
        assert row["source"] == starts.get(row["method"], "pretrain-dense")
        assert (row["budget"] == 0.5) == (row["rank_rule"] == "equal_error")
        if row["budget"] is not None:
            assert row["macs_ratio"] <= 0.5
        assert 0 < row["val_macro_f1"] <= 1
    for point in front.finalists:
        assert rows[point.name]["test_top5_accuracy"] >= rows[point.name]["test_accuracy"] == point.test_accuracy
        saved = load_model(SweepPaths(output).run(point.name) / "model.pt")
        assert saved.config["distillation"]["weight"] == 0.5
    state = json.loads(SweepPaths(output).state.read_text())
    client = MlflowClient(state["tracking_uri"])
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
    state = json.loads(SweepPaths(output).state.read_text())
    client = MlflowClient(state["tracking_uri"])
    failed = {record.name: record for record in read_records(SweepPaths(output).results)}["trial-0000"]
    found = client.get_run(failed.run_id)
    assert found.info.status == "FAILED"
    assert "NonFiniteError" in found.data.tags["error"]
    assert found.data.tags["state"] == "FAIL"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, ray_cluster, small_sweep):
    output = tmp_path_factory.mktemp("stopped") / "sweep"
    search = replace(small_sweep.search, num_trials=10)
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


def test_a_sweep_of_which_all_trials_fail_says_why(small_sweep, tmp_path):
    config = replace(
        small_sweep, search_space="spaces:always_diverges", search=replace(small_sweep.search, num_trials=2)
    )
    with pytest.raises(SweepError, match=r"(?s)all 2 failed, the last with.*NonFiniteError"):
        run(config, tmp_path / "fails")
    assert study_states(tmp_path / "fails") == [TrialState.FAIL] * 2


def test_stage_one_that_fails_stops_the_sweep_with_its_reason(small_sweep, tmp_path):
    config = replace(small_sweep, training=replace(small_sweep.training, learning_rate=1e30))
    with pytest.raises(SweepError, match=r"(?s)pretrain-channel failed; the same command tries again.*NonFiniteError"):
        run(config, tmp_path / "fails")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data": DataConfig("mnist", root="/nowhere")}, DataError, "MNIST must be readable"),
        ({"search_space": "spaces:raises"}, ConfigError, "no space today"),
        ({"resources": {"cpus_per_trial": 64}}, SweepError, "a trial needs 64 CPU"),
        ({"resources": {"gpus_per_trial": 8.0}}, SweepError, "8 GPU on one node"),
        (
            {"factorization": {"exclude": ("layer_3.*",)}},
            ConfigError,
            "exclude: each pattern must match a module, but 'layer_3",
        ),
        ({"factorization": {"exclude": ("*",)}}, ConfigError, "factorization: must leave at least one layer"),
        ({"model": {"name": "lenet5"}}, ConfigError, "lenet5 needs images of at least 16 x 16"),
    ],
)
def test_what_cannot_work_is_refused_before_any_training(small_sweep, tmp_path, changes, error, message):
    sections = {
        key: replace(getattr(small_sweep, key), **value) if isinstance(value, dict) else value
        for key, value in changes.items()
    }
    with pytest.raises(error, match=message):
        run(replace(small_sweep, **sections), tmp_path / "refused")
    assert not list((tmp_path / "refused").glob("runs/*"))
    if error is not SweepError:  # found before the directory was taken: it can be used once the mistake is mended
        assert not (tmp_path / "refused").exists()


def test_a_directory_in_use_is_refused_with_its_owner(finished):
    output, config, _ = finished
    lock = SweepPaths(output).lock
    with lock.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(SweepError, match=r"is in use by a sweep \(process \d+ on .*\)"):
            run(config, output)
    assert run(config, output).finalists


def test_a_finalist_that_fails_is_an_error_and_is_tried_again(finished, tmp_path):
    output, config, front = finished
    copied = tmp_path / "copied"
    shutil.copytree(output, copied)
    paths = SweepPaths(copied)
    name = front.finalists[0].name
    write_records([record for record in read_records(paths.results) if record.name != name], paths.results)
    shutil.rmtree(paths.run(name))
    paths.run(name).write_text("a file where the run's folder should be")
    with pytest.raises(SweepError, match=rf"(?s){name} failed; the same command tries again.*FileExistsError"):
        run(config, copied)
    paths.run(name).unlink()
    assert run(config, copied).as_json()["finalists"][0]["test_accuracy"] == front.finalists[0].test_accuracy


def test_a_directory_with_other_files_is_left_alone(small_sweep, tmp_path):
    output = tmp_path / "mine"
    output.mkdir()
    (output / "thesis.txt").write_text("precious")
    with pytest.raises(SweepError, match="must be empty or hold a sweep"):
        run(small_sweep, output)
    assert [path.name for path in output.iterdir()] == ["thesis.txt"]
