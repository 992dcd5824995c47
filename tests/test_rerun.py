"""`rankfront rerun` on real sweeps: what is trained again agrees, and what was changed is found by its name."""

import json
import math
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from recorded import record_sweep
from sweeps import comparable
from test_data import write_parquet
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.config import ResourcesConfig
from orchestrator.paths import SweepPaths
from orchestrator.records import RunRecord, read_records, write_records
from orchestrator.rerun.changes import Change, why_not_exact
from orchestrator.rerun.compare import Run, compare_runs, compare_sweeps
from orchestrator.rerun.recorded import saved_run
from orchestrator.rerun.seeds import Spread
from trainers.config import DataConfig, ModelConfig, TrainingConfig
from trainers.errors import CheckpointError, SweepError
from trainers.saved_model import save_model

GIT = ("git commit", "uncommitted changes")


def rerun(*arguments):
    """Run the command; returns its exit code, its output, and the error that `main` would print."""
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["rerun", *map(str, arguments)])
    return done.exit_code, done.output, done.exception


def report(directory, folder):
    """What the rerun wrote; the working tree's state, which may change beside the tests, is left out."""
    found = json.loads((directory / "reruns" / folder / "rerun.json").read_text())
    return {**found, "changes": [change for change in found["changes"] if change["what"] not in GIT]}


def names(found):
    return {change["what"] for change in found["changes"]}


def run_of(directory, stage):
    return next(record for record in read_records(SweepPaths(directory).results) if record.stage == stage)


@pytest.fixture
def recorded(finished, tmp_path):
    """A copy of a finished sweep: reruns go into its folder and its store."""
    copied = tmp_path / "sweep"
    shutil.copytree(finished[0], copied)
    return copied


