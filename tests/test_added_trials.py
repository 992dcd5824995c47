"""What enters the study beside the sampler's own draws: once, marked, and never taken for a run."""

import logging
from dataclasses import replace

import pytest
from optuna.trial import TrialState
from spaces import quick, two_rules
from trial_records import point, record

from orchestrator.added_trials import CurveTrials, begin, check_search
from orchestrator.choices import offered
from orchestrator.config import ConstraintsConfig, SearchConfig
from orchestrator.searcher import StudySearcher
from orchestrator.study import close_running, open_study, reconcile
from search_spaces import FIRST_POINTS, SEARCH_SPACES, find_search_space
from trainers.errors import ConfigError

ENERGY = {"rank_rule": "energy", "energy": 0.1, "compression_period": 20}


def reopened(tmp_path, **options):
    return open_study(tmp_path / "study.journal", "s", 0, **options)


def started(tmp_path, **options):
    """A study whose first trial, of known parameters, is complete."""
    study = reopened(tmp_path, **options)
    begin(study, two_rules, SearchConfig(first_points=(ENERGY,)))
    searcher = StudySearcher(study, two_rules)
    searcher.suggest("a")
    searcher.finish("a", record("trial-0000", macs_ratio=0.5, params_ratio=0.5))
    return study, searcher


class TestCurve:
    POINTS = (
        point("trial-0000", {}),  # the trial's own cut
        point("trial-0000", {"energy": 0.1}),  # the same
        point("trial-0000", {"energy": 0.02}, 0.95, 80),
        point("trial-0000", {"energy": 0.3}, 0.7, 20),
        point("trial-0000", {"energy": 0.6}),  # out of range
        point("trial-0000", {"budget": 0.5}),  # a parameter of other choices
        point("trial-0000", {"rank_rule": "equal_error"}),  # no number
        point("trial-0000", {"energy": 0.2}, float("nan")),
        point("trial-0000", {"energy": 0.2, "compression_period": 15.5}),  # no integer
    )

    def test_points_that_the_space_could_have_chosen_become_trials(self, tmp_path):
        study, _ = started(tmp_path)
        assert CurveTrials(study).add({0: self.POINTS}) == 2
        added = study.trials[1:]
        assert [trial.values for trial in added] == [[0.95, 80], [0.7, 20]]
        assert [trial.params for trial in added] == [{**ENERGY, "energy": 0.02}, {**ENERGY, "energy": 0.3}]
        assert all(trial.state == TrialState.COMPLETE for trial in added)
        assert all(trial.user_attrs["source"] == "trial-0000" for trial in added)
        assert all(trial.user_attrs["added"] == "curve" for trial in added)

    def test_the_same_curve_is_added_once_however_often_the_driver_is_killed(self, tmp_path):
        study, _ = started(tmp_path)
        CurveTrials(study).add({0: self.POINTS[:3]})  # killed before the rest was in
        again = reopened(tmp_path)
        assert CurveTrials(again).add({0: self.POINTS}) == 1
        assert CurveTrials(again).add({0: self.POINTS}) == 0
        assert len(reopened(tmp_path).trials) == 3

    def test_added_trials_are_no_runs(self, tmp_path):
        """After a kill with two trials running, those and only those come again; new names go on from the numbers."""
        study, searcher = started(tmp_path)
        cut_off = [searcher.suggest(key) for key in "bc"]
        CurveTrials(study).add({0: self.POINTS})
        again = reopened(tmp_path)
        reconcile(again, {"trial-0000": record("trial-0000")})
        reconcile(again, {"trial-0000": record("trial-0000")})
        resumed = StudySearcher(again, two_rules)
        assert [resumed.suggest(key) for key in "de"] == cut_off
        new = [resumed.suggest(key) for key in "fg"]
        assert [suggestion["name"] for suggestion in new] == ["trial-0005", "trial-0006"]
        assert [suggestion["number"] for suggestion in new] == [5, 6]
        assert sum("added" in trial.user_attrs for trial in again.trials) == 2

    def test_the_curve_of_a_trial_that_was_taken_up_again_is_found_by_its_first_number(self, tmp_path):
        study = reopened(tmp_path)
        suggestion = StudySearcher(study, quick).suggest("a")
        close_running(study, {})
        again = reopened(tmp_path)
        reconcile(again, {})
        searcher = StudySearcher(again, quick)
        assert searcher.suggest("a") == suggestion
        searcher.finish("a", record("trial-0000"))
        points = [
            point("trial-0000", {"energy": suggestion["settings"]["energy"]}),
            point("trial-0000", {"energy": 0.5}),
        ]
        assert CurveTrials(again).add({suggestion["number"]: points}) == 1

    def test_points_obey_the_studys_constraints(self, tmp_path):
        study, _ = started(tmp_path, constraints=ConstraintsConfig(max_macs_ratio=0.4, min_accuracy=0.5))
        points = [
            point("trial-0000", {"energy": 0.3}, macs_ratio=0.4),
            point("trial-0000", {"energy": 0.4}, 0.4, 10, macs_ratio=0.1),
        ]
        assert CurveTrials(study).add({0: points}) == 2
        assert [trial.params["energy"] for trial in study.best_trials] == [0.3]
        assert study.trials[2].constraints == pytest.approx({"max_macs_ratio": -0.3, "min_accuracy": 0.1})

    def test_in_a_large_study_only_points_on_the_front_of_what_is_feasible_are_added(self, tmp_path, monkeypatch):
        study, _ = started(tmp_path, constraints=ConstraintsConfig(max_params_ratio=0.6))
        first = point("trial-0000", {"energy": 0.02}, 0.95, 80)
        infeasible = point("trial-0000", {"energy": 0.05}, 0.99, 1, params_ratio=0.7)
        curves = CurveTrials(study)
        assert curves.add({0: [first, infeasible]}) == 2
        monkeypatch.setattr("orchestrator.added_trials.ALL_CUTS_UP_TO", 3)
        points = [
            point("trial-0000", {"energy": 0.3}, 0.94, 80),  # dominated by the first
            point("trial-0000", {"energy": 0.31}, 0.95, 80),  # equal to it
            point("trial-0000", {"energy": 0.32}, 0.94, 79),
        ]
        assert curves.add({0: points}) == 2
        assert [trial.params["energy"] for trial in study.trials[3:]] == [0.31, 0.32]
        assert curves.add({0: [first, infeasible, *points]}) == 0
        after_a_kill = CurveTrials(study)
        assert after_a_kill.add({0: [first, infeasible, *points]}) == 0


