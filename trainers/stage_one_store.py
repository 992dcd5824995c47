"""Networks of stage 1 that sweeps in the same folder share: files named by a digest of all that they depend on."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import torch

from trainers.atomic import atomic_file
from trainers.checkpoint import VERSION
from trainers.errors import CheckpointError
from trainers.saved_model import load_model

RECIPE = 1  # to be raised by a change of code after which stage 1 gives other networks

_log = logging.getLogger(__name__)


def store_name(config: dict[str, Any]) -> str:
    """Return a digest of what a network of stage 1 depends on: its `config`, and the code that trains and writes it."""
    content = {**config, "format": VERSION, "torch": torch.__version__, "recipe": RECIPE}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def share(source: Path, target: Path) -> None:
    """Copy a model file to where there is none, atomically and readable for all.

    The store only saves time: a file that is not there, cannot be read or written, or is damaged is passed over.
    """
    if target.exists() or not source.exists():
        return
    try:
        load_model(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(target) as file:
            file.write(source.read_bytes())
        target.chmod(0o644)
    except (OSError, CheckpointError) as error:
        _log.warning("stage 1 is not shared by %s: %s", target if source.exists() else source, error)
