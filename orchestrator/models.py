"""The finalists as MLflow models: logged with their runs at the end of a sweep, registered by `rankfront register`."""

import json
import logging
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.config import load_config
from orchestrator.front import SweepFront, sweep_front
from orchestrator.output import read_json, write_text
from orchestrator.paths import SweepPaths
from orchestrator.records import RunRecord, read_records
from orchestrator.sync import PATIENCE_S, opened_tracker
from trainers.errors import SweepError

if TYPE_CHECKING:
    from orchestrator.tracking.models import Version
    from orchestrator.tracking.tracker import Tracker
    from trainers.data import ImageData

_log = logging.getLogger(__name__)
_NUM_EXAMPLES = 2  # torch.export takes a batch of one for a constant
_METRICS = ("val_accuracy", "test_accuracy", "macs", "macs_ratio", "params", "params_ratio")
_PARAMS = ("method", "decomposition", "regularizer", "rank_rule", "source")


def log_finalists(
    front: SweepFront, records: list[RunRecord], paths: SweepPaths, data: "ImageData", tracker: "Tracker"
) -> None:
    """Give the tracker each finalist that it has not had yet; see `log_models`."""
    logged = set(map(str, read_json(paths.logged_models, list[str]())))
    missing = {point.name for point in front.finalists} - logged
    log_models([record for record in records if record.name in missing], paths, data, tracker)
    write_text(paths.logged_models, json.dumps(sorted(logged | missing)) + "\n")


def log_models(records: Collection[RunRecord], paths: SweepPaths, data: "ImageData", tracker: "Tracker") -> None:
    """Give the networks of complete runs to the tracker, each packed in its run's folder until it has been delivered.

    A network that torch.export cannot follow is left out, with a warning.
    """
    from orchestrator.tracking.models import pack_model
    from trainers.recipe import MODEL_FILE
    from trainers.saved_model import load_model
    from trainers.serving import PixelModel

    images = data.images[data.validation_rows[:_NUM_EXAMPLES]].numpy()
    for record in records:
        folder = paths.packed_model(record.name)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            pack_model(PixelModel(load_model(paths.run(record.name) / MODEL_FILE).model, data), images, folder)
        except Exception as error:  # noqa: BLE001  # whatever torch.export raises, the sweep has its results
            _log.warning("%s is not logged as a model: %s", record.name, str(error).partition("\n")[0])
        else:
            tracker.log_model(record.name, folder, _facts(record), record.ended_at_s or 0.0)


def _facts(record: RunRecord) -> dict[str, Any]:
    """What is said of a model beside its files; the metrics are those of the run's last epoch."""
    return {
        "metrics": {key: value for key in _METRICS if (value := getattr(record, key)) is not None},
        "step": record.epochs,
        "params": {key: str(value) for key in _PARAMS if (value := getattr(record, key)) is not None},
        "tags": {"stage": record.stage},
    }


def register(directory: Path, name: str) -> "list[Version]":
    """Make the finalists of the sweep in `directory` versions of the registered model `name`, its picks their aliases.

    Finalists that are not logged as models yet are logged first. Raises SweepError where there is no finalist, and where
    the store is not that of the sweep, does not take its records, or refuses the name.
    """
    from orchestrator.tracking.models import find_models, register_models

    paths = SweepPaths.of(directory)
    config, records = load_config(paths.config), read_records(paths.results)
    front = sweep_front(records)
    finalists = [record for record in records if record.name in {point.name for point in front.finalists}]
    if not finalists:
        raise SweepError(f"{directory} must hold finalists to register, but has none yet; finish the sweep first")
    with opened_tracker(paths) as tracker:
        left = tracker.flush(PATIENCE_S)
        run_ids = {record.name: tracker.run_id(record.name) for record in finalists}
        logged = find_models(tracker.target.uri, run_ids)
        if missing := [record for record in finalists if record.name not in logged]:
            from trainers.data import load_train_validation

            log_models(missing, paths, load_train_validation(config.data), tracker)
            left = tracker.flush(PATIENCE_S)
            logged = find_models(tracker.target.uri, run_ids)
    if left or len(logged) < len(finalists):
        lost = ", ".join(record.name for record in finalists if record.name not in logged)
        raise SweepError(
            f"every finalist must be a model in {tracker.target.shown}, but {lost or 'some records'} could not be sent; "
            "the warnings above say why"
        )
    tags = {record.name: {"run": record.name, **_shown(record)} for record in finalists}
    return register_models(
        tracker.target.uri, name, logged, tags, {pick: point.name for pick, point in front.picks.items()}
    )


def _shown(record: RunRecord) -> dict[str, str]:
    return {key: f"{value:.6g}" for key in _METRICS if (value := getattr(record, key)) is not None}
