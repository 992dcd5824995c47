"""What only model files know: training histories, full ranks and singular values. A file that is not there is left out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from orchestrator.curves import trial_of
from orchestrator.records import RunRecord
from orchestrator.report.sweep import Sweep
from trainers.errors import CheckpointError
from trainers.factorization import exact_svd, to_matrix
from trainers.form import ModelForm, convert, from_products
from trainers.layers import SVDLayer, svd_layers
from trainers.models import build_shapes
from trainers.recipe import MODEL_FILE
from trainers.saved_model import SavedModel, load_model

_MAX_HISTORIES = 12  # of trials that are on the front and not fine-tuned
_MAX_LAYERS = 12  # panels of the picture of spectra

Role = Literal["finalist", "front", "dense"]


@dataclass(frozen=True)
class History:
    """The epochs of one network through all its stages; `epochs` count from the start of stage 1.

    `stages` gives each stage's name and first epoch; `metrics` has, for each epoch, what was measured.
    """

    name: str
    role: Role
    stages: list[tuple[str, int]]
    epochs: list[int]
    metrics: list[dict[str, float]]


@dataclass(frozen=True)
class RankTable:
    """Ranks as shares of the full rank, a row for each layer and a column for each network, from the fewest MACs on."""

    layers: list[str]
    names: list[str]
    macs_ratios: list[float]
    ranks: list[list[int | None]]
    shares: list[list[float | None]]


@dataclass(frozen=True)
class Spectrum:
    """Singular values of one layer of the network `name`, descending, relative to the largest."""

    layer: str
    name: str
    role: Literal["stage 1", "finalist"]
    values: list[float]


def histories(sweep: Sweep) -> list[History]:
    """Return the histories of the finalists, of trials on the front that are not fine-tuned, and of the dense baseline."""
    series = sweep.series
    found: dict[str, list[dict[str, Any]]] = {}

    def chain(name: str | None) -> list[tuple[str, list[dict[str, Any]]]]:
        """The stages that led to a run, the first one first."""
        record = sweep.by_name.get(name or "")
        if record is None:
            return []
        if record.name not in found:
            saved = _saved(sweep, record.name)
            found[record.name] = [] if saved is None else saved.history
        return [*chain(record.source), (record.stage, found[record.name])]

    tuned = {trial_of(cut.name) for cut in series.before.values()}
    others = [name for name in dict.fromkeys(trial_of(cut.name) for cut in series.front) if name not in tuned]
    wanted: list[tuple[str, Role]] = [(record.name, "finalist") for record in series.finalists]
    wanted += [(name, "front") for name in _spread(others, _MAX_HISTORIES)]
    wanted += [(series.dense.name, "dense")] if series.dense is not None else []
    made = (_history(name, role, chain(name)) for name, role in wanted)
    return [history for history in made if history.epochs]


def _history(name: str, role: Role, stages: list[tuple[str, list[dict[str, Any]]]]) -> History:
    history = History(name, role, [], [], [])
    for stage, results in stages:
        first = (history.epochs[-1] if history.epochs else 0) + 1
        history.stages.append((stage, first))
        history.epochs.extend(first + i for i in range(len(results)))
        history.metrics.extend(result["metrics"] for result in results)
    return history


def rank_table(sweep: Sweep) -> RankTable | None:
    """Return the ranks of finalists and of the own cuts of trials on the front; None where no ranks or models are there."""
    tuned = {finalist.name for finalist in sweep.series.finalists}
    trials = [sweep.by_name[name] for name in dict.fromkeys(trial_of(cut.name) for cut in sweep.series.front)]
    records = [record for record in [*sweep.series.finalists, *trials] if record.layers and record.ranks]
    records.sort(key=lambda record: (record.macs or 0, record.name not in tuned))
    layers = list(dict.fromkeys(layer for record in records for layer in record.layers or ()))
    full = {decomposition: _full_ranks(sweep, records, decomposition) for decomposition in ("channel", "spatial")}
    if not layers or not any(full.values()):
        return None
    ranks: list[list[int | None]] = []
    shares: list[list[float | None]] = []
    for layer in layers:
        row = [dict(zip(record.layers or (), record.ranks or (), strict=True)).get(layer) for record in records]
        whole = [full[record.decomposition or "channel"].get(layer) for record in records]
        ranks.append(row)
        shares.append(
            [None if rank is None or not most else rank / most for rank, most in zip(row, whole, strict=True)]
        )
    ratios = [record.macs_ratio or 0.0 for record in records]
    return RankTable(layers, [record.name for record in records], ratios, ranks, shares)


def _full_ranks(sweep: Sweep, records: Sequence[RunRecord], decomposition: Any) -> dict[str, int]:
    """The full rank of every layer in one decomposition; of shapes alone, so that any run's model file will do."""
    if not any((record.decomposition or "channel") == decomposition for record in records):
        return {}
    saved = next((found for record in records if (found := _saved(sweep, record.name)) is not None), None)
    if saved is None:
        return {}
    form = ModelForm(decomposition, sweep.config.factorization)
    with torch.device("meta"):
        model = convert(build_shapes(saved.spec), form, saved.spec.sample_shape)
    return {name: layer.full_rank for name, layer in svd_layers(model).items()}


