"""A mark, a JSON header and byte strings in one: how both kinds of artifact are written."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_LENGTH = struct.Struct("<Q")


def joined(mark: bytes, header: Mapping[str, Any], parts: Iterable[bytes | memoryview]) -> bytes:
    """Return them as one; the header must tell the sizes of the parts."""
    text = json.dumps(header).encode()
    return b"".join([mark, _LENGTH.pack(len(text)), text, *parts])


def opened(mark: bytes, data: bytes | memoryview, what: str) -> tuple[Any, memoryview]:
    """Return the header, and the parts that follow it, not cut yet.

    Raises:
        ValueError: the bytes are no `what`.
    """
    view = memoryview(data)
    start = len(mark) + _LENGTH.size
    if bytes(view[: len(mark)]) != mark or len(view) < start:
        raise ValueError(f"the bytes are no {what}")
    (length,) = _LENGTH.unpack(view[len(mark) : start])
    return json.loads(bytes(view[start : start + length])), view[start + length :]


def cut(parts: memoryview, sizes: Sequence[int]) -> list[memoryview]:
    """Return the parts one by one.

    Raises:
        ValueError: they are not as long as their sizes together.
    """
    if sum(sizes) != len(parts) or min(sizes, default=0) < 0:
        raise ValueError(f"the parts have {len(parts)} bytes, their header says {sum(sizes)}")
    found, at = [], 0
    for size in sizes:
        found.append(parts[at : at + size])
        at += size
    return found
