"""What an export gives beside the trained network: on the same images, and on all validation data."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainers.batches import normalize
from trainers.data import ImageData, spread_rows
from trainers.errors import ExportError
from trainers.export.options import ExportOptions

TOLERANCE = 1e-4  # of fp32 logits, absolute
_BATCH = 64


@dataclass(frozen=True)
class Measured:
    """`max_abs_error` of logits and `top1_agreement` (a fraction of 1) on `images` validation images; `max_abs_logit`: the
    trained network's largest there. `val_accuracy`: of the export on all validation rows, where weights are not fp32.
    """

    images: int
    max_abs_error: float
    max_abs_logit: float
    top1_agreement: float
    val_accuracy: float | None

    def record(self) -> dict[str, Any]:
        """The figures as plain values, without those that were not measured."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def measure(export: nn.Module, trained: nn.Module, data: ImageData, options: ExportOptions) -> Measured:
    """Compare an export with the network it was made of, in evaluation mode, on some of the validation images.

    Raises ExportError where logits are not finite, and for fp32 where one differs by more than TOLERANCE, or another class
    is the first.
    """
    rows = spread_rows(data.validation_rows, options.num_compared)
    found = _logits(export, data, rows, options.input == "normalized", torch.float32)
    trained = trained.eval()
    expected = _logits(trained, data, rows, True, next(trained.parameters()).dtype)
    if not bool(found.isfinite().all()):
        raise ExportError(
            f"the export must give finite logits, but with weights {options.weights} does not; use fp32 or bf16"
        )
    error = float((found - expected).abs().max())
    agreement = float((found.argmax(1) == expected.argmax(1)).double().mean())
    if options.weights == "fp32" and not (error <= TOLERANCE and agreement == 1):
        raise ExportError(
            f"the export's logits must be within {TOLERANCE} of the trained network's and name the same class, but on "
            f"{len(rows)} images differ by up to {error:.2e} and agree on {100 * agreement:.2f}% of classes"
        )
    accuracy = None if options.weights == "fp32" else export_accuracy(export, data, options.input)
    return Measured(len(rows), error, float(expected.abs().max()), agreement, accuracy)


def export_accuracy(export: nn.Module, data: ImageData, input_: str) -> float:
    """Return the accuracy of an export on the validation rows of `data`, a fraction of 1."""
    rows = data.validation_rows
    found = _logits(export, data, rows, input_ == "normalized", torch.float32).argmax(1)
    return float((found == data.labels[rows]).double().mean())


def _logits(network: nn.Module, data: ImageData, rows: Tensor, normalized: bool, dtype: torch.dtype) -> Tensor:
    parts = []
    with torch.no_grad():
        for index in rows.split(_BATCH):
            images = data.images[index]
            parts.append(network(normalize(images, data, dtype) if normalized else images).double())
    return torch.cat(parts)