def spectra(sweep: Sweep) -> list[Spectrum]:
    """Return the singular values of finalists beside those of stage 1, for at most twelve layers, evenly spread."""
    finalists = sweep.series.finalists
    names = list(dict.fromkeys(layer for record in finalists for layer in record.layers or ()))
    layers = _spread(names, _MAX_LAYERS)
    found: list[Spectrum] = []
    starts: dict[tuple[str, str], None] = {}
    for record in finalists:
        decomposition = record.decomposition or "channel"
        start = _stage_one(sweep, record)
        if start is not None:
            starts[start.name, decomposition] = None
        found += _spectra_of(sweep, record.name, "finalist", decomposition, layers)
    before: list[Spectrum] = []
    for name, decomposition in starts:
        before += _spectra_of(sweep, name, "stage 1", decomposition, layers)
    return [*before, *found]


def _stage_one(sweep: Sweep, record: RunRecord) -> RunRecord | None:
    """The run of stage 1 that a run comes from: through one trial, or several that went on from each other."""
    source = sweep.by_name.get(record.source or "")
    return source if source is None or source.stage == "pretrain" else _stage_one(sweep, source)


def _spectra_of(sweep: Sweep, name: str, role: Any, decomposition: Any, layers: Sequence[str]) -> list[Spectrum]:
    saved = _saved(sweep, name)
    if saved is None:
        return []
    model = from_products(saved.model)
    found = []
    for layer in layers:
        s = exact_svd(_matrix(model.get_submodule(layer), decomposition))[1]
        keep = s > s[0] * 1e-7  # float32 products have no more; below lies what was cut
        found.append(Spectrum(layer, name, role, (s[keep] / s[0]).tolist()))
    return found


def _matrix(module: nn.Module, decomposition: Any) -> Tensor:
    """The matrix (m, n) that a layer stands for: decomposed, as two thin layers, or ordinary."""
    if isinstance(module, SVDLayer):
        return module.matrix()
    if not isinstance(module, nn.Sequential):
        assert isinstance(module.weight, Tensor)
        return to_matrix(module.weight, decomposition)
    first, second = module[0].weight, module[1].weight
    assert isinstance(first, Tensor)
    assert isinstance(second, Tensor)
    if second.ndim == 4 and decomposition == "spatial":  # (n, r, 1, kw): rows are (n, kw)
        second = second.squeeze(2).permute(0, 2, 1).flatten(0, 1)
    return second.flatten(1) @ first.flatten(1)


def _saved(sweep: Sweep, name: str) -> SavedModel | None:
    try:
        return load_model(sweep.paths.run(name) / MODEL_FILE)
    except CheckpointError:  # deleted to save space, or copied without its models: the report goes without
        return None


def _spread(items: Sequence[str], count: int) -> list[str]:
    """At most `count` of the items, evenly spread, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]
