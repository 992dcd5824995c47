"""Batches from a resident uint8 set: shuffled, augmented by vectorised operations and normalised, on the data's device.

An epoch's random numbers are drawn on the CPU, so that every device sees the same batches, and cross to the device
together when it starts: a copy per batch would make the host wait for a GPU.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.data import ImageData


@dataclass(frozen=True)
class Share:
    """The part of each batch that falls to one of `count` workers, the one with number `rank` from 0.

    Parts differ by at most one image, the first ones being larger, and together are the batch.
    """

    rank: int = 0
    count: int = 1

    def of(self, size: int) -> slice:
        """Return the places in a batch of `size` images."""
        each, larger = divmod(size, self.count)
        first = self.rank * each + min(self.rank, larger)
        return slice(first, first + each + (self.rank < larger))


def training_batches(
    data: ImageData,
    batch_size: int,
    augmentation: str,
    generator: torch.Generator,
    dtype: torch.dtype,
    share: Share = Share(),
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one epoch of (images (B, C, H, W) normalised, labels (B)); every number drawn comes from `generator`.

    `augmentation`: images are shifted by up to an eighth of a side (`crop`), mirrored (`flip`), both (`crop_flip`), or
    neither (`none`).

    A last batch that is not full is left out (its BatchNorm statistics would differ), unless it is the only one. Of each
    batch `share` is yielded: the images, and what is drawn for each, are those of the whole.
    """
    rows = data.train_rows
    device, size = rows.device, min(batch_size, len(rows))
    order = torch.randperm(len(rows), generator=generator).to(device)
    num_batches = len(rows) // size
    draws = [_draw(size, data.sample_shape, augmentation, generator) for _ in range(num_batches)]
    drawn = torch.stack(draws).to(device)
    scale, part = _normalization(data, device, dtype), share.of(size)
    for batch, numbers in zip(order.split(size), drawn, strict=False):  # without a last batch that is not full
        index = rows[batch[part]]
        images = _augmented(data.images[index], augmentation, numbers[:, part])
        yield _normalized(images, *scale), data.labels[index]


def evaluation_batches(data: ImageData, batch_size: int, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (images, labels) of the validation rows in order, normalised, the last batch included."""
    scale = _normalization(data, data.images.device, dtype)
    for index in data.validation_rows.split(batch_size):
        yield _normalized(data.images[index], *scale), data.labels[index]


def normalize(images: Tensor, data: ImageData, dtype: torch.dtype) -> Tensor:
    """Return uint8 images (B, C, H, W) as (x / 255 - mean) / std, channels last in memory."""
    return _normalized(images, *_normalization(data, images.device, dtype))


def _normalization(data: ImageData, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """255 times mean and standard deviation, each (1, C, 1, 1)."""
    mean, std = (
        torch.tensor(values, device=device, dtype=dtype).reshape(1, -1, 1, 1) for values in (data.mean, data.std)
    )
    return 255 * mean, 255 * std


def _normalized(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return (images.to(dtype=mean.dtype, memory_format=torch.channels_last) - mean) / std


def _draw(count: int, shape: tuple[int, ...], augmentation: str, generator: torch.Generator) -> Tensor:
    """Return what augmenting `count` images takes, (3, count) int64: the window's top and left, and 1 for mirrored."""
    drawn = torch.zeros(3, count, dtype=torch.int64)
    if "crop" in augmentation:
        for place, pad in enumerate(_pads(shape)):
            drawn[place] = torch.randint(2 * pad + 1, (count, 1), generator=generator)[:, 0]
    if "flip" in augmentation:
        drawn[2] = torch.rand(count, generator=generator) < 0.5
    return drawn


def _pads(shape: tuple[int, ...]) -> tuple[int, int]:
    """An eighth of height and width."""
    return max(1, shape[1] // 8), max(1, shape[2] // 8)


def _augmented(images: Tensor, augmentation: str, drawn: Tensor) -> Tensor:
    top, left, mirrored = drawn
    if "crop" in augmentation:
        images = _shifted(images, top, left)
    if "flip" in augmentation:
        images = torch.where(mirrored.bool()[:, None, None, None], images.flip(3), images)
    return images


def _shifted(images: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """Zero-pad by an eighth of each side and cut the old size out at (top, left), one gather for the whole batch."""
    count, _, height, width = images.shape
    pad_h, pad_w = _pads(images.shape[1:])
    padded = F.pad(images, (pad_w, pad_w, pad_h, pad_h))
    sample, row, column = (torch.arange(n, device=images.device) for n in (count, height, width))
    rows, columns = top[:, None, None] + row[:, None], left[:, None, None] + column
    return padded[sample[:, None, None], :, rows, columns].permute(0, 3, 1, 2)  # gathered as (B, H, W, C)
