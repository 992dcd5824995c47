"""The study is told the truth, and is put right after any end."""

import optuna
import pytest
from optuna.trial import TrialState
from spaces import quick
from trial_records import record

from orchestrator.config import ConstraintsConfig
from orchestrator.searcher import StudySearcher
from orchestrator.study import close_running, constraints_of, open_study, reconcile, tell


@pytest.fixture
def study(tmp_path):
    return open_study(tmp_path / "study.journal", "s", 0)


def states(study):
    return [trial.state for trial in study.trials]


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


def test_after_an_end_no_trial_is_running_and_those_cut_off_come_first_with_name_and_parameters(study, tmp_path):
    searcher = StudySearcher(study, quick)
    suggestions = [searcher.suggest(key) for key in "abcd"]
    searcher.finish("b", record("trial-0001"))
    ended = {"trial-0001": record("trial-0001"), "trial-0003": record("trial-0003")}  # 3 ended unheard
    close_running(study, ended)
    assert states(study) == [TrialState.WAITING, TrialState.COMPLETE] * 2

    again = open_study(tmp_path / "study.journal", "s", 0)
    reconcile(again, ended)
    reconcile(again, ended)  # a second end before anything ran
    resumed = StudySearcher(again, quick)
    found = [resumed.suggest(key) for key in "ef"]
    assert found == [suggestions[0], suggestions[2]]
    assert resumed.suggest("g")["name"] == "trial-0004"
    assert states(again) == [TrialState.RUNNING, TrialState.COMPLETE] * 2 + [TrialState.RUNNING]


def test_a_killed_driver_leaves_running_trials_that_are_told_their_recorded_result(study, tmp_path):
    searcher = StudySearcher(study, quick)
    searcher.suggest("a")
    searcher.suggest("b")
    again = open_study(tmp_path / "study.journal", "s", 0)
    reconcile(again, {"trial-0000": record("trial-0000", 0.8, 50)})
    assert states(again) == [TrialState.COMPLETE, TrialState.WAITING]
    assert again.trials[0].values == [0.8, 50]


def test_a_finished_trial_that_is_missing_from_the_table_is_read_again(study, tmp_path, caplog):
    suggestion = StudySearcher(study, quick).suggest("a")
    tell(study, 0, record("trial-0000"))
    again = open_study(tmp_path / "study.journal", "s", 0)
    reconcile(again, {})
    assert "the results of 1 finished trials are missing" in caplog.text
    assert StudySearcher(again, quick).suggest("b") == suggestion


def test_a_reopened_study_does_not_draw_its_first_points_again(study, tmp_path):
    first = [study.ask() for _ in range(2)]
    drawn = [quick(trial)["energy"] for trial in first]
    again = open_study(tmp_path / "study.journal", "s", 0)
    assert not {quick(again.ask())["energy"] for _ in range(2)} & set(drawn)


def test_objectives_are_named_and_directed(study):
    assert study.directions == [optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE]
    assert study.metric_names == ["score", "macs"]


@pytest.mark.timeout(20)  # Optuna waits half a minute for a lock that nobody holds, and for ever where it leads nowhere
@pytest.mark.parametrize("moved", [False, True])
def test_the_lock_of_a_driver_that_was_killed_while_it_wrote_is_no_hindrance(study, tmp_path, moved):
    journal = tmp_path / "study.journal"
    journal.with_name("study.journal.lock").symlink_to("/nowhere/study.journal" if moved else journal)
    open_study(journal, "s", 0).enqueue_trial({"x": 1.0})
    assert states(open_study(journal, "s", 0)) == [TrialState.WAITING]


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


def test_the_score_is_told_where_there_is_one(study):
    study.ask()
    tell(study, 0, record("x", accuracy=0.2, score=0.7, macs_ratio=0.5, params_ratio=0.4, epochs=3))
    assert study.trials[0].values == [0.7, 100]
    assert study.trials[0].user_attrs == {"epochs": 3, "macs_ratio": 0.5, "params_ratio": 0.4}


