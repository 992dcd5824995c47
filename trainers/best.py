"""The best network of a stage: what is kept where training on makes it worse."""

from typing import Any

from torch import nn


class BestNetwork:
    """The weights with the highest validation accuracy, of equal ones with the lowest validation loss, and their metrics.

    Epoch 0 is the network before any training, where it has been judged; the first of equals stays.
    """

    def __init__(self) -> None:
        self.epoch = -1  # none yet
        self._metrics: dict[str, float] = {}
        self._weights: dict[str, Any] = {}
        self._start: dict[str, float] = {}

    def judge(self, epoch: int, metrics: dict[str, float], model: nn.Module) -> None:
        """Take note of the network after `epoch`; training on does not change what is remembered."""
        if epoch == 0:
            self._start = {"start_val_accuracy": metrics["val_accuracy"]}
        if self.epoch < 0 or _quality(metrics) > _quality(self._metrics):
            self.epoch, self._metrics = epoch, metrics
            self._weights = {name: value.detach().clone() for name, value in model.state_dict().items()}

    def put_back(self, model: nn.Module) -> dict[str, float]:
        """Give `model` the best weights; return their metrics, `best_epoch`, and `start_val_accuracy` where it is known."""
        model.load_state_dict(self._weights)
        return {**self._metrics, "best_epoch": float(self.epoch), **self._start}

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold."""
        return {"epoch": self.epoch, "metrics": self._metrics, "weights": self._weights, "start": self._start}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.epoch, self._metrics = state["epoch"], state["metrics"]
        self._weights, self._start = state["weights"], state["start"]


def _quality(metrics: dict[str, float]) -> tuple[float, float]:
    return metrics["val_accuracy"], -metrics["val_loss"]
