"""The settings of one training: model, data, optimisation and method. Every default stands here, once."""

from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any, Literal

from trainers.errors import ConfigError
from trainers.rules import (
    Section,
    at_least,
    each,
    folder,
    greater_than,
    in_interval,
    one_of,
    unknown_name,
)

Decomposition = Literal["channel", "spatial"]
Dtype = Literal["float32", "float64", "bfloat16", "auto"]

# names in `trainers.models.MODELS` and `trainers.data.DATASETS`: a file with these is checked without torch, which takes
# seconds to import
OWN_MODELS = ("mlp", "lenet5", "tiny", "resnet8", "resnet20", "resnet32", "resnet56", "resnet110")
OWN_DATASETS = ("digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "parquet", "imagefolder")


def _model_names() -> Collection[str]:
    from trainers.models import model_names

    return model_names()


def _dataset_names() -> Collection[str]:
    from trainers.data import DATASETS

    return DATASETS.keys()


def _method_names() -> Collection[str]:
    from trainers.methods import METHODS

    return METHODS.keys()


def _rank_rule_names() -> Collection[str]:
    from trainers.rank_rules import RANK_RULES

    return RANK_RULES.keys()


@dataclass(frozen=True)
class ModelConfig(Section):
    """Which network. `hidden` gives the widths of the hidden layers of `mlp` and is not used by other models."""

    name: Annotated[str, one_of("model", _model_names, OWN_MODELS)]
    hidden: Annotated[tuple[int, ...], each(at_least(1))] = (300, 100)


@dataclass(frozen=True)
class DataConfig(Section):
    """Which images, and how they are split.

    `root` is a folder; torchvision's sets are downloaded into it only with `download: true`. `image_size` (pixels) is
    needed by `imagefolder`, whose images differ in size. `max_train` keeps that many training images at most (a seeded
    choice, made before the validation split), for quick runs.
    """

    name: Annotated[str, one_of("data set", _dataset_names, OWN_DATASETS)]
    root: Annotated[str, folder()] = "~/data"
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
    mirrors left-right. `dtype`: `bfloat16` means autocast over float32 weights; a sweep replaces `auto` by what is faster
    (`trainers.dtype_choice`) before it trains. `step`: how a step is run (`trainers.step`):
    `eager`, by `compile` (torch.compile), on a GPU by `graph` (CUDA graphs) or `compile_graph`; the results agree to
    rounding.
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
    dtype: Dtype = "float32"
    step: Literal["eager", "compile", "graph", "compile_graph"] = "eager"
    seed: Annotated[int, in_interval(0, 2**32)] = 0


@dataclass(frozen=True)
class RankConfig(Section):
    """How ranks are chosen at the cut: a rule of `trainers.rank_rules` and its number. None means the method's own rule.

    Each rule reads its own field: `energy` (share of a layer's squared singular values that may go), `threshold` (smallest
    singular value kept, for `relative_threshold` as a share of the largest), `rank_fraction` (`fixed_ratio`: share of the
    full rank), `entropy` (share of the spectrum's entropy to keep), `rank_scale` (factor on `effective_rank`,
    `stable_rank` and `evbmf`), `budget` (`equal_error`, `knapsack`, `log_knapsack`, `greedy`: share of the dense network's
    `budget_unit` that the whole deployed network may cost). Ranks are rounded up to `rank_multiple`, within the budget.
    """

    rank_rule: Annotated[str | None, one_of("rank rule", _rank_rule_names)] = None
    energy: Annotated[float, in_interval(0, 1)] = 0.01
    threshold: Annotated[float, at_least(0)] = 0.05
    rank_fraction: Annotated[float, in_interval(0, 1, closed="(]")] = 0.5
    entropy: Annotated[float, in_interval(0, 1, closed="(]")] = 0.9
    rank_scale: Annotated[float, greater_than(0)] = 1.0
    budget: Annotated[float, in_interval(0, 1, closed="(]")] = 0.5
    budget_unit: Literal["macs", "params"] = "macs"
    rank_multiple: Annotated[int, at_least(1)] = 1


@dataclass(frozen=True)
class MethodConfig(RankConfig):
    """Which low-rank method, and its settings: what a search space chooses. Fields a method does not use do nothing.

    `method` is a name of `trainers.methods.METHODS`. None for `regularizer`, `strength` or `rank_rule` means the method's
    own default; `resolve` fills it in. `strength` is the weight of the penalty that makes spectra sparse;
    `strength_schedule` `warmup` raises it linearly from zero over the first half of the stage.

    svd_training: `orthogonality_weight`; `orthogonality_period` k > 1 renews the gradient of that penalty every k batches
    only (cheaper, an approximation); `retraction_period` k replaces U and V by orthonormal factors every k batches;
    `spectrum_learning_rate` multiplies the learning rate of s, whose values are larger than a weight's entries.
    trp and lc: `compression_period`, batches between two truncations or C steps. trp: `truncation_energy`, the share of
    energy that a truncation may take. lorita: `num_factors`. lc: `rank_cost`, the price of a layer's MACs, and the first
    and last weight `mu_first`, `mu_last` of the distance to the low-rank copy. cuttlefish: `plateau_tolerance`, the change
    of the mean scaled stable rank per epoch, as a share of the full rank, below which factors are trained from then on.
    """

    method: Annotated[str, one_of("method", _method_names)] = "svd_training"
    decomposition: Decomposition = "channel"
    regularizer: str | None = None
    strength: Annotated[float | None, at_least(0)] = None
    strength_schedule: Literal["constant", "warmup"] = "constant"
    orthogonality_weight: Annotated[float, at_least(0)] = 1.0
    orthogonality_period: Annotated[int, at_least(1)] = 1
    retraction_period: Annotated[int | None, at_least(1)] = None
    spectrum_learning_rate: Annotated[float, greater_than(0)] = 1.0
    compression_period: Annotated[int, at_least(1)] = 20
    truncation_energy: Annotated[float, in_interval(0, 1)] = 0.1
    num_factors: Literal[2, 3] = 2
    rank_cost: Annotated[float, at_least(0)] = 1.0
    mu_first: Annotated[float, greater_than(0)] = 0.01
    mu_last: Annotated[float, greater_than(0)] = 1.0
    plateau_tolerance: Annotated[float, at_least(0)] = 0.01

    def problems(self) -> list[tuple[str, str]]:
        """The regularizer and the rank rule must be ones that the method can use."""
        from trainers.methods import METHODS

        return METHODS[self.method].problems(self)


@dataclass(frozen=True)
class DistillationConfig(Section):
    """Knowledge distillation while fine-tuning: its weight in the loss (0: none) and its temperature."""

    weight: Annotated[float, in_interval(0, 1, closed="[]")] = 0.0
    temperature: Annotated[float, greater_than(0)] = 4.0


Engine = Literal["eager", "compile", "onnxruntime"]


@dataclass(frozen=True)
class LatencyConfig(Section):
    """How long networks are to take: on which engine, with how many images a batch and threads, on which device.

    With it, each cut's latency is foreseen from times of its layers, measured once on the machine that drives the sweep.
    """

    engine: Engine = "eager"
    batch: Annotated[int, at_least(1)] = 1
    threads: Annotated[int, at_least(1)] = 1
    device: Literal["cpu", "cuda"] = "cpu"


@dataclass(frozen=True)
class CurveConfig(Section):
    """One training, a whole curve: the trained network cut at `num_points` budgets, each scored on validation rows.

    The budgets run from `largest` to `smallest`, shares of the dense network (1: the network uncut), in equal steps of their
    square roots; `num_points: 0` leaves the trial with its own cut alone. Before it is scored, a cut network recovers
    (`trainers.recovery`): BatchNorm statistics are estimated again from `batch_norm_batches` batches, then it is trained for
    at most `recovery_steps` batches, as the trial was, at `recovery_learning_rate` (null: three tenths of the trial's own).
    Whatever lowers its accuracy is taken back. At most `max_validation` rows, evenly spread, score it. Together the cuts of
    one training should cost about an epoch: the defaults do with some thirty thousand training images.
    """

    num_points: Annotated[int, at_least(0)] = 8
    largest: Annotated[float, in_interval(0, 1, closed="(]")] = 1.0
    smallest: Annotated[float, in_interval(0, 1, closed="(]")] = 0.04
    batch_norm_batches: Annotated[int, at_least(0)] = 5
    recovery_steps: Annotated[int, at_least(0)] = 10
    recovery_learning_rate: Annotated[float | None, greater_than(0)] = None
    max_validation: Annotated[int, at_least(1)] = 1000

    def problems(self) -> list[tuple[str, str]]:
        """Budgets fall."""
        if self.smallest > self.largest:
            return [("smallest", f"must be at most largest ({self.largest}), but got {self.smallest}")]
        return []


def apply_settings(
    settings: dict[str, Any], training: TrainingConfig, method: MethodConfig
) -> tuple[TrainingConfig, MethodConfig]:
    """Return both configs with a search space's `settings` put in: each key is a field of one of them.

    Raises ConfigError for a key that is a field of neither, and for one that the search may not change: the number of
    epochs, the seed, the data type and the way a step is run are the sweep's.
    """
    method_fields = {field.name for field in fields(MethodConfig)}
    fixed = {"pretrain_epochs", "epochs", "seed", "dtype", "step"}
    training_fields = {field.name for field in fields(TrainingConfig)} - fixed
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
