"""Knowledge distillation: the low-rank network also learns from the full-rank one's outputs."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Distillation:
    """Loss = (1 - weight) * task + weight * T^2 * KL(teacher_T || student_T), p_T = softmax(logits / T).

    0 < weight <= 1; T = `temperature` > 0. Source: Hinton, Vinyals and Dean, arXiv 1503.02531, section 2. The teacher is
    an ordinary module on the student's device; it is never trained.
    """

    teacher: nn.Module
    weight: float
    temperature: float

    def __post_init__(self) -> None:
        self.teacher.eval()

    def __call__(self, images: Tensor, logits: Tensor, task_loss: Tensor) -> Tensor:
        """Return the loss of a batch, a scalar of at least float32; `logits` (B, classes) are the student's."""
        dtype = torch.promote_types(logits.dtype, torch.float32)
        with torch.no_grad():
            wanted = F.log_softmax(self.teacher(images).to(dtype) / self.temperature, 1)
        found = F.log_softmax(logits.to(dtype) / self.temperature, 1)
        distance = F.kl_div(found, wanted, reduction="batchmean", log_target=True)
        return (1 - self.weight) * task_loss + self.weight * self.temperature**2 * distance
