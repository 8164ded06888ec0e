"""Keys: what an entry is found by, computed from named factors and from nothing else."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping

from attrs import frozen

__all__ = ["Difference", "check_key", "differences", "is_key", "key_of", "shorten"]

_KEY = re.compile(r"[0-9a-f]{16,128}")
_SHOWN = 48
"""Characters of a factor's value that a message shows."""


@frozen
class Difference:
    """One factor that two entries do not share; None where one of them lacks it."""

    name: str
    ours: str | None
    theirs: str | None

    def __str__(self) -> str:
        return f"{self.name} is {shorten(self.ours)} here and {shorten(self.theirs)} there"


def key_of(kind: str, factors: Mapping[str, str]) -> str:
    """Return the key of the entry with these factors: 64 hexadecimal digits.

    The order of the factors does not matter, everything else does.
    """
    text = json.dumps([kind, sorted(factors.items())], separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def is_key(text: str) -> bool:
    """Say whether a text may name an entry: it becomes part of a path, so only hexadecimal digits do."""
    return _KEY.fullmatch(text) is not None


def check_key(key: str) -> str:
    """Return the key.

    Raises:
        ValueError: it is not made of 16 to 128 hexadecimal digits.
    """
    if not is_key(key):
        raise ValueError(f"a key has 16 to 128 hexadecimal digits, got {key[:200]!r}")
    return key


def differences(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[Difference]:
    """Return the factors that differ, by name in alphabetical order."""
    return [
        Difference(name, ours.get(name), theirs.get(name))
        for name in sorted({*ours, *theirs})
        if ours.get(name) != theirs.get(name)
    ]


def shorten(value: str | None) -> str:
    """Return a factor's value as one short piece of a line."""
    if value is None:
        return "not given"
    text = " ".join(value.split())
    return f'"{text}"' if len(text) <= _SHOWN else f'"{text[: _SHOWN - 3]}..."'
