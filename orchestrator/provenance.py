"""Where a sweep's numbers come from: code, versions and hardware, as the driver sees them."""

import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainers.data import ImageData

_PACKAGES = ("rankfront", "torch", "torchvision", "numpy", "ray", "optuna", "mlflow", "pyarrow", "scikit-learn")
_GIT_LIMIT_S = 10


def environment() -> dict[str, Any]:
    """Return {"command", "python", "platform", "packages", "hardware", "git"}, plain values.

    "git" is {"commit", "branch", "dirty"} of the working directory's repository, or None where it is none.
    """
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": _packages(),
        "hardware": _hardware(),
        "git": _git(),
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


def _packages() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _hardware() -> dict[str, Any]:
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


def _git() -> dict[str, Any] | None:
    commit = _git_output("rev-parse", "HEAD")
    if commit is None:
        return None
    changed = _git_output("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "branch": _git_output("rev-parse", "--abbrev-ref", "HEAD"), "dirty": bool(changed)}


def _git_output(*arguments: str) -> str | None:
    try:
        command = ["git", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_LIMIT_S, check=False)  # noqa: S603  # fixed words
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
