"""What `from trainers import ...` gives; `trainers` loads this module, and torch with it, when a name is asked for."""

from trainers.attention import open_attention
from trainers.config import (
    CurveConfig,
    DataConfig,
    DistillationConfig,
    FactorizationConfig,
    MethodConfig,
    ModelConfig,
    RankConfig,
    TrainingConfig,
)
from trainers.cost import Cost, measure_cost
from trainers.curve import Cut
from trainers.data import ImageData, load_test, load_train_validation
from trainers.deploy import DeployedLayer, PrunedModel, prune
from trainers.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    ExportError,
    NonFiniteError,
    RankfrontError,
    TrainingError,
)
from trainers.export.load import Exported, load
from trainers.export.options import ExportOptions
from trainers.export.write import ExportReport, export_model
from trainers.layers import SVDConv, SVDLinear
from trainers.loop import EpochResult
from trainers.methods import METHODS
from trainers.models import ModelSpec, build_model
from trainers.rank_rules import RANK_RULES
from trainers.recipe import Setting, compress, evaluate_model_file, finetune, pretrain, train_dense
from trainers.saved_model import SavedModel, load_model
from trainers.surgery import LayerReport, factorize

__all__ = [
    "METHODS",
    "RANK_RULES",
    "CheckpointError",
    "ConfigError",
    "Cost",
    "CurveConfig",
    "Cut",
    "DataConfig",
    "DataError",
    "DeployedLayer",
    "DistillationConfig",
    "EpochResult",
    "ExportError",
    "ExportOptions",
    "ExportReport",
    "Exported",
    "FactorizationConfig",
    "ImageData",
    "LayerReport",
    "MethodConfig",
    "ModelConfig",
    "ModelSpec",
    "NonFiniteError",
    "PrunedModel",
    "RankConfig",
    "RankfrontError",
    "SVDConv",
    "SVDLinear",
    "SavedModel",
    "Setting",
    "TrainingConfig",
    "TrainingError",
    "build_model",
    "compress",
    "evaluate_model_file",
    "export_model",
    "factorize",
    "finetune",
    "load",
    "load_model",
    "load_test",
    "load_train_validation",
    "measure_cost",
    "open_attention",
    "pretrain",
    "prune",
    "train_dense",
]
