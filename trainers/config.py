"""The settings of one training: model, data, optimisation and method. Every default stands here, once."""

from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any, Literal

from trainers.errors import ConfigError
from trainers.rules import (
    Section,
    at_least,
    each,
    greater_than,
    in_interval,
    one_of,
    unknown_name,
)

Decomposition = Literal["channel", "spatial"]


def _model_names() -> Collection[str]:
    from trainers.models import model_names

    return model_names()


def _dataset_names() -> Collection[str]:
    from trainers.data import DATASETS

    return DATASETS.keys()


def _regularizer_names() -> Collection[str]:
    from trainers.regularizers import SPARSITY

    return SPARSITY.keys()


@dataclass(frozen=True)
class ModelConfig(Section):
    """Which network. `hidden` gives the widths of the hidden layers of `mlp` and is not used by other models."""

    name: Annotated[str, one_of("model", _model_names)]
    hidden: Annotated[tuple[int, ...], each(at_least(1))] = (300, 100)


@dataclass(frozen=True)
class DataConfig(Section):
    """Which images, and how they are split.

    `root` is a folder; torchvision's sets are downloaded into it only with `download: true`. `image_size` (pixels) is
    needed by `imagefolder`, whose images differ in size. `max_train` keeps that many training images at most (a seeded
    choice, made before the validation split), for quick runs.
    """

    name: Annotated[str, one_of("data set", _dataset_names)]
    root: str = "~/data"
    download: bool = False
    validation_fraction: Annotated[float, in_interval(0, 1, closed="()")] = 0.1
    split_seed: Annotated[int, in_interval(0, 2**32)] = 0
    image_size: Annotated[int | None, at_least(1)] = None
    max_train: Annotated[int | None, at_least(2)] = None

    def problems(self) -> list[tuple[str, str]]:
        """`imagefolder` needs one size for all images."""
        if self.name == "imagefolder" and self.image_size is None:
            return [("image_size", "must be set for imagefolder (its images differ in size); e.g. image_size: 64")]
        return []


@dataclass(frozen=True)
class FactorizationConfig(Section):
    """Which layers are decomposed: `include` and `exclude` are shell patterns on module paths (`layer3.*`).

    `first_layer` and `last_layer` say whether the first and the last linear or convolutional layer may be decomposed.
    """

    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    first_layer: bool = True
    last_layer: bool = True


@dataclass(frozen=True)
class TrainingConfig(Section):
    """How a network is trained. Each stage runs its own schedule from start to end.

    `schedule`: `cosine` to zero, `step` (times `decay` at each of `milestones`, given as fractions of the stage), or
    `constant`. `momentum` is used by `sgd` only. `weight_decay` acts on weights and singular values, not on biases,
    norm parameters or the orthogonal factors. `augmentation`: `crop` shifts by up to an eighth of the image, `flip`
    mirrors left-right. `dtype`: `bfloat16` means autocast over float32 weights.
    """

    batch_size: Annotated[int, at_least(1)] = 128
    pretrain_epochs: Annotated[int, at_least(1)] = 20
    epochs: Annotated[int, at_least(1)] = 20
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: Annotated[float, greater_than(0)] = 1e-3
    weight_decay: Annotated[float, at_least(0)] = 0.0
    momentum: Annotated[float, in_interval(0, 1)] = 0.9
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    milestones: Annotated[tuple[float, ...], each(in_interval(0, 1, closed="()"))] = (0.5, 0.75)
    decay: Annotated[float, in_interval(0, 1, closed="(]")] = 0.1
    label_smoothing: Annotated[float, in_interval(0, 1)] = 0.0
    augmentation: Literal["none", "crop", "flip", "crop_flip"] = "none"
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"
    seed: Annotated[int, in_interval(0, 2**32)] = 0


@dataclass(frozen=True)
class SVDTrainingConfig(Section):
    """The method's own settings (Yang et al., CVPR-W 2020): what a search space chooses.

    Loss = cross-entropy + strength * sum_l R(s_l) + orthogonality_weight * sum_l [L_o(U_l) + L_o(V_l)]; `energy` is the
    share of a layer's squared singular values that pruning may remove.
    """

    decomposition: Decomposition = "channel"
    regularizer: Annotated[str, one_of("regularizer", _regularizer_names)] = "hoyer"
    strength: Annotated[float, at_least(0)] = 0.01
    orthogonality_weight: Annotated[float, at_least(0)] = 1.0
    energy: Annotated[float, in_interval(0, 1)] = 0.01


def apply_settings(
    settings: dict[str, Any], training: TrainingConfig, method: SVDTrainingConfig
) -> tuple[TrainingConfig, SVDTrainingConfig]:
    """Return both configs with a search space's `settings` put in: each key is a field of one of them.

    Raises ConfigError for a key that is a field of neither, and for one that the search may not change: the number of
    epochs, the seed and the data type are the sweep's.
    """
    method_fields = {field.name for field in fields(SVDTrainingConfig)}
    training_fields = {field.name for field in fields(TrainingConfig)} - {"pretrain_epochs", "epochs", "seed", "dtype"}
    known = method_fields | training_fields
    unknown = [(key, unknown_name("setting", key, known)) for key in settings if key not in known]
    if unknown:
        raise ConfigError(unknown)
    return (
        replace(training, **{key: value for key, value in settings.items() if key in training_fields}),
        replace(method, **{key: value for key, value in settings.items() if key in method_fields}),
    )


def as_record(section: Any) -> dict[str, Any]:
    """Return a configuration dataclass as plain dicts, lists, numbers and strings, fit for JSON and `weights_only`."""
    return {key: _plain(value) for key, value in asdict(section).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
