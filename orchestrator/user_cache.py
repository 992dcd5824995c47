"""What was measured on this machine, kept in the user's cache directory for other sweeps of the same network."""

import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.output import write_text

DAMAGED = (ValueError, KeyError, TypeError, AttributeError, RecursionError)  # what a file of something else gives

T = TypeVar("T")

_log = logging.getLogger(__name__)


def kept(kind: str, depends_on: dict[str, Any], measure: Callable[[], str], read: Callable[[str], T]) -> T:
    """Return what `read` makes of the text that `measure` gave when this machine last measured the same, or gives now.

    `depends_on`: all that it depends on beside this machine's hardware and torch. A cache that cannot be used costs
    time alone.
    """
    from orchestrator.provenance import hardware, package_versions

    content = {**depends_on, "torch": package_versions()["torch"], "hardware": hardware()}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
    cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rankfront" / kind / f"{digest}.json"
    try:
        return read(cached.read_text())
    except (OSError, *DAMAGED):  # not there, or damaged
        text = measure()
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_text(cached, text)
    except OSError as error:
        _log.warning("what was measured (%s) is not kept for other sweeps: %s", kind, error)
    return read(text)
