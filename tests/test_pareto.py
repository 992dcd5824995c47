import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import point_sets

from orchestrator.pareto import hypervolume, non_dominated, spread_subset


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


@given(point_sets(2, finite=True))
def test_hypervolume_counts_the_unit_cells_that_are_dominated(points):
    """On whole numbers the dominated area is a number of unit squares, which can be counted."""
    reference = np.array([4.0, 3.0])
    cells = sum(any(p[0] <= x and p[1] <= y for p in points) for x in range(4) for y in range(3))
    assert hypervolume(points, reference) == cells


def test_hypervolume_needs_two_objectives():
    with pytest.raises(ValueError, match="2 objectives, but got 3"):
        hypervolume(np.zeros((1, 3)), np.ones(3))


@given(point_sets(2), st.integers(1, 6))
def test_subset_is_of_the_front_without_repeats_and_as_large_as_asked(points, count):
    front = set(np.flatnonzero(non_dominated(points)).tolist())
    chosen = spread_subset(points, count)
    assert len(chosen) == len(set(chosen)) == min(count, len(front))
    assert set(chosen) <= front


@given(point_sets(2))
def test_larger_subsets_extend_smaller_ones(points):
    assert spread_subset(points, 5)[:2] == spread_subset(points, 2)


def test_subset_covers_the_front_and_not_one_end_of_it():
    x = np.linspace(0, 1, 101)
    points = np.stack((x, 1 - x), axis=1)
    chosen = sorted(points[spread_subset(points, 3), 0])
    assert chosen[0] < 0.3
    assert 0.3 < chosen[1] < 0.7
    assert chosen[2] > 0.7
