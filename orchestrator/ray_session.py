"""Ray: the settings that the sweep needs, a session on this machine or a cluster, and a check of its resources."""

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from orchestrator.config import ResourcesConfig
from orchestrator.tracking.target import concealed, redacted
from trainers.errors import SweepError

if TYPE_CHECKING:
    from ray._private.worker import BaseContext

# each must be set before `import ray`, in a worker's environment too
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own report would break into the live view
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # CUDA_VISIBLE_DEVICES stays as the user set it
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # five files a trial that nobody reads
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # else one trial without metrics ends the whole sweep
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # else Ctrl-C returns partial results as if the sweep had ended
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",  # a reused actor whose function ends slowly would hang the sweep
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # Tune's own snapshots are not used: see `ledger` and `searcher.reconcile`
}
_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it in the drivers of submitted jobs


def prepare_environment() -> None:
    """Set what Ray reads when it is imported; the user's own values stay."""
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)


@contextmanager
def ray_session(resources: ResourcesConfig) -> Iterator[None]:
    """Connect to the cluster of RAY_ADDRESS, or start a local one; ends it if it started it.

    Raises SweepError where there is no cluster at RAY_ADDRESS, or none of its nodes can hold one trial.
    """
    prepare_environment()
    import ray

    owned = not ray.is_initialized()
    if owned:
        connect()
    try:
        _check_resources(resources)
        yield
    finally:
        if owned:
            ray.shutdown()


def connect() -> "BaseContext":
    """Connect this process to the cluster of RAY_ADDRESS, or start a local one without a dashboard, on loopback alone.

    Raises SweepError where there is no cluster at RAY_ADDRESS, and where Ray does not start.
    """
    prepare_environment()
    import ray

    address = os.environ.get("RAY_ADDRESS", "")
    options: dict[str, object] = {}
    if address and _JOB_VARIABLE not in os.environ:  # a submitted job has them already, and must not be told twice
        options["runtime_env"] = {"env_vars": {key: os.environ[key] for key in ENVIRONMENT}}
    try:
        if address:
            return ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)  # type: ignore[arg-type]
        with _on_loopback(), _in_own_groups():
            return ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except Exception as error:  # on a machine that is too busy to start it in time, Ray raises just that
        raise SweepError(
            f"Ray must be reachable at {redacted(address) or 'this machine'}, but: {concealed(str(error), address)}; check "
            "RAY_ADDRESS and, with tokens, RAY_AUTH_MODE=token"
        ) from error


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Let a Ray that starts take 127.0.0.1 for its address, as it does on macOS and Windows: its servers listen there alone.

    Else they listen on all of the machine's addresses; an argument for it Ray replaces by the machine's own address.
    """
    from ray._private import ray_constants

    usual = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = usual


@contextmanager
def _in_own_groups() -> Iterator[None]:
    """Let the servers of a Ray that starts be in process groups of their own; on Linux they still end with this process.

    Else a signal to its group, as a shell's `kill %1` and `timeout` send it, ends them as well, and a driver that was just
    waiting for an answer of theirs does not come to leave all in order: Ray ends it after a minute.
    """
    from ray._private import services, utils

    usual = services.ConsolePopen
    if utils.detect_fate_sharing_support():
        services.ConsolePopen = partial(usual, process_group=0)  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        services.ConsolePopen = usual  # type: ignore[misc]


def _check_resources(resources: ResourcesConfig) -> None:
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    auto, workers = resources.gpus_per_trial == "auto", resources.workers_per_trial
    need = {"CPU": resources.cpus_per_trial, "GPU": 1 if auto else resources.gpus}
    if places(nodes, resources) < workers:
        have = "; ".join(", ".join(f"{node.get(kind, 0):g} {kind}" for kind in need) for node in nodes)
        each, fewer = "a trial needs", ""
        if workers > 1:
            each, fewer = f"each of the {workers} workers of a trial needs", ", or resources.workers_per_trial"
        raise SweepError(
            f"{each} {need['CPU']:g} CPU and {need['GPU']:g} GPU on one node, but the nodes have {have}; lower "
            f"resources.cpus_per_trial or resources.gpus_per_trial{fewer}"
        )


def places(nodes: Sequence[Mapping[str, float]], resources: ResourcesConfig) -> int:
    """Return how many workers fit on the nodes (by their resources) at once; `auto` counts a whole GPU for each."""
    gpus = 1.0 if resources.gpus_per_trial == "auto" else resources.gpus
    found = 0
    for node in nodes:
        fits = [node.get("CPU", 0.0) / resources.cpus_per_trial]
        if gpus > 0:
            per_gpu = math.floor(1 / gpus) if gpus <= 1 else 1 / gpus
            fits.append(node.get("GPU", 0.0) * per_gpu)
        found += math.floor(min(fits))
    return found


def node_name() -> str | None:
    """Return the name of the cluster's node that this process runs on, its address where the cluster gave it none.

    None outside of a cluster.
    """
    import ray

    if not ray.is_initialized():
        return None
    own = ray.get_runtime_context().get_node_id()
    return next((str(node["NodeName"]) for node in ray.nodes() if node["NodeID"] == own), own)
