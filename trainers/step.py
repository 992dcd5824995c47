"""One step of training, from a batch to the next weights, in the way that `TrainingConfig.step` names.

`eager` is the reference. `compile`: torch.compile makes one graph of the forward pass, the loss and the penalties, and
another of their backward pass. `graph`: the whole step, optimizer included, is captured as a CUDA graph and replayed.
`compile_graph`: both. All compute the same; rounding differs where operations are fused.
"""

import os
import shutil
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from trainers.captured import Captured
from trainers.config import TrainingConfig
from trainers.distillation import Distillation
from trainers.errors import ConfigError
from trainers.methods import Method
from trainers.optimizers import DTYPES, learning_rate_at, learning_rates_on, set_learning_rate

_CHOSEN_CACHE = os.environ.get("TORCHINDUCTOR_CACHE_DIR")  # by the user: torch sets it too, when it loads its compiler


class Step:
    """The step of one stage: `method.model` on `device` is trained by `optimizer`, with the settings of `config`.

    A batch goes through the network in `accumulation` parts, one after another, whose gradients add up to the batch's.

    Raises ConfigError where the machine or the method cannot run it as asked.
    """

    def __init__(
        self,
        method: Method,
        optimizer: Optimizer,
        config: TrainingConfig,
        device: torch.device,
        distillation: Distillation | None = None,
        accumulation: int = 1,
    ) -> None:
        self._method, self._optimizer, self._config, self.distillation = method, optimizer, config, distillation
        self._device, self._accumulation, self._network = device, accumulation, method.model
        self._compiled, self._captured = "compile" in config.step, "graph" in config.step
        self._losses = self._compute_losses
        self._graphs: dict[int, Captured] = {}  # without and with the method's term
        if self._captured:
            _require_capturable(method, config, device)
            learning_rates_on(optimizer, device)
        if self._compiled:
            _require_compiler(config, device)
            _keep_compiled_code()
            torch.compiler.reset()  # the code of earlier stages would count towards the limit on variants of a function
            self._losses = torch.compile(self._compute_losses, fullgraph=True, dynamic=False)

    def __call__(self, images: Tensor, labels: Tensor, progress: float) -> Tensor:
        """Train on images (B, C, H, W), labels (B) at `progress` of the stage; return (the task's loss, the whole loss).

        The result is on the device and is overwritten by the next step; nothing waits for it.
        """
        set_learning_rate(self._optimizer, learning_rate_at(progress, self._config))
        weight = self._method.loss_weight(progress)
        if not (self._compiled or self._captured):
            return self._update(images, labels, weight or None)
        # as a number it would be compiled, or captured, into the step
        terms = [] if weight == 0 else [torch.full((), weight, dtype=DTYPES[self._config.dtype], device=self._device)]
        if not self._captured:
            return self._update(images, labels, *terms)
        if len(terms) not in self._graphs:
            self._graphs[len(terms)] = Captured(self._update, self._set_capturable)
        return self._graphs[len(terms)](images, labels, *terms)

    def averaged(self, losses: Tensor) -> Tensor:
        """Return the mean of what each worker that makes the step found: here it is made by one."""
        return losses

    def _update(self, images: Tensor, labels: Tensor, weight: float | Tensor | None = None) -> Tensor:
        self._optimizer.zero_grad(set_to_none=True)
        count = max(1, min(self._accumulation, len(images) // 2))  # BatchNorm cannot normalize a single image
        parts = zip(images.tensor_split(count), labels.tensor_split(count), strict=True)
        sums = [self._backward(*part, len(images), None if place else weight) for place, part in enumerate(parts)]
        self._method.after_backward()
        self._optimizer.step()
        return sums[0] if count == 1 else torch.stack(sums).sum(0)

    def _backward(self, images: Tensor, labels: Tensor, batch_size: float, weight: float | Tensor | None) -> Tensor:
        """Add the gradients of a part of a batch; return its share in the batch's losses."""
        task_loss, loss = self._losses(images, labels, weight, len(images) / batch_size)
        loss.backward()
        return torch.stack((task_loss, loss)).detach()

    def _compute_losses(
        self, images: Tensor, labels: Tensor, weight: float | Tensor | None, share: float
    ) -> tuple[Tensor, Tensor]:
        with autocast(self._config.dtype, self._device):
            logits = self._network(images)
            task_loss = F.cross_entropy(logits, labels, label_smoothing=self._config.label_smoothing)
            loss = task_loss if self.distillation is None else self.distillation(images, logits, task_loss)
        if share != 1:
            task_loss, loss = share * task_loss, share * loss
        if weight is not None:
            loss = loss + weight * self._method.loss_term()
        return task_loss, loss

    def _set_capturable(self, capturing: bool) -> None:
        """Tell Adam that it is captured: it refuses otherwise, and warns if it is told so and is not."""
        for group in self._optimizer.param_groups:
            if "capturable" in group:
                group["capturable"] = capturing


def autocast(dtype: str, device: torch.device) -> torch.autocast:
    """Return the context in which a forward pass runs with `TrainingConfig.dtype`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")


def _require_capturable(method: Method, config: TrainingConfig, device: torch.device) -> None:
    if device.type != "cuda":
        text = f"{config.step} needs a CUDA device, but the training runs on {device.type}; set eager or compile"
        raise ConfigError([("training.step", text)])
    if (setting := method.uncapturable()) is not None:
        text = f"{config.step} repeats one recorded step, but {setting} makes steps differ; leave it out, or set eager"
        raise ConfigError([("training.step", text)])


def _require_compiler(config: TrainingConfig, device: torch.device) -> None:
    if device.type != "cpu":
        return
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        text = f"{config.step} needs a C++ compiler, but there is no {compiler}; install it, set CXX, or set eager"
        raise ConfigError([("training.step", text)])


def _keep_compiled_code() -> None:
    """Keep what torch.compile makes in a folder of the user's: later trials load it; torch's own is lost with /tmp."""
    if _CHOSEN_CACHE is not None:
        return
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    folder = caches / "rankfront" / "inductor"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written: torch's own folder will do
        return
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
