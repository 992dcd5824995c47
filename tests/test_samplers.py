"""Every sampler drives a real search: two objectives, conditional spaces, pruned and failed trials, constraints."""

from collections import deque

import pytest
from spaces import quick
from trial_records import point, record

from orchestrator.added_trials import CurveTrials
from orchestrator.config import ConstraintsConfig, SearchConfig
from orchestrator.samplers import SAMPLERS, make_sampler
from orchestrator.searcher import StudySearcher
from orchestrator.study import open_study, reconcile
from search_spaces import find_search_space
from trainers.errors import ConfigError

LIMITS = ConstraintsConfig(max_macs_ratio=0.6, max_params_ratio=1.0, min_accuracy=0.2)


def outcome(name, number, settings):
    """Synthetic, with all three ends; the best trade-off is at high learning rates."""
    cost = 1 / (2 + number % 5)
    accuracy = min(1.0, 200 * settings["learning_rate"]) * (1 - cost / 2)
    state = {3: "PRUNED", 5: "FAIL"}.get(number, "COMPLETE")
    return record(name, accuracy, int(1e6 * cost), state, macs_ratio=cost, params_ratio=cost)


def search(journal, sampler, space, num_trials, kills=()):
    """Two trials at a time; returns the settings in order and the study. A kill leaves both running, one half drawn."""
    study = open_study(journal, "s", 3, sampler, LIMITS)
    searcher = StudySearcher(study, find_search_space(space))
    found, running, ended = [], deque(), {}
    for number in range(num_trials):
        if number in kills:
            study.ask()
            study = open_study(journal, "s", 3, sampler, LIMITS)
            reconcile(study, ended)
            searcher = StudySearcher(study, find_search_space(space))
            assert [searcher.suggest(key) for key, _ in running] == [suggestion for _, suggestion in running]
        suggestion = searcher.suggest(str(number))
        found.append(suggestion["settings"])
        running.append((str(number), suggestion))
        if len(running) == 2:
            key, first = running.popleft()
            ended[first["name"]] = outcome(first["name"], int(key), first["settings"])
            searcher.finish(key, ended[first["name"]])
    return found, study


@pytest.mark.parametrize("space", ["svd_training", "methods"])
@pytest.mark.parametrize("sampler", SAMPLERS)
class TestSamplers:
    def test_runs_a_search_of_all_ends_within_constraints(self, sampler, space, tmp_path):
        settings, study = search(tmp_path / "study.journal", sampler, space, 14)  # some of each model's own draws
        assert len({str(choice) for choice in settings}) == 14
        assert study.best_trials
        assert all(trial.user_attrs["macs_ratio"] <= 0.6 for trial in study.best_trials)

    def test_the_same_seed_proposes_the_same_first(self, sampler, space, tmp_path):
        once, _ = search(tmp_path / "once.journal", sampler, space, 4)
        again, _ = search(tmp_path / "again.journal", sampler, space, 4)
        assert once == again

    def test_a_search_that_was_killed_proposes_what_it_would_have(self, sampler, space, tmp_path):
        once, study = search(tmp_path / "once.journal", sampler, space, 14)
        again, killed = search(tmp_path / "again.journal", sampler, space, 14, kills=(1, 6, 12))
        assert again == once
        assert [trial.number for trial in killed.trials] == [trial.number for trial in study.trials]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_study_that_goes_on_does_not_draw_its_first_points_again(sampler, tmp_path):
    drawn = []
    for _ in range(2):
        study = open_study(tmp_path / "study.journal", "s", 0, sampler)
        drawn += [quick(study.ask())["energy"] for _ in range(3)]
    assert len(set(drawn)) == 6


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_model_waits_for_ten_runs_and_not_for_ten_points_of_one_curve(sampler, tmp_path):
    study = open_study(tmp_path / "study.journal", "s", 0, sampler, LIMITS)
    searcher = StudySearcher(study, quick)
    for run in range(10):
        name = searcher.suggest(str(run))["name"]
        assert not modelled(study)
        state = "PRUNED" if run == 5 and sampler == "tpe" else "COMPLETE"
        searcher.finish(str(run), record(name, state=state, macs_ratio=0.5, params_ratio=0.5))
        if run == 0:
            points = [point(name, {"energy": 0.02 + 0.05 * i}, 0.9 - 0.05 * i, 100 - 9 * i) for i in range(10)]
            assert CurveTrials(study).add({0: points}) == 10
    searcher.suggest("next")
    assert modelled(study)


def modelled(study):
    """Whether the last trial's parameters come from a model: both samplers leave them there for other processes."""
    return any("relative_params" in key for key in study.trials[-1].system_attrs)


def test_the_name_is_checked_with_the_configuration():
    with pytest.raises(ConfigError, match=r"unknown sampler 'tpee', did you mean 'tpe'\? known: tpe, nsga2, gp"):
        SearchConfig(sampler="tpee")
    with pytest.raises(KeyError):
        make_sampler("tpee", 0)
