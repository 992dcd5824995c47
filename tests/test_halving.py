"""Every decision of the halving is that of its rule, restated here by definition."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.halving import ParetoHalving

VALUES = st.one_of(st.integers(0, 4).map(float), st.sampled_from([math.nan, math.inf, -math.inf]))
DIRECTIONS = st.lists(st.sampled_from(["min", "max"]), min_size=1, max_size=3)


def sweeps(directions):
    """Curves of up to nine trials, each of no to four points, with ties, duplicates and values that are no numbers."""
    point = st.lists(VALUES, min_size=len(directions), max_size=len(directions))
    return st.tuples(st.just(directions), st.lists(st.lists(point, max_size=4), max_size=9))


def dominates(a, b):
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


def front_numbers(pool):
    numbers, left = {}, set(pool)
    while left:
        front = {a for a in left if not any(dominates(b, a) for b in left)}
        number = 1 + max(numbers.values(), default=-1)
        numbers.update(dict.fromkeys(front, number))
        left -= front
    return numbers


def volume(points, reference=1.1):
    """The volume by cells: between neighbouring coordinates all is dominated or nothing."""
    if not points:
        return 0.0
    axes = [sorted({*values, reference}) for values in zip(*points, strict=True)]
    total = 0.0
    for cell in itertools.product(*(itertools.pairwise(axis) for axis in axes)):
        if any(all(p <= low for p, (low, _) in zip(point, cell, strict=True)) for point in points):
            total += math.prod(high - low for low, high in cell)
    return total


def goes_on(curves, reduction_factor, spare_front=True, min_trials=1):
    """Whether the last of the curves, in their order of arrival, goes on; all are minimised and finite."""
    pool = [point for curve in curves for point in curve]
    if not curves[-1]:
        return False
    if len(curves) < min_trials:
        return True
    numbers = front_numbers(pool)
    lows = [min(values) for values in zip(*pool, strict=True)]
    spans = [max(values) - min(values) or 1.0 for values in zip(*pool, strict=True)]

    def scaled(points):
        return [tuple((x - low) / span for x, low, span in zip(p, lows, spans, strict=True)) for p in points]

    def level(curve):
        return min((numbers[point] for point in curve), default=math.inf)

    def contribution(i):
        peers = [[p for p in curve if numbers[p] == level(curves[i])] for curve in curves]
        others = [p for j, points in enumerate(peers) if j != i for p in points]
        return volume(scaled(others + peers[i])) - volume(scaled(others))

    own, mine = level(curves[-1]), contribution(len(curves) - 1)
    better = sum(
        level(curve) < own or (level(curve) == own and contribution(i) > mine + 1e-12) for i, curve in enumerate(curves)
    )
    return better < max(1, math.ceil(len(curves) / reduction_factor)) or (spare_front and own == 0)


def plain(curve, directions):
    """The curve minimised, without the points that are not finite."""
    signed = [tuple(x if d == "min" else -x for x, d in zip(p, directions, strict=True)) for p in curve]
    return [point for point in signed if all(math.isfinite(x) for x in point)]


@given(DIRECTIONS.flatmap(sweeps), st.sampled_from([1.5, 2.0, 3.0, 4.0]), st.booleans(), st.integers(1, 4))
def test_decisions_are_those_of_the_rule(sweep, reduction_factor, spare_front, min_trials):
    directions, curves = sweep
    settings = {"reduction_factor": reduction_factor, "spare_front": spare_front, "min_trials": min_trials}
    halving = ParetoHalving(directions, max_t=9, **settings)
    seen = []
    for i, curve in enumerate(curves):
        seen.append(plain(curve, directions))
        assert halving.record(str(i), 1, curve) == goes_on(seen, **settings)


@pytest.mark.parametrize("objectives", [2, 3])
def test_decisions_are_those_of_the_rule_on_curves_without_ties(objectives):
    """Trade-offs between random objectives: levels hold many trials, and contributions decide."""
    draw = np.random.default_rng(objectives)
    halving = ParetoHalving(["min"] * objectives, max_t=9, spare_front=False)
    seen, decisions = [], []
    for i in range(30):
        curve = draw.random((draw.integers(1, 3), objectives))
        curve[:, -1] += 1 - curve[:, :-1].mean(axis=1)
        seen.append([tuple(point) for point in curve.tolist()])
        decisions.append(halving.record(str(i), 1, curve))
        assert decisions[-1] == goes_on(seen, 3.0, spare_front=False)
    assert 5 < sum(decisions) < 25


@given(DIRECTIONS.flatmap(sweeps), st.integers(0, 9))
def test_decisions_after_a_restore_are_those_of_the_one_that_went_on(sweep, cut):
    directions, curves = sweep
    whole, first = (ParetoHalving(directions, max_t=9, spare_front=False) for _ in range(2))
    expected = [whole.record(str(i), 1 + i % 4, curve) for i, curve in enumerate(curves)]
    found = [first.record(str(i), 1 + i % 4, curve) for i, curve in enumerate(curves[:cut])]
    second = ParetoHalving(directions, max_t=9, spare_front=False)
    second.load_state(json.loads(json.dumps(first.state(), allow_nan=False)))
    found += [second.record(str(i), 1 + i % 4, curve) for i, curve in enumerate(curves[cut:], cut)]
    assert found == expected
    assert second.state() == whole.state()


def test_a_state_of_other_rungs_or_directions_is_refused():
    state = ParetoHalving(["min"], max_t=9).state()
    for other in (ParetoHalving(["max"], max_t=9), ParetoHalving(["min"], max_t=10)):
        with pytest.raises(ValueError, match=r"the state must be of .* rungs \[1, 3"):
            other.load_state(state)


@pytest.mark.parametrize(
    ("settings", "rungs"),
    [
        ({"max_t": 27}, (1, 3, 9)),
        ({"max_t": 28}, (1, 3, 9, 27)),
        ({"max_t": 10, "grace_period": 2, "reduction_factor": 1.5}, (2, 3, 4, 7)),  # of 2, 3, 4.5, 6.75
        ({"max_t": 4, "reduction_factor": 1.2}, (1, 2, 3)),  # 1, 1.2 and 1.44 are one
        ({"max_t": 1}, ()),
        ({"max_t": 9, "rungs": [5, 2, 8]}, (2, 5, 8)),
        ({"max_t": 9, "rungs": []}, ()),
    ],
)
def test_rungs(settings, rungs):
    assert ParetoHalving(["min"], **settings).rungs == rungs


def test_a_trial_is_recorded_once_at_each_rung_the_highest_first():
    halving = ParetoHalving(["min"], max_t=27)
    assert halving.record("a", 0, [[1.0]])
    assert halving.num_recorded() == {1: 0, 3: 0, 9: 0}
    for time, counts in [(4, [0, 1, 0]), (4, [1, 1, 0]), (5, [1, 1, 0]), (9, [1, 1, 1]), (30, [1, 1, 1])]:
        halving.record("a", time, [[1.0]])
        assert list(halving.num_recorded().values()) == counts


def test_a_trial_is_judged_once_at_a_rung():
    halving = ParetoHalving(["min"], max_t=3)
    assert [halving.record(name, 1, [[value]]) for name, value in [("a", 1.0), ("b", 2.0)]] == [True, False]
    assert halving.record("b", 2, [[3.0]])  # as one does that a restore has started again
    assert halving.state()["records"] == {"1": {"a": [[1.0]], "b": [[2.0]]}}


def test_one_objective_keeps_the_best_third_and_equals_of_the_last_one_kept():
    halving = ParetoHalving(["max"], max_t=9)
    for i in range(8):
        halving.record(str(i), 1, [[float(i)]])
    probe = {value: _copy(halving).record("new", 1, [[value]]) for value in (5.0, 4.9, 7.0)}
    assert probe == {5.0: True, 4.9: False, 7.0: True}  # 9 trials keep 3: 7, 6 and what equals or exceeds 5


def _copy(halving):
    twin = ParetoHalving(halving.directions, max_t=9, spare_front=halving.spare_front)
    twin.load_state(halving.state())
    return twin


def test_the_front_goes_on_only_if_it_is_spared():
    line = [[[x, 1 - x]] for x in (0.0, 1.0, 0.4, 0.6, 0.5)]  # all on one front, the last adds least
    for spare_front, expected in [(True, True), (False, False)]:
        halving = ParetoHalving(["min", "min"], max_t=9, spare_front=spare_front)
        decisions = [halving.record(str(i), 1, curve) for i, curve in enumerate(line)]
        assert decisions[-1] is expected


def test_a_curve_is_as_good_as_its_best_point():
    halving = ParetoHalving(["min", "min"], max_t=9)
    assert halving.record("a", 1, [[0.0, 5.0], [5.0, 0.0]])
    assert not halving.record("dominated", 1, [[6.0, 6.0], [5.0, 5.0]])
    assert halving.record("one point of three", 1, [[6.0, 6.0], [1.0, 1.0], [math.nan, 0.0]])


def test_without_a_finite_point_only_exempt_trials_go_on():
    for share, expected in [(0.0, False), (1.0, True)]:
        halving = ParetoHalving(["min", "min"], max_t=9, exempt_share=share, min_trials=9)
        assert [halving.record(str(i), 1, curve) for i, curve in enumerate([[], [[0.0, math.nan]]])] == [expected] * 2


def test_exempt_trials_are_a_share_that_the_seed_and_the_id_choose():
    halving = ParetoHalving(["min"], max_t=9, exempt_share=0.2)
    exempt = {f"trial-{i}" for i in range(2000) if halving.is_exempt(f"trial-{i}")}
    assert 340 < len(exempt) < 460  # 400 +- 3.4 standard deviations
    again = ParetoHalving(["max", "min"], max_t=3, exempt_share=0.2)
    assert exempt == {f"trial-{i}" for i in range(2000) if again.is_exempt(f"trial-{i}")}
    other = ParetoHalving(["min"], max_t=9, exempt_share=0.2, seed=1)
    assert exempt != {f"trial-{i}" for i in range(2000) if other.is_exempt(f"trial-{i}")}


def test_exempt_trials_go_on_and_count_for_others():
    halving = ParetoHalving(["min"], max_t=9, exempt_share=0.5)
    exempt = next(str(i) for i in range(99) if halving.is_exempt(str(i)))
    normal = [str(i) for i in range(99) if not halving.is_exempt(str(i))]
    assert halving.record(normal[0], 1, [[1.0]])
    assert halving.record(exempt, 1, [[5.0]])
    assert not halving.record(normal[1], 1, [[1.5]])
    assert not halving.record(normal[2], 1, [[6.0]])  # 4 trials keep 2
    assert halving.num_recorded()[1] == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"directions": []}, 'directions must be "min" or "max"'),
        ({"directions": "min"}, 'directions must be "min" or "max"'),
        ({"max_t": 0, "grace_period": 0}, r"(?s)1 <= max_t < inf must hold, but got 0.*1 <= grace_period <= max_t=0"),
        ({"grace_period": 10}, "1 <= grace_period <= max_t=9 must hold, but got 10"),
        ({"reduction_factor": 1}, "1 < reduction_factor < inf must hold, but got 1"),
        ({"exempt_share": 1.5}, "0 <= exempt_share <= 1 must hold, but got 1.5"),
        ({"min_trials": 0}, "min_trials >= 1 must hold, but got 0"),
        ({"rungs": [3, 3]}, r"rungs must be distinct and 1 <= rung < max_t=9, but got \[3, 3\]"),
        ({"rungs": [9]}, r"rungs must be distinct and 1 <= rung < max_t=9, but got \[9\]"),
    ],
)
def test_bad_arguments_are_named_all_at_once(settings, message):
    with pytest.raises(ValueError, match=message):
        ParetoHalving(**{"directions": ["min"], "max_t": 9, **settings})


@pytest.mark.parametrize("points", [[1.0, 2.0], [[1.0]], [[1.0, 2.0, 3.0]], [[[1.0, 2.0]]], 1.0])
def test_points_of_another_shape_are_refused_and_leave_no_record(points):
    halving = ParetoHalving(["min", "min"], max_t=9)
    with pytest.raises(ValueError, match=r"points must have shape \(k, 2\), but got"):
        halving.record("a", 1, points)
    assert halving.num_recorded()[1] == 0
