"""Batches from a resident uint8 set: shuffled, augmented by vectorised operations and normalised, on the data's device."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.data import ImageData


def training_batches(
    data: ImageData, batch_size: int, augmentation: str, generator: torch.Generator, dtype: torch.dtype
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one epoch of (images (B, C, H, W) normalised, labels (B)); every number drawn comes from `generator`.

    A last batch that is not full is left out (its BatchNorm statistics would differ), unless it is the only one.
    """
    rows = data.train_rows
    order = torch.randperm(len(rows), generator=generator).to(rows.device)
    for batch in order.split(batch_size):
        if len(batch) < min(batch_size, len(rows)):
            return
        index = rows[batch]
        images = augment(data.images[index], augmentation, generator)
        yield normalize(images, data, dtype), data.labels[index]


def evaluation_batches(data: ImageData, batch_size: int, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (images, labels) of the validation rows in order, normalised, the last batch included."""
    for index in data.validation_rows.split(batch_size):
        yield normalize(data.images[index], data, dtype), data.labels[index]


def normalize(images: Tensor, data: ImageData, dtype: torch.dtype) -> Tensor:
    """Return uint8 images (B, C, H, W) as (x / 255 - mean) / std, channels last in memory."""
    like = {"device": images.device, "dtype": dtype}
    mean, std = (torch.tensor(values, **like).reshape(1, -1, 1, 1) for values in (data.mean, data.std))  # type: ignore[arg-type]
    x = images.to(dtype=dtype, memory_format=torch.channels_last)
    return (x - 255 * mean) / (255 * std)


def augment(images: Tensor, augmentation: str, generator: torch.Generator) -> Tensor:
    """Return uint8 images (B, C, H, W) shifted by up to an eighth of a side (`crop`), mirrored (`flip`), or both."""
    if "crop" in augmentation:
        images = _random_shift(images, generator)
    if "flip" in augmentation:
        mirrored = torch.rand(len(images), generator=generator).to(images.device) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    return images


def _random_shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Zero-pad by an eighth of each side and cut the old size out at a random place, one gather for the whole batch."""
    count, _, height, width = images.shape
    pad_h, pad_w = max(1, height // 8), max(1, width // 8)
    padded = F.pad(images, (pad_w, pad_w, pad_h, pad_h))
    top = torch.randint(2 * pad_h + 1, (count, 1), generator=generator)
    left = torch.randint(2 * pad_w + 1, (count, 1), generator=generator)
    rows = (top + torch.arange(height)).to(images.device)[:, :, None]
    columns = (left + torch.arange(width)).to(images.device)[:, None, :]
    sample = torch.arange(count, device=images.device)[:, None, None]
    return padded[sample, :, rows, columns].permute(0, 3, 1, 2)  # gathered as (B, H, W, C)
