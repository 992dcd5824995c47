"""The whole job, from a configuration to fine-tuned Pareto-optimal models, in the order in which it happens.

Every step can be taken up again: runs that have ended stand in `results.parquet` and are not run again, and a run that
was cut off goes on from its checkpoint.
"""

import fcntl
import json
import os
import platform
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import torch
from rich.console import Console

from orchestrator.config import SweepConfig, dump_config, load_config
from orchestrator.finalists import pick_finalists
from orchestrator.front import SweepFront, sweep_front
from orchestrator.jobs import DENSE_JOB, Job, finetune_job, pretrain_job, trial_job
from orchestrator.ledger import Ledger
from orchestrator.objectives import front_of
from orchestrator.paths import SweepPaths
from orchestrator.ray_session import prepare_environment, ray_session
from orchestrator.records import RunRecord, read_records
from search_spaces import find_search_space
from trainers.atomic import atomic_file
from trainers.config import Decomposition, as_record
from trainers.cost import Cost, measure_cost
from trainers.data import ImageData, check_test_split, load_test, load_train_validation
from trainers.errors import ConfigError, SweepError
from trainers.models import ModelSpec, build_model
from trainers.surgery import LayerReport, factorize

if TYPE_CHECKING:
    from optuna import Study

    from orchestrator.tracking import Tracker


@dataclass(frozen=True)
class SweepPlan:
    """What a configuration leads to: its data, the decompositions its search space can choose, the dense network's cost,
    and what becomes of each layer.
    """

    data: ImageData
    decompositions: list[Decomposition]
    dense_cost: Cost
    layers: list[LayerReport]


def plan_sweep(config: SweepConfig) -> SweepPlan:
    """Read and check what the configuration names: search space, data, and that the model takes the data.

    Trains nothing. Raises ConfigError or DataError.
    """
    from orchestrator.searcher import probe_search_space

    decompositions = probe_search_space(find_search_space(config.search_space))
    check_test_split(config.data)
    data = load_train_validation(config.data)
    spec = ModelSpec(config.model, data.sample_shape, data.num_classes)
    with torch.device("meta"):
        model = build_model(spec)
        cost = measure_cost(model, spec.sample_shape)
        _require_patterns_that_match(config, model)
        layers = factorize(model, decompositions[0], spec.sample_shape, config.factorization)
    if not any(layer.status == "factorized" for layer in layers):
        reasons = "; ".join(f"{layer.name}: {layer.reason}" for layer in layers)
        raise ConfigError([("factorization", f"must leave at least one layer to decompose, but skips all: {reasons}")])
    return SweepPlan(data, decompositions, cost, layers)


def _require_patterns_that_match(config: SweepConfig, model: torch.nn.Module) -> None:
    """A pattern that names no module is a slip of the pen: left alone, it would decompose what was to stay dense."""
    names = [name for name, _ in model.named_modules()]
    idle = [
        (f"factorization.{key}", f"each pattern must match a module, but {pattern!r} matches none")
        for key in ("include", "exclude")
        for pattern in getattr(config.factorization, key)
        if not any(fnmatchcase(name, pattern) for name in names)
    ]
    if idle:
        raise ConfigError(idle)


def run_sweep(config: SweepConfig, output: Path, console: Console) -> SweepFront:
    """Run the sweep in `output`, or go on with the one that is there; returns what it found.

    Raises ConfigError, DataError or SweepError before anything is trained or written where a rule is broken, SweepError
    where stage 1, every trial or a run of the final stage fails, and KeyboardInterrupt after leaving all in order.
    """
    prepare_environment()
    paths = SweepPaths(output.expanduser().absolute())
    _require_ours_or_empty(paths, config)
    plan = plan_sweep(config)
    try:
        paths.root.mkdir(parents=True, exist_ok=True)
        with _locked(paths):
            _require_ours_or_empty(paths, config)
            _write_text(paths.config, dump_config(config))
            _write_text(paths.layers, json.dumps([asdict(layer) for layer in plan.layers], indent=2) + "\n")
            return _run(config, paths, plan, console)
    except PermissionError as error:
        raise SweepError(f"the output directory must be writable, but: {error}; use another --output") from error


def _run(config: SweepConfig, paths: SweepPaths, plan: SweepPlan, console: Console) -> SweepFront:
    from orchestrator import searcher
    from orchestrator.tracking import Tracker, tracking_target
    from orchestrator.view import SweepView

    records = read_records(paths.results) if paths.results.exists() else []
    study = searcher.open_study(paths.study, config.name, config.search.seed)
    searcher.reconcile(study, {record.name: record for record in records if record.stage == "trial"})
    target = tracking_target(config.name, paths.mlflow_db, paths.mlflow_artifacts)
    state = _read_state(paths)
    tracker = Tracker(
        target, state["sweep_id"], state["parent_run_id"] if state["tracking_uri"] == target.uri else None
    )
    status = "FAILED"
    ledger = Ledger(config, paths, tracker, records)
    try:
        _write_state(paths, {**state, "tracking_uri": target.uri, "parent_run_id": tracker.parent_run_id})
        tracker.describe_sweep(_flat(as_record(config)), _cost_tags(plan.dense_cost))
        view = SweepView(console, config, len(plan.decompositions))
        with ray_session(config.resources), _terminate_as_interrupt(), view.showing(ledger):
            _run_stages(config, paths, plan, ledger, study)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        ledger.interrupted()
        searcher.close_running(study)
        front = _publish(ledger, config, paths, tracker)
        tracker.close(status)
    return front


