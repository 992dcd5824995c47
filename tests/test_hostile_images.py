"""Images and tables of them that nobody should have written: each is refused by one clear error, or read."""

import io
import os
import struct
import zlib
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile import mutations
from PIL import Image

from trainers.config import DataConfig
from trainers.data import load_train_validation
from trainers.errors import DataError


class TestImages:
    def png(self, mode="L", size=(8, 8)):
        file = io.BytesIO()
        Image.fromarray(np.arange(size[0] * size[1], dtype=np.uint8).reshape(size)).convert(mode).save(file, "PNG")
        return file.getvalue()

    def parquet(self, folder, images, labels, metadata=None, kind=None):
        kind = kind or pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        rows = pa.array([{"bytes": image, "path": "x"} for image in images], kind)
        table = pa.table({"image": rows, "label": labels}).replace_schema_metadata(metadata)
        for split in ("train", "test"):
            pq.write_table(table, folder / f"{split}.parquet", write_page_checksum=True)

    def read(self, folder, **changes):
        return load_train_validation(DataConfig("parquet", root=str(folder), **changes))

    def test_damaged_tables_and_images_are_refused_or_read(self, tmp_path):
        self.parquet(tmp_path, [self.png()] * 20, pa.array([i % 3 for i in range(20)]))
        content = (tmp_path / "train.parquet").read_bytes()
        for damaged in mutations(content, 100):
            (tmp_path / "train.parquet").write_bytes(damaged)
            with suppress(DataError):
                assert self.read(tmp_path).sample_shape == (1, 8, 8)

    @pytest.mark.parametrize("format_", ["PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF", "PPM"])
    def test_damaged_images_are_refused_or_read(self, tmp_path, format_):
        file = io.BytesIO()
        Image.open(io.BytesIO(self.png("RGB"))).save(file, format_)
        for damaged in mutations(file.getvalue(), 30):
            self.parquet(tmp_path, [damaged] * 2, pa.array([0, 1]))
            with suppress(DataError):
                assert self.read(tmp_path, validation_fraction=0.5, image_size=4).sample_shape[1:] == (4, 4)

    @pytest.mark.parametrize(
        ("labels", "metadata", "message"),
        [
            ([0, None], None, "must have a label"),
            ([0, 2**40], None, "below 100,000"),
            ([0, -1], None, "must lie in"),
            ([0, 1], {"huggingface": "{"}, "must be those of a data set"),
            ([0, 1], {"huggingface": "[1]"}, "must be those of a data set"),
            ([0, 1], {"huggingface": '{"info": {"features": {"label": {"names": 3}}}}'}, "by a list of words"),
            ([0, 1], {"huggingface": '{"info": {"features": {"label": {"names": [1, 2]}}}}'}, "by a list of words"),
        ],
    )
    def test_labels_that_cannot_be(self, tmp_path, labels, metadata, message):
        self.parquet(tmp_path, [self.png()] * 2, pa.array(labels, pa.int64()), metadata)
        with pytest.raises(DataError, match=message):
            self.read(tmp_path, validation_fraction=0.5)

    @pytest.mark.parametrize("kind", [pa.string(), pa.int64(), pa.list_(pa.int64())])
    def test_bytes_that_are_none(self, tmp_path, kind):
        self.parquet(tmp_path, [None, None], pa.array([0, 1]), kind=pa.struct([("bytes", kind), ("path", pa.string())]))
        with pytest.raises(DataError, match="must have one image column"):
            self.read(tmp_path)

    def test_no_image_starts_another_program(self, tmp_path, monkeypatch):
        """Pillow gives PostScript to Ghostscript."""
        program = tmp_path / "gs"
        program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        page = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
        self.parquet(tmp_path, [page] * 2, pa.array([0, 1]))
        with pytest.raises(DataError, match="cannot be decoded"):
            self.read(tmp_path, validation_fraction=0.5)
        assert not (tmp_path / "started").exists()

    def test_sizes_that_would_fill_the_memory(self, tmp_path):
        self.parquet(tmp_path, [self.png()] * 2, pa.array([0, 1]))
        with pytest.raises(DataError, match="pixels when it is resized"):
            self.read(tmp_path, image_size=10**6)
        chunks = [
            (b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)),
            (b"IDAT", zlib.compress(b"")),
            (b"IEND", b""),
        ]
        bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )
        self.parquet(tmp_path, [bomb] * 2, pa.array([0, 1]))
        with pytest.raises(DataError, match="decompression bomb"):
            self.read(tmp_path)

    def test_folders_with_other_things_in_them(self, tmp_path):
        for split in ("train", "test"):
            for name in ("a", "b"):
                folder = tmp_path / split / name
                folder.mkdir(parents=True)
                (folder / "1.png").write_bytes(self.png())
                os.mkfifo(folder / "2.png")
                (folder / "3.png").mkdir()
                (folder / "4.png").symlink_to(folder / "nowhere")
        found = load_train_validation(
            DataConfig("imagefolder", root=str(tmp_path), image_size=4, validation_fraction=0.5)
        )
        assert len(found.labels) == 2
        os.mkfifo(tmp_path / "train.parquet")
        with pytest.raises(DataError, match="has neither"):
            self.read(tmp_path)