class TestFirstPoints:
    def test_they_are_tried_first_and_completed_by_the_sampler(self, tmp_path):
        study = reopened(tmp_path)
        search = SearchConfig(first_points=(ENERGY, {"rank_rule": "equal_error", "budget": 0.25}))
        begin(study, two_rules, search)
        begin(study, two_rules, search)
        found = [StudySearcher(study, two_rules).suggest(key) for key in "abc"]
        assert found[0] == {"name": "trial-0000", "number": 0, "settings": ENERGY, "source": None}
        assert (found[1]["settings"]["budget"], found[1]["name"]) == (0.25, "trial-0001")
        assert 10 <= found[1]["settings"]["compression_period"] <= 40
        assert len(study.trials) == 3

    def test_a_kill_before_all_of_one_was_suggested_loses_none_of_it(self, tmp_path):
        study = reopened(tmp_path)
        begin(study, two_rules, SearchConfig(first_points=(ENERGY,)))
        study.ask().suggest_categorical("rank_rule", ["energy", "equal_error"])
        again = reopened(tmp_path)
        begin(again, two_rules, SearchConfig(first_points=(ENERGY,)))
        reconcile(again, {})
        suggestion = StudySearcher(again, two_rules).suggest("a")
        assert suggestion == {"name": "trial-0000", "number": 0, "settings": ENERGY, "source": None}

    @pytest.mark.parametrize(
        ("point", "name", "message"),
        [
            ({"enegry": 0.1}, ".enegry", "unknown parameter of this choice 'enegry', did you mean 'energy'"),
            ({**ENERGY, "energy": 0.6}, ".energy", r"must be in \[0.01, 0.5\], but got 0.6"),
            ({**ENERGY, "energy": "0.1"}, ".energy", "but got '0.1'"),
            ({**ENERGY, "energy": True}, ".energy", "but got True"),
            ({**ENERGY, "energy": None}, ".energy", "but got None"),
            ({**ENERGY, "energy": float("nan")}, ".energy", "but got nan"),
            ({"compression_period": 20.5}, ".compression_period", r"must be in \[10, 40\], but got 20.5"),
            ({"rank_rule": "nuclear"}, ".rank_rule", r"must be in \('energy', 'equal_error'\), but got 'nuclear'"),
            ({"rank_rule": []}, ".rank_rule", r"but got \[\]"),
            ({"budget": 0.5}, ".budget", "of some choices only; give those that lead to it too"),
            ({"rank_rule": "energy", "budget": 0.5}, ".budget", "unknown parameter of this choice 'budget'"),
        ],
    )
    def test_a_point_that_cannot_be_drawn_is_an_error(self, point, name, message):
        with pytest.raises(ConfigError, match=message) as caught:
            check_search(SearchConfig(first_points=(ENERGY, point)), two_rules)
        assert [field for field, _ in caught.value.problems] == [f"search.first_points[1]{name}"]

    def test_all_errors_are_reported_at_once(self):
        points = ({"enegry": 1, "compression_period": 5}, ENERGY, {"rank_rule": "x"})
        with pytest.raises(ConfigError) as caught:
            check_search(SearchConfig(first_points=points), two_rules)
        assert len(caught.value.problems) == 3

    def test_a_choice_that_the_space_refuses_is_an_error(self):
        with pytest.raises(ConfigError, match=r"first_points\[0\]: search_space: .*no space today"):
            check_search(SearchConfig(first_points=({"x": 1},)), find_search_space("spaces:raises"))

    @pytest.mark.parametrize("name", FIRST_POINTS)
    def test_those_of_a_space_are_whole_points_of_it_unless_the_user_has_his_own(self, name, small_sweep):
        own = replace(small_sweep, search_space=name, search=SearchConfig())
        check_search(own.resolved_search, SEARCH_SPACES[name])
        assert own.resolved_search.first_points == FIRST_POINTS[name]
        for params in FIRST_POINTS[name]:
            assert offered(SEARCH_SPACES[name], params, 0).keys() == params.keys()
        for chosen in ((), FIRST_POINTS[name][:1]):
            assert replace(own, search=SearchConfig(first_points=chosen)).resolved_search.first_points == chosen

    @pytest.mark.parametrize("name", SEARCH_SPACES)
    def test_any_draw_of_a_space_is_a_valid_point(self, name, tmp_path):
        trial = reopened(tmp_path).ask()
        SEARCH_SPACES[name](trial)
        check_search(SearchConfig(first_points=(trial.params,)), SEARCH_SPACES[name])


