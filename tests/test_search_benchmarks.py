"""The arithmetic of the search's benchmarks; their figures are not asserted here."""

import json
import math
import random
from dataclasses import asdict

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _benchmarks_importable(pytestconfig, monkeypatch):
    monkeypatch.syspath_prepend(str(pytestconfig.rootpath / "benchmarks"))


def test_cost_to_a_target_counts_everything_until_the_points_dominate_it():
    from efficiency_strategies import Event, Outcome
    from sweep_efficiency import cost_to, volume, volume_after

    outcome = Outcome([Event(10, []), Event(1, [(0.5, 0.9)]), Event(2, []), Event(4, [(0.25, 0.8), (0.5, 0.95)])], [])
    assert volume([(0.5, 0.9)], 0.5) == pytest.approx(0.5 * 0.4 / 0.5)
    assert cost_to(outcome, 0.4, 0.5) == (11, True)
    assert cost_to(outcome, 0.41, 0.5) == (17, True)
    assert cost_to(outcome, 0.99, 0.5) == (17, False)
    assert volume([], 0.5) == 0
    after = [volume_after(outcome, core_s, 0.5) for core_s in (10, 11, 16, 17)]
    assert after == pytest.approx([0, 0.4, 0.4, volume([(0.5, 0.95), (0.25, 0.8)], 0.5)])


def test_a_run_whose_stage_one_is_not_shared_pays_for_it_in_every_trial():
    from efficiency_strategies import Event, Outcome

    outcome = Outcome([Event(10, []), Event(20, []), Event(1, [(0.5, 0.9)]), Event(2, [])], [(0.5, 0.9)], 2, 15.0)
    assert [event.core_s for event in outcome.with_own_stage_one().events] == [16, 17]
    assert Outcome.read(json.loads(json.dumps(asdict(outcome)))) == outcome


def test_speedups_are_geometric_means_over_pairs():
    from efficiency_strategies import Event, Outcome, Task
    from sweep_efficiency import OURS, quick_tasks, summary

    (task,) = quick_tasks().values()
    assert isinstance(task, Task)
    point = [(0.1, 0.9)]
    slow = [Outcome([Event(cost, point)], point) for cost in (20, 80)]
    fast = [Outcome([Event(10, point)], point) for _ in range(2)]
    found = summary(task, {OURS: fast, "slow": slow})["slow"]
    for row in (found["to_95%"], found["to_its_end"]):
        assert row["speedup"] == pytest.approx(4)
        assert row["interval"] == pytest.approx((2, 8))
    assert found["to_95%"]["reached"] == 2
    worse = [Outcome([Event(10, [(0.2, 0.6)])], point) for _ in range(2)]
    assert summary(task, {OURS: worse, "slow": slow})["slow"]["to_its_end"]["pairs"] == 0  # it never has that much


def test_scores_of_another_kind_neither_set_the_yardstick_nor_are_held_to_it():
    from efficiency_strategies import OTHER_SCORES, Event, Outcome
    from sweep_efficiency import OURS, markdown, quick_tasks, summary

    tasks = quick_tasks()
    (task,) = tasks.values()
    ours, other = Outcome([Event(10, [(0.1, 0.9)])], [(0.1, 0.9)]), Outcome([Event(5, [(0.1, 1.0)])], [(0.1, 0.8)])
    found = summary(task, {OURS: [ours], OTHER_SCORES[0]: [other]})
    assert found[OURS]["hypervolume"] == [1]
    assert found[OTHER_SCORES[0]] == {"total_core_s": 5, "test_hypervolume": [pytest.approx(0.9 * 0.3 / 0.5)]}
    row = next(line for line in markdown(tasks, dict.fromkeys(tasks, found), 1).splitlines() if OTHER_SCORES[0] in line)
    assert row == f"| {OTHER_SCORES[0]} |" + 6 * " - |" + " 5 | - | - | 0.5400 ± 0.0000 |"  # of three shares, two each


