"""More finalists for a sweep that has ended, and what several runs of one network make of it."""

import io
import json
from dataclasses import asdict, replace

import pytest
from mlflow import MlflowClient
from recorded import record_sweep
from rich.console import Console
from trial_records import record
from typer.testing import CliRunner

from orchestrator.choice import Choice
from orchestrator.cli import app
from orchestrator.config import ConstraintsConfig, FinetuneConfig
from orchestrator.curves import candidates
from orchestrator.finalists import within_reach
from orchestrator.front import read_front
from orchestrator.jobs import finetune_job, job_configs
from orchestrator.paths import SweepPaths
from orchestrator.pipeline import run_finetuning
from orchestrator.records import RunRecord, read_records
from orchestrator.selection import Limits, parse_bound
from orchestrator.tuned import candidate_name, fine_tuned, finetune_name
from trainers.errors import SweepError

CUTS = [(500, 0.9), (400, 0.88), (200, 0.8), (100, 0.3)]


def trial(number, cuts, method="svd_training"):
    """A complete trial on a dense network of 1,000 MACs and parameters; the first of (macs, score) is its own cut."""
    curve = [{"epoch": 2, "settings": {"energy": m / 1000}, "macs": m, "params": m, "score": s} for m, s in cuts]
    curve[0]["settings"] = {}
    macs, score = cuts[0]
    columns = {"macs": macs, "macs_ratio": macs / 1000, "params": macs, "params_ratio": macs / 1000, "score": score}
    return record(f"trial-{number:04d}", epochs=2, curve=json.dumps(curve), settings="{}", method=method, **columns)


def tuned(name, val, test=None, macs=200):
    return RunRecord(
        name, "finetune", "COMPLETE", name, val_accuracy=val, test_accuracy=test, macs=macs, macs_ratio=0.2
    )


class TestChoice:
    def names(self, config, **choice):
        return [pick.name for pick in Choice(**choice).of([trial(0, CUTS), trial(1, [(450, 0.85)])], config)]

    def test_any_cut_can_be_chosen_by_name_even_a_dominated_one(self, small_sweep):
        names = ("trial-0001", "trial-0000-cut-3", "trial-0001")
        assert self.names(small_sweep, names=names) == ["trial-0001", "trial-0000-cut-3"]

    def test_an_unknown_name_is_told_with_the_nearest(self, small_sweep):
        with pytest.raises(SweepError, match=r"unknown candidate 'trial-0000-cut-9', did you mean 'trial-0000-cut-"):
            self.names(small_sweep, names=("trial-0000-cut-9",))

    def test_the_front_within_limits_as_many_as_asked(self, small_sweep):
        limits = Limits(max_macs=parse_bound("45%"))
        everyone = replace(small_sweep, finetune=FinetuneConfig(min_relative_score=0.0))
        assert set(self.names(everyone, limits=limits)) == {f"trial-0000-cut-{place}" for place in (1, 2, 3)}
        assert set(self.names(small_sweep, limits=limits)) == {"trial-0000-cut-1", "trial-0000-cut-2"}  # two by config
        assert len(self.names(small_sweep, limits=limits, num=1)) == 1

    def test_constraints_of_the_sweep_hold(self, small_sweep):
        search = replace(small_sweep.search, constraints=ConstraintsConfig(min_accuracy=0.85))
        assert set(self.names(replace(small_sweep, search=search), num=9)) == {"trial-0000", "trial-0000-cut-1"}

    def test_the_knee(self, small_sweep):
        assert self.names(small_sweep, knee=True) == ["trial-0000-cut-2"]

    def test_nothing_within_the_limits(self, small_sweep):
        expected = "at least one candidate must have at most 50 MACs .*but none of 5 has; the fewest MACs are 100"
        with pytest.raises(SweepError, match=expected):
            self.names(small_sweep, limits=Limits(max_macs=parse_bound("50")))

    def test_nothing_to_choose_from(self, small_sweep):
        with pytest.raises(SweepError, match="at least one trial must have ended complete"):
            Choice().of([record("trial-0000", state="FAIL")], small_sweep)


def test_repeats_have_names_and_seeds_of_their_own(small_sweep):
    (pick, *_) = candidates([trial(3, CUTS)])[1:]
    jobs = [finetune_job(pick, repeat) for repeat in range(2)]
    assert [job.name for job in jobs] == ["finetune-0003-cut-1", "finetune-0003-cut-1-repeat-1"]
    assert [job_configs(job, small_sweep)[0].seed for job in jobs] == [0, 1]
    assert {candidate_name(job.name) for job in jobs} == {"trial-0003-cut-1"}
    assert finetune_name("trial-0003") == "finetune-0003"


