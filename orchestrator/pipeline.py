"""The whole job, from a configuration to fine-tuned Pareto-optimal models, in the order in which it happens.

Every step can be taken up again: runs that have ended stand in `results.parquet` and are not run again, and a run that
was cut off goes on from its checkpoint.
"""

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.console import Console

from orchestrator.choice import Choice
from orchestrator.config import SweepConfig, load_config
from orchestrator.continuation import chain
from orchestrator.curves import final_curve, trial_of
from orchestrator.data_type import with_measured_dtype, with_recorded_dtype
from orchestrator.finalists import pick_finalists
from orchestrator.foresight import write_table
from orchestrator.front import SweepFront, sweep_front, write_front
from orchestrator.jobs import dense_job, finetune_job, pretrain_job
from orchestrator.ledger import Ledger
from orchestrator.models import log_finalists
from orchestrator.output import (
    change_state,
    claimed,
    flat_settings,
    keep_config,
    read_json,
    read_state,
    require_ours_or_empty,
    write_state,
    write_text,
)
from orchestrator.paths import SweepPaths
from orchestrator.plan import SweepPlan, plan_sweep
from orchestrator.provenance import environment, environment_tags, with_data
from orchestrator.publish import publish, publish_report
from orchestrator.ray_session import prepare_environment, ray_session
from orchestrator.records import RunRecord, read_records
from orchestrator.storage import storage_errors
from orchestrator.sync import opened_tracker
from orchestrator.tracking.spool import PARENT
from orchestrator.tuned import finetune_name
from search_spaces import find_search_space
from trainers.config import as_record
from trainers.cost import Cost
from trainers.data import load_test, load_train_validation
from trainers.errors import SweepError

if TYPE_CHECKING:
    from optuna import Study
    from ray import ObjectRef

    from orchestrator.tracking.tracker import Tracker
    from trainers.data import ImageData


def run_sweep(config: SweepConfig, output: Path, console: Console, rerun_of: str | None = None) -> SweepFront:
    """Run the sweep in `output`, or go on with the one that is there; returns what it found.

    `rerun_of`: the MLflow run of the sweep that this one repeats, a tag of its parent run.

    Raises ConfigError, DataError or SweepError before anything is trained or written where a rule is broken, SweepError
    where stage 1, every trial or a run of the final stage fails, StorageError where the output directory is full or cannot
    be written, and KeyboardInterrupt after leaving all in order.
    """
    prepare_environment()
    paths = SweepPaths.of(output)
    config = with_recorded_dtype(config, paths)
    require_ours_or_empty(paths, config)
    plan = plan_sweep(config, begun=paths.study.exists())
    config, remark = with_measured_dtype(config, plan)
    if remark is not None:
        console.print(remark)
    with storage_errors(paths.root), claimed(paths, config):
        return _run(config, paths, plan, console, rerun_of)


def _run(config: SweepConfig, paths: SweepPaths, plan: SweepPlan, console: Console, rerun_of: str | None) -> SweepFront:
    from orchestrator.tracking.target import tracking_target
    from orchestrator.tracking.tracker import Tracker
    from orchestrator.view import SweepView

    records = read_records(paths.results) if paths.results.exists() else []
    study = _open_study(config, paths, [record for record in records if record.stage == "trial"])
    target = tracking_target(config.name, paths.mlflow_db, paths.mlflow_artifacts)
    state = read_state(paths)
    tracker = Tracker(target, state.sweep_id, paths.root, paths.tracking)
    ledger = Ledger(config, paths, tracker, records)
    try:
        with _concluding(ledger, config, paths, tracker, study):
            write_state(paths, replace(state, store=target.key, finished=False))
            write_text(paths.layers, json.dumps([asdict(layer) for layer in plan.layers], indent=2) + "\n")
            _describe(config, paths, plan, tracker, rerun_of)
            write_table(config, plan, paths)
            view = SweepView(console, config, len(plan.starts))
            # in this order: Ray, as it starts, takes SIGTERM for itself
            with ray_session(config.resources), _terminate_as_interrupt(), view.showing(ledger):
                keep_config(paths, config)
                _run_stages(config, paths, plan, ledger, study)
            _log_models(ledger, config, paths, plan.data, tracker)
        change_state(paths, finished=True)
    finally:
        tracker.close()
    if any(not record.run_id for record in ledger.records()):  # MLflow was away, and took these runs at the very end
        ledger.save()
        write_front(sweep_front(ledger.records()), paths)
    return sweep_front(ledger.records())


