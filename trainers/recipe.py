"""The recipe of SVD training, stage by stage (Yang et al., CVPR-W 2020, section 3.3), and its dense baseline.

1. `pretrain`: the decomposed network at full rank, without sparsity: depends on model, data and decomposition only.
2. `regularize`: goes on from stage 1 with a sparsity penalty on s; after each epoch a copy of the network is pruned, and
   the copy is what `val_accuracy` and `macs` speak of.
3. `finetune`: prunes stage 2's network and trains the ordinary low-rank network that will be deployed.

Each is a generator of one `EpochResult` per epoch. With a `directory` it leaves `model.pt` there, resumes from
`checkpoint.pt`, and yields the recorded results again where it had already finished.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainers.checkpoint import require_same_config
from trainers.config import (
    FactorizationConfig,
    SVDTrainingConfig,
    TrainingConfig,
    as_record,
)
from trainers.cost import Cost, measure_cost
from trainers.data import ImageData
from trainers.deploy import PrunedModel, prune_by_energy
from trainers.layers import svd_layers
from trainers.loop import EpochResult, Stage, evaluate_split, stage_seed, train
from trainers.models import ModelSpec, build_model
from trainers.optimizers import DTYPES
from trainers.regularizers import Penalty
from trainers.saved_model import ModelForm, SavedModel, load_model, save_model
from trainers.surgery import factorize

CHECKPOINT_FILE = "checkpoint.pt"
MODEL_FILE = "model.pt"


@dataclass(frozen=True)
class Setting:
    """What all stages of one network have in common."""

    spec: ModelSpec
    data: ImageData
    training: TrainingConfig
    factorization: FactorizationConfig = field(default_factory=FactorizationConfig)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @cached_property
    def dense_cost(self) -> Cost:
        """The cost of the network as it is before any decomposition; ratios are to it."""
        return dense_cost(self.spec)


def dense_cost(spec: ModelSpec) -> Cost:
    """Return the cost of the undecomposed network, from its shapes alone."""
    with torch.device("meta"):
        return measure_cost(build_model(spec), spec.sample_shape)


def dense_model(setting: Setting) -> nn.Module:
    """Return the network with its initial weights: a function of the spec, the data type and the seed."""
    torch.manual_seed(stage_seed(setting.training.seed, "initial weights"))
    return build_model(setting.spec).to(DTYPES[setting.training.dtype])


def train_dense(setting: Setting, epochs: int, directory: Path | None = None) -> Iterator[EpochResult]:
    """Train the undecomposed network for `epochs`: the baseline."""
    stage = _stage("dense", setting, epochs, directory, {"training": _training_record(setting)})
    yield from _run(stage, setting, directory, lambda: (dense_model(setting), ModelForm()), None, _evaluator)


def pretrain(setting: Setting, method: SVDTrainingConfig, directory: Path | None = None) -> Iterator[EpochResult]:
    """Stage 1: `training.pretrain_epochs` at full rank; of `method`, decomposition and orthogonality weight count."""
    method = replace(method, strength=0.0)

    def start() -> tuple[nn.Module, ModelForm]:
        model = dense_model(setting)
        factorize(model, method.decomposition, setting.spec.sample_shape, setting.factorization)
        return model, ModelForm(method.decomposition, setting.factorization)

    config = {
        "training": _training_record(setting),
        "factorization": as_record(setting.factorization),
        "decomposition": method.decomposition,
        "orthogonality_weight": method.orthogonality_weight,
    }
    stage = _stage("pretrain", setting, setting.training.pretrain_epochs, directory, config)
    yield from _run(stage, setting, directory, start, method, _evaluator)


def regularize(
    setting: Setting, method: SVDTrainingConfig, start_from: Path, directory: Path | None = None
) -> Iterator[EpochResult]:
    """Stage 2: `training.epochs` with sparsity, from stage 1's model file; metrics are those of the pruned copy."""
    saved = load_model(start_from)

    def start() -> tuple[nn.Module, ModelForm]:
        if saved.form.decomposition != method.decomposition:
            raise ValueError(
                f"{start_from} must be decomposed as {method.decomposition!r}, but is {saved.form.decomposition!r}"
            )
        return saved.model, saved.form

    config = {"training": _training_record(setting), "method": as_record(method), "start": _start_record(saved)}
    stage = _stage("regularize", setting, setting.training.epochs, directory, config)

    def evaluator(model: nn.Module, setting: Setting) -> dict[str, float]:
        pruned = prune_by_energy(model, method.energy, setting.spec.sample_shape)
        return {**_evaluator(pruned.model, setting), **_rank_metrics(pruned)}

    yield from _run(stage, setting, directory, start, method, evaluator)


