"""The low-rank methods, one a file, behind one protocol: see `base`.

To add one: write a subclass of `Method` with its equations and source, and enter it in METHODS.
"""

from typing import Any

from trainers.config import MethodConfig
from trainers.methods.base import Method, Network
from trainers.methods.cuttlefish import Cuttlefish
from trainers.methods.dense import Dense
from trainers.methods.lc import LC
from trainers.methods.lorita import LoRITa
from trainers.methods.svd_training import SVDTraining
from trainers.methods.trp import TRP
from trainers.methods.truncated_svd import ARSVD, EVBMF, TruncatedSVD

METHODS: dict[str, type[Method]] = {
    "svd_training": SVDTraining,
    "truncated_svd": TruncatedSVD,
    "arsvd": ARSVD,
    "evbmf": EVBMF,
    "trp": TRP,
    "lorita": LoRITa,
    "lc": LC,
    "cuttlefish": Cuttlefish,
    "dense": Dense,
}

__all__ = ["METHODS", "Method", "Network", "in_force", "make_method", "pretraining", "resolve"]


def make_method(config: MethodConfig, network: Network) -> Method:
    """Return the method that `config` names, not attached to a network yet."""
    return METHODS[config.method](config, network)


def resolve(config: MethodConfig) -> MethodConfig:
    """Return `config` with its method's defaults for regularizer, strength and rank rule."""
    return METHODS[config.method].resolve(config)


def in_force(config: MethodConfig) -> dict[str, Any]:
    """Return the resolved settings that count for the method that `config` names, as plain values."""
    return METHODS[config.method].in_force(config)


def pretraining(config: MethodConfig) -> MethodConfig:
    """Return the method of stage 1 from which `config` can start; equal for all that can share it."""
    return METHODS[config.method].pretraining(config)
