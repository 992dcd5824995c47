"""A digest of a whole file inside the file itself: one changed byte is found when it is read.

It stands in the metadata as `rankfront-sha256:<64 digits>` and is that of the file's bytes with zeros in its place. It finds
damage, not forgery.
"""

import hashlib
import re

_MARK = b"rankfront-sha256:"
UNSEALED = (_MARK + b"0" * 64).decode()
_DIGEST = re.compile(_MARK + rb"[0-9a-f]{64}")


def seal(content: bytes) -> bytes:
    """Put the digest in the place of the one UNSEALED in `content`."""
    assert content.count(UNSEALED.encode()) == 1
    return content.replace(UNSEALED.encode(), _digest(content))


def is_intact(content: bytes) -> bool:
    """Whether `content` holds one digest, and it is its own."""
    found = set(_DIGEST.findall(content))
    if len(found) != 1:
        return False
    (digest,) = found
    return bool(_digest(content.replace(digest, UNSEALED.encode())) == digest)


def _digest(unsealed: bytes) -> bytes:
    return _MARK + hashlib.sha256(unsealed).hexdigest().encode()
