"""Data-parallel training: several workers make each step together, every one on its share of the batch.

All hold the same network and the same images, and draw the same batches. The gradients of the task's loss are averaged,
weighted by images, by PyTorch's DistributedDataParallel; penalties, which all compute alike, count once; BatchNorm takes
its statistics over the whole batch (`joint_norm`). So the steps are those of one process up to the order of sums. Dropout
draws other masks.

The worker of rank 0 runs the loop of its stage as ever: it evaluates, cuts and writes checkpoints while the others wait.
For each new network the others get a `Training`, and for each epoch a call of `Worker.train`. No module is sent.
"""

import copy
import socket
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from trainers.batches import Share
from trainers.config import MethodConfig
from trainers.data import ImageData
from trainers.distillation import Distillation
from trainers.errors import ConfigError
from trainers.form import ModelForm, convert, from_products
from trainers.joint_norm import joint_statistics
from trainers.loop import PendingEpoch, Stage, TrainedEpoch
from trainers.methods import Method, Network, make_method
from trainers.models import ModelSpec, build_shapes
from trainers.optimizers import make_optimizer
from trainers.step import Step

_JOIN_LIMIT = timedelta(seconds=120)
_STEP_LIMIT = timedelta(seconds=600)  # for which a worker waits for another within a step
_GLOO = "gloo_at_address"


@dataclass(frozen=True)
class Training:
    """All that a worker needs to train epochs of a stage with the one of rank 0, as plain values and tensors on the CPU.

    A method's `state` is not among them: it is for `end_epoch`, and between epochs only rank 0 has one.
    """

    config: MethodConfig
    network: Network
    form: ModelForm
    weights: dict[str, Any]
    optimizer: dict[str, Any]
    stage: Stage
    teacher: Distillation | None

    @classmethod
    def of(cls, due: PendingEpoch) -> "Training":
        """Return that of an epoch which is due on rank 0."""
        method, teacher = due.method, due.step.distillation
        if teacher is not None:  # modules with products cannot be sent
            teacher = replace(teacher, teacher=from_products(teacher.teacher).cpu())
        weights = {name: tensor.cpu() for name, tensor in method.model.state_dict().items()}
        optimizer = due.optimizer.state_dict()
        return cls(method.config, method.network, method.form, weights, optimizer, due.stage, teacher)

    def begin(self, spec: ModelSpec, data: ImageData) -> PendingEpoch:
        """Return the stage's first epoch, on the device of `data`, with a network and an optimizer of its own."""
        device, training = data.images.device, self.stage.training
        model = convert(build_shapes(spec), self.form, spec.sample_shape)
        # copies: what Ray brings may lie in memory that others read; strides stay those of rank 0, as broadcasts need
        weights = {name: tensor.to(device, copy=True) for name, tensor in self.weights.items()}
        model.load_state_dict(weights, assign=True)
        method = make_method(self.config, self.network)
        method.attach(model, self.form)
        method.bind()
        optimizer = make_optimizer(model, training, method.learning_rate_scales())
        optimizer.load_state_dict(copy.deepcopy(self.optimizer))
        teacher = None if self.teacher is None else replace(self.teacher, teacher=self.teacher.teacher.to(device))
        step = Step(method, optimizer, training, device, teacher, self.stage.accumulation)
        return PendingEpoch(method, optimizer, step, data, self.stage, 0)


class Worker:
    """One of the workers, which must have joined (`join`)."""

    def __init__(self, share: Share) -> None:
        self._share = share

    def take(self, due: PendingEpoch) -> None:
        """Take up a network, as all must at once. Raises ConfigError where a batch has too few images for them."""
        self._due = replace(due, step=SharedStep(due, self._share), share=self._share)

    def train(self, epoch: int) -> TrainedEpoch | Exception:
        """Train epoch `epoch` (from 0), as all others must; the loss is that of whole batches, the times its own."""
        due = replace(self._due, epoch=epoch)
        try:
            _send_weights(due.method)
        except RuntimeError as error:
            return error
        with joint_statistics(due.method.model):
            return due.train()


