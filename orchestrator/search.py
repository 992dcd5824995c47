"""The two ways in which runs are spread over a Ray cluster: a search by Ray Tune, and a fixed list of jobs as Ray tasks.

Both send each epoch's result to the ledger as it comes, and both start a run again, from its checkpoint, whose worker
was lost, at most `resources.max_retries` times. Both raise StorageError where a worker could not write.
"""

import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import tune

from orchestrator.background import Background
from orchestrator.config import SweepConfig
from orchestrator.continuation import Continuation
from orchestrator.jobs import Job, job_of, start_of
from orchestrator.ledger import Ledger
from orchestrator.paths import SweepPaths
from orchestrator.scheduler import make_scheduler, tune_result
from orchestrator.searcher import StudySearcher
from orchestrator.stop_rules import StopRules
from orchestrator.stored.workspace import AWAY, Place, run_at
from orchestrator.team import Places, bundles, team_of
from orchestrator.trial_arrays import LIGHT_CPU, array_trainable, trial_arrays
from trainers.errors import LostWorkerError, StorageError
from trainers.recipe import MODEL_FILE

if TYPE_CHECKING:
    import optuna

    from search_spaces import SearchSpace

_WORKER = re.compile(r"actor_id[:=] ?(\w+)")  # in Ray's messages


def run_search(
    study: "optuna.Study",
    space: "SearchSpace",
    num_trials: int,
    config: SweepConfig,
    paths: SweepPaths,
    data: "ray.ObjectRef[dict[str, Any]]",
    ledger: Ledger,
) -> None:
    """Run `num_trials` more trials of `study`, or fewer if a stop rule is met; returns when each has ended."""
    # references in containers: Ray passes them on unread, and a node fetches what its trials ask for, once
    starts = {name: ray.put(content) for name, content in _stage_one_files(paths, ledger).items()}
    place = Place.of(paths)
    if config.resources.trials_per_array == 1:
        trainable = tune.with_parameters(_trainable, config=config, place=place, data=[data], starts=starts)
        run_trials(trainable, study, space, num_trials, config, paths, ledger)
        return
    with trial_arrays(config, place, data, starts) as arrays:
        trainable = tune.with_parameters(array_trainable, arrays=arrays, max_retries=config.resources.max_retries)
        run_trials(trainable, study, space, num_trials, config, paths, ledger)


def run_trials(
    trainable: Callable[[dict[str, Any]], None],
    study: "optuna.Study",
    space: "SearchSpace",
    num_trials: int,
    config: SweepConfig,
    paths: SweepPaths,
    ledger: Ledger,
) -> None:
    """Run trials as `run_search` does; `trainable` reports `tune_result` of what `run_job` yields."""
    started, at_once = time.monotonic(), config.search.max_concurrent
    continuation = Continuation(config.search.continuation)

    rules = StopRules(config.stop, config.resources.cpus_per_run)

    def until() -> str | None:
        return rules.reason(ledger.records("trial"), time.monotonic() - started)

    def source(settings: dict[str, Any]) -> str | None:
        found = continuation.start(settings, ledger.records("trial"))
        return found if found is not None and (paths.run(found) / MODEL_FILE).exists() else None

    light = config.resources.trials_per_array > 1
    resources = tune.PlacementGroupFactory([{"CPU": LIGHT_CPU}] if light else bundles(config.resources))
    # one trial at a time: each proposal knows all results, and the same seed gives the same sweep
    with Background(threaded=at_once > 1) as background:
        searcher = StudySearcher(
            study,
            space,
            config.search.ask_batch,
            num_trials,
            until if rules.any else None,
            source,
            has_begun=paths.has_begun,
            background=background,
            ahead=at_once if at_once > 1 else 0,
        )
        callback = _LedgerCallback(ledger, searcher, background, config.resources.max_retries, Place.of(paths))
        while (left := searcher.left) > 0:  # once more for trials that Tune has given up and that are to be tried again
            records = background.submit(ledger.records, "trial").result()
            tuner = tune.Tuner(
                tune.with_resources(trainable, resources),
                tune_config=tune.TuneConfig(
                    search_alg=searcher,
                    scheduler=make_scheduler(config, records),
                    num_samples=left,
                    max_concurrent_trials=at_once,
                    reuse_actors=True,  # a fresh worker costs seconds of imports
                ),
                run_config=tune.RunConfig(
                    name=config.name,
                    storage_path=str(paths.tune),
                    callbacks=[callback],
                    failure_config=tune.FailureConfig(max_failures=config.resources.max_retries),
                    verbose=0,
                ),
            )
            tuner.fit()


def _stage_one_files(paths: SweepPaths, ledger: Ledger) -> dict[str, bytes]:
    """Return the content of each network of stage 1, by its run's name."""
    files = {record.name: paths.run(record.name) / MODEL_FILE for record in ledger.records("pretrain")}
    return {name: file.read_bytes() for name, file in files.items() if file.exists()}


def _trainable(
    params: dict[str, Any], config: SweepConfig, place: Place, data: list[Any], starts: dict[str, Any]
) -> None:
    """One trial in a worker; the objects in `data` and `starts` are references."""
    job = job_of(params)
    with team_of(config, data) as train_epoch:
        start = start_of(job, starts)
        for result in run_at(place, job, config, ray.get(data[0]), start=start, train_epoch=train_epoch):
            tune.report(tune_result(result))


