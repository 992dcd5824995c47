import pytest
import torch

from trainers.errors import NonFiniteError
from trainers.factorization import balanced_factors, exact_svd, from_matrix, to_matrix

SHAPES = [(7, 5), (5, 7), (6, 4, 3, 3), (3, 8, 1, 1), (4, 2, 5, 3), (2, 9, 1, 7)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("decomposition", ["channel", "spatial"])
def test_from_matrix_undoes_to_matrix(shape, decomposition):
    weight = torch.randn(shape)
    matrix = to_matrix(weight, decomposition)
    assert matrix.ndim == 2
    assert torch.equal(from_matrix(matrix, shape, decomposition), weight)


def test_spatial_rows_are_output_channel_and_column_offset():
    weight = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    matrix = to_matrix(weight, "spatial")
    for n, c, i, j in [(0, 0, 0, 0), (1, 2, 3, 4), (0, 1, 2, 3)]:
        assert matrix[n * 5 + j, c * 4 + i] == weight[n, c, i, j]


@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (6, 6)])
def test_exact_svd_has_orthonormal_factors_and_rebuilds_the_matrix(shape):
    matrix = torch.randn(shape, dtype=torch.float64)
    u, s, vt = exact_svd(matrix)
    eye = torch.eye(min(shape), dtype=torch.float64)
    torch.testing.assert_close(u.T @ u, eye, rtol=0, atol=1e-12)
    torch.testing.assert_close(vt @ vt.T, eye, rtol=0, atol=1e-12)
    torch.testing.assert_close((u * s) @ vt, matrix, rtol=0, atol=1e-12)
    assert (s.diff() <= 0).all()


@pytest.mark.parametrize("rank", range(1, 6))
def test_truncation_error_is_the_tail_energy(rank):
    """Eckart and Young, 1936: the squared error of the best rank-k product is the sum of the squared rest."""
    matrix = torch.randn(8, 5, dtype=torch.float64)
    u, s, vt = exact_svd(matrix)
    left, right = balanced_factors(u, s, vt, rank)
    assert left.shape == (8, rank)
    assert right.shape == (rank, 5)
    error = (matrix - left @ right).square().sum()
    torch.testing.assert_close(error, s[rank:].square().sum(), rtol=1e-10, atol=1e-12)


def test_factors_share_the_singular_values():
    u, s, vt = exact_svd(torch.randn(6, 6, dtype=torch.float64))
    left, right = balanced_factors(u, s, vt, 4)
    torch.testing.assert_close(left.norm(dim=0), right.norm(dim=1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named_as_such(value):
    matrix = torch.ones(3, 3)
    matrix[1, 1] = value
    with pytest.raises(NonFiniteError, match="finite"):
        exact_svd(matrix)
