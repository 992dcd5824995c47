"""Model files: what a network is, its weights, and how it was trained; read back without the code that trained it."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainers.checkpoint import named, read_payload, write_payload
from trainers.config import FactorizationConfig, ModelConfig, TrainingConfig, as_record
from trainers.deploy import DeployedLayer
from trainers.errors import CheckpointError
from trainers.form import ModelForm, convert
from trainers.models import ModelSpec, build_shapes


@dataclass(frozen=True)
class SavedModel:
    """A model file's content: the module on the CPU, what it is, the training's config and its epochs' metrics."""

    model: nn.Module
    spec: ModelSpec
    form: ModelForm
    config: dict[str, Any]
    history: list[dict[str, Any]]

    @property
    def training(self) -> TrainingConfig:
        """The settings that the network was trained with; the numbers of epochs are not among them.

        Raises CheckpointError where the file does not say.
        """
        try:
            return TrainingConfig(**_tuples(self.config["training"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"the model file must say how its network was trained, but config.training is not there or unknown: {error}"
            ) from error


def save_model(saved: SavedModel, path: Path) -> None:
    """Write the file atomically: it is whole or not there."""
    form = saved.form
    write_payload(
        path,
        "model",
        {
            "spec": as_record(saved.spec),
            "form": {
                "decomposition": form.decomposition,
                "factorization": as_record(form.factorization),
                "num_factors": form.num_factors,
                "layers": None if form.layers is None else [asdict(layer) for layer in form.layers],
            },
            "config": saved.config,
            "history": saved.history,
            "state_dict": saved.model.state_dict(),
        },
    )


def load_model(source: Path | bytes) -> SavedModel:
    """Read a model file, or the content of one; raises CheckpointError where it is missing, damaged, foreign or of another
    version.
    """
    payload = read_payload(source, "model")
    try:
        spec = ModelSpec(
            ModelConfig(**_tuples(payload["spec"]["model"])),
            tuple(payload["spec"]["sample_shape"]),
            payload["spec"]["num_classes"],
        )
        layers = payload["form"]["layers"]
        form = ModelForm(
            payload["form"]["decomposition"],
            FactorizationConfig(**_tuples(payload["form"]["factorization"])),
            payload["form"]["num_factors"],
            None if layers is None else tuple(DeployedLayer(**layer) for layer in layers),
        )
        with torch.device("meta"):  # shapes, and no weights
            model = convert(build_shapes(spec), form, spec.sample_shape)
        model.load_state_dict(payload["state_dict"], assign=True)
        return SavedModel(model, spec, form, *_training_record(payload))
    except Exception as error:  # a content that does not fit makes torch and our own code raise whatever it meets
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise CheckpointError(
            f"{named(source)} must be a complete model file, but its content does not fit: {reason}"
        ) from error


def _training_record(payload: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    config, history = payload["config"], payload["history"]
    if not isinstance(config, dict) or not isinstance(history, list):
        raise TypeError("config must be a mapping and history a list")
    if not all(isinstance(record, dict) and isinstance(record.get("metrics"), dict) for record in history):
        raise TypeError("each epoch of history must have metrics")
    return config, history


def _tuples(record: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}
