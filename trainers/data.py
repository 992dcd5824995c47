"""Image sets, decoded once into one uint8 tensor, with a fixed and seeded train/validation split.

The test split is loaded by `load_test` alone, so that training code cannot see it. To add a set: write a function
(DataConfig, "train" or "test") -> RawImages and enter it in DATASETS.
"""

import hashlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainers.config import DataConfig
from trainers.errors import DataError
from trainers.image_files import (
    RawImages,
    class_folders,
    data_root,
    read_imagefolder,
    read_parquet,
    schema_class_names,
)

Split = Literal["train", "test"]


@dataclass(frozen=True)
class ImageData:
    """Images (N, C, H, W) uint8 and labels (N) int64, with the rows used for training and for validation.

    `mean` and `std` (C) are those of the training rows, in units of 0..1. Never write into `images`: several processes
    may share its memory.
    """

    images: Tensor
    labels: Tensor
    train_rows: Tensor
    validation_rows: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, c, h, w = self.images.shape
        return c, h, w

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def digest(self) -> str:
        """Return a fingerprint of labels, split and normalisation (which sums up the training pixels)."""
        parts = [getattr(self, name).cpu().numpy().tobytes() for name in ("labels", "train_rows", "validation_rows")]
        return hashlib.sha256(b"".join([*parts, repr((self.mean, self.std)).encode()])).hexdigest()[:16]

    def fingerprints(self) -> dict[str, str]:
        """Return one digest each of "images", "labels" and "split": of every pixel and row, the validation rows' too."""
        parts = {"images": ["images"], "labels": ["labels"], "split": ["train_rows", "validation_rows"]}
        digests = {}
        for part, names in parts.items():
            digest = hashlib.sha256()
            for name in names:
                array = getattr(self, name).cpu().contiguous().numpy()
                digest.update(repr(array.shape).encode())
                digest.update(array.data)
            digests[part] = digest.hexdigest()[:16]
        return digests

    def to(self, device: torch.device) -> "ImageData":
        """Return the set with its tensors on `device`; on their own device nothing is copied."""
        moved = {name: getattr(self, name).to(device) for name in ("images", "labels", "train_rows", "validation_rows")}
        return replace(self, **moved)

    def arrays(self) -> dict[str, Any]:
        """Return the set as numpy arrays and tuples, which processes can share without copies; `from_arrays` undoes it."""
        tensors = {name: getattr(self, name).numpy() for name in ("images", "labels", "train_rows", "validation_rows")}
        return {**tensors, "mean": self.mean, "std": self.std, "class_names": self.class_names}

    @staticmethod
    def from_arrays(arrays: dict[str, Any]) -> "ImageData":
        """Return the set that `arrays` came from, on the same memory."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            tensors: dict[str, Any] = {
                key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
                for key, value in arrays.items()
            }
        return ImageData(**tensors)


def spread_rows(rows: Tensor, count: int) -> Tensor:
    """Return at most `count` of the rows (N,), evenly spread: files may be sorted by class."""
    places = torch.linspace(0, len(rows) - 1, min(len(rows), count), dtype=torch.float64).round().long()
    return rows[places.to(rows.device)]


def load_train_validation(config: DataConfig) -> ImageData:
    """Read the training split and divide it by `validation_fraction` and `split_seed`; the test split is not touched.

    Raises DataError where the set is missing, unreadable, or too small to divide.
    """
    raw = _read(config, "train")
    images, labels = torch.from_numpy(raw.images), torch.from_numpy(raw.labels)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(config.split_seed))
    order = order[: config.max_train]
    num_validation = round(len(order) * config.validation_fraction)
    if not 0 < num_validation < len(order):
        raise DataError(
            f"training and validation rows must both be present, but validation_fraction={config.validation_fraction} "
            f"of {len(order)} images of {config.name!r} gives {num_validation}; change validation_fraction or max_train"
        )
    validation_rows, train_rows = order[:num_validation].sort().values, order[num_validation:].sort().values
    mean, std = _channel_statistics(images, train_rows)
    return ImageData(images, labels, train_rows, validation_rows, mean, std, raw.class_names)


def load_test(config: DataConfig, train: ImageData) -> ImageData:
    """Read the test split, normalised as `train`; all rows are in `validation_rows`, none in `train_rows`.

    Raises DataError where it is missing or its classes or image shape differ from the training split's.
    """
    raw = _read(config, "test")
    rows = torch.arange(len(raw.labels))
    data = replace(
        train,
        images=torch.from_numpy(raw.images),
        labels=torch.from_numpy(raw.labels),
        train_rows=rows[:0],
        validation_rows=rows,
    )
    if data.sample_shape != train.sample_shape:
        raise DataError(
            f"test images must have the training images' shape {train.sample_shape}, not {data.sample_shape}"
        )
    # `[:n]`: without names, classes are numbered up to the highest label that a split happens to have
    if raw.class_names != train.class_names[: len(raw.class_names)]:
        raise DataError(f"the test split of {config.name!r} has other classes than its training split")
    return data


def _read(config: DataConfig, split: Split) -> RawImages:
    with _readable(config):
        return DATASETS[config.name](config, split)


@contextmanager
def _readable(config: DataConfig) -> Iterator[None]:
    """Raise DataError for what the system says of files in the block."""
    try:
        yield
    except OSError as error:
        raise DataError(f"data.root={config.root!r} must be a readable folder, but: {error}") from error


def check_test_split(config: DataConfig) -> None:
    """Raise DataError where the test split's files are missing or name other classes; reads no image and no label.

    The other sets come as a whole: torchvision checks the files of both splits when it reads one.
    """
    names = {"parquet": schema_class_names, "imagefolder": class_folders}.get(config.name)
    if names is not None:
        with _readable(config):
            train, test = names(config, "train"), names(config, "test")
        if train != test:
            raise DataError(f"the test split under {config.root!r} must have the classes {train}, but has {test}")


def _channel_statistics(images: Tensor, rows: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of the given rows, in units of 0..1, summed exactly in integers."""
    total = torch.zeros(images.shape[1], dtype=torch.int64)
    squares = torch.zeros_like(total)
    for block in rows.split(4096):
        values = images[block].to(torch.int32)
        total += values.sum((0, 2, 3))
        squares += values.square().sum((0, 2, 3))
    count = len(rows) * images.shape[2] * images.shape[3]
    mean = total.double() / count
    variance = (squares.double() / count - mean.square()).clamp_min(0)
    std = variance.sqrt().clamp_min(1)  # a constant channel: one grey level, not a division by zero
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


