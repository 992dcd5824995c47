"""Where a sweep's numbers come from: code, versions and hardware, as the driver sees them."""

import json
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.tracking.target import redacted

if TYPE_CHECKING:
    from trainers.data import ImageData

_PACKAGES = ("rankfront", "torch", "torchvision", "numpy", "ray", "optuna", "mlflow", "pyarrow", "scikit-learn")
_GIT_LIMIT_S = 10
JOB_KEY = "job"
JOB_VARIABLE = "RANKFRONT_JOB"  # the Ray job that runs this process
GIT_VARIABLE = "RANKFRONT_GIT"  # what `git_state` found where the job was submitted: it has no repository of its own


def environment() -> dict[str, Any]:
    """Return {"command", "job", "python", "platform", "packages", "hardware", "git"}, plain values.

    "job" is the Ray job that `rankfront submit` made, or None. "git" is {"commit", "branch", "dirty"} of the working
    directory's repository, of a job that of the directory that was sent, or None where it is none.
    """
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *map(redacted, sys.argv[1:])]),
        JOB_KEY: os.environ.get(JOB_VARIABLE),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": package_versions(),
        "hardware": hardware(),
        "git": git_state(Path.cwd()) or json.loads(os.environ.get(GIT_VARIABLE, "null")),
    }


def with_data(found: dict[str, Any], train: "ImageData", test: "ImageData | None" = None) -> dict[str, Any]:
    """Return `environment()` with "data": the digests of each split that was read (`ImageData.fingerprints`)."""
    splits = {"train": train} if test is None else {"train": train, "test": test}
    return {**found, "data": {split: data.fingerprints() for split, data in splits.items()}}


def environment_tags(found: dict[str, Any]) -> dict[str, str]:
    """Return what of `environment()` a person filters runs by, as flat tags."""
    packages, hardware, git = found["packages"], found["hardware"], found["git"]
    tags = {f"version_{name}": version for name, version in packages.items()}
    tags |= {"python": found["python"], "cpu": hardware["cpu"], "cpu_count": str(hardware["cpu_count"])}
    tags |= {"gpus": ", ".join(hardware["gpus"])}
    if git is not None:
        tags |= {"git_commit": git["commit"], "git_dirty": str(git["dirty"]).lower()}
        tags |= {"mlflow.source.git.commit": git["commit"]}
    return tags


def package_versions() -> dict[str, str]:
    """Return the versions of rankfront and of what its numbers depend on, as far as they are installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Return this machine's processors, memory in bytes, and GPUs by name."""
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),  # which of its kernels torch uses here
        "cpu_count": os.cpu_count(),
        "memory_bytes": memory,
        "gpus": gpus,
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return {"commit", "branch", "dirty"} of the repository that `folder` is in, None where it is in none."""
    commit = _git_output(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    changed = _git_output(folder, "status", "--porcelain", "--untracked-files=no")
    return {
        "commit": commit,
        "branch": _git_output(folder, "rev-parse", "--abbrev-ref", "HEAD"),
        "dirty": bool(changed),
    }


def _git_output(folder: Path, *arguments: str) -> str | None:
    try:
        command = ["git", *arguments]
        done = subprocess.run(  # noqa: S603  # fixed words
            command, cwd=folder, capture_output=True, text=True, timeout=_GIT_LIMIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
