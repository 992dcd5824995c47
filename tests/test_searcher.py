"""The study is told the truth, and is put right after any end."""

import optuna
import pytest
from optuna.trial import TrialState
from spaces import quick

from orchestrator.records import RunRecord
from orchestrator.searcher import StudySearcher, close_running, open_study, probe_search_space, reconcile, tell
from search_spaces import find_search_space
from trainers.errors import ConfigError, SweepError


def record(name, accuracy=0.9, macs=100, state="COMPLETE"):
    return RunRecord(name, "trial", state, "", val_accuracy=accuracy, macs=macs)


@pytest.fixture
def study(tmp_path):
    return open_study(tmp_path / "study.journal", "s", 0)


def states(study):
    return [trial.state for trial in study.trials]


def test_a_suggestion_names_its_run_and_carries_the_settings(study):
    searcher = StudySearcher(study, quick)
    suggestion = searcher.suggest("a")
    assert (suggestion["name"], suggestion["number"]) == ("trial-0000", 0)
    assert suggestion["settings"]["energy"] == study.trials[0].params["energy"]
    searcher.finish("a", record("trial-0000"))
    assert study.trials[0].values == [0.9, 100]
    assert [searcher.suggest(key)["name"] for key in "bc"] == ["trial-0001", "trial-0002"]


@pytest.mark.parametrize(
    "outcome",
    [
        None,
        record("x", state="FAIL"),
        record("x", accuracy=float("nan")),
        record("x", accuracy=float("-inf")),
        record("x", accuracy=None),
        record("x", macs=None),
    ],
)
def test_anything_but_finite_values_of_a_complete_run_is_a_failure(study, outcome):
    study.ask()
    tell(study, 0, outcome)
    assert states(study) == [TrialState.FAIL]
    assert study.best_trials == []


def test_tunes_own_calls_change_nothing(study):
    searcher = StudySearcher(study, quick)
    searcher.suggest("a")
    searcher.on_trial_complete("a", {"val_accuracy": 1.0}, error=False)
    assert states(study) == [TrialState.RUNNING]


def test_after_an_end_no_trial_is_running_and_those_cut_off_come_first_with_name_and_parameters(study, tmp_path):
    searcher = StudySearcher(study, quick)
    suggestions = [searcher.suggest(key) for key in "abcd"]
    searcher.finish("b", record("trial-0001"))
    close_running(study)
    assert TrialState.RUNNING not in states(study)

    again = open_study(tmp_path / "study.journal", "s", 0)
    ended = {"trial-0001": record("trial-0001"), "trial-0003": record("trial-0003")}  # 3 ended unheard
    reconcile(again, ended)
    reconcile(again, ended)  # a second end before anything ran
    resumed = StudySearcher(again, quick)
    found = [resumed.suggest(key) for key in "ef"]
    assert found == [suggestions[0], suggestions[2]]
    assert resumed.suggest("g")["name"] == "trial-0006"


def test_a_killed_driver_leaves_running_trials_that_are_told_their_recorded_result(study, tmp_path):
    searcher = StudySearcher(study, quick)
    searcher.suggest("a")
    searcher.suggest("b")
    again = open_study(tmp_path / "study.journal", "s", 0)
    reconcile(again, {"trial-0000": record("trial-0000", 0.8, 50)})
    assert states(again)[:2] == [TrialState.COMPLETE, TrialState.FAIL]
    assert again.trials[0].values == [0.8, 50]
    assert TrialState.RUNNING not in states(again)


def test_a_reopened_study_does_not_draw_its_first_points_again(study, tmp_path):
    first = [study.ask() for _ in range(2)]
    drawn = [quick(trial)["energy"] for trial in first]
    again = open_study(tmp_path / "study.journal", "s", 0)
    assert not {quick(again.ask())["energy"] for _ in range(2)} & set(drawn)


def test_objectives_are_named_and_directed(study):
    assert study.directions == [optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE]
    assert study.metric_names == ["val_accuracy", "macs"]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("spaces:raises", r"must return settings for any trial, but raised RuntimeError\('no space today'\)"),
        ("spaces:wrong_type", "batch_size: Input should be a valid integer, but got 64.0"),
        ("spaces:unknown_setting", "unknown setting 'enegry', did you mean 'energy'"),
    ],
)
def test_a_space_is_tried_before_anything_runs(space, message):
    with pytest.raises(ConfigError, match=message):
        probe_search_space(find_search_space(space))


def test_numpy_numbers_are_taken_as_plain_ones(study):
    settings = StudySearcher(study, find_search_space("spaces:numpy_values")).suggest("a")["settings"]
    assert {key: type(value) for key, value in settings.items()} == {
        "regularizer": str,
        "strength": float,
        "energy": float,
        "batch_size": int,
    }


def test_a_draw_that_the_space_refuses_is_left_out_for_good(tmp_path):
    space = find_search_space("spaces:refuses_some")
    assert [start.decomposition for start in probe_search_space(space)] == ["channel"]
    study = open_study(tmp_path / "study.journal", "picky", 0)
    assert StudySearcher(study, space).suggest("a")["name"] == "trial-0003"
    assert states(study) == [TrialState.FAIL] * 3 + [TrialState.RUNNING]
    reconcile(study, {})
    waiting = [trial.user_attrs["run"] for trial in study.trials if trial.state == TrialState.WAITING]
    assert waiting == ["trial-0003"]


def test_a_space_that_refuses_everything_is_one_clear_error(tmp_path):
    study = open_study(tmp_path / "study.journal", "s", 0)
    with pytest.raises(SweepError, match="refused 100 draws.*no space today"):
        StudySearcher(study, find_search_space("spaces:raises")).suggest("a")


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_journal_whose_last_line_is_torn_is_read_up_to_it(study, tmp_path, cut):
    searcher = StudySearcher(study, quick)
    searcher.suggest("a")
    searcher.finish("a", record("trial-0000"))
    journal = tmp_path / "study.journal"
    journal.write_bytes(journal.read_bytes()[:-cut])
    again = open_study(journal, "s", 0)
    reconcile(again, {"trial-0000": record("trial-0000")})
    assert states(open_study(journal, "s", 0)) == [TrialState.COMPLETE]
