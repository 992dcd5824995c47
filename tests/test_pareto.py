import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import point_sets

from orchestrator.pareto import (
    exclusive_hypervolumes,
    hypervolume,
    non_dominated,
    non_dominated_sort,
    spread_subset,
    unit_scaled,
)


def dominated_by_brute_force(points, i):
    for j, other in enumerate(points):
        if not np.isfinite(other).all():
            continue
        if (other <= points[i]).all() and ((other < points[i]).any() or j < i):
            return True
    return False


@given(st.integers(1, 3).flatmap(point_sets))
def test_non_dominated_equals_brute_force_with_ties_duplicates_and_nan(points):
    expected = [
        bool(np.isfinite(points[i]).all()) and not dominated_by_brute_force(points, i) for i in range(len(points))
    ]
    assert non_dominated(points).tolist() == expected


@given(st.integers(1, 5).flatmap(point_sets))
def test_front_numbers_are_those_of_taking_away_one_front_after_the_other(points):
    expected = np.full(len(points), -1)
    left = [i for i in range(len(points)) if np.isfinite(points[i]).all()]
    for number in itertools.count():
        front = [
            i for i in left if not any((points[j] <= points[i]).all() and (points[j] < points[i]).any() for j in left)
        ]
        expected[front] = number
        left = [i for i in left if i not in front]
        if not left:
            break
    expected[expected < 0] = max(1, expected.max(initial=-1) + 1)
    assert non_dominated_sort(points).tolist() == expected.tolist()


def test_no_point_that_is_not_finite_is_on_the_first_front():
    assert non_dominated_sort(np.full((2, 2), np.nan)).tolist() == [1, 1]
    assert non_dominated_sort(np.zeros((0, 3))).tolist() == []


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
@pytest.mark.parametrize("num_values", [3, 8, 10**9], ids=["duplicates", "ties", "distinct"])
def test_each_point_is_on_the_front_after_the_last_that_dominates_it(objectives, num_values):
    points = np.random.default_rng(0).integers(0, num_values, (200, objectives)).astype(float)
    fronts = non_dominated_sort(points)
    at_least, better = points[:, None] <= points[None], points[:, None] < points[None]
    dominates = at_least.all(axis=2) & better.any(axis=2)  # [i, j]: i dominates j
    last = np.where(dominates, fronts[:, None], -1).max(axis=0)
    assert fronts.tolist() == (last + 1).tolist()


REFERENCE = (4.0, 3.0, 5.0)


def dominated_cells(points, objectives):
    """The unit cells below the reference that a point dominates: on whole numbers volumes can be counted."""
    corners = itertools.product(*(range(int(limit)) for limit in REFERENCE[:objectives]))
    finite = points[np.isfinite(points).all(axis=1)]
    return {corner for corner in corners if (finite <= corner).all(axis=1).any()}


@given(st.integers(1, 3).flatmap(point_sets))
def test_hypervolume_counts_the_unit_cells_that_are_dominated(points):
    objectives = points.shape[1]
    assert hypervolume(points, np.array(REFERENCE[:objectives])) == len(dominated_cells(points, objectives))


@given(point_sets(3, finite=True))
def test_a_fourth_objective_that_is_equal_for_all_multiplies_the_volume(points):
    longer = np.concatenate((points, np.full((len(points), 1), 2.0)), axis=1)
    assert hypervolume(longer, np.array([*REFERENCE, 4.5])) == 2.5 * hypervolume(points, np.array(REFERENCE))


def test_hypervolume_needs_a_reference_for_each_objective():
    with pytest.raises(ValueError, match="3 objectives, but got shape"):
        hypervolume(np.zeros((1, 3)), np.ones(2))


@given(st.integers(1, 3).flatmap(point_sets), st.data())
def test_exclusive_volumes_count_the_cells_that_one_owner_alone_dominates(points, data):
    objectives = points.shape[1]
    owners = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(points), max_size=len(points))), dtype=np.intp)
    expected = []
    for owner in range(owners.max(initial=-1) + 1):
        others = dominated_cells(points[owners != owner], objectives)
        expected.append(len(dominated_cells(points[owners == owner], objectives) - others))
    assert exclusive_hypervolumes(points, owners, np.array(REFERENCE[:objectives])).tolist() == expected


def test_scaling_spans_0_to_1_also_where_the_span_is_beyond_floating_point():
    points = np.array([[-1.7e308, 3.0], [1.7e308, 3.0], [0.0, 3.0]])
    assert unit_scaled(points).tolist() == [[0, 0], [1, 0], [0.5, 0]]
    assert unit_scaled(np.zeros((0, 2))).shape == (0, 2)


@given(point_sets(2), st.integers(1, 6))
def test_subset_is_of_the_front_without_repeats_and_as_large_as_asked(points, count):
    front = set(np.flatnonzero(non_dominated(points)).tolist())
    chosen = spread_subset(points, count)
    assert len(chosen) == len(set(chosen)) == min(count, len(front))
    assert set(chosen) <= front


@given(point_sets(2))
def test_larger_subsets_extend_smaller_ones(points):
    assert spread_subset(points, 5)[:2] == spread_subset(points, 2)


def test_a_subset_begins_with_what_is_given():
    points = np.array([[0.0, 3.0], [1.0, 2.9], [2.0, 1.0], [3.0, 0.0], [3.0, 3.0]])
    assert spread_subset(points, 2, given=[1])[0] == 1
    assert spread_subset(points, 1, given=[1]) == [1]
    assert sorted(spread_subset(points, 9, given=[3])) == [0, 1, 2, 3]


def test_subset_covers_the_front_and_not_one_end_of_it():
    x = np.linspace(0, 1, 101)
    points = np.stack((x, 1 - x), axis=1)
    chosen = sorted(points[spread_subset(points, 3), 0])
    assert chosen[0] < 0.3
    assert 0.3 < chosen[1] < 0.7
    assert chosen[2] > 0.7