def _run_stages(config: SweepConfig, paths: SweepPaths, plan: SweepPlan, ledger: Ledger, study: "Study") -> None:
    import ray

    from orchestrator.search import run_jobs, run_search

    data = ray.put(plan.data.arrays())
    run_jobs([pretrain_job(name) for name in plan.decompositions], config, paths, data, ledger)
    _require_complete(ledger.records("pretrain"))
    missing = config.search.num_trials - len(ledger.records("trial"))
    if missing > 0:
        run_search(study, find_search_space(config.search_space), missing, config, paths, data, ledger)
    trials = ledger.records("trial")
    picks = pick_finalists(trials, config.finetune.num_models)
    if not picks:
        raise SweepError(
            f"at least one trial must end complete, but all {len(trials)} failed, the last with:\n{trials[-1].error}"
        )
    test = ray.put(load_test(config.data, plan.data).arrays())
    jobs = [DENSE_JOB, *(finetune_job(_job_of(pick)) for pick in picks)]  # the longest first
    run_jobs(jobs, config, paths, data, ledger, test)
    _require_complete([record for job in jobs if (record := ledger.record(job.name)) is not None])


def _job_of(trial: RunRecord) -> Job:
    assert trial.trial_number is not None, trial.name
    assert trial.settings is not None, trial.name
    return trial_job(trial.name, trial.trial_number, json.loads(trial.settings))


def _require_ours_or_empty(paths: SweepPaths, config: SweepConfig) -> None:
    """Check that the output directory is new or holds this sweep; only where and how much it runs may have changed."""
    if paths.config.exists():
        there, here = _fixed_settings(load_config(paths.config)), _fixed_settings(config)
        changed = [
            f"{key}: {there.get(key)!r} there, {here[key]!r} here" for key in here if there.get(key) != here[key]
        ]
        if changed:
            raise SweepError(
                f"{paths.root} holds a sweep of another configuration ({'; '.join(changed)}); use another --output"
            )
    elif paths.root.exists() and (not paths.root.is_dir() or set(paths.root.iterdir()) - {paths.lock}):
        raise SweepError(f"{paths.root} must be empty or hold a sweep, but holds other files; use another --output")


@contextmanager
def _locked(paths: SweepPaths) -> Iterator[None]:
    """Keep the output directory for this process; the lock goes with the process, however it ends."""
    with paths.lock.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise SweepError(
                f"{paths.root} is in use by a sweep ({owner}); wait for it, or use another --output"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield


def _fixed_settings(config: SweepConfig) -> dict[str, object]:
    """The settings that results depend on: not the number of trials, nor where data and processors are."""
    flat = _flat(as_record(config))
    free = {"search.num_trials", "search.max_concurrent", "data.root", "data.download"}
    return {key: value for key, value in flat.items() if key not in free and not key.startswith("resources.")}


def _require_complete(records: list[RunRecord]) -> None:
    failed = [record for record in records if record.state != "COMPLETE"]
    if failed:
        names = ", ".join(record.name for record in failed)
        raise SweepError(
            f"{names} failed; the same command tries again and keeps all else. The last error:\n{failed[-1].error}"
        )


def _publish(ledger: Ledger, config: SweepConfig, paths: SweepPaths, tracker: "Tracker") -> SweepFront:
    """Write the front to the output directory and to MLflow, and tag its members."""
    front = sweep_front(ledger.records(), config.finetune.num_models)
    _write_text(paths.front, json.dumps(front.as_json(), indent=2) + "\n")
    members = {point.name for point in front.front}
    for record in ledger.records("trial"):
        tracker.set_tags(record.run_id, {"pareto": str(record.name in members).lower()})
    final = {record.name for record in front_of([*ledger.records("finetune"), *ledger.records("dense")])}
    for record in [*ledger.records("finetune"), *ledger.records("dense")]:
        tracker.set_tags(record.run_id, {"pareto": str(record.name in final).lower()})
    for path in (paths.config, paths.layers, paths.front, paths.results):
        if path.exists():
            tracker.log_artifact(path)
    return front


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


def _flat(record: dict[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in record.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _read_state(paths: SweepPaths) -> dict[str, str]:
    try:
        if not paths.state.exists():
            return {"sweep_id": uuid.uuid4().hex, "tracking_uri": "", "parent_run_id": ""}
        state: dict[str, str] = json.loads(paths.state.read_text())
        return {key: state[key] for key in ("sweep_id", "tracking_uri", "parent_run_id")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SweepError(f"{paths.state} must be readable JSON, but: {error}; use another --output") from error


def _write_state(paths: SweepPaths, state: dict[str, str]) -> None:
    _write_text(paths.state, json.dumps(state, indent=2) + "\n")


def _write_text(path: Path, text: str) -> None:
    with atomic_file(path) as file:
        file.write(text.encode())
