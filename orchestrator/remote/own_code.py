"""rankfront itself as part of what is sent: a job runs the code that checked its configuration."""

from importlib import metadata, util
from pathlib import Path

from orchestrator.remote.package import Package
from trainers.errors import ClusterError

_PACKAGES = ("orchestrator", "trainers", "search_spaces")


def add_own_code(package: Package) -> int:
    """Add rankfront's packages, where the working directory does not hold them, and its version; returns how many files.

    Raises ClusterError where the working directory has packages of these names that are not those which run here.
    """
    before = len(package.files)
    for name in _PACKAGES:
        spec = util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        source = Path(spec.origin).resolve().parent
        theirs = package.root / name
        if theirs.exists() and theirs.resolve() != source:
            raise ClusterError(
                f"{theirs} has the name of a package of rankfront, which runs from {source}; rename it, or run the "
                "rankfront of that folder"
            )
        for path in sorted(source.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                package.files.setdefault(f"{name}/{path.relative_to(source).as_posix()}", path)
    _add_version(package)
    return len(package.files) - before


def _add_version(package: Package) -> None:
    """The installed metadata, so that records name this version and not that of the cluster's installation."""
    try:
        installed = metadata.distribution("rankfront")
    except metadata.PackageNotFoundError:
        return
    path = Path(str(installed.locate_file(f"rankfront-{installed.version}.dist-info"))) / "METADATA"
    if path.is_file():
        package.files[f"{path.parent.name}/{path.name}"] = path