def test_a_pruned_trial_has_no_values_and_keeps_its_last_ones(study):
    for number, columns in enumerate([{}, {"score": 0.6, "epochs": 2}, {"accuracy": None, "macs": None}]):
        study.ask()
        tell(study, number, record("x", state="PRUNED", **columns))
    assert states(study) == [TrialState.PRUNED] * 3
    assert [trial.values for trial in study.trials] == [None] * 3
    assert [trial.user_attrs for trial in study.trials] == [
        {"last_accuracy": 0.9, "last_macs": 100},
        {"last_accuracy": 0.6, "last_macs": 100, "epochs": 2},
        {},
    ]
    assert study.best_trials == []


def test_a_pruned_trial_whose_last_values_are_not_finite_is_a_failure(study):
    study.ask()
    tell(study, 0, record("x", accuracy=float("nan"), state="PRUNED"))
    assert states(study) == [TrialState.FAIL]


def test_pruned_trials_are_neither_running_nor_run_again(study, tmp_path):
    searcher = StudySearcher(study, quick)
    searcher.suggest("a")
    searcher.suggest("b")
    pruned = {f"trial-000{n}": record(f"trial-000{n}", state="PRUNED") for n in range(2)}
    searcher.finish("a", pruned["trial-0000"])
    again = open_study(tmp_path / "study.journal", "s", 0)
    reconcile(again, pruned)
    assert states(again) == [TrialState.PRUNED] * 2


class TestConstraints:
    LIMITS = ConstraintsConfig(max_macs_ratio=0.5, min_accuracy=0.8)

    def told(self, tmp_path, *records, limits=LIMITS):
        study = open_study(tmp_path / "limited.journal", "s", 0, constraints=limits)
        for number, outcome in enumerate(records):
            study.ask()
            tell(study, number, outcome)
        return study

    def test_only_feasible_trials_are_best(self, tmp_path):
        study = self.told(
            tmp_path,
            record("x", 0.99, 90, macs_ratio=0.9),
            record("x", 0.8, 50, macs_ratio=0.5),
            record("x", 0.1, 1, macs_ratio=0.01),
            record("x", 0.1, 60, macs_ratio=0.5, score=0.85),
        )
        assert [trial.number for trial in study.best_trials] == [1, 3]
        assert study.trials[0].constraints == pytest.approx({"max_macs_ratio": 0.4, "min_accuracy": -0.19})

    def test_they_outlive_the_driver_and_can_be_changed(self, tmp_path):
        self.told(tmp_path)
        again = open_study(tmp_path / "limited.journal", "s", 0)
        assert constraints_of(again) == self.LIMITS
        open_study(tmp_path / "limited.journal", "s", 0, constraints=ConstraintsConfig())
        assert constraints_of(again) == ConstraintsConfig()

    def test_a_run_without_a_figure_that_is_limited_is_a_failure(self, tmp_path):
        study = self.told(tmp_path, record("x", macs_ratio=None), record("x", macs_ratio=float("nan")))
        assert states(study) == [TrialState.FAIL] * 2

    def test_a_pruned_trial_is_not_called_infeasible(self, tmp_path):
        study = self.told(tmp_path, record("x", 0.1, macs_ratio=0.9, state="PRUNED"))
        assert study.trials[0].constraints == {}

    def test_a_driver_killed_while_telling_tells_it_to_the_end_the_next_time(self, tmp_path):
        study = open_study(tmp_path / "limited.journal", "s", 0, constraints=self.LIMITS)
        quick(study.ask())
        optuna.Trial(study, study.trials[0]._trial_id).set_constraint("max_macs_ratio", -0.1)
        again = open_study(tmp_path / "limited.journal", "s", 0)
        reconcile(again, {"trial-0000": record("trial-0000", macs_ratio=0.4)})
        assert states(again) == [TrialState.COMPLETE]
        assert again.trials[0].constraints == pytest.approx({"max_macs_ratio": -0.1, "min_accuracy": -0.1})