TABLE = [  # two epochs, one point an epoch: (score, share of MACs)
    [[[0.5, 0.5]], [[0.9, 0.5]]],
    [[[0.6, 0.5]], [[0.8, 0.5]]],
    [[[0.2, 0.1]], [[0.3, 0.1]]],
]


def test_a_replay_trains_what_the_scheduler_lets_go_on():
    from replay import front_trials, replay

    assert front_trials(TABLE) == {0, 2}
    assert replay(TABLE, [0, 1, 2], lambda *_: True, 2) == {0: 2, 1: 2, 2: 2}
    seen = []

    def first_only(trial, epoch, points):
        seen.append((trial, epoch, points))
        return trial == "0"

    assert replay(TABLE, [2, 0, 1], first_only, 1) == {0: 2, 1: 1, 2: 1}
    assert seen == [("0", 1, [[0.2, 0.1]]), ("0", 2, [[0.3, 0.1]]), ("1", 1, [[0.5, 0.5]]), ("2", 1, [[0.6, 0.5]])]


def test_the_replayed_asha_keeps_the_best_third_of_those_before_it():
    from replay import asha

    goes_on = asha(9, 3)
    scores = [0.5, 0.6, 0.4, 0.55, 0.7]
    found = [goes_on(str(i), 3, [[score, 1.0]]) for i, score in enumerate(scores)]
    assert found == [i < 3 or score >= np.quantile(scores[: i + 1], 2 / 3) for i, score in enumerate(scores)]
    assert goes_on("9", 4, [[0.0, 1.0]])  # no rung
    assert goes_on("9", 9, [[0.0, 1.0]])  # the end


def test_order_looks_at_pairs_of_nearly_equal_cost():
    from score_correlation import order

    def cut(macs_ratio, score, finetuned):
        return {"macs_ratio": macs_ratio, "scores": {"s": score}, "finetuned": [finetuned - 0.01, finetuned + 0.01]}

    rows = [cut(0.5, 0.7, 0.8), cut(0.4, 0.6, 0.9), cut(0.1, 0.9, 0.1), cut(0.45, 0.65, 0.7), cut(0.45, 0.65, 0.75)]
    # pairs among the four near 0.45: right 1 (0.7 > 0.65 of 0.7), right (0.75); wrong: all three with the second; tied: one
    assert order(rows, "s") == pytest.approx((1 + 1 + 0 + 0 + 0 + 0.5) / 6)


def test_the_best_score_within_a_budget_allows_for_ranks_that_do_not_fit_it():
    from continuation import best_score

    points = [(0.5, 0.9), (0.32, 0.8), (0.34, 0.85), (0.1, 0.6)]
    assert [best_score(points, budget) for budget in (0.6, 0.3, 0.1, 0.05)] == [0.9, 0.8, 0.6, 0.0]


def test_a_sleeping_trial_reports_what_a_real_one_does():
    """The ledger makes a whole record of it."""
    from overhead import _cuts, _metrics

    from orchestrator.records import RunRecord

    rng = random.Random(0)
    cuts = list(_cuts({"energy": 0.1}, 0.0, rng, 8))
    assert [set(cut) for cut in cuts] == [{"settings", "macs", "params", "score"}] * 9
    assert [list(cut["settings"]) for cut in cuts] == [[]] + [["energy"]] * 8
    assert all(0 <= cut["score"] <= 1 and 0 < cut["macs"] <= 4e7 for cut in cuts)
    measured = {name for name in _metrics(cuts[0]) if "/" not in name} - {"flops"}
    assert measured <= RunRecord.__dataclass_fields__.keys()


def test_the_share_of_time_that_workers_sleep_leaves_out_beginning_and_end():
    from overhead import busy_share

    # both from 0.5 to 1, from 1.1 to 1.5 and from 1.5 to 2.1: 3.1 of two times 1.6
    assert busy_share([(0, 1), (1.1, 2.1), (0.5, 1.5), (1.5, 2.5)], 2) == pytest.approx(3.1 / 3.2)
    assert math.isnan(busy_share([(0, 1), (2, 3)], 2))