def run_finetuning(directory: Path, choice: Choice, repeats: int | None, console: Console) -> SweepFront:
    """Fine-tune more of a sweep's candidates, each `repeats` times (None: as the sweep says); returns the front with them.

    What is fine-tuned already stays, and is not run again; where that is all, it is said. Raises SweepError, before anything
    is trained, where there is no finished search in `directory` or nothing to choose, where a run fails, and StorageError as
    `run_sweep` does.
    """
    import ray

    from orchestrator.choices import probe_search_space
    from orchestrator.packing import with_measured_share
    from orchestrator.view import SweepView

    prepare_environment()
    paths = SweepPaths.of(directory)
    with storage_errors(paths.root), opened_tracker(paths) as tracker:
        config, records = load_config(paths.config), read_records(paths.results)
        picks = choice.of(records, config)
        repeats = repeats or config.finetune.repeats
        if read_state(paths).finetuning is None and _all_tuned(picks, repeats, records):
            console.print(
                f"Fine-tuned already: {', '.join(pick.name for pick in picks)}", highlight=False, soft_wrap=True
            )
            return sweep_front(records)
        images = load_train_validation(config.data)
        ledger = Ledger(config, paths, tracker, records)
        change_state(paths, finetuning={"names": [pick.name for pick in picks], "repeats": repeats})
        tracker.start_run(PARENT, "sweep", {}, {})
        with _concluding(ledger, config, paths, tracker):
            view = SweepView(console, config, 0)
            with ray_session(config.resources), _terminate_as_interrupt(), view.showing(ledger):
                data = ray.put(images.arrays())
                starts = probe_search_space(find_search_space(config.search_space))
                measured = with_measured_share(config, starts, data)
                _finetune(picks, repeats, measured, paths, images, data, ledger)
            _log_models(ledger, config, paths, images, tracker)
        change_state(paths, finetuning=None)
    return sweep_front(ledger.records())


def _all_tuned(picks: list[RunRecord], repeats: int, records: list[RunRecord]) -> bool:
    done = {record.name for record in records if record.stage == "finetune" and record.state == "COMPLETE"}
    return all(finetune_name(pick.name, repeat) in done for pick in picks for repeat in range(repeats))


@contextmanager
def _concluding(
    ledger: Ledger, config: SweepConfig, paths: SweepPaths, tracker: "Tracker", study: "Study | None" = None
) -> Iterator[None]:
    """However the block ends: leave no run and no trial open, and write down what has been found."""
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        with ExitStack() as steps:  # the last one first, and each whatever those before it met: a full disk, say
            if status == "FINISHED" and config.tracking.log_report:
                steps.callback(publish_report, paths, tracker)
            steps.callback(publish, ledger, config, paths, tracker)
            if study is not None:
                steps.callback(_close_running, study, ledger)
            # before all that can fail or take long: MLflow takes records of ended runs
            steps.callback(tracker.end_run, PARENT, status)
            steps.callback(ledger.interrupted)


def _close_running(study: "Study", ledger: Ledger) -> None:
    from orchestrator.study import close_running

    close_running(study, {record.name: record for record in ledger.records("trial")})


def _log_models(ledger: Ledger, config: SweepConfig, paths: SweepPaths, data: "ImageData", tracker: "Tracker") -> None:
    if config.tracking.log_models:
        records = ledger.records()
        with _terminate_as_interrupt():
            log_finalists(sweep_front(records), records, paths, data, tracker)


def _describe(
    config: SweepConfig, paths: SweepPaths, plan: SweepPlan, tracker: "Tracker", rerun_of: str | None
) -> None:
    """Open the parent run, with the settings and where its numbers come from."""
    found = with_data(environment(), plan.data)  # the test split is not touched before the final stage
    write_text(paths.environment, json.dumps(found, indent=2) + "\n")
    tags = {**_cost_tags(plan.dense_cost), **environment_tags(found), "seed": str(config.training.seed)}
    tags |= {} if rerun_of is None else {"rerun_of": rerun_of}
    tracker.start_run(PARENT, "sweep", flat_settings(config), {})
    tracker.set_tags(PARENT, {key: value for key, value in tags.items() if value})


