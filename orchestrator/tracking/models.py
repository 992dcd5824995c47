"""Networks as MLflow models: packed into a folder, logged with a run, registered under a name.

Only clients, never the fluent API: its active run and model differ from thread to thread. The network is stored as a
program of torch.export (pt2), which loads without this package and without unpickling anything.
"""

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.exceptions import MlflowException

from orchestrator.tracking.target import concealed, redacted
from trainers.errors import SweepError

if TYPE_CHECKING:
    import numpy as np
    from mlflow.entities.model_registry import ModelVersion
    from numpy.typing import NDArray
    from torch import nn

_TOLERANCE = 1e-3  # of the largest logit: other kernels for another batch round otherwise
_URI_VARIABLE = "MLFLOW_TRACKING_URI"


def pack_model(network: "nn.Module", images: "NDArray[np.uint8]", folder: Path) -> None:
    """Write `network`, which takes images (N, C, H, W) uint8, as an MLflow model into `folder`, which must not exist.

    `images`, at least two, become the model's input example; any number may be given to it later. What was written is read
    back and compared. Raises SweepError where it does not give the same, or takes no other number of images, and what
    torch.export raises for a network that it cannot follow.
    """
    import numpy as np
    import torch
    from mlflow.models import ModelSignature
    from mlflow.pytorch import save_model
    from mlflow.types import Schema, TensorSpec

    with torch.no_grad():
        logits = network(torch.from_numpy(images)).numpy()
    inputs = TensorSpec(
        np.dtype(np.uint8), (-1, *images.shape[1:])
    )  # no name: one would be asked for, and not understood
    outputs = TensorSpec(logits.dtype, (-1, *logits.shape[1:]))
    needed = ("mlflow", "numpy", "torch")  # given, for MLflow would look for them by loading the model: ten seconds
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of MLflow and torch.export about their own insides
        save_model(
            network,
            str(folder),
            serialization_format="pt2",
            input_example=images,
            signature=ModelSignature(Schema([inputs]), Schema([outputs])),
            pip_requirements=[f"{name}=={metadata.version(name).partition('+')[0]}" for name in needed],
        )
    _require_equal(folder, images[:1], logits[:1])


def _require_equal(folder: Path, images: "NDArray[np.uint8]", logits: "NDArray[Any]") -> None:
    """Check that the packed network, given other images in number than its example, gives the network's own logits."""
    import numpy as np
    import torch

    program = torch.export.load(folder / "data" / "model.pt2").module()
    try:
        with torch.no_grad():
            found = program(torch.from_numpy(images)).numpy()
    except AssertionError as error:  # a guard of the program on the batch
        raise SweepError(f"torch.export must leave the number of images open, but fixed it: {error}") from error
    difference, scale = np.abs(found - logits).max(), np.abs(logits).max()
    if not difference <= _TOLERANCE * scale:
        raise SweepError(f"the packed network must give the network's logits, but differs by {difference} of {scale}")


def logged_model(client: mlflow.MlflowClient, run_id: str, name: str) -> LoggedModel | None:
    """Return the model called `name` that was logged with a run, also one that is not complete."""
    experiment = client.get_run(run_id).info.experiment_id
    query = f"source_run_id = '{run_id}' AND name = '{name}'"
    found: Sequence[LoggedModel] = client.search_logged_models([experiment], query, max_results=1)
    return next(iter(found), None)


