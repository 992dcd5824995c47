"""`rankfront latency`: the finalists' measured times beside the dense network's, layer by layer and whole."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.front import sweep_front, write_front
from orchestrator.output import locked, write_text
from orchestrator.paths import SweepPaths
from orchestrator.records import read_records, write_records
from orchestrator.terminal import plain_table
from trainers.errors import SweepError

if TYPE_CHECKING:
    from trainers.config import Engine
    from trainers.latency import Latency, LayerLatency
    from trainers.saved_model import SavedModel

DENSE = "dense"
_LAYER_SEED = 0


@dataclass(frozen=True)
class Settings:
    """What is timed: every engine with each number of images and of threads, on a device of torch; `rounds` >= 2.

    The first of each is what `latency_ms` in the table means, and what layers are timed by.
    """

    batches: tuple[int, ...] = (1, 64)
    threads: tuple[int, ...] = (1,)
    engines: "tuple[Engine, ...]" = ("eager",)
    device: str = "cpu"
    rounds: int = 15


@dataclass(frozen=True)
class NetworkLatency:
    """One network in one setting, in milliseconds a batch; `dense` is the dense network's, from the same rounds."""

    name: str
    engine: str
    batch: int
    threads: int
    latency: "Latency"
    dense: "Latency"

    @property
    def speedup(self) -> float:
        """How many times as fast as the dense network."""
        return self.dense.median_ms / self.latency.median_ms


@dataclass(frozen=True)
class Measured:
    """All times: of networks, and of each network's low-rank layers; `made_dense` names those that are deployed dense."""

    device: str
    networks: list[NetworkLatency]
    layers: "dict[str, list[LayerLatency]]"
    made_dense: dict[str, list[str]] = field(default_factory=dict)


def measure(directory: Path, settings: Settings) -> Measured:
    """Time the sweep's finalists, and keep what was found: `latency.json`, `latency_ms` in `results.parquet`, and in the
    folder of each finalist `deployed.pt`, its network with those layers dense that are faster so.

    Raises SweepError where there is no finalist, no dense baseline, or no such device.
    """
    paths = SweepPaths.of(directory)
    records = read_records(paths.results)
    front = sweep_front(records)
    if not front.finalists or front.dense is None:
        raise SweepError(f"{directory} must hold finalists and the dense baseline, but does not yet; finish the sweep")
    with locked(paths):
        found = _measure(paths, [point.name for point in front.finalists], settings)
        first = (settings.engines[0], settings.batches[0], settings.threads[0])
        times = {
            row.name: row.latency.median_ms for row in found.networks if (row.engine, row.batch, row.threads) == first
        }
        records = [replace(record, latency_ms=times.get(record.name)) for record in records]
        write_records(records, paths.results)
        write_front(sweep_front(records), paths)
        write_text(paths.latency, json.dumps(asdict(found), indent=1) + "\n")
    return found


def _measure(paths: SweepPaths, names: Sequence[str], settings: Settings) -> Measured:
    import torch

    from trainers.latency import Timed, layer_latencies, threads, with_dense
    from trainers.recipe import MODEL_FILE
    from trainers.saved_model import load_model, save_model

    if settings.device.partition(":")[0] not in ("cpu", "cuda"):
        raise SweepError(f"the device must be cpu or cuda, but got {settings.device!r}")
    if settings.device.startswith("cuda") and not torch.cuda.is_available():
        raise SweepError(f"the device must be there, but PyTorch finds no GPU for {settings.device!r}; use cpu")
    saved = {name: load_model(paths.run(name) / MODEL_FILE) for name in (DENSE, *names)}
    shape = saved[DENSE].spec.sample_shape
    generator = torch.Generator().manual_seed(_LAYER_SEED)
    images = torch.randn(max(settings.batches), *shape, generator=generator).to(settings.device)
    layers, made_dense, known = {}, {}, Timed()
    for name in names:
        with threads(settings.threads[0]):
            found = layer_latencies(
                saved[name].model,
                saved[name].form.layers or (),
                images[: settings.batches[0]],
                settings.engines[0],
                settings.rounds,
                known,
            )
        layers[name] = found
        slow = [layer.name for layer in found if layer.faster_dense]
        paths.deployed(name).unlink(missing_ok=True)
        if slow:
            made_dense[name] = slow
            saved[name] = with_dense(saved[name], slow)
            save_model(saved[name], paths.deployed(name))
    return Measured(settings.device, list(_networks(saved, images, settings)), layers, made_dense)


def _networks(saved: "dict[str, SavedModel]", images: Any, settings: Settings) -> Iterator[NetworkLatency]:
    from trainers.engines import inference
    from trainers.latency import threads, time_in_turn

    for number in settings.threads:
        for engine in settings.engines:
            for batch in settings.batches:
                with threads(number):
                    calls = {name: inference(one.model, images[:batch], engine) for name, one in saved.items()}
                    times = time_in_turn(calls, settings.rounds)
                for name, latency in times.items():
                    yield NetworkLatency(name, engine, batch, number, latency, times[DENSE])


def latency_tables(found: Measured) -> RenderableType:
    """Return the times as tables for a terminal."""
    table = plain_table(f"Latency on {found.device}, ms a batch: median (quartiles)", "network")
    for heading in ("engine", "batch", "threads", "ms", "speed-up"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in found.networks:
        speedup = "" if row.name == DENSE else f"{row.speedup:.2f}"
        table.add_row(row.name, row.engine, str(row.batch), str(row.threads), _text(row.latency), speedup)
    return Group(table, Text(), _layer_table(found))


def _layer_table(found: Measured) -> Table:
    table = plain_table("Low-rank layers beside the dense layer that computes the same: medians, ms", "network")
    for heading in ("layer", "low rank", "dense", "deployed"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, layers in found.layers.items():
        for layer in layers:
            form = "dense" if layer.name in found.made_dense.get(name, ()) else "low rank"
            times = (f"{one.median_ms:.3g}" for one in (layer.low_rank, layer.dense))
            table.add_row(name, layer.name, *times, form)
    return table


def _text(latency: "Latency") -> str:
    return f"{latency.median_ms:.3g} ({latency.low_ms:.3g} to {latency.high_ms:.3g})"
