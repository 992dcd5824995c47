"""A sampler is shown a part of a long study: the best trials, some of the others, and all that run."""

import itertools

import optuna
import pytest
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import TrialState, create_trial

from orchestrator.study import FeasibleTrials
from orchestrator.thinned import Thinned, chosen

DIRECTIONS = ["maximize", "minimize"]
SPACE = {"x": optuna.distributions.FloatDistribution(0, 1), "kind": optuna.distributions.CategoricalDistribution("ab")}


def value(params):
    x = params["x"]
    return (x if params["kind"] == "a" else x / 2), (x - 0.3) ** 2


def ended(x, kind="a", state=TrialState.COMPLETE, violation=0.0):
    params = {"x": x, "kind": kind}
    trial = create_trial(params=params, distributions=SPACE, state=state, values=value(params))
    trial.set_constraint("limit", violation)
    return trial


def numbers_of(trials, count):
    feasible = FeasibleTrials()
    feasible.read(trials[150:])  # some had ended before others
    feasible.read(trials)
    return chosen(trials, feasible, count)


def study_of(count, sampler=None):
    """One of `count` trials with other values each."""
    study = optuna.create_study(directions=DIRECTIONS, sampler=sampler)
    for number in range(count):
        study.add_trial(ended((number * 0.618) % 1, "ab"[number % 2]))
    return study


def drawn(study, count):
    found = []
    for _ in range(count):
        trial = study.ask(SPACE)
        found.append(trial.params)
        study.tell(trial, value(trial.params))
    return found


class Watching(RandomSampler):
    """Notes the trials that it is shown."""

    def infer_relative_search_space(self, study, trial):
        self.seen = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        self.running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        self.directions = study.directions
        return {}


def tpe():
    return TPESampler(seed=1, multivariate=True, group=True, constant_liar=True)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
class TestThinned:
    def test_up_to_the_limit_nothing_is_changed(self):
        assert drawn(study_of(30, tpe()), 10) == drawn(study_of(30, Thinned(tpe(), 40)), 10)

    def test_past_the_limit_tpe_draws_from_what_it_is_shown(self):
        found = drawn(study_of(300, Thinned(tpe(), 100)), 40)
        good = [params for params in found if params["kind"] == "a" and params["x"] >= 0.3]
        assert len(good) > 30  # the front; 35 % of random draws are on it

    def test_running_trials_are_shown(self):
        sampler = Watching(seed=0)
        study = study_of(60, Thinned(sampler, 20))
        for _ in range(3):
            study.ask(SPACE)
        assert len(sampler.seen) == 20
        assert len(sampler.running) == 3
        assert sampler.directions == study.directions


def test_the_best_tenth_is_chosen_and_the_rest_at_equal_steps():
    study = study_of(200)
    trials = study.get_trials(deepcopy=False)
    numbers = numbers_of(trials, 100)
    front = {trial.number for trial in study.best_trials}
    assert len(numbers) == 100
    assert len(numbers & front) >= 10
    others = sorted(numbers)
    assert max(b - a for a, b in itertools.pairwise(others)) <= 3
    at_once = FeasibleTrials()
    at_once.read(trials)
    assert numbers == chosen(trials, at_once, 100)


def test_infeasible_and_pruned_trials_are_not_among_the_best():
    study = optuna.create_study(directions=DIRECTIONS)
    for number in range(40):
        study.add_trial(ended(number / 100))
    best = ended(0.9, violation=0.1), ended(0.9, state=TrialState.PRUNED)
    for trial in (*best, ended(0.8)):
        study.add_trial(trial)
    numbers = numbers_of(study.get_trials(deepcopy=False), 10)
    assert 42 in numbers
    assert len(numbers) == 10
