"""What a folder holds, and the program that `rankfront fetch` runs on the cluster: this file alone, on any Python 3.

`python listing.py FOLDER NAME` writes NAME.json, its files with sizes and checksums, into the folder of Ray's logs, makes a
link NAME to the folder there, and so lets the interface that shows logs stream the files. Both go when it is stopped.
"""

import hashlib
import json
import os
import signal
import sys
import threading
from pathlib import Path

READY = "rankfront: the folder is listed"
FAILED = "rankfront: "
LIMIT_S = 24 * 3600  # where nobody stops it
_CHUNK_BYTES = 2**20
_NOT_LISTED = (
    "tune",
    ".lock",
    ".mirror.json",
    ".mirror.lock",
    ".fetched.json",
)  # at the top: Ray Tune's working files, and what belongs to one machine


def listing(folder: Path) -> list[tuple[str, int, str]]:
    """Return (path within the folder, size in bytes, SHA-256) of each regular file; links are left out."""
    found = []
    for here, folders, files in os.walk(folder):
        top = Path(here) == folder
        folders[:] = sorted(name for name in folders if not (top and name in _NOT_LISTED))
        for name in sorted(files):
            path = Path(here) / name
            if path.is_symlink() or not path.is_file() or (top and name in _NOT_LISTED):
                continue
            try:
                size, digest = checksum(path)
            except FileNotFoundError:  # a running sweep removes checkpoints
                continue
            found.append((path.relative_to(folder).as_posix(), size, digest))
    return found


def checksum(path: Path) -> tuple[int, str]:
    """Return a file's size in bytes and SHA-256."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def main(folder: Path, name: str) -> int:
    """Serve `folder` under `name` until SIGTERM."""
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    if not folder.is_dir():
        print(f"{FAILED}{folder} must be a folder on the head node of the cluster, but is not there", flush=True)
        return 3
    logs = Path("/proc/self/fd/1").readlink().parent  # Ray sends what a job prints to a file there
    link, manifest = logs / name, logs / f"{name}.json"
    try:
        manifest.write_text(json.dumps(listing(folder)))
        link.symlink_to(folder.resolve())
        print(READY, flush=True)
        stopped.wait(LIMIT_S)
    except OSError as error:
        print(f"{FAILED}{folder} must be readable, but: {error}", flush=True)
        return 3
    finally:
        link.unlink(missing_ok=True)
        manifest.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).expanduser(), sys.argv[2]))
