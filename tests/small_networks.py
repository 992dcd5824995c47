"""Networks and methods small enough to check by hand, for the tests of methods."""

import torch
from torch import nn

from trainers.config import FactorizationConfig
from trainers.factorization import to_matrix
from trainers.methods import Network, make_method

SHAPE = (2, 6, 6)


def network():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.Flatten(), nn.Linear(8 * 4 * 4, 5)
    ).double()


def matrices(model, decomposition="channel"):
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return [to_matrix(layer.weight, decomposition) for layer in layers]


def attached(config, model=None, factorization=None):
    """The method on a network in the form that it trains, ready for its hooks."""
    method = make_method(config, Network(SHAPE, factorization or FactorizationConfig()))
    method.prepare(network() if model is None else model)
    method.bind()
    return method


def numerical_rank(matrix):
    return int(torch.linalg.matrix_rank(matrix.detach(), rtol=1e-9))