def log_model(
    client: mlflow.MlflowClient, run_id: str, name: str, folder: Path, facts: Mapping[str, Any], time_ms: int
) -> str:
    """Record the packed model in `folder` as the model called `name` of a run; returns its id.

    `facts` is {"metrics", "step", "params", "tags"}; metrics are linked to the model and, with the same step and time,
    not stored twice with the run. All may be repeated: a model that is complete is left as it is, `folder` unread.
    """
    model = logged_model(client, run_id, name)
    if model is None:
        experiment = client.get_run(run_id).info.experiment_id
        params, tags = dict(facts["params"]), dict(facts["tags"])
        model = client.create_logged_model(experiment, name, run_id, tags, params, "classifier")
    model_id = str(model.model_id)
    if model.status != LoggedModelStatus.READY:
        _name_in_file(folder, run_id, model_id)
        client.log_model_artifacts(model_id, str(folder))
        values = facts["metrics"].items()
        client.log_batch(run_id, [Metric(key, value, time_ms, facts["step"], model_id) for key, value in values])
        outputs = client.get_run(run_id).outputs
        if outputs is None or model_id not in {output.model_id for output in outputs.model_outputs}:
            client.log_outputs(run_id, [LoggedModelOutput(model_id, facts["step"])])  # refused a second time
        client.finalize_logged_model(model_id, "READY")
    return model_id


def _name_in_file(folder: Path, run_id: str, model_id: str) -> None:
    from mlflow.models import Model

    model = Model.load(str(folder))
    model.run_id, model.model_id = run_id, model_id
    model.save(str(folder / "MLmodel"))


@dataclass(frozen=True)
class Version:
    """A version of a registered model: the run's name in the sweep, its number, the names it has, and whether it is new."""

    run: str
    version: str
    aliases: tuple[str, ...]
    new: bool


def find_models(uri: str, run_ids: Mapping[str, str]) -> dict[str, str]:
    """Return the ids of the complete models that are called as their runs, by those names; `run_ids` are the runs'.

    Raises SweepError where the store does not answer.
    """
    client = mlflow.MlflowClient(uri)
    try:
        models = {name: logged_model(client, run_id, name) for name, run_id in run_ids.items() if run_id}
    except MlflowException as error:
        why = concealed(str(error.message).partition("\n")[0], uri)
        raise SweepError(f"the store at {redacted(uri)} must list its models, but: {why}") from error
    return {
        name: str(model.model_id)
        for name, model in models.items()
        if model is not None and model.status == LoggedModelStatus.READY
    }


def register_models(
    uri: str, name: str, models: Mapping[str, str], tags: Mapping[str, Mapping[str, str]],
    aliases: Mapping[str, str],
) -> list[Version]:  # fmt: skip
    """Make logged models versions of the registered model `name`, and give it `aliases`.

    `models` are the models' ids by the names of their runs, `tags` those of each version, `aliases` names of runs. A model
    that is a version already gets no second one. Raises SweepError where the registry refuses.
    """
    client = mlflow.MlflowClient(uri)
    try:
        return _register(client, name, models, tags, aliases)
    except MlflowException as error:
        why = concealed(str(error.message).partition("\n")[0], uri)
        raise SweepError(f"the registry at {redacted(uri)} must take the model {name!r}, but: {why}") from error


def _register(
    client: mlflow.MlflowClient, name: str, models: Mapping[str, str], tags: Mapping[str, Mapping[str, str]],
    aliases: Mapping[str, str],
) -> list[Version]:  # fmt: skip
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    there: dict[str | None, ModelVersion] = {}
    for version in client.search_model_versions(f"name = '{name}'"):
        there.setdefault(version.source, version)
    numbers, new = {}, set()
    with _default_store(client.tracking_uri):
        for run, model_id in models.items():
            source = f"models:/{model_id}"
            if source not in there:
                run_id = client.get_logged_model(model_id).source_run_id
                there[source] = client.create_model_version(name, source, run_id, dict(tags[run]), model_id=model_id)
                new.add(run)
            numbers[run] = str(there[source].version)
    for alias, run in aliases.items():
        client.set_registered_model_alias(name, alias, numbers[run])
    return [
        Version(run, number, tuple(alias for alias, of_run in aliases.items() if of_run == run), run in new)
        for run, number in numbers.items()
    ]


@contextmanager
def _default_store(uri: str) -> Iterator[None]:
    """Make `uri` MLflow's default store until the block ends: a registry in SQL looks for `models:/` sources there alone."""
    before = os.environ.get(_URI_VARIABLE)
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None is what it is without the variable
