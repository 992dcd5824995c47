"""What is sent to a cluster: a working directory's code and settings, without data, results, environments and secrets."""

import os
import subprocess
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from orchestrator.paths import SweepPaths
from trainers.errors import ClusterError

MIB = 2**20
LIMIT_BYTES = 50 * MIB  # Ray's dashboard refuses above 100 MiB; every node unpacks it, the head keeps it in memory
LIMIT_FILES = 10_000
_LARGEST_SHOWN = _NAMES_SHOWN = 5
_GIT_LIMIT_S = 30

_RESULTS = ("runs", "mlruns", "mlartifacts", "wandb", "lightning_logs")
_CACHES = ("__pycache__", "node_modules", "build", "dist", "*.egg-info", "*.pyc")
_SECRETS = ("*.pem", "*.key", "*.p12", "*.pfx", "id_rsa*", "id_ed25519*", "auth_token")
_DATA = (
    "*.parquet", "*.arrow", "*.feather", "*.npy", "*.npz", "*.h5", "*.hdf5", "*.tfrecord", "*-ubyte", "*.db", "*.sqlite",
    "*.pt", "*.pth", "*.pt2", "*.ckpt", "*.safetensors", "*.onnx", "*.journal", "*.log",
    "*.png", "*.jpg", "*.jpeg", "*.gif", "*.bmp", "*.tif", "*.tiff", "*.webp",
    "*.zip", "*.tar", "*.gz", "*.tgz", "*.bz2", "*.xz", "*.zst", "*.7z",
)  # fmt: skip
_BY_NAME = {"results": _RESULTS, "cache": _CACHES, "may be a secret": _SECRETS}
_BY_FILE_NAME = {"data": _DATA}


@dataclass
class Package:
    """Files by the names that they get, relative to `root`; what was left out, each with its reason."""

    root: Path
    files: dict[str, Path] = field(default_factory=dict)
    left_out: list[tuple[str, str]] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        """All files together, uncompressed."""
        return sum(path.stat().st_size for path in self.files.values())

    def reasons(self) -> list[str]:
        """Return one line for each reason to leave something out, with some of the names."""
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.left_out:
            by_reason.setdefault(reason, []).append(name)
        return [f"{reason}: {shown_names(names)}" for reason, names in by_reason.items()]


def collect(root: Path, exclude: Sequence[str] = (), data_root: Path | None = None) -> Package:
    """Choose what a job needs of a working directory; nothing is read but names and sizes.

    Left out: hidden files, what git ignores, results and output directories of sweeps, virtual environments, caches, data
    by their suffixes and everything in `data_root`, what may be a secret, links that lead out of the directory or to
    folders, and what matches a pattern of `exclude` (by name or by path). Raises ClusterError where too much is left.
    """
    root = root.expanduser().resolve()
    if not root.is_dir():
        raise ClusterError(f"--working-dir must be a folder, but is {str(root)!r}")
    package, ignored = Package(root), _ignored_by_git(root)
    inside = root / data_root.expanduser() if data_root is not None else root
    unwanted = inside if inside != root and inside.is_relative_to(root) else None
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        for name in (*sorted(folders), *sorted(files)):
            path = here / name
            relative = path.relative_to(root).as_posix()
            if reason := _reason(path, relative, exclude, ignored, unwanted, root):
                package.left_out.append((relative, reason))
            elif not path.is_dir():
                package.files[relative] = path
        gone = {relative for relative, _ in package.left_out}
        folders[:] = sorted(name for name in folders if (here / name).relative_to(root).as_posix() not in gone)
        if len(package.files) > LIMIT_FILES:
            break
    _require_small(package)
    return package


def write_archive(files: dict[str, Path], target: Path) -> None:
    """Write a zip file that depends on names and contents alone: what a cluster has already is not sent again.

    Raises ClusterError where a file cannot be read.
    """
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            try:
                content = files[name].read_bytes()
            except OSError as error:
                raise ClusterError(f"what is sent must be readable, but: {error}; leave it out by --exclude") from error
            entry = zipfile.ZipInfo(name)  # of 1980: times would change the archive
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, content)


def shown_names(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"{', '.join(names[:_NAMES_SHOWN])}{more}"


def shown_size(num_bytes: float) -> str:
    """Return a size for a person: `34.1 KiB`."""
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} GiB"


def _reason(
    path: Path, relative: str, exclude: Sequence[str], ignored: set[str], data_root: Path | None, root: Path
) -> str | None:
    """Why a file or folder is left out; None where it is sent."""
    name, is_folder = path.name, path.is_dir()
    by_name = _BY_NAME if is_folder else _BY_NAME | _BY_FILE_NAME
    applies = [
        ("hidden", name.startswith(".")),
        ("--exclude", any(fnmatchcase(name, text) or fnmatchcase(relative, text) for text in exclude)),
        ("ignored by git", relative in ignored),
        ("its name is not UTF-8", not _is_utf8(relative)),
        ("a link to a folder", path.is_symlink() and is_folder),
        ("a link out of the folder", path.is_symlink() and not path.resolve().is_relative_to(root)),
        ("not a file", not is_folder and not path.is_file()),
        ("data", data_root is not None and path.is_relative_to(data_root)),
        ("virtual environment", (path / "pyvenv.cfg").exists() or (path / "conda-meta").is_dir()),
        ("a sweep's output", SweepPaths(path).state.exists() and SweepPaths(path).config.exists()),
        *((reason, any(fnmatchcase(name, text) for text in patterns)) for reason, patterns in by_name.items()),
    ]
    return next((reason for reason, so in applies if so), None)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _ignored_by_git(root: Path) -> set[str]:
    """What a repository's .gitignore files say, relative to `root`; nothing where there is no repository or no git."""
    command = ["git", "ls-files", "--others", "--ignored", "--exclude-standard", "--directory", "-z"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, timeout=_GIT_LIMIT_S, check=False)  # noqa: S603  # fixed words
    except (OSError, subprocess.TimeoutExpired):
        return set()
    return (
        {os.fsdecode(name).rstrip("/") for name in done.stdout.split(b"\0") if name} if done.returncode == 0 else set()
    )


def _require_small(package: Package) -> None:
    num_bytes, num_files = package.num_bytes, len(package.files)
    if num_bytes <= LIMIT_BYTES and num_files <= LIMIT_FILES:
        return
    amount = (
        f"{num_files} files, {shown_size(num_bytes)}" if num_files <= LIMIT_FILES else f"more than {LIMIT_FILES} files"
    )
    raise ClusterError(
        f"at most {LIMIT_FILES} files and {shown_size(LIMIT_BYTES)} are sent, but {package.root} has {amount}; the largest: "
        f"{', '.join(_largest(package))}. Leave them out by --exclude PATTERN, or give a smaller --working-dir; data "
        "belongs on the cluster's storage"
    )


def _largest(package: Package) -> Iterator[str]:
    """The largest files, and the top folders that hold most."""
    sizes = {name: path.stat().st_size for name, path in package.files.items()}
    folders: dict[str, int] = {}
    for name, size in sizes.items():
        top, slash, _ = name.partition("/")
        if slash:
            folders[f"{top}/"] = folders.get(f"{top}/", 0) + size
    ranked = sorted({**sizes, **folders}.items(), key=lambda item: -item[1])
    return (f"{name} ({shown_size(size)})" for name, size in ranked[:_LARGEST_SHOWN])
