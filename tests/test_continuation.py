"""A trial goes on from its nearest finished neighbour, or from stage 1 where none is near."""

import json

import pytest
from spaces import quick
from trial_records import record

from orchestrator.continuation import neighbour
from orchestrator.searcher import StudySearcher
from orchestrator.study import close_running, open_study, reconcile


def trial(name, strength, source="pretrain-channel", state="COMPLETE", **settings):
    columns = {"method": "svd_training", "decomposition": "channel", "regularizer": "l1", **settings}
    return record(name, state=state, source=source, strength=strength, settings=json.dumps(columns), **columns)


SETTINGS = {"regularizer": "l1", "strength": 0.1}


def found(*trials, settings=SETTINGS):
    best = neighbour(settings, trials)
    return None if best is None else best.name


def test_the_nearest_strength_counts_as_a_ratio():
    trials = [trial("far", 0.29), trial("above", 0.2), trial("below", 0.06), trial("beyond", 0.031)]
    assert found(*trials) == "below"  # 0.06 is a factor of 1.67 away, 0.2 one of 2
    assert found(trials[0]) == "far"
    assert found(trials[1], trial("same distance", 0.05)) == "above"


@pytest.mark.parametrize("strength", [0.31, 0.033, 0.0, None])
def test_farther_than_a_factor_of_three_is_no_neighbour(strength):
    assert found(trial("a", strength)) is None


@pytest.mark.parametrize(
    "other",
    [
        trial("a", 0.1, state="PRUNED"),
        trial("a", 0.1, state="FAIL"),
        trial("a", 0.1, decomposition="spatial"),
        trial("a", 0.1, regularizer="hoyer"),
        trial("a", 0.1, method="lorita"),
        trial("a", 0.1, source="trial-0000"),  # it has trained for longer already
    ],
)
def test_other_kinds_are_no_neighbours(other):
    assert found(other) is None


def test_settings_without_a_strength_have_no_neighbour():
    other = trial("a", 0.1, method="evbmf", regularizer=None, source="pretrain-dense")
    assert found(other, settings={"method": "evbmf"}) is None
    assert found(trial("a", 0.1), settings={**SETTINGS, "strength": 0.0}) is None


def test_a_trial_that_was_cut_off_goes_on_from_where_it_began(tmp_path):
    study = open_study(tmp_path / "study.journal", "s", 0)
    asked = []
    searcher = StudySearcher(study, quick, source=lambda settings: asked.append(settings) or "trial-0009")
    first = searcher.suggest("a")
    assert (first["source"], asked) == ("trial-0009", [first["settings"]])
    close_running(study, {})
    again = open_study(tmp_path / "study.journal", "s", 0)
    reconcile(again, {})
    suggestion = StudySearcher(again, quick, source=lambda _: "trial-0010").suggest("b")
    assert suggestion == first