@pytest.mark.ray
class TestOneRun:
    @pytest.mark.parametrize("stage", ["pretrain", "trial", "finetune", "dense"])
    def test_it_agrees_bit_for_bit_and_leaves_the_record_alone(self, recorded, stage):
        record, before = run_of(recorded, stage), comparable(recorded)
        files = {path: path.read_bytes() for path in recorded.glob("runs/*/model.pt")}
        code, output, error = rerun(recorded, record.name, "--verify")
        assert (code, error) == (0, None), output
        assert f"{record.name} is compared bit for bit" in output
        found = report(recorded, f"{record.name}-1")
        assert (found["exact"], found["differences"], found["changes"]) == (True, [], [])
        assert found["compared"] > record.epochs * 8
        assert comparable(recorded) == before
        assert {path: path.read_bytes() for path in files} == files

    def test_mlflow_has_it_beside_the_record(self, recorded):
        record = run_of(recorded, "finetune")
        client = MlflowClient(f"sqlite:///{recorded}/mlflow.db")
        parent_id = client.get_run(record.run_id).data.tags["mlflow.parentRunId"]
        parent = client.get_run(parent_id)
        for _ in range(2):
            assert rerun(recorded, record.name)[0] == 0
        experiment = client.get_experiment_by_name("small").experiment_id
        runs = client.search_runs([experiment], f"tags.rerun_of = '{record.run_id}'")
        assert len(runs) == len({run.data.tags["mlflow.runName"] for run in runs}) == 2
        for run in runs:
            assert run.info.status == "FINISHED"
            assert run.data.tags["mlflow.parentRunId"] == parent_id
            assert run.data.tags["source_run_id"] == client.get_run(record.run_id).data.tags["source_run_id"]
            assert run.data.metrics == client.get_run(record.run_id).data.metrics
            assert run.data.params == client.get_run(record.run_id).data.params
        assert client.get_run(parent_id).data.metrics == parent.data.metrics
        assert sorted(path.name for path in (recorded / "reruns").iterdir()) == [f"{record.name}-1", f"{record.name}-2"]

    def test_another_seed_is_named_and_found(self, recorded):
        record = run_of(recorded, "trial")
        code, output, _ = rerun(recorded, record.name, "--verify", "--set", "training.seed=1")
        assert code == 1
        found = report(recorded, f"{record.name}-1")
        assert {"what": "training.seed", "recorded": 0, "here": 1, "input": False} in found["changes"]
        assert {"train_loss", "val_loss", "weights"} <= {difference["metric"] for difference in found["differences"]}
        assert f"differs in {len(found['differences'])} of {found['compared']} values" in output
        assert rerun(recorded, record.name, "--set", "training.seed=1")[0] == 0  # told, not judged

    def test_a_configuration_that_was_edited_later_is_found(self, recorded):
        paths, record = SweepPaths(recorded), run_of(recorded, "finetune")
        text = paths.config.read_text()
        paths.config.write_text(
            text.replace("batch_size: 64", "batch_size: 32").replace("patience: null", "patience: 9")
        )
        code, _, _ = rerun(recorded, record.name, "--verify")
        assert code == 1
        assert names(report(recorded, f"{record.name}-1")) == {"training.batch_size", "patience"}

    def test_another_store_is_refused(self, recorded, monkeypatch):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{recorded}/other.db")
        _, _, error = rerun(recorded, run_of(recorded, "trial").name)
        assert "MLFLOW_TRACKING_URI must be the sweep's store 'mlflow.db'" in str(error)
        assert not (recorded / "reruns").exists()

    def test_an_override_that_the_run_does_not_know_is_said_to_be_idle(self, recorded):
        paths, record = SweepPaths(recorded), run_of(recorded, "trial")
        records = read_records(paths.results)
        own = json.dumps({**json.loads(record.settings), "learning_rate": 2e-3})
        write_records([replace(r, settings=own) if r.name == record.name else r for r in records], paths.results)
        code, output, _ = rerun(recorded, record.name, "--verify", "--set", "training.learning_rate=0.1")
        assert "0.1 (no effect: the run's own settings name it)" in output
        assert code == 0, output

    def test_another_package_version_is_named(self, recorded):
        paths, record = SweepPaths(recorded), run_of(recorded, "trial")
        environment = json.loads(paths.environment.read_text())
        paths.environment.write_text(
            json.dumps({**environment, "packages": {**environment["packages"], "torch": "1.0"}})
        )
        code, output, _ = rerun(recorded, record.name, "--verify")
        assert code == 0  # the numbers are the same
        found = report(recorded, f"{record.name}-1")
        assert found["changes"] == [
            {"what": "torch", "recorded": "1.0", "here": environment["packages"]["torch"], "input": False}
        ]
        assert "torch" in output

    def test_on_another_cpu_a_stated_tolerance_holds(self, recorded):
        paths, record = SweepPaths(recorded), run_of(recorded, "trial")
        environment = json.loads(paths.environment.read_text())
        environment["hardware"]["cpu"] = "abacus"
        paths.environment.write_text(json.dumps(environment))
        code, output, _ = rerun(recorded, record.name, "--verify")
        assert code == 0
        assert "to 0.02, its losses to 10%: the CPU is another" in " ".join(output.split())
        assert "agree within the tolerance" in output
        assert names(report(recorded, f"{record.name}-1")) == {"cpu"}

    def test_a_trial_that_was_stopped_is_stopped_at_the_same_epoch(self, recorded):
        paths, record = SweepPaths(recorded), run_of(recorded, "trial")
        first = saved_run(paths, record.name).history[0]
        measured = {key: value for key, value in first["metrics"].items() if key in asdict(record)}
        ranks = [int(first["metrics"][f"rank/{layer}"]) for layer in record.layers]
        nothing = dict.fromkeys(("score", "curve", "error"))
        stopped = replace(record, **{**nothing, **measured}, state="PRUNED", epochs=1, ranks=ranks)
        stopped = replace(stopped, macs=int(stopped.macs), params=int(stopped.params))
        write_records([stopped if r.name == record.name else r for r in read_records(paths.results)], paths.results)
        (paths.run(record.name) / "model.pt").unlink()
        code, output, _ = rerun(recorded, record.name, "--verify")
        assert code == 0, output
        again = read_records(SweepPaths(recorded / "reruns" / f"{record.name}-1").results)[0]
        assert (again.state, again.epochs) == ("PRUNED", 1)

    def test_other_seeds_show_the_spread(self, recorded):
        record = run_of(recorded, "finetune")
        code, output, _ = rerun(recorded, record.name, "--seeds", 2)
        assert code == 0, output
        folders = [recorded / "reruns" / f"{record.name}-{number}" for number in (1, 2)]
        found = [read_records(SweepPaths(folder).results)[0] for folder in folders]
        assert [run.seed for run in found] == [record.seed + 1, record.seed + 2]
        losses = [run.test_loss for run in found]
        assert losses[0] != losses[1]
        (line,) = [line.split() for line in output.splitlines() if line.startswith("test_loss")]
        assert line[1:4] == [f"{record.test_loss:.6g}", f"{np.mean(losses):.6g}", f"{np.std(losses, ddof=1):.3g}"]

    def test_what_cannot_be_run_again_is_one_clear_error(self, recorded):
        paths, record = SweepPaths(recorded), run_of(recorded, "finetune")
        code, _, error = rerun(recorded, "trial-99", "--verify")
        assert (code, type(error)) == (1, SweepError)  # `main` makes it 2
        assert f"those are: {', '.join(sorted(row.name for row in read_records(paths.results)))}" in str(error)
        assert rerun(recorded, "--seeds", 2)[0] == 2
        model, source = paths.run(record.name) / "model.pt", paths.run(record.source) / "model.pt"
        whole = model.read_bytes()
        for content in (whole[: len(whole) // 2], b"something else", b""):
            model.write_bytes(content)
            _, _, error = rerun(recorded, record.name, "--verify")
            assert isinstance(error, CheckpointError)
            assert str(error).startswith(f"{model} must be a readable model file, but it is damaged or foreign")
        model.write_bytes(whole)
        source.unlink()
        _, _, error = rerun(recorded, record.name, "--verify")
        assert isinstance(error, SweepError)
        assert f"make it with `rankfront rerun {recorded} {record.source}`" in str(error)
        assert not (recorded / "reruns").exists()

    def test_another_start_is_found_before_anything_is_trained(self, recorded):
        paths, record = SweepPaths(recorded), run_of(recorded, "trial")
        other = saved_run(paths, record.source)
        other.history[-1]["metrics"]["val_loss"] += 1.0
        file = paths.run(record.source) / "model.pt"
        save_model(other, file)
        code, output, _ = rerun(recorded, record.name, "--verify")
        assert code == 1
        assert "".join(f"start {file}".split()) in "".join(output.split())
        assert not (recorded / "reruns").exists()


@pytest.mark.ray
def test_a_whole_sweep_agrees_bit_for_bit(finished, recorded, tmp_path):
    shutil.copytree(finished[0].parent / ".stage1", tmp_path / ".stage1")
    code, output, error = rerun(recorded, "--verify", "--output", tmp_path / "again")
    assert (code, error) == (0, None), output
    assert comparable(tmp_path / "again") == comparable(recorded)
    found = json.loads((tmp_path / "again" / "rerun.json").read_text())
    assert (found["exact"], found["differences"], found["not_compared"]) == (True, [], [])
    stage_one = [
        record for record in read_records(SweepPaths(tmp_path / "again").results) if record.stage == "pretrain"
    ]
    then = [run.ended_at_s for run in read_records(SweepPaths(recorded).results) if run.stage == "pretrain"]
    assert min(run.ended_at_s for run in stage_one) > max(then)  # trained, not taken from another sweep
    client = MlflowClient(f"sqlite:///{tmp_path}/again/mlflow.db")
    (parent,) = client.search_runs([client.get_experiment_by_name("small").experiment_id], "tags.stage = 'sweep'")
    trial = run_of(recorded, "trial")
    there = MlflowClient(f"sqlite:///{recorded}/mlflow.db").get_run(trial.run_id)
    assert parent.data.tags["rerun_of"] == there.data.tags["mlflow.parentRunId"]
    _, _, error = rerun(recorded, trial.name, "--output", tmp_path / "again")
    assert "must be new or empty" in str(error)
    _, _, error = rerun(recorded, "--output", recorded)
    assert "must not go on in the directory of its record" in str(error)


def sweep_on_files(folder, config):
    """Run a sweep of one trial on images from parquet files in `folder`; returns its directory and the images."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    for split, part in (("train", pixels[:40]), ("test", pixels[40:])):
        write_parquet(folder / "data" / f"{split}.parquet", part, [0, 1] * (len(part) // 2))
    config = replace(
        config,
        model=ModelConfig("mlp", hidden=(16,)),
        data=DataConfig("parquet", root=str(folder / "data"), validation_fraction=0.25),
        training=TrainingConfig(batch_size=10, pretrain_epochs=1, epochs=1),
        curve=replace(config.curve, num_points=0),
    )
    record_sweep(config, folder / "sweep", [{"regularizer": "l1", "strength": 0.01, "energy": 0.1}])
    return folder / "sweep", pixels


class TestData:
    @pytest.fixture
    def swept(self, tmp_path, small_sweep):
        return sweep_on_files(tmp_path, small_sweep)

    @pytest.mark.parametrize(("split", "stage"), [("train", "trial"), ("test", "dense")])
    def test_one_changed_pixel_is_found_before_anything_is_trained(self, swept, tmp_path, split, stage):
        output, pixels = swept
        record = run_of(output, stage)
        assert rerun(output, record.name, "--verify")[0] == 0
        part = pixels[:40] if split == "train" else pixels[40:]
        part[3, 0, 0] ^= 1
        write_parquet(tmp_path / "data" / f"{split}.parquet", part, [0, 1] * (len(part) // 2))
        code, printed, _ = rerun(output, record.name, "--verify")
        assert code == 1
        assert f"{split} data: images" in printed
        assert "labels" not in printed
        assert f"data files written since {split}.parquet" in " ".join(printed.split())
        assert "nothing was trained" in printed
        assert not (output / "reruns" / f"{record.name}-2").exists()

    def test_a_record_of_older_versions_is_checked_by_what_its_models_say(self, swept, tmp_path):
        output, pixels = swept
        environment = json.loads(SweepPaths(output).environment.read_text())
        del environment["data"]
        SweepPaths(output).environment.write_text(json.dumps(environment))
        pixels[:40] //= 2
        write_parquet(tmp_path / "data" / "train.parquet", pixels[:40], [0, 1] * 20)
        code, printed, _ = rerun(output, "trial-0000", "--verify")
        assert (code, "train data" in printed) == (1, True)

    def test_a_failed_run_fails_again(self, swept):
        output, _ = swept
        paths = SweepPaths(output)
        records = read_records(paths.results)
        trial = next(record for record in records if record.stage == "trial")
        settings = json.dumps({**json.loads(trial.settings), "learning_rate": 1e30})
        write_records([*records, replace(trial, name="trial-0001", settings=settings)], paths.results)
        assert rerun(output, "trial-0001")[0] == 0
        failed = read_records(SweepPaths(output / "reruns" / "trial-0001-1").results)[0]
        assert (failed.state, "NonFiniteError" in failed.error) == ("FAIL", True)
        write_records([*records, replace(failed, name="trial-0001")], paths.results)
        assert rerun(output, "trial-0001", "--verify")[0] == 0


@pytest.fixture(scope="module")
def compared(tmp_path_factory, small_sweep):
    return SweepPaths(sweep_on_files(tmp_path_factory.mktemp("compared"), small_sweep)[0])


class TestComparison:
    def test_runs_of_a_sweep_are_held_against_each_other(self, compared):
        runs = [Run(record, saved_run(compared, record.name)) for record in read_records(compared.results)]
        same = compare_sweeps(runs, runs, exact=True)
        assert (same.differences, same.others) == ([], [])
        trial = next(run for run in runs if run.record.stage == "trial")
        nudged = replace(trial, record=replace(trial.record, score=math.nextafter(trial.record.score, 2)))
        others = [nudged if run is trial else run for run in runs]
        # the model's own history has the last word where there is one
        assert compare_sweeps(runs, others, exact=True).differences == []
        bare = [Run(run.record, None) for run in runs]
        (difference,) = compare_sweeps(bare, [Run(run.record, None) for run in others], exact=True).differences
        assert (difference.run, difference.metric) == (trial.record.name, "score")
        (missing,) = [d for d in compare_sweeps(bare, bare[1:], exact=True).differences if d.metric == "state"]
        assert (missing.run, missing.found) == (bare[0].record.name, None)
        moved = [
            Run(replace(run.record, settings='{"energy": 0.5}'), None) if run is not bare[0] else run for run in bare
        ]
        loose = compare_sweeps(bare, moved, exact=False)
        assert len(loose.others) == len(bare) - 1
        assert loose.differences == []

    def test_of_a_record_without_its_model_only_the_row_counts(self, compared):
        record = run_of(compared.root, "finetune")
        comparison = compare_runs(Run(record, None), Run(record, saved_run(compared, record.name)), exact=True)
        assert comparison.compared > 10
        assert comparison.differences == []

    def test_one_changed_weight_is_found(self, compared):
        record = run_of(compared.root, "dense")
        run, other = (Run(record, saved_run(compared, record.name)) for _ in range(2))
        with torch.no_grad():
            next(other.saved.model.parameters()).view(-1)[0] += 1e-3
        (difference,) = compare_runs(run, other, exact=True).differences
        assert (difference.metric, difference.found) == ("weights", "1 differ")
        assert compare_runs(run, other, exact=False).differences == []

    @pytest.mark.parametrize(
        ("metric", "value", "near"),
        [
            ("val_accuracy", 0.519, True),
            ("val_accuracy", 0.521, False),
            ("val_loss", 2.19, True),
            ("val_loss", 2.21, False),
            ("val_loss", math.nan, False),
            ("macs_ratio", 0.479, False),
        ],
    )
    def test_the_tolerance(self, metric, value, near):
        record = RunRecord("dense", "dense", "COMPLETE", "", epochs=1, val_accuracy=0.5, val_loss=2.0, macs_ratio=0.5)
        found = compare_runs(Run(record, None), Run(replace(record, **{metric: value}), None), exact=False)
        assert ([difference.metric for difference in found.differences] == []) == near


def test_the_spread_is_that_of_the_seeds_without_the_record():
    spread = Spread("val_loss", 0.5, [0.1, 0.6, 0.2])
    assert (spread.mean, spread.std) == pytest.approx((0.3, np.std([0.1, 0.6, 0.2], ddof=1)))
    assert spread.below == 2
    assert math.isnan(Spread("val_loss", 0.5, [0.1]).std)


def test_what_several_workers_trained_is_held_to_the_tolerance(small_sweep):
    several = replace(small_sweep, resources=ResourcesConfig(workers_per_trial=2))
    assert why_not_exact([], small_sweep) is None
    assert why_not_exact([], several) == "resources.workers_per_trial above 1 sums in another order"
    assert "several workers" in why_not_exact([Change("resources.workers_per_trial", 2, 1)], small_sweep)
