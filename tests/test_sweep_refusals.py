"""What goes wrong in a sweep: refused before any training, or left in order and taken up again."""

import fcntl
import shutil
from dataclasses import replace

import pytest
from optuna.trial import TrialState
from rich.console import Console
from sweeps import run, study_states

from orchestrator.config import dump_config
from orchestrator.output import require_ours_or_empty
from orchestrator.paths import SweepPaths
from orchestrator.records import read_records, write_records
from orchestrator.resume import resume
from trainers.config import DataConfig, LatencyConfig
from trainers.errors import ConfigError, DataError, SweepError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


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


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search.warm_start=/no/such/sweep", "must be the output directory"),
        ("resources.cpus_per_trial=64", "needs 64 CPU"),
    ],
)
def test_a_change_that_is_refused_is_not_kept(finished, tmp_path, override, message):
    copied = tmp_path / "sweep"
    shutil.copytree(finished[0], copied)
    before = (copied / "config.yaml").read_text()
    with pytest.raises((ConfigError, SweepError), match=message):
        resume(copied, [override], Console(quiet=True))
    assert (copied / "config.yaml").read_text() == before


def test_a_directory_in_use_is_refused_with_its_owner(finished):
    output, config, _ = finished
    lock = SweepPaths(output).lock
    with lock.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(SweepError, match=r"is in use by a sweep \(process \d+ on .*, for \d+:\d\d:\d\d h\)"):
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


@pytest.mark.parametrize("here", [None, LatencyConfig()])
def test_a_section_that_is_given_or_left_out_is_another_configuration(small_sweep, tmp_path, here):
    there = LatencyConfig() if here is None else None
    (tmp_path / "config.yaml").write_text(dump_config(replace(small_sweep, latency=there)))
    with pytest.raises(SweepError, match="another configuration"):
        require_ours_or_empty(SweepPaths(tmp_path), replace(small_sweep, latency=here))
