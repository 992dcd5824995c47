"""Zip archives as torch writes them, looked through before anything in them is read or decoded."""

import zipfile
from pathlib import Path
from typing import BinaryIO


def require_whole(file: Path | BinaryIO) -> None:
    """Raise zipfile.BadZipFile unless every part is stored as it is, once, with the checksum that fits.

    torch compresses nothing, so that parts together are never larger than the archive: one in which they are would fill the
    memory. `torch.load` does not look at checksums: a tensor with a changed byte would be another tensor.
    """
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
        assert archive.fp is not None
        size = archive.fp.seek(0, 2)
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts) or sum(p.file_size for p in parts) > size:
            raise zipfile.BadZipFile("its parts must be stored as they are, but are compressed or overlap")
        if len({part.filename for part in parts}) < len(parts):
            raise zipfile.BadZipFile("each of its parts must have a name of its own, but two share one")
        if (damaged := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"the checksum of {damaged!r} does not fit")