class TestWarmStart:
    def earlier(self, tmp_path):
        """Trial 0 complete with a curve of two points, 1 pruned, 2 failed, 3 complete and with parameters of its own."""
        folder = tmp_path / "earlier"
        folder.mkdir()
        study, searcher = started(folder)
        CurveTrials(study).add({0: TestCurve.POINTS})
        for key, state in (("b", "PRUNED"), ("c", "FAIL")):
            name = searcher.suggest(key)["name"]
            searcher.finish(key, record(name, state=state))
        odd = StudySearcher(study, quick)
        odd.finish("d", record(odd.suggest("d")["name"]))
        return SearchConfig(warm_start=str(folder)), folder / "study.journal"

    def test_complete_trials_that_fit_are_added_once_and_marked(self, tmp_path, caplog):
        search, _ = self.earlier(tmp_path)
        with caplog.at_level(logging.WARNING):
            begin(reopened(tmp_path), two_rules, search)
        assert "1 of 4 trials of s do not fit" in caplog.text
        study = reopened(tmp_path)
        begin(study, two_rules, search)
        assert [trial.values for trial in study.trials] == [[0.9, 100], [0.95, 80], [0.7, 20]]
        assert all(trial.user_attrs["source"] == "s" for trial in study.trials)
        reconcile(study, {})
        assert StudySearcher(study, two_rules).suggest("a")["name"] == "trial-0003"

    def test_it_goes_on_where_it_was_killed(self, tmp_path):
        search, _ = self.earlier(tmp_path)
        study = reopened(tmp_path)
        begin(study, two_rules, search)
        study.set_user_attr("warm_start", None)  # as if the last lines had not been written
        begin(study, two_rules, search)
        assert len(study.trials) == 3

    def test_the_earlier_sweep_may_be_running_and_stays_as_it_is(self, tmp_path):
        search, journal = self.earlier(tmp_path)
        with journal.open("ab") as file:
            file.write(b'{"op_code": 6, ')
        before = journal.read_bytes()
        begin(reopened(tmp_path), two_rules, search)
        assert journal.read_bytes() == before
        assert sorted(path.name for path in journal.parent.iterdir()) == [journal.name]

    def test_constraints_of_the_new_search_hold_and_a_trial_without_the_figure_is_left_out(self, tmp_path):
        search, _ = self.earlier(tmp_path)
        study = reopened(tmp_path, constraints=ConstraintsConfig(min_accuracy=0.8, max_macs_ratio=1.0))
        begin(study, two_rules, search)
        assert [trial.number for trial in study.best_trials] == [1]  # the third is too inaccurate
        assert [list(trial.constraints) for trial in study.trials] == [["max_macs_ratio", "min_accuracy"]] * 3
        other = open_study(tmp_path / "other.journal", "t", 0, constraints=ConstraintsConfig(max_macs_ratio=0.5))
        begin(other, quick, search)  # quick's one trial was told without ratios
        assert other.trials == []

    @pytest.mark.parametrize("content", [None, b"", b"no journal\n", b'{"op_code": 99}\n'])
    def test_without_a_study_there_it_is_an_error(self, tmp_path, content):
        if content is not None:
            (tmp_path / "study.journal").write_bytes(content)
        with pytest.raises(ConfigError, match="search.warm_start: must be the output directory of an earlier sweep"):
            check_search(SearchConfig(warm_start=str(tmp_path)), two_rules)