def _open_study(config: SweepConfig, paths: SweepPaths, trials: list[RunRecord]) -> "Study":
    """Open the sweep's study and tell it what a driver that was killed did not."""
    from orchestrator.added_trials import CurveTrials, begin
    from orchestrator.study import open_study, reconcile

    search = config.resolved_search
    study = open_study(paths.study, config.name, search.seed, search.sampler, search.constraints)
    begin(study, find_search_space(config.search_space), search)
    reconcile(study, {trial.name: trial for trial in trials})
    curves = {trial.trial_number: final_curve(trial) for trial in trials if trial.trial_number is not None}
    CurveTrials(study).add({number: points for number, points in curves.items() if points})
    return study


def _run_stages(config: SweepConfig, paths: SweepPaths, plan: SweepPlan, ledger: Ledger, study: "Study") -> None:
    import ray

    from orchestrator.packing import with_measured_share
    from orchestrator.search import run_jobs, run_search
    from orchestrator.study import begun_trials

    data = ray.put(plan.data.arrays())
    config = with_measured_share(config, plan.starts, data)
    run_jobs([pretrain_job(start) for start in plan.starts], config, paths, data, ledger)
    _require_complete(ledger.records("pretrain"))
    cut_off = begun_trials(study, paths.has_begun)  # they go on, whatever ends the search now
    missing = max(config.search.num_trials - len(ledger.records("trial")), len(cut_off))
    ends = {"num_trials": config.search.num_trials, "stop": as_record(config.stop)}
    if (
        missing > 0 and read_state(paths).search_over != ends
    ):  # else a stop rule had ended it: `hours` are not counted anew
        run_search(study, find_search_space(config.search_space), missing, config, paths, data, ledger)
        change_state(paths, search_over=ends)
    trials = ledger.records("trial")
    picks = pick_finalists(trials, config.finetune, config.search.constraints, config.curve.max_validation)
    if not picks:
        raise SweepError(_no_finalist(trials))
    _finetune(picks, config.finetune.repeats, config, paths, plan.data, data, ledger)


def _finetune(
    picks: list[RunRecord],
    repeats: int,
    config: SweepConfig,
    paths: SweepPaths,
    images: "ImageData",
    data: "ObjectRef[dict[str, Any]]",
    ledger: Ledger,
) -> None:
    """Train the dense baseline and the picks, as far as they are not there, and evaluate all on test data."""
    import ray

    from orchestrator.search import run_jobs

    by_name = {trial.name: trial for trial in ledger.records("trial")}
    longest = max(1 + len(chain(by_name[trial_of(pick.name)], by_name)) for pick in picks)
    # one that has begun goes on from its checkpoint, as long as it was to be
    longest = read_state(paths).baseline_trials or longest
    change_state(paths, baseline_trials=longest)
    # the longest first
    jobs = [
        dense_job(config, longest),
        *(finetune_job(pick, repeat) for repeat in range(repeats) for pick in picks),
    ]
    test = load_test(config.data, images)
    found = read_json(paths.environment, dict[str, Any]())
    write_text(paths.environment, json.dumps(with_data(found, images, test), indent=2) + "\n")
    run_jobs(jobs, config, paths, data, ledger, ray.put(test.arrays()))
    _require_complete([record for job in jobs if (record := ledger.record(job.name)) is not None])


def _no_finalist(trials: list[RunRecord]) -> str:
    if any(trial.state == "COMPLETE" for trial in trials):
        return "at least one network must keep to search.constraints, but none of the sweep's does; relax them"
    errors = [trial.error for trial in trials if trial.error]
    why = f"failed, the last with:\n{errors[-1]}" if errors else "were stopped early; raise scheduler.exempt_share"
    return f"at least one trial must end complete, but all {len(trials)} {why}"


def _require_complete(records: list[RunRecord]) -> None:
    failed = [record for record in records if record.state != "COMPLETE"]
    if failed:
        names = ", ".join(record.name for record in failed)
        raise SweepError(
            f"{names} failed; the same command tries again and keeps all else. The last error:\n{failed[-1].error}"
        )


def _cost_tags(cost: Cost) -> dict[str, str]:
    return {
        "dense_macs": str(cost.macs),
        "dense_params": str(cost.params),
        "macs_counter": cost.counter,
        "macs_uncounted_operators": ", ".join(cost.uncounted),
    }


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM ends the sweep as Ctrl-C does, with everything in order."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        previous = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread: the caller's signals are its own
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
