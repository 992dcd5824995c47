"""Images that users bring in files: parquet as Hugging Face data sets lay it out, and one folder per class."""

import io
import json
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainers.config import DataConfig
from trainers.errors import DataError

# no format whose decoder starts another program, as that of EPS starts Ghostscript
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM", "TIFF", "GIF")
_MAX_CLASSES = 100_000
_MAX_PIXELS = 2**28  # of one image, resized
_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}


@dataclass(frozen=True)
class RawImages:
    """One split: images (N, C, H, W) uint8, labels (N) int64 in 0..len(class_names) - 1."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]


def read_parquet(config: DataConfig, split: str) -> RawImages:
    """Read `<root>/<split>*.parquet` or `<root>/data/<split>-*.parquet`.

    The image column is a struct {bytes, path} of encoded images, the label column an integer; class names come from the
    schema metadata `huggingface` where it is there. Images must have one size, or `image_size` must be set.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = parquet_files(config, split)
    try:
        table = pa.concat_tables([pq.read_table(file, page_checksum_verification=True) for file in files])
        table.validate(full=True)
    except Exception as error:  # of a damaged file Arrow raises more than its own errors
        raise DataError(f"{files[0].parent} must hold readable parquet files of one schema, but: {error}") from error
    image_column, label_column = _columns(table.schema, files[0])
    if table[label_column].null_count:
        raise DataError(f"each image of {files[0]} must have a label, but {table[label_column].null_count} have none")
    labels = table[label_column].to_numpy().astype(np.int64)
    encoded = (value.as_py() for chunk in table[image_column].chunks for value in chunk.field("bytes"))
    images = _decode(encoded, len(labels), config.image_size, str(files[0]))
    return RawImages(images, labels, _class_names(table.schema, label_column, labels, files[0]))


def read_imagefolder(config: DataConfig, split: str) -> RawImages:
    """Read `<root>/<split>/<class>/<image>`, resized to `image_size` squared (shorter side, then centre crop), RGB."""
    folder = data_root(config) / split
    names = class_folders(config, split)
    found = [
        (path, label)
        for label, name in enumerate(names)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in _IMAGE_SUFFIXES and path.is_file()
    ]
    labels = np.array([label for _, label in found], dtype=np.int64)
    empty = sorted(set(range(len(names))) - set(labels.tolist()))
    if empty:
        raise DataError(f"every class folder must hold images, but {str(folder / names[empty[0]])!r} has none")
    images = _decode((path.read_bytes() for path, _ in found), len(found), config.image_size, str(folder), mode="RGB")
    return RawImages(images, labels, tuple(names))


def parquet_files(config: DataConfig, split: str) -> list[Path]:
    """Return the files of a split in order; raises DataError where there are none."""
    root = data_root(config)
    patterns = (f"{split}*.parquet", f"data/{split}-*.parquet")
    found = ([path for path in sorted(root.glob(pattern)) if path.is_file()] for pattern in patterns)
    files = next(filter(None, found), [])
    if not files:
        raise DataError(f"data.root={str(root)!r} must hold {split}.parquet or data/{split}-*.parquet, but has neither")
    return files


def schema_class_names(config: DataConfig, split: str) -> list[str]:
    """Return the class names that a parquet split's metadata give, in order; none where they give none."""
    import pyarrow.parquet as pq

    file = parquet_files(config, split)[0]
    try:
        schema = pq.read_schema(file)
    except Exception as error:  # of a damaged file Arrow raises more than its own errors
        raise DataError(f"{file} must be a readable parquet file, but: {error}") from error
    return _named_classes(schema, _columns(schema, file)[1], file)


def data_root(config: DataConfig) -> Path:
    """Return the folder that `data.root` names; raises DataError where it begins with the name of no user."""
    try:
        return Path(config.root).expanduser()
    except RuntimeError as error:
        raise DataError(
            f"data.root must begin with ~/ or the name of a user, but is {config.root!r}: {error}"
        ) from error


def class_folders(config: DataConfig, split: str) -> list[str]:
    """Return the names of a split's class folders in order; raises DataError where there are none."""
    folder = data_root(config) / split
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
    if not names:
        raise DataError(f"data.root must hold {split}/<class>/<image>, but {str(folder)!r} has no class folders")
    return names


