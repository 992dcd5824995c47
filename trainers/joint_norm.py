"""BatchNorm over the batch of all workers of a data-parallel training, on any device.

torch.nn.SyncBatchNorm does the same for GPUs alone, and makes the host wait for them at every layer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def joint_statistics(model: nn.Module) -> Iterator[None]:
    """While the block runs, each BatchNorm of `model` that trains takes its statistics over the images of all workers.

    The modules stay those of one process: copies made of them, and what is saved, know nothing of the others.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.forward = partial(_normalized, norm)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _normalized(norm: _BatchNorm, x: Tensor) -> Tensor:
    """What `norm` makes of x (N, C, ...), this worker's images."""
    if not norm.training:
        return type(norm).forward(norm, x)
    mean, variance, count = _statistics(x)
    if norm.track_running_stats:
        _remember(norm, mean, variance * (count / (count - 1)))
    return cast(Tensor, _JointNorm.apply(x, norm.weight, norm.bias, mean, variance, count, norm.eps))


@torch.no_grad()
def _statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and variance (C each) of each channel over all workers, and the number of values () of a channel."""
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(exact, _all_but_channels(x), correction=0)
    own = torch.cat((mean, variance, mean.new_full((1,), x.numel() // x.shape[1])))
    found = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(found, own)
    means, variances, counts = torch.stack(found).split((x.shape[1], x.shape[1], 1), 1)
    count = counts.sum()
    mean = (counts * means).sum(0) / count
    # not E[x^2] - E[x]^2, which cancels (Chan, Golub and LeVeque, 1983)
    variance = (counts * (variances + (means - mean).square())).sum(0) / count
    return mean, variance, count


@torch.no_grad()
def _remember(norm: _BatchNorm, mean: Tensor, unbiased: Tensor) -> None:
    """Take the batch's statistics into the running ones, as `_BatchNorm.forward` does."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    # without momentum: the plain mean over batches
    weight = 1 / norm.num_batches_tracked.to(norm.running_mean) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean), weight)
    norm.running_var.lerp_(unbiased.to(norm.running_var), weight)


class _JointNorm(torch.autograd.Function):
    """y = (x - mean) / sqrt(variance + eps) * weight + bias, with mean and variance functions of all workers' x.

    dL/dx = weight / sigma * (dy - sum(dy) / n - x_hat * sum(dy x_hat) / n), the sums over all workers; the gradients of
    weight and bias are this worker's parts, which are averaged with those of all other parameters.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        count: Tensor,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt(), count)
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors
        shape = (1, -1, *[1] * (x.ndim - 2))
        dy = grads[0].to(mean)
        x_hat = (x.to(mean) - mean.view(shape)) * scale.view(shape)
        axes = _all_but_channels(x)
        sums = torch.stack((dy.sum(axes), (dy * x_hat).sum(axes)))
        dbias, dweight = sums.clone()
        dist.all_reduce(sums)
        of_dy, of_dy_x_hat = (sums / count).view(2, *shape)
        slope = scale if weight is None else scale * weight
        dx = (dy - of_dy - x_hat * of_dy_x_hat) * slope.view(shape)
        own = (None, None) if weight is None else (dweight.to(weight), dbias.to(weight))
        return dx.to(x), *own, None, None, None, None


def _all_but_channels(x: Tensor) -> list[int]:
    return [0, *range(2, x.ndim)]