class _LedgerCallback(tune.Callback):
    """Writes what Tune's trials do into the ledger, and tells the study when one has ended, all in the background.

    A trial whose last result does not say "finished" was stopped by the scheduler.
    """

    def __init__(
        self, ledger: Ledger, searcher: StudySearcher, background: Background, max_retries: int, place: Place
    ) -> None:
        self._ledger, self._searcher, self._background = ledger, searcher, background
        self._max_retries, self._place = max_retries, place
        self._away: dict[str, bool] = {}  # by run: whether its last result came from another folder than the driver's
        self._errors: dict[str, str] = {}
        self._num_lost: Counter[str] = Counter()  # by run: how often its worker was, as far as Tune has given it up

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks for a restore that is not used."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._background.submit(self._started, trial.config)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        (report,) = result.pop("report")  # Tune would keep it
        _require_storage(report)
        if "error" in report:
            self._errors[trial.trial_id] = report["error"]
        else:
            self._away[trial.config["name"]] = report.get(AWAY, False)
            self._background.submit(self._ledger.reported, trial.config["name"], report)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        stopped = not (trial.last_result or {}).get("finished", False)
        self._background.submit(self._end, trial, self._errors.pop(trial.trial_id, None), stopped=stopped)
        for statistics in (trial.metric_analysis, trial.metric_n_steps):  # of the times and counts that Tune adds
            statistics.clear()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name, (num_lost, reason) = trial.config["name"], _losses(trial)
        self._num_lost[name] += num_lost
        # Tune itself gives up at once where a trial is not running yet, or not again
        if self._num_lost[name] <= self._max_retries:
            self._searcher.give_back(trial.trial_id)
            return
        self._background.submit(self._started, trial.config)  # a worker that could not begin has not told of it
        self._background.submit(self._end, trial, _lost(self._num_lost[name], reason))

    def _started(self, params: dict[str, Any]) -> None:
        self._ledger.started(job_of(params))

    def _end(self, trial: Any, error: str | None, *, stopped: bool = False) -> None:
        name = trial.config["name"]
        if self._away.pop(name, False) and error is None:
            self._place.collect(name)
        record = self._ledger.ended(name, error, stopped=stopped)
        self._searcher.finish(trial.trial_id, record)


def run_jobs(
    jobs: Sequence[Job],
    config: SweepConfig,
    paths: SweepPaths,
    data: "ray.ObjectRef[dict[str, Any]]",
    ledger: Ledger,
    test: "ray.ObjectRef[dict[str, Any]] | None" = None,
) -> None:
    """Run the jobs that are not complete yet, `max_concurrent` at a time, in order; returns when all have ended."""
    task = ray.remote(
        num_cpus=config.resources.cpus_per_trial,
        num_gpus=config.resources.gpus,
        max_retries=0,  # Ray's own have no limit for workers that it kills for lack of memory
        num_returns="streaming",
    )(_task)
    waiting = [job for job in jobs if (record := ledger.record(job.name)) is None or record.state != "COMPLETE"]
    running: dict[Any, Job] = {}  # Ray's stream of results -> the job it comes from
    place, away = Place.of(paths), dict[str, bool]()
    errors: dict[str, str] = {}
    num_lost: Counter[str] = Counter()
    with Places(config.resources) as places:
        while waiting or running:
            while waiting and len(running) < config.search.max_concurrent:
                job = waiting.pop(0)
                placed: Any = task.options(scheduling_strategy=places.take(job.name))
                running[placed.remote(asdict(job), config, place, [data], test)] = job
                ledger.started(job)
            ready, _ = ray.wait(list(running), num_returns=1)
            stream: Any = ready[0]
            job = running[stream]
            try:
                result: dict[str, Any] = ray.get(next(stream))
            except StopIteration:
                if away.pop(job.name, False) and job.name not in errors:
                    place.collect(job.name)
                ledger.ended(job.name, errors.pop(job.name, None))
            except ray.exceptions.RayError as error:
                num_lost[job.name] += _is_lost(error)
                if not _is_lost(error):
                    ledger.ended(job.name, str(error))
                elif num_lost[job.name] <= config.resources.max_retries:
                    waiting.insert(0, job)
                else:
                    ledger.ended(job.name, _lost(num_lost[job.name], error))
            else:
                _require_storage(result)
                if "error" in result:
                    errors[job.name] = result["error"]
                else:
                    away[job.name] = result[AWAY]
                    ledger.reported(job.name, result)
                continue
            del running[stream]
            places.free(job.name)


def _require_storage(result: dict[str, Any]) -> None:
    if "storage" in result:
        raise StorageError(result["storage"])


def _is_lost(error: ray.exceptions.RayError) -> bool:
    """Whether a run is to start again: what it has raised itself is no lost worker."""
    return isinstance(error, LostWorkerError) or not isinstance(error, ray.exceptions.RayTaskError)


def _losses(trial: Any) -> tuple[int, str]:
    """How many workers the trial has lost, and why the last one: Tune may count one twice, its task's failure and its own.

    From the file into which Tune writes failures; its `get_error` reads a copy, which comes later.
    """
    file = trial.error_file
    failures = Path(file).read_text().split("Failure # ")[1:] if file is not None and Path(file).exists() else []
    workers = {(_WORKER.findall(failure) or [place])[0] for place, failure in enumerate(failures)}
    reason = failures[-1].partition("\n")[2].strip() if failures else ""
    return max(1, len(workers)), reason or "no reason given"


def _lost(times: int, reason: object) -> str:
    return f"the worker was lost {times} times: {reason}"


def _task(job: dict[str, Any], config: SweepConfig, place: Place, data: list[Any], test: dict[str, Any] | None) -> Any:
    with team_of(config, data) as train_epoch:
        yield from run_at(place, Job(**job), config, ray.get(data[0]), test, train_epoch=train_epoch)
