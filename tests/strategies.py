"""Hypothesis strategies that several tests use."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

# few distinct values: ties and duplicates are the interesting cases
_COORDINATES = st.one_of(st.integers(0, 4).map(float), st.sampled_from([float("nan"), float("inf"), -float("inf")]))


def point_sets(objectives: int, finite: bool = False) -> st.SearchStrategy[np.ndarray]:
    """Up to twelve points with ties, duplicates and, unless `finite`, values that are not numbers."""
    elements = st.integers(0, 5).map(float) if finite else _COORDINATES
    return st.integers(0, 12).flatmap(lambda n: hnp.arrays(np.float64, (n, objectives), elements=elements))


singular_values = st.lists(st.floats(0, 1e3, allow_subnormal=False), min_size=1, max_size=12).map(
    lambda values: sorted(values, reverse=True)
)
