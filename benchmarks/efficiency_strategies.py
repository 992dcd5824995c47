"""The strategies that `sweep_efficiency.py` compares, each on the same trainer, data, search space and caps.

`plain` is Ray Tune as its documentation shows it: OptunaSearch, one training for each point, every trial trains both stages
itself; from nothing, or from the first points that rankfront begins with. `ours` is `run_sweep`, with all its levers or
without one of them.
"""

import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from orchestrator.config import FinetuneConfig, SchedulerConfig, SearchConfig, SweepConfig, TrackingConfig
from orchestrator.curves import final_curve
from orchestrator.finalists import pick_finalists
from orchestrator.paths import SweepPaths
from orchestrator.ray_session import prepare_environment
from orchestrator.records import RunRecord, read_records
from search_spaces import FIRST_POINTS, find_search_space
from trainers.config import CurveConfig, DataConfig, MethodConfig, ModelConfig, TrainingConfig, apply_settings

prepare_environment()


@dataclass(frozen=True)
class Task:
    """A network on a data set, the caps of the strategies on it, and from which accuracy the hypervolume counts.

    Strategies with one point a training have more trainings, `plain_trials`, and spend several times as much in all.
    """

    data: DataConfig
    model: ModelConfig
    training: TrainingConfig
    num_trials: int
    plain_trials: int
    finetune: FinetuneConfig
    floor: float
    search_space: str = "svd_training"
    curve: CurveConfig = field(default_factory=CurveConfig)


@dataclass(frozen=True)
class Event:
    """What one trial cost, CPU seconds, and the (MACs ratio, validation score) of each network that it left."""

    core_s: float
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class Outcome:
    """A strategy's trials in the order in which they ended, and its fine-tuned finalists' (MACs ratio, test accuracy)."""

    events: list[Event]
    finalists: list[tuple[float, float]]
    num_shared: int = 0  # so many events, the first ones, are trainings of stage 1 for all trials
    stage_one_s: float = 0.0  # what one of them cost

    def with_own_stage_one(self) -> "Outcome":
        """Return the same run with every trial charged with a stage 1 of its own, as if nothing were shared."""
        trials = self.events[self.num_shared :]
        return replace(self, events=[replace(event, core_s=event.core_s + self.stage_one_s) for event in trials])

    @staticmethod
    def read(record: dict[str, Any]) -> "Outcome":
        """Undo `asdict`."""
        events = [Event(event["core_s"], [tuple(point) for point in event["points"]]) for event in record["events"]]
        return Outcome(
            events, [tuple(point) for point in record["finalists"]], record["num_shared"], record["stage_one_s"]
        )


def sweep_config(name: str, task: Task, seed: int, levers: dict[str, Any]) -> SweepConfig:
    """Return the task as a sweep; `levers`: `curve`, `scheduler`, `sampler`, `continuation`, `first_points`,
    where not the defaults.
    """
    curve = levers.get("curve", task.curve)
    return SweepConfig(
        name=name,
        model=task.model,
        data=task.data,
        search_space=task.search_space,
        training=replace(task.training, seed=seed),
        search=SearchConfig(
            num_trials=task.num_trials if curve.num_points else task.plain_trials,
            max_concurrent=2,
            seed=seed,
            sampler=levers.get("sampler", "tpe"),
            continuation=levers.get("continuation", SearchConfig().continuation),
            first_points=levers.get("first_points"),
        ),
        curve=curve,
        scheduler=levers.get("scheduler", SchedulerConfig()),
        finetune=task.finetune,
        tracking=TrackingConfig(log_models=False, log_report=False),  # neither is part of the search
    )


def ours(task: Task, seed: int, folder: Path, **levers: Any) -> Outcome:
    """Run a sweep."""
    from rich.console import Console

    from orchestrator.pipeline import run_sweep

    with (folder.parent / f"{folder.name}.log").open("w") as log:
        run_sweep(sweep_config(folder.name, task, seed, levers), folder, Console(file=log))
    records = read_records(SweepPaths(folder.absolute()).results)
    stage_one = [record.cpu_s or 0.0 for record in records if record.stage == "pretrain"]
    events = [Event(core_s, []) for core_s in stage_one]
    for record in (record for record in records if record.stage == "trial"):
        points = [(point.macs_ratio, point.score) for point in final_curve(record)]
        events.append(Event(record.cpu_s or 0.0, points))
    finalists = [
        (record.macs_ratio or 1.0, record.test_accuracy or 0.0)
        for record in records
        if record.stage == "finetune" and record.state == "COMPLETE"
    ]
    return Outcome(events, finalists, len(stage_one), sum(stage_one) / len(stage_one))


def plain(
    task: Task, seed: int, folder: Path, *, random: bool = False, asha: bool = False, first_points: bool = False
) -> Outcome:
    """Run Ray Tune with OptunaSearch, by Optuna's default sampler or a random one, alone or with ASHA on the accuracy;
    `first_points`: the space's are tried before anything is drawn, as rankfront does.
    """
    import optuna
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    from trainers.data import load_train_validation

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    data = load_train_validation(task.data)
    total = task.training.pretrain_epochs + task.training.epochs
    sampler = optuna.samplers.RandomSampler(seed=seed) if random else None
    search = OptunaSearch(
        _Space(task.search_space), metric=["score", "macs_ratio"], mode=["max", "min"], sampler=sampler,
        seed=None if random else seed,
        points_to_evaluate=[dict(point) for point in FIRST_POINTS[task.search_space]] if first_points else None,
    )  # fmt: skip
    # it judges cut networks only: before the second stage all trials do nearly the same
    first = task.training.pretrain_epochs + 1
    scheduler = ASHAScheduler("epoch", "score", "max", max_t=total + 1, grace_period=first) if asha else None
    trainable = tune.with_parameters(
        _plain_trial, task=task, seed=seed, folder=str(folder.absolute()), data=[ray.put(data.arrays())]
    )
    log = _EventLog()
    tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=scheduler,
            num_samples=task.plain_trials,
            max_concurrent_trials=2,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=folder.name, storage_path=str(folder.parent.absolute()), callbacks=[log], verbose=0
        ),
    ).fit()
    return Outcome(log.events, _finetuned(log.records, task, seed, folder))


