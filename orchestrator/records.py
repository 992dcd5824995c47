"""The one table of a sweep, `results.parquet`: a row for each run that has ended, of every stage."""

import json
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from trainers.atomic import atomic_file
from trainers.errors import SweepError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}")
_ROWS_AT_ONCE = 200  # a row takes 20 KiB of memory on its way to the file, and the allocators keep what they once had
_ENCODING = {"write_page_checksum": True, "use_dictionary": False}  # few values repeat
_FIGURES = ("epoch", "macs", "params", "score")
_CUT = {*_FIGURES, "settings"}

StageName = Literal["pretrain", "trial", "finetune", "dense"]
State = Literal["COMPLETE", "PRUNED", "FAIL"]


@dataclass(frozen=True)
class RunRecord:
    """One run. Accuracies and ratios are fractions of 1, ratios are to the dense network, times are seconds.

    `name` is unique in a sweep and names the run's folder; `source` is the run whose model it started from. `settings`
    is the search space's choice as JSON; the columns after it are the settings in force. A failed run has its last
    epoch's metrics, where there are any, and its traceback in `error`; a pruned one was stopped by the scheduler after
    `epochs` epochs. `score` is the validation accuracy after a cheap recovery, which foresees fine-tuning better than
    `val_accuracy`, that right after the cut (see `trainers.recovery`); `curve` holds all scored cuts (see `curves`).
    """

    name: str
    stage: StageName
    state: State
    run_id: str
    source: str | None = None
    trial_number: int | None = None
    settings: str | None = None
    method: str | None = None
    decomposition: str | None = None
    regularizer: str | None = None
    strength: float | None = None
    orthogonality_weight: float | None = None
    spectrum_learning_rate: float | None = None
    rank_rule: str | None = None
    energy: float | None = None
    budget: float | None = None
    learning_rate: float | None = None
    seed: int | None = None
    epochs: int | None = None
    val_accuracy: float | None = None
    score: float | None = None
    val_top5_accuracy: float | None = None
    val_macro_f1: float | None = None
    val_loss: float | None = None
    train_loss: float | None = None
    test_accuracy: float | None = None
    test_top5_accuracy: float | None = None
    test_macro_f1: float | None = None
    test_loss: float | None = None
    orthogonality_error: float | None = None
    macs: int | None = None
    macs_ratio: float | None = None
    params: int | None = None
    params_ratio: float | None = None
    rank_ratio: float | None = None
    predicted_latency_ms: float | None = None
    latency_ms: float | None = None
    layers: list[str] | None = None
    ranks: list[int] | None = None
    curve: str | None = None
    duration_s: float | None = None
    cpu_s: float | None = None
    ended_at_s: float | None = None
    error: str | None = None


def _arrow_type(annotation: object) -> pa.DataType:
    text = str(annotation)
    if "list[str]" in text:
        return pa.list_(pa.string())
    if "list[int]" in text:
        return pa.list_(pa.int32())
    if "float" in text:
        return pa.float64()
    return pa.int64() if "int" in text else pa.string()


SCHEMA = pa.schema([pa.field(field.name, _arrow_type(field.type)) for field in fields(RunRecord)])


def write_records(records: Sequence[RunRecord], path: Path) -> None:
    """Replace the table atomically: a reader finds the old one or the new one, whole."""
    Table(path).write(records)


class Table:
    """The table at `path`, for who writes it again with each run that ends: full groups of rows are converted once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._groups: dict[int, tuple[list[RunRecord], pa.Table]] = {}  # by the place of the first row

    def write(self, records: Sequence[RunRecord]) -> None:
        """Write these rows, as `write_records` does."""
        with atomic_file(self._path) as file, pq.ParquetWriter(file, SCHEMA, **_ENCODING) as writer:
            for start in range(0, len(records), _ROWS_AT_ONCE):
                writer.write_table(self._converted(start, list(records[start : start + _ROWS_AT_ONCE])))

    def _converted(self, start: int, rows: list[RunRecord]) -> pa.Table:
        known, found = self._groups.get(start, ([], None))
        if len(known) == len(rows) and all(map(operator.is_, known, rows)):
            return found
        found = pa.Table.from_pylist([vars(record) for record in rows], schema=SCHEMA)
        if len(rows) == _ROWS_AT_ONCE:
            self._groups[start] = rows, found
        return found


def read_records(path: Path) -> list[RunRecord]:
    """Return the table's rows; raises SweepError where it is missing, damaged or of another schema."""
    if not path.is_file():
        raise SweepError(f"{path.parent} must be the output directory of a sweep, but has no {path.name}")
    try:
        # `read_table` would import half a second of other file systems
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read()
        table.validate(full=True)
    except Exception as error:  # of a damaged file Arrow raises more than its own errors
        raise SweepError(f"{path} must be a readable parquet file, but: {error}") from error
    if not table.schema.equals(SCHEMA):
        differing = sorted(set(table.schema.names) ^ set(SCHEMA.names)) or "the types"
        raise SweepError(
            f"{path} must have this version's columns, but {differing} differ; use the rankfront that wrote it"
        )
    records = [RunRecord(**row) for row in table.to_pylist()]
    for record in records:
        if (problem := _problem(record)) is not None:
            raise SweepError(f"{path} must hold a sweep's runs, but {problem}; use the file that rankfront wrote")
    return records


def _problem(record: RunRecord) -> str | None:
    """What no sweep writes down: names become folders, and the columns in JSON are read all over the program."""
    for name in (record.name, record.source):
        if name is not None and not _NAME.fullmatch(name):
            return f"a run is called {name!r:.100}"
    if record.name is None or record.stage not in get_args(StageName) or record.state not in get_args(State):
        return f"{record.name!r} has the stage {record.stage!r:.100} and the state {record.state!r:.100}"
    try:
        settings, curve = json.loads(record.settings or "{}"), json.loads(record.curve or "[]")
        fits = isinstance(settings, dict) and all(
            cut.keys() >= _CUT and isinstance(cut["settings"], dict) and all(_is_number(cut[key]) for key in _FIGURES)
            for cut in curve
        )
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        return f"the settings or the curve of {record.name} cannot be read: {error}"
    costs = (record.macs, record.macs_ratio, record.params, record.params_ratio)
    if record.state == "COMPLETE" and record.stage != "pretrain" and not all(costs):
        return f"{record.name} is complete and has the costs {costs}"
    fits = fits and len(record.layers or ()) == len(record.ranks or ())
    return None if fits else f"the settings, the curve or the ranks of {record.name} are of another form"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
