"""The recipe that all methods share, stage by stage (that of SVD training, Yang et al., CVPR-W 2020, section 3.3).

1. `pretrain`: the network in the form that the method trains, without its pressure towards low rank: depends on model,
   data and form only, so that trials can share it.
2. `compress`: goes on from stage 1 with the whole method; after each epoch a copy of the network is cut, and the copy is
   what `val_accuracy` and `macs` speak of.
3. `finetune`: cuts stage 2's network and trains the ordinary low-rank network that will be deployed.

Each is a generator of one `EpochResult` per epoch. With a `directory` it leaves `model.pt` there, resumes from
`checkpoint.pt`, and yields the recorded results again where it had already finished. Its `..._steps` yield each epoch that
is due too, for the caller to train: with those of other trials (`trainers.arrays`) or with other processes
(`trainers.distributed`).
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ParamSpec

import torch
from torch import nn

from trainers.checkpoint import named, remove_checkpoints, require_same_config
from trainers.config import (
    CurveConfig,
    DistillationConfig,
    FactorizationConfig,
    MethodConfig,
    TrainingConfig,
    as_record,
)
from trainers.cost import Cost, measure_cost
from trainers.curve import judged_curve, scoring_rows, trained_curve
from trainers.data import ImageData
from trainers.deploy import PrunedModel
from trainers.distillation import Distillation
from trainers.errors import CheckpointError, ConfigError
from trainers.evaluation import Evaluator, evaluate_split
from trainers.form import ModelForm
from trainers.latency_table import LatencyTable
from trainers.loop import (
    EpochResult,
    Evaluation,
    Stage,
    Steps,
    each_alone,
    stage_seed,
    train,
)
from trainers.methods import Method, Network, make_method, pretraining, resolve
from trainers.methods.base import ValidationLoss
from trainers.models import ModelSpec, build_model, build_shapes
from trainers.optimizers import DTYPES
from trainers.recovery import recover
from trainers.saved_model import SavedModel, load_model, save_model
from trainers.stage_one_store import share, store_name

P = ParamSpec("P")

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
    latency: LatencyTable | None = None  # from which `predicted_latency_ms` is told
    accumulation: int = 1  # parts of a batch, one after another in memory (`loop.Stage`)
    checkpoints: int = 2  # how many are kept of a run

    def __post_init__(self) -> None:
        if self.training.dtype == "auto":
            text = (
                "must be known before a training, but is auto; put in what trainers.dtype_choice.choose_dtype returns"
            )
            raise ConfigError([("training.dtype", text)])

    @property
    def network(self) -> Network:
        """What methods need to know of it."""
        return Network(self.spec.sample_shape, self.factorization)

    @cached_property
    def dense_cost(self) -> Cost:
        """The cost of the network as it is before any decomposition; ratios are to it."""
        return dense_cost(self.spec)


def dense_cost(spec: ModelSpec) -> Cost:
    """Return the cost of the undecomposed network, from its shapes alone."""
    return measure_cost(build_shapes(spec), spec.sample_shape)


def dense_model(setting: Setting) -> nn.Module:
    """Return the network with its initial weights: a function of the spec, the data type and the seed."""
    torch.manual_seed(stage_seed(setting.training.seed, "initial weights"))
    return build_model(setting.spec).to(DTYPES[setting.training.dtype])


def train_dense_steps(setting: Setting, epochs: int, directory: Path | None = None) -> Steps:
    """Train the undecomposed network for `epochs`, and keep the best epoch's: the baseline."""
    stage = replace(_stage("dense", setting, epochs, directory, {}), keep_best=True)
    return (yield from _run(stage, setting, directory, lambda placed: _prepared(placed, MethodConfig(method="dense"))))


def pretrain_steps(
    setting: Setting, config: MethodConfig, directory: Path | None = None, store: Path | None = None
) -> Steps:
    """Stage 1: `training.pretrain_epochs` of what `trainers.methods.pretraining(config)` says.

    `store` is a folder of model files named by a digest of all they depend on: one that is there is taken over, its results
    yielded as replayed ones, and one that is not is put there in the end. A store that cannot be used costs time alone.
    """
    start = pretraining(config)
    record = {"factorization": as_record(setting.factorization), "method": as_record(resolve(start))}
    stage = _stage("pretrain", setting, setting.training.pretrain_epochs, directory, record)
    shared = None
    if store is not None and directory is not None:
        shared = (store / f"{store_name(stage.config)}.pt", directory / MODEL_FILE)
        share(*shared)
    history = yield from _run(stage, setting, directory, lambda placed: _prepared(placed, start))
    if shared is not None:
        share(*reversed(shared))
    return history


