"""`rankfront doctor`: everything that a sweep needs, tried before any compute is spent on it."""

import os
import platform
import uuid
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.config import SweepConfig
from orchestrator.data_type import with_measured_dtype, with_recorded_dtype
from orchestrator.output import require_ours_or_empty
from orchestrator.paths import SweepPaths
from orchestrator.provenance import package_versions
from orchestrator.ray_session import prepare_environment, ray_session
from orchestrator.stored.location import Location
from orchestrator.stored.manifest import read_manifest
from orchestrator.stored.opened import url_of, working_folder
from orchestrator.tracking.target import redacted
from trainers.errors import RankfrontError, StorageError

if TYPE_CHECKING:
    from orchestrator.plan import SweepPlan

State = Literal["ok", "warning", "problem"]
_NODE_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: how it is, and what to do where it is not as it must be."""

    what: str
    state: State
    text: str


def examine(config: SweepConfig, output: "Path | Location") -> Iterator[Finding]:
    """Yield what is found, in the order in which a sweep would meet it; stops at a problem that hides the rest.

    Trains a few batches, and leaves nothing in `output` or on the cluster.
    """
    prepare_environment()
    paths = SweepPaths.of(working_folder(output))
    url = url_of(paths) if isinstance(output, Path) else output.url
    config = with_recorded_dtype(config, paths)
    plan = yield from _configuration(config)
    if plan is not None:
        state: State = "ok" if config.training.dtype == "auto" else "warning"
        config, remark = with_measured_dtype(config, plan)
        if remark is not None:
            yield Finding("data type", state, remark)
    yield _output(config, paths)
    if url is not None:
        yield _tried("URL", lambda: _kept(Location(url)))
    yield _store(config, paths)
    if plan is not None:
        yield from _cluster(config, plan, paths, url)


def _tried(what: str, call: Callable[[], str]) -> Finding:
    """What `call` says, or its error of ours as a problem."""
    try:
        return Finding(what, "ok", call())
    except (RankfrontError, OSError) as error:
        return Finding(what, "problem", str(error))


def _configuration(config: SweepConfig) -> "Generator[Finding, None, SweepPlan | None]":
    from orchestrator.plan import plan_sweep

    try:
        plan = plan_sweep(config)
    except RankfrontError as error:
        yield Finding("configuration", "problem", str(error))
        return None
    layers = sum(layer.status == "factorized" for layer in plan.layers)
    images = len(plan.data.train_rows)
    text = (
        f"{config.model.name}, {plan.dense_cost.macs:,} MACs, {layers} layers to decompose; {images:,} training images"
    )
    yield Finding("configuration", "ok", text)
    return plan


def _output(config: SweepConfig, paths: SweepPaths) -> Finding:
    def call() -> str:
        require_ours_or_empty(paths, config)
        folder = _existing(paths.root)
        if not os.access(folder, os.W_OK):
            raise OSError(f"{folder} must be writable, but is not; use another --output")
        return f"{paths.root} {'holds this sweep, which goes on' if paths.state.exists() else 'can be written'}"

    return _tried("output directory", call)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(part for part in (folder, *folder.parents) if part.exists())


def _store(config: SweepConfig, paths: SweepPaths) -> Finding:
    from orchestrator.tracking.probe import probe
    from orchestrator.tracking.target import tracking_target

    target = tracking_target(config.name, paths.mlflow_db, paths.mlflow_artifacts)
    return _tried("MLflow", lambda: probe(target))


def _kept(location: Location) -> str:
    location.try_out()
    there = read_manifest(location)
    return f"{location} {'can be written' if there is None else 'holds a sweep, with which the same configuration goes on'}"


def _cluster(config: SweepConfig, plan: "SweepPlan", paths: SweepPaths, url: str | None) -> Iterator[Finding]:
    import ray

    from orchestrator.estimate import estimate, room

    where = redacted(os.environ.get("RAY_ADDRESS", ""))
    try:
        with ray_session(config.resources):
            nodes = [node for node in ray.nodes() if node["Alive"]]
            yield Finding("Ray", "ok", f"{len(nodes)} node{'s' * (len(nodes) > 1)} at {where or 'this machine'}")
            yield from _nodes(nodes, paths, url)
            at_once = room([node["Resources"] for node in nodes], config.resources)
            wanted, per_array = config.num_arrays, config.resources.trials_per_array
            enough = at_once >= wanted
            fit = f"{at_once * per_array} trials at once, search.max_concurrent is {config.search.max_concurrent}"
            yield Finding("resources", "ok" if enough else "warning", fit + ("" if enough else "; the rest waits"))
            yield _tried("cost", lambda: str(estimate(config, plan, min(at_once, wanted))))
    except RankfrontError as error:
        yield Finding("Ray", "problem", str(error))


def _nodes(nodes: list[dict[str, Any]], paths: SweepPaths, url: str | None) -> Iterator[Finding]:
    """Python and packages as here on every node, and the same storage: the output directory's, or its URL."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = _versions()
    # without a URL it is the folder above that all nodes must share
    storage = Location(url if url is not None else _existing(paths.root.parent).as_uri())
    existing = storage if url is not None else _existing(paths.root.parent)
    mark = f".rankfront-doctor-{uuid.uuid4().hex[:8]}"
    try:
        storage.write(mark, mark.encode())
    except StorageError as error:
        yield Finding("storage", "problem", str(error))
        return
    look = ray.remote(num_cpus=0)(_look)
    try:
        for node in nodes:
            name = node["NodeManagerHostname"]
            pinned = look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
            try:
                found = ray.get(pinned.remote(mark, storage.url), timeout=_NODE_TIMEOUT_S)
            except ray.exceptions.RayError as error:
                text = f"{name} must answer within {_NODE_TIMEOUT_S:g} s, but: {type(error).__name__}; look at its log"
                yield Finding("node", "problem", text)
                continue
            other = {key: (found["versions"].get(key), value) for key, value in here.items()}
            other = {key: pair for key, pair in other.items() if pair[0] != pair[1]}
            if other:
                text = "; ".join(
                    f"{key} {there or 'missing'} there, {value} here" for key, (there, value) in other.items()
                )
                yield Finding("node", "problem", f"{name} must have the same versions, but {text}; install the same")
            elif found["storage"]:
                text = f"{name} must share {existing} and write there, but {found['storage']}; use shared storage, or a URL"
                yield Finding("node", "problem", text)
            else:
                yield Finding("node", "ok", f"{name}: versions as here, {existing} shared and writable")
    finally:
        storage.delete(mark)


def _versions() -> dict[str, str]:
    """Python's and the packages' versions; a wheel for a CPU and one for a GPU are of one version."""
    packages = {name: version.partition("+")[0] for name, version in package_versions().items()}
    return {"python": ".".join(platform.python_version_tuple()[:2]), **packages}


def _look(mark: str, url: str) -> dict[str, Any]:
    """On a node: its versions, and "" or why the storage is not the driver's."""
    storage, problem = Location(url), ""
    try:
        if storage.read(mark) != mark.encode():
            problem = "the driver's file is not there"
        storage.try_out()
    except StorageError as error:
        problem = str(error)
    return {"versions": _versions(), "storage": problem}
