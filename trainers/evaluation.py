"""How good a network is on validation rows, and the way in which one that keeps its shapes is evaluated after each epoch."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.batches import evaluation_batches
from trainers.captured import Captured
from trainers.config import TrainingConfig
from trainers.data import ImageData
from trainers.optimizers import DTYPES
from trainers.step import autocast

EVALUATION_BATCH = 500


class Evaluator:
    """`evaluate_split` of one network after each epoch, its forward pass run as `TrainingConfig.step` says.

    Its shapes must stay; a network that is put in its place is compiled, or captured, by itself.
    """

    def __init__(self, config: TrainingConfig) -> None:
        self._config = config
        self._model: nn.Module | None = None

    def __call__(self, model: nn.Module, data: ImageData) -> dict[str, float]:
        """Return what `evaluate_split` does; the data is on the network's device."""
        if model is not self._model:
            self._model, self._forward = model, _forward(model, self._config, data.images.device)
        return evaluate_split(model, data, self._config.dtype, self._forward)


@torch.no_grad()
def evaluate_split(
    model: nn.Module, data: ImageData, dtype: str = "float32", forward: Callable[[Tensor], Tensor] | None = None
) -> dict[str, float]:
    """Return the scores of `model` on the validation rows of `data`; `forward` is another way to its logits.

    "accuracy" and "top5_accuracy": fractions of 1 (the latter is 1 with five classes or fewer); "macro_f1": the mean over
    classes of 2 TP / (2 TP + FP + FN), classes that neither occur nor are predicted left out; "loss": mean cross-entropy.
    """
    forward = forward or _eager(model, dtype, data.images.device)
    training = model.training
    model.eval()
    device, classes = data.images.device, data.num_classes
    confusion = torch.zeros(classes * classes, dtype=torch.int64, device=device)  # rows: labels, columns: predictions
    among_five = torch.zeros((), dtype=torch.int64, device=device)
    total = torch.zeros((), dtype=torch.float64, device=device)
    for images, labels in evaluation_batches(data, EVALUATION_BATCH, DTYPES[dtype]):
        logits = forward(images)
        confusion.scatter_add_(0, labels * classes + logits.argmax(1), torch.ones_like(labels))  # bincount would wait
        among_five += (logits.topk(min(5, classes), 1).indices == labels[:, None]).any(1).sum()
        total += F.cross_entropy(logits.double(), labels, reduction="sum")
    model.train(training)
    count = len(data.validation_rows)
    table = confusion.reshape(classes, classes)
    return {
        "accuracy": int(table.trace()) / count,
        "top5_accuracy": int(among_five) / count,
        "macro_f1": _macro_f1(table),
        "loss": float(total) / count,
    }


def _macro_f1(confusion: Tensor) -> float:
    hits, seen = confusion.diagonal().double(), confusion.sum(1) + confusion.sum(0)
    present = seen > 0
    return float((2 * hits[present] / seen[present]).mean())


def _eager(model: nn.Module, dtype: str, device: torch.device) -> Callable[[Tensor], Tensor]:
    def forward(images: Tensor) -> Tensor:
        with autocast(dtype, device):
            return model(images)  # type: ignore[no-any-return]

    return forward


def _forward(model: nn.Module, config: TrainingConfig, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The way to the logits: each result is overwritten by the next call."""
    forward = _eager(model, config.dtype, device)
    if "compile" in config.step:
        forward = torch.compile(forward, fullgraph=True, dynamic=False)
    if "graph" not in config.step:
        return forward
    graphs: dict[torch.Size, Captured] = {}  # the last batch may be smaller

    def replayed(images: Tensor) -> Tensor:
        if images.shape not in graphs:
            graphs[images.shape] = Captured(forward)
        return graphs[images.shape](images)

    return replayed
