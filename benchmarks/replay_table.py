"""Trials that were trained to the end with a curve after every epoch, in a table from which they are played back."""

import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from search_spaces import find_search_space
from trainers.config import CurveConfig, DataConfig, MethodConfig, ModelConfig, TrainingConfig, apply_settings
from trainers.data import load_train_validation
from trainers.errors import NonFiniteError
from trainers.models import ModelSpec
from trainers.recipe import MODEL_FILE, Setting, compress, pretrain

SPACE = "svd_training"
Curves = list[list[list[float]]]  # epoch, point, (score, share of the dense MACs); a trial's own cut first
NETWORKS = {
    "mnist_mlp": (
        DataConfig("mnist", max_train=6_000, validation_fraction=0.25),
        ModelConfig("mlp", (300, 100)),
        TrainingConfig(batch_size=100, pretrain_epochs=6, epochs=9, learning_rate=2.5e-3),
    ),
    "digits_tiny": (
        DataConfig("digits", validation_fraction=0.25),
        ModelConfig("tiny"),
        TrainingConfig(batch_size=64, pretrain_epochs=9, epochs=9, learning_rate=2e-3),
    ),
}


@dataclass(frozen=True)
class Recorded:
    """One trial: its parameters in the search space, its curves, and the settings of each point of the last one."""

    params: dict[str, Any]
    curves: Curves
    cuts: list[dict[str, Any]]


def record_table(network: str, mnist: str, num_trials: int, seed: int, workers: int) -> list[Recorded]:
    """Train `num_trials` random trials of the space, `workers` at a time; those that diverge are left out."""
    import optuna

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    space = find_search_space(SPACE)
    with TemporaryDirectory() as folder, ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        drawn = [study.ask() for _ in range(num_trials)]
        jobs = [(network, number, space(trial), mnist, folder) for number, trial in enumerate(drawn)]
        found = zip(drawn, pool.map(_record, jobs), strict=True)
        return [Recorded(trial.params, *result) for trial, result in found if result is not None]


def _record(job: tuple[str, int, dict[str, Any], str, str]) -> tuple[Curves, list[dict[str, Any]]] | None:
    network, number, settings, mnist, folder = job
    torch.set_num_threads(1)
    data_config, model, base = NETWORKS[network]
    training, method = apply_settings(settings, base, MethodConfig())
    data = load_train_validation(replace(data_config, root=mnist))
    setting = Setting(ModelSpec(model, data.sample_shape, data.num_classes), data, training)
    start, curve = Path(folder) / f"{number}", CurveConfig(num_points=6)
    try:
        list(pretrain(setting, method, start, Path(folder) / "store"))
        results = list(compress(setting, method, start / MODEL_FILE, None, curve, range(1, training.epochs)))
    except NonFiniteError:
        return None
    dense = setting.dense_cost.macs
    curves = [[[cut["score"], cut["macs"] / dense] for cut in result.curve or []] for result in results]
    return curves, [cut["settings"] for cut in results[-1].curve or []]


def write_table(trials: Sequence[Recorded], path: Path) -> None:
    """Write the trials, parameters and settings as JSON."""
    columns = {
        "params": [json.dumps(trial.params) for trial in trials],
        "curves": [trial.curves for trial in trials],
        "cuts": [json.dumps(trial.cuts) for trial in trials],
    }
    pq.write_table(pa.table(columns), path)


def read_table(path: Path) -> list[Recorded]:
    """Read what `write_table` wrote."""
    rows = pq.read_table(path).to_pylist()
    return [Recorded(json.loads(row["params"]), row["curves"], json.loads(row["cuts"])) for row in rows]
