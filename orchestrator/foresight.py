"""The table from which the latency of every cut is foreseen: measured once per machine, kept with the sweep."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from orchestrator.config import SweepConfig
from orchestrator.output import write_text
from orchestrator.paths import SweepPaths
from orchestrator.user_cache import DAMAGED, kept
from trainers.config import as_record
from trainers.errors import SweepError

if TYPE_CHECKING:
    from orchestrator.plan import SweepPlan
    from trainers.latency_table import LatencyTable

_VERSION = 3  # of how times are measured


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

    def read(text: str) -> str:
        _table(text)  # raises where it is damaged
        return text

    text = kept("latency", _depends_on(config, plan), lambda: _measured(config, plan), read)
    write_text(paths.latency_table, text)


def read_table(config: SweepConfig, paths: SweepPaths) -> "LatencyTable | None":
    """Return the sweep's table, None where the configuration asks for none; raises SweepError for a damaged one."""
    if config.latency is None:
        return None
    try:
        return _table(paths.latency_table.read_text())
    except (OSError, *DAMAGED) as error:
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


def _depends_on(config: SweepConfig, plan: "SweepPlan") -> dict[str, Any]:
    assert config.latency is not None
    return {
        "version": _VERSION,
        "network": as_record(plan.spec),
        "factorization": as_record(config.factorization),
        "forms": sorted({start.decomposition for start in plan.starts}),
        "latency": as_record(config.latency),
    }