def _columns(schema: Any, file: Path) -> tuple[str, str]:
    from pyarrow import types

    images = [field.name for field in schema if types.is_struct(field.type) and _is_binary(field.type, types)]
    labels = [field.name for field in schema if types.is_integer(field.type)]
    labels = [name for name in labels if name in ("label", "labels")] or labels
    if len(images) != 1 or len(labels) != 1:
        raise DataError(
            f"{file} must have one image column (struct with bytes) and one integer label column, named label if there "
            f"are several, but has images {images} and labels {labels}"
        )
    return images[0], labels[0]


def _is_binary(struct: Any, types: Any) -> bool:
    place = struct.get_field_index("bytes")
    return place >= 0 and bool(types.is_binary(struct[place].type) or types.is_large_binary(struct[place].type))


def _named_classes(schema: Any, column: str, file: Path) -> list[str]:
    try:
        known = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = known.get("info", {}).get("features", {}).get(column, {}).get("names") or []
    except (ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"the metadata `huggingface` of {file} must be those of a data set, but: {error}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(
            f"the metadata `huggingface` of {file} must name classes by a list of words, but by {names!r:.100}"
        )
    return names


def _class_names(schema: Any, column: str, labels: NDArray[np.int64], file: Path) -> tuple[str, ...]:
    if labels.max() >= _MAX_CLASSES:
        raise DataError(f"labels must be classes, below {_MAX_CLASSES:,}, but {file} has {labels.max()}")
    names = _named_classes(schema, column, file) or [str(label) for label in range(int(labels.max()) + 1)]
    if labels.min() < 0 or labels.max() >= len(names):
        raise DataError(
            f"labels must lie in 0..{len(names) - 1}, but {file} has {labels.min()}..{labels.max()}; drop unlabelled rows"
        )
    return tuple(names)


def _decode(
    encoded: Iterable[bytes | None], count: int, size: int | None, source: str, mode: str | None = None
) -> NDArray[np.uint8]:
    """Decode `count` images into one array (N, C, H, W), sized by the first one; grey stays grey unless `mode` is set."""
    images: NDArray[np.uint8] | None = None
    for row, picture in enumerate(_pictures(encoded, size, source, mode)):
        if images is None:
            mode = mode or picture.mode
            shape = (count, len(picture.getbands()), picture.height, picture.width)
            _check_memory(shape, source)
            images = np.empty(shape, dtype=np.uint8)
        if (picture.height, picture.width) != images.shape[2:]:
            raise DataError(
                f"images must have one size, but number {row} of {source} is {picture.width} x {picture.height} and the "
                f"first {images.shape[3]} x {images.shape[2]}; set data.image_size"
            )
        if mode == "L" and picture.mode != "L":
            raise DataError(f"images must all be grey or all coloured, but number {row} of {source} is {picture.mode}")
        pixels = np.asarray(picture if picture.mode == mode else picture.convert(mode))
        images[row] = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    if images is None:
        raise DataError(f"{source} must hold at least one image, but is empty")
    return images


def _pictures(
    encoded: Iterable[bytes | None], size: int | None, source: str, mode: str | None
) -> Iterator[Image.Image]:
    for row, data in enumerate(encoded):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                picture: Image.Image = Image.open(io.BytesIO(data or b""), formats=_FORMATS)
            picture.load()
            if picture.mode != "L" or mode:
                picture = picture.convert(mode or "RGB")
        except Exception as error:  # of a damaged image Pillow's decoders raise whatever they meet
            raise DataError(
                f"image number {row} of {source} cannot be decoded: {error}; remove or replace it"
            ) from error
        yield _resized(picture, size, f"number {row} of {source}") if size else picture


def _resized(picture: Image.Image, size: int, name: str) -> Image.Image:
    scale = size / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    if width * height > _MAX_PIXELS:
        raise DataError(
            f"an image must have at most {_MAX_PIXELS:,} pixels when it is resized, but {name}, {picture.width} x "
            f"{picture.height}, has {width * height:,}; lower data.image_size, or remove it"
        )
    left, top = (width - size) // 2, (height - size) // 2
    resized = picture.resize((width, height), Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + size, top + size))


def _check_memory(shape: tuple[int, ...], source: str) -> None:
    """The whole set is kept in memory: refuse one that would fill most of it."""
    needed = int(np.prod(shape, dtype=np.int64))
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > 0.6 * total:
        raise DataError(
            f"the decoded images must fit into 60 % of memory ({0.6 * total / 2**30:.0f} GiB), but {source} needs "
            f"{needed / 2**30:.0f} GiB; lower data.image_size"
        )