def _digits(config: DataConfig, split: Split) -> RawImages:
    """scikit-learn's 8 x 8 digits (1,797; UCI Optical Recognition of Handwritten Digits): every fifth is a test image."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    is_test = np.arange(len(bunch.target)) % 5 == 4
    rows = is_test if split == "test" else ~is_test
    images = np.round(bunch.images[rows] * (255 / 16)).astype(np.uint8)[:, None]
    return RawImages(images, bunch.target[rows].astype(np.int64), tuple(str(name) for name in bunch.target_names))


def _torchvision(class_name: str) -> Callable[[DataConfig, Split], RawImages]:
    def read(config: DataConfig, split: Split) -> RawImages:
        import torchvision

        root = data_root(config)
        try:
            data = getattr(torchvision.datasets, class_name)(root, train=split == "train", download=config.download)
        except Exception as error:  # of damaged files torchvision's readers raise whatever they meet
            raise DataError(
                f"{class_name} must be readable under data.root={str(root)!r}, but: {error} Set data.download: true to "
                "fetch it, or put torchvision's files there"
            ) from error
        images: NDArray[np.uint8] = np.asarray(data.data)
        images = images[:, None] if images.ndim == 3 else np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        labels, classes = np.asarray(data.targets, dtype=np.int64), tuple(data.classes)
        if len(labels) != len(images) or not len(labels) or labels.min() < 0 or labels.max() >= len(classes):
            raise DataError(
                f"{class_name} under {str(root)!r} must hold one label in 0..{len(classes) - 1} for each image, but has "
                f"{len(images)} images and {len(labels)} labels in {labels.min(initial=0)}..{labels.max(initial=0)}"
            )
        return RawImages(images, labels, classes)

    return read


DATASETS: dict[str, Callable[[DataConfig, Split], RawImages]] = {
    "digits": _digits,
    "mnist": _torchvision("MNIST"),
    "fashion_mnist": _torchvision("FashionMNIST"),
    "cifar10": _torchvision("CIFAR10"),
    "cifar100": _torchvision("CIFAR100"),
    "parquet": read_parquet,
    "imagefolder": read_imagefolder,
}