class _Space:
    """The search space in Ray's define-by-run form; a class, since Tune pickles it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, trial: Any) -> dict[str, Any]:
        return {"settings": find_search_space(self._name)(trial)}


def _plain_trial(config: dict[str, Any], task: Task, seed: int, folder: str, data: list[Any]) -> None:
    """One trial: stage 1, stage 2, one cut, scored as everyone's."""
    import ray
    import torch
    from ray import tune

    from trainers import recipe
    from trainers.data import ImageData
    from trainers.models import ModelSpec

    torch.set_num_threads(1)
    images = ImageData.from_arrays(ray.get(data[0]))
    training, method = apply_settings(config["settings"], replace(task.training, seed=seed), MethodConfig())
    setting = recipe.Setting(ModelSpec(task.model, images.sample_shape, images.num_classes), images, training)
    place = Path(folder) / tune.get_context().get_trial_id()
    core_s = 0.0
    for stage in (1, 2):
        if stage == 1:
            results = recipe.pretrain(setting, method, place / "1")
        else:
            start = place / "1" / recipe.MODEL_FILE
            results = recipe.compress(setting, method, start, place / "2", replace(task.curve, num_points=0))
        for result in results:
            core_s += result.cpu_s
            epoch = result.epoch + (0 if stage == 1 else task.training.pretrain_epochs)
            score = result.metrics.get("score", result.metrics["val_accuracy"])
            report = {**result.metrics, "score": score, "epoch": epoch, "core_s": core_s, "place": str(place)}
            tune.report(report)
    tune.report({**report, "finished": True, "epoch": epoch + 1})


def _callback_base() -> Any:
    from ray import tune

    return tune.Callback


class _EventLog(_callback_base()):  # type: ignore[misc]
    """Writes down what each trial cost and left, in the order in which they end."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.records: list[RunRecord] = []

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.events.append(Event((trial.last_result or {}).get("core_s", 0.0), []))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        last = trial.last_result or {}
        points = [(last["macs_ratio"], last["score"])] if last.get("finished") else []
        self.events.append(Event(last.get("core_s", 0.0), points))
        if points:
            self.records.append(
                RunRecord(
                    last["place"], "trial", "COMPLETE", "", settings=json.dumps(trial.config["settings"]),
                    macs=int(last["macs"]), macs_ratio=last["macs_ratio"], params=int(last["params"]),
                    params_ratio=last["params_ratio"], val_accuracy=last["val_accuracy"], score=last["score"],
                )
            )  # fmt: skip


def _finetuned(records: list[RunRecord], task: Task, seed: int, folder: Path) -> list[tuple[float, float]]:
    """Fine-tune the finalists as the sweep does; returns (MACs ratio, test accuracy) of each."""
    import torch

    from trainers import recipe
    from trainers.data import load_test, load_train_validation
    from trainers.models import ModelSpec

    torch.set_num_threads(1)
    data = load_train_validation(task.data)
    test = load_test(task.data, data)
    found = []
    for place, pick in enumerate(pick_finalists(records, task.finetune)):
        training, method = apply_settings(
            json.loads(pick.settings or "{}"), replace(task.training, seed=seed), MethodConfig()
        )
        setting = recipe.Setting(ModelSpec(task.model, data.sample_shape, data.num_classes), data, training)
        target = folder / f"finalist-{place}"
        start = Path(pick.name) / "2" / recipe.MODEL_FILE
        for _ in recipe.finetune(setting, method, task.finetune.epochs, start, target, task.curve):
            pass
        scores = recipe.evaluate_model_file(target / recipe.MODEL_FILE, test, torch.device("cpu"))
        found.append((pick.macs_ratio or 1.0, scores["accuracy"]))
    return found


# its scores are those right after the cut, which are not to be compared with the others'
OTHER_SCORES = ("without recovery",)
STRATEGIES: dict[str, Any] = {
    "random search": lambda *place: plain(*place, random=True),
    "Tune + OptunaSearch": plain,
    "Tune + OptunaSearch + first points": lambda *place: plain(*place, first_points=True),
    "Tune + OptunaSearch + ASHA": lambda *place: plain(*place, asha=True),
    "rankfront": ours,
    "without curves": lambda *place: ours(*place, curve=replace(place[0].curve, num_points=0)),
    "without scheduler": lambda *place: ours(*place, scheduler=SchedulerConfig(name="none")),
    "without TPE": lambda *place: ours(*place, sampler="random"),
    "without recovery": lambda *place: ours(
        *place, curve=replace(place[0].curve, batch_norm_batches=0, recovery_steps=0)
    ),
    "without continuation": lambda *place: ours(*place, continuation=0),
    "without first points": lambda *place: ours(*place, first_points=()),
}


def run(name: str, task: Task, seed: int, folder: Path) -> tuple[Outcome, float]:
    """Run one strategy in an empty folder; returns what it found and how long it took, seconds of wall time."""
    start = time.perf_counter()
    return STRATEGIES[name](task, seed, folder), time.perf_counter() - start