def compress_steps(
    setting: Setting,
    config: MethodConfig,
    start_from: Path | bytes,
    directory: Path | None = None,
    curve: CurveConfig | None = None,
    curve_epochs: Collection[int] = (),
) -> Steps:
    """Stage 2: `training.epochs` with the whole method, from stage 1's model file; metrics are those of the cut copy.

    `start_from` is the file or its content; another training of stage 2 in the same form will do as well.

    With `curve`, the results of the last epoch, and of those in `curve_epochs`, hold scored cuts, and the metric `score`
    is that of the method's own. On the way there are half as many, without steps of recovery.
    """
    saved = load_model(start_from)

    def start(placed: Setting) -> Method:
        method = make_method(config, placed.network)
        if saved.form != method.trained_form():
            raise CheckpointError(
                f"{named(start_from)} must be in the form {method.trained_form()}, but is {saved.form}; start from what "
                f"`pretrain` makes for {config.method} with the same decomposition and factorization"
            )
        method.attach(saved.model, saved.form)
        method.check_budget()
        return method

    epochs = setting.training.epochs
    due = {*curve_epochs, epochs} if curve is not None else set()
    record: dict[str, Any] = {"method": as_record(resolve(config)), "start": start_record(saved)}
    if curve is not None:
        record |= {"curve": as_record(curve), "curve_epochs": sorted(due)}
    stage = _stage("compress", setting, epochs, directory, record)

    def evaluate(method: Method, placed: Setting, epoch: int) -> Evaluation:
        on_the_way = None if curve is None else judged_curve(curve)
        return _cut_evaluation(method, placed, (curve if epoch == epochs else on_the_way) if epoch in due else None)

    return (yield from _run(stage, setting, directory, start, evaluate))


def finetune_steps(
    setting: Setting,
    config: MethodConfig,
    epochs: int,
    start_from: Path,
    directory: Path | None = None,
    curve: CurveConfig | None = None,
    distillation: DistillationConfig | None = None,
    teacher: Path | None = None,
    patience: int | None = None,
) -> Steps:
    """Stage 3: cut stage 2's model file as `config` says and train the low-rank network for `epochs`.

    It begins with what `cut_network` returns, with `curve` the network that was scored, and keeps the best epoch's network,
    or the cut itself where training only makes it worse (metric `best_epoch` 0). The metrics of the last epoch are those of
    the network that is kept; `start_val_accuracy` is the cut's.

    With `distillation` it also learns from the model in the file `teacher`, such as stage 1's. With `patience` it ends once
    the validation accuracy has not risen for so many epochs.
    """
    saved = load_model(start_from)

    def start(placed: Setting) -> Method:
        pruned, form = cut_network(placed, config, saved, curve)
        plain = make_method(MethodConfig(method="dense"), placed.network)
        plain.attach(pruned.model, form)
        return plain

    record: dict[str, Any] = {"method": as_record(resolve(config)), "start": start_record(saved)}
    teaching = None
    if distillation is not None and distillation.weight > 0:
        if teacher is None:
            raise ValueError("distillation needs a teacher: the model file to learn from")
        taught_by = load_model(teacher)
        teaching = Distillation(taught_by.model.to(setting.device), distillation.weight, distillation.temperature)
        record |= {"distillation": as_record(distillation), "teacher": start_record(taught_by)}
    if patience is not None:
        record |= {"patience": patience}
    if curve is not None:
        record |= {"recovery": as_record(curve)}
    stage = replace(
        _stage("finetune", setting, epochs, directory, record), patience=patience, keep_best=True, judge_start=True
    )
    return (yield from _run(stage, setting, directory, start, distillation=teaching))


def cut_network(
    setting: Setting, config: MethodConfig, saved: SavedModel, curve: CurveConfig | None = None
) -> tuple[PrunedModel, ModelForm]:
    """Return stage 2's network as `config` cuts it, in the form in which it is deployed, on the setting's device.

    With `curve` it recovers as it did before it was scored there: with the settings that its network was trained with, which
    are not always those of `setting`.
    """
    method = make_method(config, setting.network)
    method.attach(saved.model.to(setting.device), saved.form)
    method.bind()
    pruned = method.finish(_validation_loss(setting))
    if curve is not None:
        rows = scoring_rows(setting.data.to(setting.device), curve)
        uncut = evaluate_split(method.model, rows, saved.training.dtype)["accuracy"]
        recover(pruned.model.to(memory_format=torch.channels_last), rows, saved.training, curve, uncut)
    return pruned, method.deployed_form(pruned)


def _alone(steps: Callable[P, Steps]) -> Callable[P, Iterator[EpochResult]]:
    """Return the stage whose epochs are all trained by this process alone: it yields results and nothing else."""

    def results(*args: P.args, **kwargs: P.kwargs) -> Iterator[EpochResult]:
        return each_alone(steps(*args, **kwargs))

    results.__doc__ = steps.__doc__
    return results


train_dense = _alone(train_dense_steps)
pretrain = _alone(pretrain_steps)
compress = _alone(compress_steps)
finetune = _alone(finetune_steps)


def evaluate_model_file(path: Path, data: ImageData, device: torch.device, dtype: str = "float32") -> dict[str, float]:
    """Return what `evaluate_split` says of a saved model on the validation rows of `data` (see `load_test`)."""
    return evaluate_split(load_model(path).model.to(device), data.to(device), dtype)


