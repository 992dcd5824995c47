"""The runs of a sweep as data: what each one trains, and the function that trains it, on whichever process it lands."""

import json
import logging
import traceback
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.config import SweepConfig
from orchestrator.curves import trial_of
from orchestrator.paths import SweepPaths
from orchestrator.records import RunRecord, StageName
from orchestrator.storage import storage_problem
from orchestrator.tuned import finetune_name
from trainers.config import MethodConfig, TrainingConfig, apply_settings, as_record
from trainers.errors import LostWorkerError, SweepError

if TYPE_CHECKING:
    from trainers.data import ImageData
    from trainers.loop import PendingEpoch, Steps, TrainedEpoch, TrainEpoch

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One run: its unique name, its stage, the search space's settings, and the run that it starts from.

    `epochs`: how many it trains where the configuration alone does not say it (`job_epochs`); `repeat` is added to the
    configuration's seed.
    """

    name: str
    stage: StageName
    settings: dict[str, Any]
    source: str | None = None
    trial_number: int | None = None
    epochs: int | None = None
    repeat: int = 0


def pretrain_job(start: MethodConfig) -> Job:
    """Stage 1 in one form (`trainers.methods.pretraining`), shared by all trials that start from it."""
    from trainers.methods import METHODS

    plain = as_record(MethodConfig())
    settings = {key: value for key, value in as_record(start).items() if key == "method" or value != plain[key]}
    return Job(f"pretrain-{METHODS[start.method].stage_one_name(start)}", "pretrain", settings)


def stage_one_of(settings: dict[str, Any]) -> Job:
    """The run of stage 1 that one choice of the search space starts from."""
    from trainers.methods import pretraining

    method = apply_settings(settings, TrainingConfig(), MethodConfig())[1]
    return pretrain_job(pretraining(method))


def trial_job(name: str, number: int, settings: dict[str, Any], source: str | None = None) -> Job:
    """Stage 2 with one choice of the search space, from stage 1 or from the network of the trial `source`."""
    return Job(name, "trial", settings, source or stage_one_of(settings).name, number)


def job_of(params: dict[str, Any]) -> Job:
    """The trial that Tune knows by what the searcher has given it."""
    return trial_job(params["name"], params["number"], params["settings"], params["source"])


def start_of(job: Job, starts: dict[str, Any]) -> bytes | None:
    """The content of the model file that the job starts from, if it is among `starts`, references in Ray by run's name."""
    import ray

    return ray.get(starts[job.source]) if job.source in starts else None


def finetune_job(candidate: RunRecord, repeat: int = 0) -> Job:
    """Stage 3 from a cut of a finished trial (`curves.candidates`); each `repeat` has another seed."""
    assert candidate.settings is not None, candidate.name
    settings, name = json.loads(candidate.settings), finetune_name(candidate.name, repeat)
    return Job(name, "finetune", settings, trial_of(candidate.name), candidate.trial_number, repeat=repeat)


def dense_job(config: SweepConfig, num_trials: int = 1) -> Job:
    """The baseline: as many epochs as a finalist had in all its stages, whose network went through `num_trials` trials."""
    training = config.training
    epochs = training.pretrain_epochs + num_trials * training.epochs + config.finetune.epochs
    return Job("dense", "dense", {}, epochs=epochs)


def job_configs(job: Job, config: SweepConfig) -> tuple[TrainingConfig, MethodConfig]:
    """Return the training and method settings in force for `job`."""
    from trainers.methods import resolve

    training, method = apply_settings(job.settings, config.training, MethodConfig())
    training = replace(training, seed=training.seed + job.repeat)
    if job.stage == "finetune" and config.finetune.learning_rate is not None:
        training = replace(training, learning_rate=config.finetune.learning_rate)
    return training, resolve(method)


def job_epochs(job: Job, config: SweepConfig) -> int:
    """Return how many epochs `job` trains."""
    if job.epochs is not None:
        return job.epochs
    training, finetune = config.training, config.finetune
    epochs = {"pretrain": training.pretrain_epochs, "trial": training.epochs, "finetune": finetune.epochs}
    return epochs[job.stage]


def run_job(
    job: Job,
    config: SweepConfig,
    output: str,
    arrays: dict[str, Any],
    test_arrays: dict[str, Any] | None = None,
    start: bytes | None = None,
    train_epoch: "TrainEpoch | None" = None,
) -> Iterator[dict[str, Any]]:
    """Train one job and yield a plain dict per epoch; the last one has "finished", "error" (a traceback) or "storage".

    The last epoch's comes when the model is written: a worker waits for each answer, and so has one less to wait for.

    Runs in a worker process. An exception becomes the last result, so that a failing run is a result like another and
    not a crash to be retried; "storage" says that the output directory cannot be written, which is no fault of the run.
    One that runs out of memory is tried again from its checkpoint, at most `resources.max_retries` times. With
    `test_arrays` the trained model is evaluated on them, once, at the end. A trial starts from the model file with the
    content `start`; by default it reads that of its source itself. Epochs are trained by `train_epoch`, such as a `Team`'s,
    or by this process alone. Raises LostWorkerError, which `train_epoch` may end with: the run is to start again elsewhere.
    """
    from trainers.data import ImageData
    from trainers.loop import PendingEpoch, each_alone

    steps = job_steps(job, config, output, ImageData.from_arrays(arrays), test_arrays, start)
    yield from each_alone(steps, train_epoch or PendingEpoch.train)