def finetune(
    setting: Setting, energy: float, epochs: int, start_from: Path, directory: Path | None = None
) -> Iterator[EpochResult]:
    """Stage 3: prune stage 2's model file by `energy` and train the low-rank network for `epochs`."""
    found: list[PrunedModel] = []

    saved = load_model(start_from)

    def start() -> tuple[nn.Module, ModelForm]:
        found.append(prune_by_energy(saved.model, energy, setting.spec.sample_shape))
        return found[0].model, replace(saved.form, layers=tuple(found[0].layers))

    def evaluator(model: nn.Module, setting: Setting) -> dict[str, float]:
        return {**_evaluator(model, setting), **_rank_metrics(found[0])}

    config = {"training": _training_record(setting), "energy": energy, "start": _start_record(saved)}
    stage = _stage("finetune", setting, epochs, directory, config)
    yield from _run(stage, setting, directory, start, None, evaluator)


def evaluate_model_file(path: Path, data: ImageData, device: torch.device, dtype: str = "float32") -> dict[str, float]:
    """Return accuracy (fraction of 1) and loss of a saved model on the validation rows of `data` (see `load_test`)."""
    return evaluate_split(load_model(path).model.to(device), data.to(device), dtype)


def _stage(name: str, setting: Setting, epochs: int, directory: Path | None, config: dict[str, Any]) -> Stage:
    checkpoint = None if directory is None else directory / CHECKPOINT_FILE
    config = {
        "stage": name,
        "epochs": epochs,
        "model": as_record(setting.spec),
        "data": setting.data.digest(),
        **config,
    }
    return Stage(name, epochs, setting.training, config, checkpoint)


def _training_record(setting: Setting) -> dict[str, Any]:
    """The training settings that a stage depends on: its own number of epochs stands beside them."""
    record = as_record(setting.training)
    return {key: value for key, value in record.items() if key not in ("pretrain_epochs", "epochs")}


def _start_record(saved: SavedModel) -> dict[str, Any]:
    """How the model that a stage starts from was trained: another start is another configuration."""
    return {"config": saved.config, "last": saved.history[-1]["metrics"]}


def _run(
    stage: Stage,
    setting: Setting,
    directory: Path | None,
    start: Callable[[], tuple[nn.Module, ModelForm]],
    method: SVDTrainingConfig | None,
    evaluator: Callable[[nn.Module, Setting], dict[str, float]],
) -> Iterator[EpochResult]:
    """Run one stage, or repeat its recorded results if its model file is there."""
    model_file = None if directory is None else directory / MODEL_FILE
    if model_file is not None and model_file.exists():
        yield from _recorded(model_file, stage)
        return
    model, form = start()
    model = model.to(setting.device).to(memory_format=torch.channels_last)
    setting = replace(setting, data=setting.data.to(setting.device))
    penalty = None if method is None else Penalty(model, method)

    def evaluate() -> dict[str, float]:
        metrics = evaluator(model, setting)
        return metrics if penalty is None else {**metrics, "orthogonality_error": float(penalty.orthogonality_error())}

    history = []
    for result in train(model, setting.data, stage, penalty, evaluate):
        history.append(result.record())
        yield result
    if model_file is not None:
        save_model(SavedModel(model, setting.spec, form, stage.config, history), model_file)
        (model_file.parent / CHECKPOINT_FILE).unlink(missing_ok=True)


def _recorded(model_file: Path, stage: Stage) -> Iterator[EpochResult]:
    saved = load_model(model_file)
    require_same_config(model_file, saved.config, stage.config)
    for record in saved.history:
        yield EpochResult(**record, replayed=True)


def _evaluator(model: nn.Module, setting: Setting) -> dict[str, float]:
    """Validation metrics and cost of an ordinary model, or of a full-rank one, which is deployed dense, at dense cost."""
    scores = evaluate_split(model, setting.data, setting.training.dtype)
    dense = setting.dense_cost
    cost = dense if svd_layers(model) else measure_cost(model, setting.spec.sample_shape)
    return {
        "val_accuracy": scores["accuracy"],
        "val_loss": scores["loss"],
        "macs": cost.macs,
        "flops": cost.flops,
        "macs_ratio": cost.macs / dense.macs,
        "params": cost.params,
        "params_ratio": cost.params / dense.params,
    }


def _rank_metrics(pruned: PrunedModel) -> dict[str, float]:
    ranks = {f"rank/{name}": float(rank) for name, rank in pruned.ranks.items()}
    return {"rank_ratio": pruned.rank_ratio, **ranks}
