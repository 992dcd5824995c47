"""A sweep as a Ray job: checked on this machine, before anything is sent."""

import importlib.util
import json
import os
import re
import secrets
import shlex
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath

from orchestrator.config import SweepConfig, load_config
from orchestrator.provenance import GIT_VARIABLE, JOB_VARIABLE, git_state
from orchestrator.ray_session import ENVIRONMENT
from orchestrator.remote.package import Package, collect
from orchestrator.stored.location import Location, is_url
from orchestrator.tracking.target import URI_FILE_VARIABLE, URI_VARIABLE, redacted
from trainers.errors import ClusterError, ConfigError

OUTPUT, SWEEP = "output", "sweep"  # keys of a job's metadata
_EXPERIMENT_VARIABLE = "MLFLOW_EXPERIMENT_NAME"
STOP_WAIT_S = 120  # a sweep that is stopped writes down what it has; Ray would kill it after 3 s
_NO_FILES = ("digits",)  # data sets that come with the installation
_NEVER_SENT = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


@dataclass(frozen=True)
class Submission:
    """What Ray is asked for: a job's id, its command, its environment and its metadata, which all users of the cluster can
    read; the files that it needs.
    """

    job: str
    entrypoint: str
    env_vars: dict[str, str]
    metadata: dict[str, str]
    package: Package


def prepare(
    config: Path, overrides: Sequence[str], working_dir: Path, output: str | None, exclude: Sequence[str] = ()
) -> Submission:
    """Check a configuration as far as this machine can, and what it needs of the working directory.

    The data is not looked at: it is the cluster's. `output` is a path on the cluster, by default ~/rankfront/<name>, or a
    URL that its nodes reach.

    Raises ConfigError where a setting breaks a rule or names a path that the cluster cannot have, ClusterError where the
    job would not get what it needs or others would see a secret.
    """
    root = working_dir.expanduser().resolve()
    name = _inside(config, root)
    sys.path.insert(0, str(root))  # search spaces of the user's own, as the job will find them
    loaded = load_config(config, overrides)
    _check_search_space(loaded)
    _require_paths_of_the_cluster(loaded)
    folder = _output(output or f"~/rankfront/{loaded.name}")
    tracking = _tracking(os.environ)
    package = collect(root, exclude, Path(loaded.data.root))
    _require_sent(name, package, "the configuration")
    _require_search_space_sent(loaded.search_space, package)
    job = f"{re.sub(r'[^A-Za-z0-9_.-]', '-', loaded.name)}-{secrets.token_hex(4)}"
    options = [part for text in overrides for part in ("--set", text)]
    command = ["python", "-m", "orchestrator", "sweep", name, *options, "--output", folder]
    return Submission(
        job,
        f"exec {shlex.join(command)}",
        {**ENVIRONMENT, **tracking, "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S), JOB_VARIABLE: job, **_git(root)},
        {"rankfront": _version(), SWEEP: loaded.name, OUTPUT: folder},
        package,
    )


def not_sent(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the variables with secrets that are set here and that the job must find on the cluster, if it needs them."""
    return [name for name in _NEVER_SENT if environment.get(name)]


def _check_search_space(config: SweepConfig) -> None:
    from orchestrator.choices import check_points, probe_search_space
    from search_spaces import find_search_space

    space = find_search_space(config.search_space)
    probe_search_space(space)
    check_points(space, config.resolved_search.first_points or ())


def _require_paths_of_the_cluster(config: SweepConfig) -> None:
    """A relative path would lead into the job's own copy of the working directory, which goes with the job."""
    paths = {"data.root": config.data.root, "search.warm_start": config.search.warm_start}
    if config.data.name in _NO_FILES:
        del paths["data.root"]
    problems = [
        (name, f"must be an absolute path on the cluster, or begin with ~/, for data is not sent, but got {path!r}")
        for name, path in paths.items()
        if path is not None and not _is_absolute(path)
    ]
    if problems:
        raise ConfigError(problems)


def _output(path: str) -> str:
    if is_url(path):
        return Location.of(path).url
    if not _is_absolute(path):
        raise ClusterError(
            "--output must be an absolute path, or begin with ~/, on storage that all nodes of the cluster share, but is "
            f"{path!r}: a relative one would lead into the job's own copy of the working directory, which goes with the job"
        )
    return path


def _is_absolute(path: str) -> bool:
    return PurePosixPath(path).is_absolute() or path.startswith("~")


def _inside(config: Path, root: Path) -> str:
    path = config.expanduser().resolve()
    if not path.is_relative_to(root):
        raise ClusterError(f"{path} must be in the working directory, which is {root}; name another --working-dir")
    return path.relative_to(root).as_posix()


def _require_sent(name: str, package: Package, what: str) -> None:
    if name in package.files:
        return
    reasons = [
        f"{left} is left out ({reason})" for left, reason in package.left_out if f"{name}/".startswith(f"{left}/")
    ]
    why = reasons[0] if reasons else "it is not there"
    raise ClusterError(f"{what} {name} must be sent, but {why}; move or rename it")


def _require_search_space_sent(name: str, package: Package) -> None:
    """The module of a search space of the user's own is in the package, or installed as the cluster must have it too."""
    module, colon, _ = name.partition(":")
    spec = importlib.util.find_spec(module) if colon else None
    if spec is None or spec.origin is None:
        return
    path = Path(spec.origin).resolve()
    installed = [Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "purelib", "platlib")]
    if path.is_relative_to(package.root):
        _require_sent(path.relative_to(package.root).as_posix(), package, f"the module of the search space {name!r},")
    elif not any(path.is_relative_to(folder) for folder in installed):
        raise ClusterError(
            f"the search space {name!r} must be in the working directory {package.root}, or installed here and on the "
            f"cluster, but its module is {path}; name another --working-dir"
        )


def _tracking(environment: Mapping[str, str]) -> dict[str, str]:
    """What of MLflow's settings goes with the job; nothing secret, for all users of the cluster see what it gets."""
    uri, file = environment.get(URI_VARIABLE, ""), environment.get(URI_FILE_VARIABLE, "")
    experiment = environment.get(_EXPERIMENT_VARIABLE)
    found = {_EXPERIMENT_VARIABLE: experiment} if experiment else {}
    if file:  # it wins over the URI that the cluster's own environment may hold
        if not _is_absolute(file):
            raise ClusterError(f"{URI_FILE_VARIABLE} must be an absolute path on the cluster, but is {file!r}")
        return {**found, URI_FILE_VARIABLE: file, URI_VARIABLE: ""}
    if redacted(uri) != uri:
        raise ClusterError(
            f"{URI_VARIABLE} must hold no password or token, for all users of the cluster can read what a job is given, but "
            f"that for {redacted(uri)} does; write it into a file on the head node that only Ray's user can read, unset it "
            f"here and set {URI_FILE_VARIABLE} to that file's path"
        )
    return {**found, URI_VARIABLE: uri} if uri else found


def _git(root: Path) -> dict[str, str]:
    """The commit of the working directory: the repository itself is not sent."""
    state = git_state(root)
    return {} if state is None else {GIT_VARIABLE: json.dumps(state)}


def _version() -> str:
    try:
        return metadata.version("rankfront")
    except metadata.PackageNotFoundError:
        return "unknown"
