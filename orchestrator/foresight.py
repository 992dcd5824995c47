"""The table from which the latency of every cut is foreseen: measured once per machine, kept with the sweep."""

import hashlib
import json
import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.config import SweepConfig
from orchestrator.output import write_text
from orchestrator.paths import SweepPaths
from trainers.config import as_record
from trainers.errors import SweepError

if TYPE_CHECKING:
    from orchestrator.plan import SweepPlan
    from trainers.latency_table import LatencyTable

_VERSION = 2  # of how times are measured
_DAMAGED = (ValueError, KeyError, TypeError, AttributeError, RecursionError)  # what a file of something else gives

_log = logging.getLogger(__name__)


def write_table(config: SweepConfig, plan: "SweepPlan", paths: SweepPaths) -> None:
    """Leave the table of times in the output directory, if the configuration asks for one and none is there.

    It comes from the user's cache directory where this machine has measured the same before, and else goes there. Raises
    SweepError where the device is not there.
    """
    import torch

    if config.latency is None or paths.latency_table.exists():
        return
    if config.latency.device == "cuda" and not torch.cuda.is_available():
        raise SweepError("latency.device must be there, but PyTorch finds no GPU on this machine; use cpu")
    cached = _cache() / f"{_digest(config, plan)}.json"
    try:
        text = cached.read_text()
        _table(text)
    except (OSError, *_DAMAGED):  # not there, or damaged
        text = _measured(config, plan)
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            write_text(cached, text)
        except OSError as error:  # it only saves time
            _log.warning("times of layers are not kept for other sweeps: %s", error)
    write_text(paths.latency_table, text)


def read_table(config: SweepConfig, paths: SweepPaths) -> "LatencyTable | None":
    """Return the sweep's table, None where the configuration asks for none; raises SweepError for a damaged one."""
    if config.latency is None:
        return None
    try:
        return _table(paths.latency_table.read_text())
    except (OSError, *_DAMAGED) as error:
        raise SweepError(f"{paths.latency_table} must be a table of times, but: {error!r}; remove it") from error


def _table(text: str) -> "LatencyTable":
    from trainers.latency_table import LatencyTable

    return LatencyTable.read(json.loads(text))


def _measured(config: SweepConfig, plan: "SweepPlan") -> str:
    from trainers.latency_table import measure_table

    assert config.latency is not None
    forms = {start.decomposition for start in plan.starts}
    table = measure_table(plan.spec, config.factorization, forms, config.latency)
    return json.dumps(asdict(table), indent=1) + "\n"


def _digest(config: SweepConfig, plan: "SweepPlan") -> str:
    """Sum up all that the times depend on."""
    from orchestrator.provenance import hardware, package_versions

    assert config.latency is not None
    content: dict[str, Any] = {
        "version": _VERSION,
        "network": as_record(plan.spec),
        "factorization": as_record(config.factorization),
        "forms": sorted({start.decomposition for start in plan.starts}),
        "latency": as_record(config.latency),
        "torch": package_versions()["torch"],
        "hardware": hardware(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rankfront" / "latency"
