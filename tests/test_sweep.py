"""The whole job on digits: real Ray, real Optuna, real MLflow, real training."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from mlflow import MlflowClient
from optuna.trial import TrialState
from sweeps import comparable, run, study_states, study_trials, trials_of

from orchestrator.config import load_config
from orchestrator.continuation import chain
from orchestrator.curves import trial_of
from orchestrator.paths import SweepPaths
from orchestrator.records import read_records
from orchestrator.study import ADDED
from trainers.cost import measure_cost
from trainers.data import load_test
from trainers.errors import SweepError
from trainers.recipe import evaluate_model_file
from trainers.saved_model import load_model

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


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
        by_name = {record.name: record for record in trials_of(output)}
        lengths = [1 + len(chain(by_name[trial_of(name.replace("finetune", "trial"))], by_name)) for name in finetunes]
        assert rows["dense"]["epochs"] == 2 + 2 * max(lengths) + 1
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
        place = table["columns"].index("score")
        assert [row[place] for row in table["data"]] == [cut["score"] for cut in json.loads(record.curve)]

    def test_mlflow_has_the_same_runs_metrics_and_tags(self, finished):
        output, _, front = finished
        state = json.loads(SweepPaths(output).state.read_text())
        client = MlflowClient(f"sqlite:///{output}/mlflow.db")
        assert state["store"] == "mlflow.db"
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
            "report.html",
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
