import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import singular_values

from trainers.rank_rules import rank_by_energy


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


@given(singular_values, st.floats(0, 0.999))
def test_rank_is_the_smallest_that_keeps_the_energy(values, energy):
    s = tensor(values)
    rank = rank_by_energy(s, energy)
    lost = [float(s[k:].square().sum()) for k in range(len(values) + 1)]
    slack = 1e-12 * lost[0]
    assert 1 <= rank <= len(values)
    assert lost[rank] <= energy * lost[0] + slack
    if rank > 1:
        assert lost[rank - 1] > energy * lost[0] - slack


@pytest.mark.parametrize(
    ("values", "energy", "rank"),
    [
        ((2, 1, 1), 0, 3),
        ((2, 1, 0), 0, 2),
        ((0, 0), 0.5, 1),
        ((3, 0), 0, 1),
        ((2, 1, 1), 1 / 6, 2),  # the cut may take exactly its share
        ((2, 1, 1), 0.16, 3),
        ((1, 1e-9), 0, 2),  # a value far below the first one's rounding still counts
    ],
)
def test_ranks_at_known_points(values, energy, rank):
    assert rank_by_energy(tensor(values), energy) == rank


@pytest.mark.parametrize("energy", [-0.1, 1, 1.5, float("nan")])
def test_energy_outside_its_range_is_refused(energy):
    with pytest.raises(ValueError, match="0 <= energy < 1, but got"):
        rank_by_energy(tensor([1.0]), energy)