class SharedStep(Step):
    """One worker's part of a step; what it returns is its part of the batch's losses (`averaged`)."""

    def __init__(self, due: PendingEpoch, share: Share) -> None:
        stage, data, teacher = due.stage, due.data, due.step.distillation
        super().__init__(due.method, due.optimizer, stage.training, data.images.device, teacher, stage.accumulation)
        self._share, self._batch_size = share, min(stage.training.batch_size, len(data.train_rows))
        require_images(self._batch_size, share.count)
        self._parallel = self._network = DistributedDataParallel(due.method.model)

    def averaged(self, losses: Tensor) -> Tensor:
        """Return the losses of whole batches."""
        dist.all_reduce(losses)
        return losses / self._share.count

    def _update(self, images: Tensor, labels: Tensor, weight: float | Tensor | None = None) -> Tensor:
        """The workers' gradients are averaged: each weights its images so that the mean is that over all of the batch."""
        self._optimizer.zero_grad(set_to_none=True)
        per_worker = self._batch_size / self._share.count
        # the same for all: BatchNorm's statistics are exchanged in every part
        count = max(1, min(self._accumulation, int(per_worker) // 2))
        sums = []
        for place, part in enumerate(zip(images.tensor_split(count), labels.tensor_split(count), strict=True)):
            with nullcontext() if place == count - 1 else self._parallel.no_sync():
                sums.append(self._backward(*part, per_worker, None if place else weight))
        self._method.after_backward()
        self._optimizer.step()
        return torch.stack(sums).sum(0)


def require_images(batch_size: int, num_workers: int) -> None:
    """Raise ConfigError where a batch has no image for some worker."""
    if batch_size < num_workers:
        text = f"must be at least the number of workers of a run ({num_workers}), but a batch has {batch_size} images"
        raise ConfigError([("training.batch_size", text)])


def _send_weights(method: Method) -> None:
    """Give all workers those of rank 0: what each computes by itself may round otherwise on another machine."""
    for tensor in (*method.model.parameters(), *method.model.buffers()):
        dist.broadcast(tensor.detach(), 0)


def listen(address: str) -> socket.socket:
    """Return a socket that listens on a free port of one of this machine's addresses, where workers meet."""
    listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    listener.bind((address, 0))
    listener.listen()
    return listener


def join(
    share: Share, meeting: tuple[str, int], address: str, device: torch.device, listener: socket.socket | None = None
) -> None:
    """Join the other workers, who meet at an address and port; the worker of rank 0 brings the `listener` there.

    CPUs talk by gloo, from and to `address` of each, GPUs by NCCL. Raises what torch.distributed does where the others
    do not come within two minutes.
    """
    store = dist.TCPStore(  # type: ignore[attr-defined]
        *meeting,
        share.count,
        is_master=listener is not None,
        timeout=_JOIN_LIMIT,
        wait_for_workers=False,
        master_listen_fd=None if listener is None else listener.detach(),
    )
    store.set(f"worker {share.rank}", "")  # gloo would wait for one that does not come as long as within a step
    store.wait([f"worker {rank}" for rank in range(share.count)], _JOIN_LIMIT)
    backend = "nccl" if device.type == "cuda" else _gloo_at(address)
    dist.init_process_group(backend, store=store, rank=share.rank, world_size=share.count, timeout=_STEP_LIMIT)


def leave() -> None:
    """Leave the other workers; those who wait for this one fail."""
    if dist.is_initialized():
        dist.destroy_process_group()


def is_lost_connection(error: BaseException) -> bool:
    """Whether an exception only says that another worker did not answer."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _gloo_at(address: str) -> str:
    """Return the name of a backend: gloo, which would listen on whatever address the host's name stands for."""

    def create(given: Any, _: Any) -> Any:
        options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._timeout = given.timeout
        options._devices = [dist.ProcessGroupGloo.create_device(hostname=address)]
        return dist.ProcessGroupGloo(given.store, given.group_rank, given.group_size, options)

    if _GLOO not in dist.Backend.backend_list:
        kind = dist.ProcessGroup.BackendType.GLOO
        dist.Backend.register_backend(_GLOO, create, extended_api=True, devices=["cpu"], _backend_type=kind)
    return _GLOO
