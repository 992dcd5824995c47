"""One training at a time: SVD layers, pruning, deployment, cost and the three-stage recipe, on torch alone.

Read in this order: `factorization` (weights as matrices), `layers` (trained U, s, V), `surgery` (dense model to decomposed
one), `regularizers`, `deploy` (decomposed model to low-rank one), `loop`, `recipe` (the three stages).
"""

from trainers.config import (
    DataConfig,
    FactorizationConfig,
    ModelConfig,
    SVDTrainingConfig,
    TrainingConfig,
)
from trainers.cost import Cost, measure_cost
from trainers.data import ImageData, load_test, load_train_validation
from trainers.deploy import DeployedLayer, PrunedModel, prune_by_energy
from trainers.errors import CheckpointError, ConfigError, DataError, NonFiniteError, RankfrontError, TrainingError
from trainers.layers import SVDConv2d, SVDLinear
from trainers.loop import EpochResult
from trainers.models import ModelSpec, build_model
from trainers.recipe import Setting, evaluate_model_file, finetune, pretrain, regularize, train_dense
from trainers.saved_model import SavedModel, load_model
from trainers.surgery import LayerReport, factorize

__all__ = [
    "CheckpointError",
    "ConfigError",
    "Cost",
    "DataConfig",
    "DataError",
    "DeployedLayer",
    "EpochResult",
    "FactorizationConfig",
    "ImageData",
    "LayerReport",
    "ModelConfig",
    "ModelSpec",
    "NonFiniteError",
    "PrunedModel",
    "RankfrontError",
    "SVDConv2d",
    "SVDLinear",
    "SVDTrainingConfig",
    "SavedModel",
    "Setting",
    "TrainingConfig",
    "TrainingError",
    "build_model",
    "evaluate_model_file",
    "factorize",
    "finetune",
    "load_model",
    "load_test",
    "load_train_validation",
    "measure_cost",
    "pretrain",
    "prune_by_energy",
    "regularize",
    "train_dense",
]