def test_runs_of_one_network_are_one_finalist_with_mean_and_standard_deviation():
    runs = [tuned("finetune-0001-repeat-1", 0.92, 0.9), tuned("finetune-0002", 0.7), tuned("finetune-0001", 0.9, 0.86)]
    twice, once = sorted(fine_tuned(runs), key=lambda finalist: finalist.candidate)
    assert (twice.record.name, twice.candidate, twice.num_runs) == ("finetune-0001", "trial-0001", 2)
    assert (twice.record.val_accuracy, twice.record.test_accuracy) == pytest.approx((0.91, 0.88))
    assert (twice.val_std, twice.test_std) == pytest.approx((0.02 / 2**0.5, 0.04 / 2**0.5))
    assert (once.record.val_accuracy, once.num_runs, once.val_std) == (0.7, 1, None)


def test_what_cannot_get_past_the_finalists_is_left_out():
    """A finalist at 200 MACs gained 0.1: nothing above it may be hoped to gain more."""
    cuts = [
        record(name, accuracy, macs)
        for name, accuracy, macs in (
            ("trial-0001", 0.8, 200),
            ("trial-0002", 0.81, 300),
            ("trial-0003", 0.8, 300),
            ("trial-0004", 0.1, 100),
        )
    ]
    done = replace(tuned("finetune-0001", 0.9), macs=200)
    assert [cut.name for cut in within_reach(cuts, fine_tuned([done]))] == ["trial-0001", "trial-0002", "trial-0004"]
    assert within_reach(cuts, []) == cuts


@pytest.mark.ray
def test_more_candidates_are_fine_tuned_and_what_is_there_stays(ray_cluster, small_sweep, tmp_path):
    paths = SweepPaths(tmp_path / "sweep")
    config = replace(small_sweep, finetune=replace(small_sweep.finetune, num_models=1))
    before = record_sweep(config, paths.root, [{"strength": 0.01, "energy": energy} for energy in (0.05, 0.3)])
    there = {candidate_name(row.name) for row in before if row.stage == "finetune"}
    trials = [row for row in before if row.stage == "trial"]
    name = next(cut.name for cut in candidates(trials) if cut.name not in there)
    front = run_finetuning(paths.root, Choice(names=(name, *there)), 2, Console(quiet=True))

    records = read_records(paths.results)
    assert records[: len(before)] == before
    new = {row.name: row for row in records[len(before) :]}
    assert set(new) == {finetune_name(name), finetune_name(name, 1), *(finetune_name(old, 1) for old in there)}
    assert [row.seed for row in (new[finetune_name(name)], new[finetune_name(name, 1)])] == [0, 1]
    assert {point.name for point in front.finalists} == {finetune_name(candidate) for candidate in (name, *there)}

    console = Console(file=io.StringIO())
    assert run_finetuning(paths.root, Choice(names=(name, *there)), 2, console) == front
    assert console.file.getvalue() == f"Fine-tuned already: {', '.join((name, *there))}\n"
    assert read_records(paths.results) == records
    assert all(point.num_runs == 2 and point.test_std is not None for point in front.finalists)
    assert json.loads(paths.front.read_text()) == read_front(paths.root).as_json()
    client = MlflowClient(f"sqlite:///{paths.mlflow_db}")
    run = client.get_run(new[finetune_name(name)].run_id)
    assert (run.info.status, run.data.tags["stage"]) == ("FINISHED", "finetune")
    assert client.get_run(run.data.tags["mlflow.parentRunId"]).info.status == "FINISHED"

    run_finetuning(paths.root, Choice(names=(name,)), 2, Console(quiet=True))
    assert [asdict(row) for row in read_records(paths.results)] == [asdict(row) for row in records]


def test_a_name_and_a_limit_exclude_each_other(tmp_path):
    done = CliRunner().invoke(app, ["finetune", str(tmp_path), "--pick", "trial-0000", "--num", "2"])
    assert (done.exit_code, "it excludes --num" in done.output) == (2, True)


def test_a_directory_without_a_sweep_is_an_error(tmp_path):
    with pytest.raises(SweepError, match="must be the output directory of a sweep"):
        run_finetuning(tmp_path, Choice(), None, Console(quiet=True))
