"""Several named texts in one payload; each is found without reading the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from intarsia.cache.entry import Entry


def pack_sections(named: Mapping[str, bytes]) -> tuple[bytes, dict[str, list[int]]]:
    """Return one payload, and name -> [start, length]."""
    places: dict[str, list[int]] = {}
    start = 0
    for name, data in named.items():
        places[name] = [start, len(data)]
        start += len(data)
    return b"".join(named.values()), places


def section(entry: Entry, name: str) -> bytes:
    """Return one part of an entry's payload.

    Raises:
        KeyError: the entry has no such part.
    """
    places: Mapping[str, Any] = entry.meta["sections"]
    start, length = places[name]
    return bytes(entry.payload[start : start + length])
