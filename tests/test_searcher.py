"""Tune gets a run for each trial that it asks for, whatever the space does."""

import time

import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher
from spaces import quick
from trial_records import record

from orchestrator.background import Background
from orchestrator.choices import probe_search_space
from orchestrator.searcher import StudySearcher
from orchestrator.study import close_running, open_study, reconcile
from search_spaces import find_search_space
from trainers.errors import ConfigError, SweepError


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


def test_tunes_own_calls_change_nothing(study):
    searcher = StudySearcher(study, quick)
    searcher.suggest("a")
    searcher.on_trial_complete("a", {"val_accuracy": 1.0}, error=False)
    assert states(study) == [TrialState.RUNNING]


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


class TestBatches:
    def test_a_batch_is_asked_for_whenever_none_is_left(self, study):
        searcher = StudySearcher(study, quick, ask_batch=3)
        names = [searcher.suggest(key)["name"] for key in "abcd"]
        assert names == [f"trial-{number:04d}" for number in range(4)]
        assert states(study) == [TrialState.RUNNING] * 6

    def test_no_more_are_asked_for_than_tune_will_start(self, study):
        searcher = StudySearcher(study, quick, ask_batch=3, limit=4)
        for key in "abcd":
            searcher.suggest(key)
        assert len(study.trials) == 4

    def test_what_was_asked_for_and_not_started_comes_first_when_the_sweep_goes_on(self, study, tmp_path):
        searcher = StudySearcher(study, quick, ask_batch=3)
        searcher.suggest("a")
        searcher.finish("a", record("trial-0000"))
        params = [trial.params for trial in study.trials]
        close_running(study, {})
        assert states(study) == [TrialState.COMPLETE, TrialState.WAITING, TrialState.WAITING]
        again = open_study(tmp_path / "study.journal", "s", 0)
        reconcile(again, {"trial-0000": record("trial-0000")})
        found = [StudySearcher(again, quick).suggest(key) for key in "bc"]
        assert [suggestion["name"] for suggestion in found] == ["trial-0001", "trial-0002"]
        assert [suggestion["settings"]["energy"] for suggestion in found] == [drawn["energy"] for drawn in params[1:]]

    def test_asking_ahead_starts_as_soon_as_the_last_one_is_taken(self, study):
        with Background() as background:
            searcher = StudySearcher(study, quick, limit=3, background=background, ahead=1)
            names = [searcher.suggest(key)["name"] for key in "ab"]
        assert names == ["trial-0000", "trial-0001"]
        assert states(study) == [TrialState.RUNNING] * 3
        assert searcher.suggest("c")["name"] == "trial-0002"  # asked for already: nothing is handed in any more
        assert len(study.trials) == 3

    def test_one_more_is_kept_ready_once_a_worker_had_to_wait(self, study):
        def asked_for():
            background.wait()
            return len(study.trials)

        with Background() as background:
            searcher = StudySearcher(study, quick, background=background, ahead=2)
            searcher.suggest("a")
            background.submit(searcher.finish, "a", record("trial-0000"))
            assert asked_for() == 2
            background.submit(time.sleep, 0.2)
            searcher.suggest("b")  # is ready
            searcher.suggest("c")  # waits
            assert asked_for() == 5
            searcher.suggest("d")
            assert asked_for() == 6

    def test_a_trial_that_was_asked_for_ahead_is_not_started_once_a_rule_is_met(self, study):
        reasons = []
        searcher = StudySearcher(study, quick, until=lambda: reasons[-1] if reasons else None, ahead=1)
        searcher.suggest("a")
        reasons.append("enough")
        searcher.finish("a", record("trial-0000"))
        assert searcher.suggest("b") == Searcher.FINISHED
        assert states(study) == [TrialState.COMPLETE, TrialState.RUNNING]
        close_running(study, {"trial-0000": record("trial-0000")})
        reconcile(study, {"trial-0000": record("trial-0000")})
        assert StudySearcher(study, quick).suggest("c")["name"] == "trial-0001"

    def test_nor_is_the_next_one_while_the_books_of_the_trial_that_met_it_are_still_written(self, study):
        reasons = []
        with Background() as background:
            searcher = StudySearcher(
                study, quick, until=lambda: reasons[-1] if reasons else None, background=background, ahead=2
            )
            searcher.suggest("a")

            def end():
                time.sleep(0.1)
                reasons.append("enough")
                searcher.finish("a", record("trial-0000"))

            background.submit(end)
            assert searcher.suggest("b") == Searcher.FINISHED

    @pytest.mark.parametrize("ahead", [0, 2])
    def test_those_that_were_cut_off_go_on_even_after_a_rule(self, study, tmp_path, ahead):
        first = StudySearcher(study, quick)
        drawn = [first.suggest(key) for key in "abc"]  # the driver is killed here; c was asked for, and never started
        again = open_study(tmp_path / "study.journal", "s", 0)
        reconcile(again, {})
        begun = {"trial-0000", "trial-0001"}.__contains__
        with Background(threaded=ahead > 0) as background:
            searcher = StudySearcher(
                again, quick, 1, 5, lambda: "enough", has_begun=begun, background=background, ahead=ahead
            )
            assert [searcher.suggest(key) for key in "ab"] == drawn[:2]
            assert searcher.suggest("c") == Searcher.FINISHED
        assert states(again) == [TrialState.RUNNING, TrialState.RUNNING, TrialState.WAITING]