def job_steps(
    job: Job,
    config: SweepConfig,
    output: str,
    data: "ImageData",
    test_arrays: dict[str, Any] | None = None,
    start: bytes | None = None,
) -> "Generator[dict[str, Any] | PendingEpoch, TrainedEpoch | None, None]":
    """`run_job`, whose caller trains each epoch that is due (`trainers.loop.train`)."""
    from trainers.memory import is_out_of_memory, release_memory, return_memory

    return_memory()  # of the runs that this process had before
    accumulation, batch_size = 1, job_configs(job, config)[0].batch_size
    for left in reversed(range(config.resources.max_retries + 1)):
        try:
            steps = _steps(job, config, output, data, start, accumulation)
            last = yield from _records(steps, job_epochs(job, config))
            test = {} if test_arrays is None else _test_metrics(job, config, output, test_arrays)
            yield {**last, "metrics": {**last["metrics"], **test}, "finished": True}
            return
        except LostWorkerError:
            raise
        except Exception as error:  # noqa: BLE001  # every failure of a training is reported by name, none stops the sweep
            if (problem := storage_problem(error)) is not None:
                yield {"storage": problem}
                return
            if left == 0 or not is_out_of_memory(error):
                yield {"error": traceback.format_exc()}
                return
            _log.warning("%s ran out of memory and goes on from its checkpoint: %s", job.name, error)
        release_memory()
        if config.resources.accumulate_when_out_of_memory and 4 * accumulation <= batch_size:
            accumulation *= 2


def _records(
    steps: "Steps", epochs: int
) -> "Generator[dict[str, Any] | PendingEpoch, TrainedEpoch | None, dict[str, Any]]":
    """Yield what `steps` yields, results as plain dicts, and return the last of those.

    The result of the last of `epochs` is not yielded, unless what follows it fails.
    """
    from trainers.loop import PendingEpoch, answer

    last: dict[str, Any] = {}
    trained = None
    while True:
        try:
            step = answer(steps, trained)
        except StopIteration:
            return last
        except Exception:
            if last.get("epoch") == epochs:
                yield last
            raise
        trained = None
        if isinstance(step, PendingEpoch):
            trained = yield step
        else:
            last = {**step.record(), "replayed": step.replayed, "judged": step.judged}
            if step.epoch < epochs:
                yield last


def _steps(
    job: Job,
    config: SweepConfig,
    output: str,
    data: "ImageData",
    start: bytes | None,
    accumulation: int,
) -> "Steps":
    import torch

    from orchestrator.foresight import read_table
    from orchestrator.scheduler import rungs
    from trainers import recipe
    from trainers.models import ModelSpec

    torch.set_num_threads(config.resources.cpus_per_trial)
    training, method = job_configs(job, config)
    spec = ModelSpec(config.model, data.sample_shape, data.num_classes)
    paths = SweepPaths(Path(output))
    latency = read_table(config, paths) if job.stage in ("trial", "finetune") else None
    setting = recipe.Setting(
        spec,
        data,
        training,
        config.factorization,
        device_of(config),
        latency,
        accumulation,
        config.resources.checkpoints,
    )
    folder, epochs = paths.run(job.name), job_epochs(job, config)
    source = paths.run(job.source or "") / recipe.MODEL_FILE
    if job.stage == "dense":
        return recipe.train_dense_steps(setting, epochs, folder)
    if job.stage == "pretrain":
        store = paths.stage_one_store if config.resources.share_stage_one else None
        return recipe.pretrain_steps(setting, method, folder, store)
    if job.stage == "trial":
        if start is None and not source.exists():
            raise SweepError(
                f"stage 1 must include {job.source}, from which this trial starts, but random draws of the search space did "
                "not show that it is needed; make the choice that leads to it likelier"
            )
        return recipe.compress_steps(setting, method, start or source, folder, config.curve, rungs(config))
    teacher = paths.run(stage_one_of(job.settings).name) / recipe.MODEL_FILE
    distillation, patience = config.finetune.distillation, config.finetune.patience
    return recipe.finetune_steps(setting, method, epochs, source, folder, config.curve, distillation, teacher, patience)


def _test_metrics(job: Job, config: SweepConfig, output: str, test_arrays: dict[str, Any]) -> dict[str, float]:
    from trainers import recipe
    from trainers.data import ImageData

    model_file = SweepPaths(Path(output)).run(job.name) / recipe.MODEL_FILE
    scores = recipe.evaluate_model_file(
        model_file, ImageData.from_arrays(test_arrays), device_of(config), config.training.dtype
    )
    return {f"test_{name}": value for name, value in scores.items()}


def device_of(config: SweepConfig) -> Any:
    """Return the torch.device that a run trains on."""
    import torch

    return torch.device("cuda" if config.resources.gpus > 0 else "cpu")