def _stage(name: str, setting: Setting, epochs: int, directory: Path | None, config: dict[str, Any]) -> Stage:
    training = as_record(setting.training)
    config = {
        "stage": name,
        "epochs": epochs,
        "model": as_record(setting.spec),
        "data": setting.data.digest(),
        # the settings that a stage depends on: its own number of epochs stands beside them
        "training": {key: value for key, value in training.items() if key not in ("pretrain_epochs", "epochs")},
        **config,
    }
    checkpoint = None if directory is None else directory / CHECKPOINT_FILE
    return Stage(
        name, epochs, setting.training, config, checkpoint, accumulation=setting.accumulation, keep=setting.checkpoints
    )


def start_record(saved: SavedModel) -> dict[str, Any]:
    """Return how the model that a stage starts from was trained: another start is another configuration.

    Raises CheckpointError for a model that was not trained.
    """
    if not saved.history:
        raise CheckpointError(
            "the model file that a stage starts from must hold a trained network, but no epoch is in it"
        )
    return {"config": saved.config, "last": saved.history[-1]["metrics"]}


def _prepared(setting: Setting, config: MethodConfig) -> Method:
    """Return the method attached to the network with its initial weights."""
    method = make_method(config, setting.network)
    method.prepare(dense_model(setting))
    return method


def _run(
    stage: Stage,
    setting: Setting,
    directory: Path | None,
    start: Callable[[Setting], Method],
    evaluate: Callable[[Method, Setting, int], Evaluation] | None = None,
    distillation: Distillation | None = None,
) -> Steps:
    """Run one stage, or repeat its recorded results if its model file is there; metrics are of the network as it is, or
    what `evaluate` makes of it, the setting on its device and the epoch.
    """
    model_file = None if directory is None else directory / MODEL_FILE
    if model_file is not None and model_file.exists():
        return (yield from _recorded(model_file, stage))
    placed = replace(setting, data=setting.data.to(setting.device))
    method = start(placed)
    method.model.to(setting.device).to(memory_format=torch.channels_last)
    method.bind()
    measure = partial(evaluate or partial(_evaluation, Evaluator(stage.training)), method, placed)
    history = yield from train(method, placed.data, stage, measure, distillation)
    if model_file is not None:
        save_model(SavedModel(method.model, setting.spec, method.form, stage.config, history), model_file)
        remove_checkpoints(model_file.parent / CHECKPOINT_FILE)
    return history


def _evaluation(evaluator: Evaluator, method: Method, setting: Setting, epoch: int) -> Evaluation:
    layers = method.form.layers
    ranks = {} if layers is None else _rank_metrics(PrunedModel(method.model, list(layers)), method.form, setting)
    scores = evaluator(method.model, setting.data)
    return Evaluation({**_described(scores, method.model, setting, method.form), **ranks, **method.metrics()})


def _cut_evaluation(method: Method, setting: Setting, curve: CurveConfig | None) -> Evaluation:
    """Metrics of the network cut by the method, and with `curve` its cuts at other budgets, from the same SVDs."""
    decomposed = method.decomposed() if method.ranks_at_cut and method.form.layers is None else None
    pruned = method.finish(_validation_loss(setting), decomposed)
    form = method.deployed_form(pruned)
    scores = evaluate_split(pruned.model, setting.data, setting.training.dtype)  # each cut has shapes of its own
    metrics = {**_described(scores, pruned.model, setting), **_rank_metrics(pruned, form, setting), **method.metrics()}
    if curve is None:
        return Evaluation(metrics)
    cuts = trained_curve(method, pruned, decomposed, setting.data, setting.training, curve, setting.latency)
    return Evaluation({**metrics, "score": cuts[0].score}, [cut.record() for cut in cuts])


def _recorded(model_file: Path, stage: Stage) -> Steps:
    saved = load_model(model_file)
    require_same_config(model_file, saved.config, stage.config)
    try:
        results = [EpochResult(**record, replayed=True, judged=True) for record in saved.history]  # it went to its end
    except TypeError as error:
        raise CheckpointError(f"{model_file} must hold the results of each epoch, but: {error}; remove it") from error
    yield from results
    return saved.history


def _validation_loss(setting: Setting) -> ValidationLoss:
    return lambda model: evaluate_split(model, setting.data.to(setting.device), setting.training.dtype)["loss"]


def _described(
    scores: dict[str, float], model: nn.Module, setting: Setting, form: ModelForm | None = None
) -> dict[str, float]:
    """Validation scores and cost; of a model in a `form` that is not deployed yet, the cost of the dense network."""
    dense = setting.dense_cost
    cost = dense if form is not None and form.layers is None else measure_cost(model, setting.spec.sample_shape)
    return {
        **{f"val_{name}": value for name, value in scores.items()},
        "macs": cost.macs,
        "flops": cost.flops,
        "macs_ratio": cost.macs / dense.macs,
        "params": cost.params,
        "params_ratio": cost.params / dense.params,
    }


def _rank_metrics(pruned: PrunedModel, form: ModelForm, setting: Setting) -> dict[str, float]:
    ranks = {f"rank/{name}": float(rank) for name, rank in pruned.ranks.items()}
    if setting.latency is not None:
        ranks["predicted_latency_ms"] = setting.latency.predict(form.decomposition or "", pruned.layers)
    return {"rank_ratio": pruned.rank_ratio, **ranks}
