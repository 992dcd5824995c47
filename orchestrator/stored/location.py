"""A folder under a URL, through pyarrow's file systems. Credentials come from the environment alone."""

import hashlib
import io
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

from orchestrator.tracking.target import concealed, redacted
from trainers.atomic import atomic_file
from trainers.errors import StorageError, SweepError
from trainers.rules import is_printable

_CREDENTIALS = {
    "file": "that the folder can be written",
    "s3": "the bucket's name, the network, and the credentials in the environment (AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the machine's role)",
    "gs": "the bucket's name, the network, and the credentials in the environment (GOOGLE_APPLICATION_CREDENTIALS, or the "
    "machine's service account)",
}
# small objects in one request instead of three; minutes instead of a quarter of an hour without a network
_OPTIONS = {"file": "", "s3": "allow_delayed_open=true", "gs": "retry_limit_seconds=15"}
_CHUNK_BYTES = 8 * 2**20
_PARTIAL = ".partial"
_TRIES, _FIRST_WAIT_S = 4, 1.0
_LONGEST_REASON = 300

T = TypeVar("T")


def is_url(text: str) -> bool:
    """Whether a text names a place by a URL and not by a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", text) is not None


@dataclass(frozen=True)
class Location:
    """The folder that a URL names; what is in it goes by relative paths. Every failure is a StorageError in words."""

    url: str

    @classmethod
    def of(cls, url: str) -> "Location":
        """Return the location, which is not looked at yet; raises SweepError for a URL that breaks a rule."""
        scheme, _, rest = url.partition("://")
        shown = redacted(url)
        if scheme not in _OPTIONS:
            raise SweepError(f"the URL of an output must begin with file://, s3:// or gs://, but is {shown!r:.200}")
        authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
        if "@" in rest.partition("?")[0] and not (scheme == "gs" and authority.startswith("anonymous@")):
            raise SweepError(
                f"the URL of an output must hold no user name and no key, but that for {shown!r:.200} does; set them in the "
                "environment, which is read by itself"
            )
        found = cls(url)
        path = rest.partition("?")[0]
        parts = path.split("/")[1:]
        if (
            not is_printable(url) or not url.isascii() or "#" in url or ".." in parts or "." in parts
            or (scheme == "file" and (authority or "?" in url))
            or (scheme != "file" and not authority) or not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", found.name)
        ):  # fmt: skip
            example = "file:///folder/name" if scheme == "file" else f"{scheme}://bucket/folder/name"
            raise SweepError(
                f"the URL of an output must be like {example}, its last part a name of letters, digits, '-', '_' and '.', "
                f"but is {shown!r:.200}"
            )
        return found

    @property
    def scheme(self) -> str:
        """How the URL begins: file, s3 or gs."""
        return self.url.partition("://")[0]

    @property
    def name(self) -> str:
        """The last part of its path."""
        path = urlsplit(self.url).path.rstrip("/") if self.url.isascii() else ""
        return path.rpartition("/")[2]

    @property
    def place(self) -> str:
        """The URL without its query: how one gets there may change, where it is may not."""
        return self.url.partition("?")[0].rstrip("/")

    def __str__(self) -> str:
        return self.place

    @cached_property
    def _root(self) -> tuple[Any, str]:
        from pyarrow.fs import FileSystem

        url, option = self.url.rstrip("/"), _OPTIONS[self.scheme]
        if option and option.partition("=")[0] not in url:
            url += ("&" if "?" in url else "?") + option
        filesystem, root = FileSystem.from_uri(url)
        return filesystem, root.rstrip("/")

    def chunks(self, path: str) -> Iterator[bytes]:
        """Yield an object's content; raises FileNotFoundError where there is none."""
        with self._in_words():
            stream = self._opened(path)
        if stream is None:
            raise FileNotFoundError(f"{self}/{path}")
        with stream:
            while chunk := self._next(stream):
                yield chunk

    def read(self, path: str) -> bytes | None:
        """Return an object's content, None where there is none."""
        with self._in_words():
            stream = self._opened(path)
            if stream is None:
                return None
            with stream:
                return bytes(stream.read())

    def download(self, path: str, target: Path) -> bool:
        """Copy an object into a file, whole or not at all; returns whether there was one."""
        with self._in_words():
            stream = self._opened(path)
        if stream is None:
            return False
        with stream, atomic_file(target) as file:
            while chunk := self._next(stream):
                file.write(chunk)
        return True

    def _opened(self, path: str) -> Any:
        filesystem, root = self._root
        try:
            return filesystem.open_input_stream(f"{root}/{path}")
        except FileNotFoundError:
            return None

    def _next(self, stream: Any) -> bytes:
        with self._in_words():
            return bytes(stream.read(_CHUNK_BYTES))

    def write(self, path: str, content: "bytes | Path", tick: Callable[[], None] = lambda: None) -> tuple[int, str]:
        """Put an object, or replace it, from bytes or a file; returns its size in bytes and its SHA-256.

        `tick` is called after each few megabytes and must not raise. Readers see the old object or the new one; raises
        FileNotFoundError where the file is gone.
        """
        digest, size = hashlib.sha256(), 0
        file: BinaryIO = io.BytesIO(content) if isinstance(content, bytes) else content.open("rb")
        with file, self._in_words():
            filesystem, root = self._root
            target = f"{root}/{path}"
            local = self.scheme == "file"
            if local:
                filesystem.create_dir(target.rpartition("/")[0], recursive=True)
            with filesystem.open_output_stream(target + (_PARTIAL if local else "")) as stream:
                while chunk := file.read(_CHUNK_BYTES):
                    stream.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
                    tick()
            if local:
                filesystem.move(target + _PARTIAL, target)
        return size, digest.hexdigest()

    def delete(self, path: str) -> None:
        """Remove an object, if it is there."""
        with self._in_words():
            filesystem, root = self._root
            try:
                filesystem.delete_file(f"{root}/{path}")
            except FileNotFoundError:
                return

    def size(self, path: str) -> int | None:
        """Return an object's size in bytes, None where there is none."""
        with self._in_words():
            filesystem, root = self._root
            info = filesystem.get_file_info(f"{root}/{path}")
            return int(info.size) if info.is_file else None

    def age_s(self, path: str) -> float:
        """Return how long ago an object was written, by the clocks of the storage and of this machine."""
        with self._in_words():
            filesystem, root = self._root
            written_ns = filesystem.get_file_info(f"{root}/{path}").mtime_ns
            return 0.0 if written_ns is None else time.time() - written_ns / 1e9

    def files(self) -> list[str]:
        """Return the paths of all objects whose names do not begin with a dot."""
        from pyarrow.fs import FileSelector

        with self._in_words():
            filesystem, root = self._root
            found = filesystem.get_file_info(FileSelector(root, recursive=True, allow_not_found=True))
        paths = [info.path.removeprefix(root).lstrip("/") for info in found if info.is_file]
        return sorted(
            path for path in paths if not path.rpartition("/")[2].startswith(".") and not path.endswith(_PARTIAL)
        )

    def try_out(self) -> None:
        """Write, read and remove an object."""
        path, content = f".rankfront-try-{uuid.uuid4().hex[:8]}", b"rankfront"
        self.write(path, content)
        if self.read(path) != content:
            raise StorageError(f"{self} must give back what is written there, but does not; use another --output")
        self.delete(path)

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        from pyarrow.lib import ArrowException

        try:
            yield
        except (OSError, ArrowException) as error:
            reason = concealed(str(error).split("\n")[0], self.url)[:_LONGEST_REASON]
            raise StorageError(
                f"{self} must be reachable and writable, but: {reason}; check {_CREDENTIALS[self.scheme]}"
            ) from error


def retried(call: Callable[[], T], wait: Callable[[float], Any] = time.sleep) -> T:
    """Return what `call` returns; a StorageError is raised after a few tries, each after a longer wait."""
    for attempt in range(_TRIES - 1):
        try:
            return call()
        except StorageError:
            wait(_FIRST_WAIT_S * 2**attempt)
    return call()
