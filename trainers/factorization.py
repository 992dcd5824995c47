"""Weights as matrices and their exact SVD: tensors only, no modules.

A convolution's weight W (n, c, kh, kw) is seen as a matrix in one of two ways (Yang et al., CVPR-W 2020, section 3.1):

* channel-wise: rows n, columns (c, kh, kw); deployed as a kh x kw convolution c -> r, then 1 x 1, r -> n;
* spatial-wise: rows (n, kw), columns (c, kh); deployed as kh x 1, c -> r, then 1 x kw, r -> n.

A one-dimensional convolution's weight (n, c, k) has the first form only.
"""

import torch
from torch import Tensor

from trainers.config import Decomposition
from trainers.errors import NonFiniteError


def to_matrix(weight: Tensor, decomposition: Decomposition) -> Tensor:
    """Return the weight (out, in), (n, c, k) or (n, c, kh, kw) as the matrix that `decomposition` factorizes."""
    if weight.ndim == 2:
        return weight
    if decomposition == "channel" or weight.ndim == 3:
        return weight.flatten(1)
    n, c, kh, kw = weight.shape
    return weight.permute(0, 3, 1, 2).reshape(n * kw, c * kh)


def from_matrix(matrix: Tensor, shape: tuple[int, ...], decomposition: Decomposition) -> Tensor:
    """Undo `to_matrix`: return the weight of `shape` that `matrix` stands for."""
    if len(shape) < 4 or decomposition == "channel":
        return matrix.reshape(shape)
    n, c, kh, kw = shape
    return matrix.reshape(n, kw, c, kh).permute(0, 2, 3, 1)


def exact_svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return u (m, r), s (r) descending, vt (r, n) with matrix = u @ diag(s) @ vt and r = min(m, n), in float64.

    Computed on the CPU: a GPU is slower at many small SVDs. Raises NonFiniteError for NaN or infinite entries.
    """
    if matrix.is_meta:
        rank = min(matrix.shape)
        return matrix.new_empty(matrix.shape[0], rank), matrix.new_empty(rank), matrix.new_empty(rank, matrix.shape[1])
    return finite_svd(matrix.detach().to("cpu", torch.float64))


def finite_svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return u (m, r), s (r), vt (r, n) in the matrix's own precision and on its device: for what is done often.

    Raises NonFiniteError for NaN or infinite entries.
    """
    if not torch.isfinite(matrix).all():
        raise NonFiniteError("weights must be finite before an SVD, but NaN or infinity was found; lower learning_rate")
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    return u, s, vt


def balanced_factors(u: Tensor, s: Tensor, vt: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return left (m, rank) and right (rank, n), the best rank-`rank` product (Eckart-Young), sqrt(s) in each."""
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * vt[:rank]
