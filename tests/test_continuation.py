"""A trial goes on from the best finished one's network, or from stage 1 where there is none."""

import json

import pytest
from spaces import quick
from trial_records import record

from orchestrator.continuation import Continuation, chain
from orchestrator.searcher import StudySearcher
from orchestrator.study import close_running, open_study, reconcile


def trial(name, score, source="pretrain-channel", state="COMPLETE", **settings):
    columns = {"method": "svd_training", "decomposition": "channel", "regularizer": "l1", **settings}
    values = {"score": score, "macs": 50, "macs_ratio": 0.5, "params": 50, "params_ratio": 0.5, "epochs": 2}
    return record(name, state=state, source=source, settings=json.dumps(columns), **columns, **values)


SETTINGS = {"regularizer": "hoyer", "strength": 0.1}


def found(*trials, settings=SETTINGS, max_depth=2):
    return Continuation(max_depth).start(settings, trials)


def test_the_largest_hypervolume_wins_whatever_the_regularizer():
    assert found() is None
    assert found(trial("a", 0.6), trial("b", 0.8), trial("c", 0.7)) == "b"
    assert found(trial("a", 0.8), trial("b", 0.8)) == "a"


def test_cuts_count_and_not_only_the_own_one():
    cuts = [{"epoch": 2, "settings": {}, "macs": 50, "params": 50, "score": 0.6}]
    cuts += [{"epoch": 2, "settings": {"energy": 0.3}, "macs": 10, "params": 10, "score": 0.6}]
    many = trial("many", 0.6)
    many = type(many)(**{**vars(many), "curve": json.dumps(cuts)})
    assert found(trial("one", 0.7), many) == "many"  # 0.9 x 0.6 against 0.5 x 0.7


@pytest.mark.parametrize(
    "other",
    [
        trial("a", 0.9, state="PRUNED"),
        trial("a", 0.9, state="FAIL"),
        trial("a", 0.9, decomposition="spatial", source="pretrain-spatial"),
        trial("a", 0.9, method="truncated_svd", source="pretrain-dense"),
        trial("a", 0.9, method="cuttlefish", source="pretrain-dense"),
    ],
)
def test_nothing_goes_on_from_another_form_or_an_unfinished_trial(other):
    assert found(other) is None
    assert found(other, settings={"method": "cuttlefish"}) is None  # its network has decided its ranks
    assert found(other, trial("b", 0.1)) == "b"


def test_chains_end_at_the_given_depth():
    trials = [trial("a", 0.5), trial("b", 0.6, source="a"), trial("c", 0.7, source="b")]
    names = {one.name: one for one in trials}
    assert [[before.name for before in chain(one, names)] for one in trials] == [[], ["a"], ["b", "a"]]
    assert [found(*trials, max_depth=depth) for depth in range(5)] == [None, "a", "b", "c", "c"]


def test_trials_that_end_later_are_compared_as_well():
    continuation, trials = Continuation(8), [trial("a", 0.5)]
    assert continuation.start(SETTINGS, trials) == "a"
    trials.append(trial("b", 0.9, source="a"))
    assert continuation.start(SETTINGS, trials) == "b"
    trials.append(trial("c", 0.8, source="b"))
    assert continuation.start(SETTINGS, trials) == "b"


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
