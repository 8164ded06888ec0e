"""What is in a cache, for people: listings, look-up by the beginning of a key, and a check of everything."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import frozen

from intarsia.cache.cache import Cache
from intarsia.cache.chain import Guarded
from intarsia.cache.entry import BadEntry, Header, decode_entry
from intarsia.errors import CacheError
from intarsia.interfaces import StoreStat

__all__ = ["Listed", "defects", "entries", "find"]


@frozen
class Listed:
    """One entry in one store, as its header and the store tell; nothing of it has been verified."""

    key: str
    store: str
    stat: StoreStat
    header: Header | None
    """None where it cannot be read."""
    in_use: bool = False
    """Whether a live process of this machine uses it."""


def entries(cache: Cache) -> Iterator[Listed]:
    """Return every entry of every store."""
    for place in cache.places:
        for key in place.keys():  # noqa: SIM118  # no dict
            stat = place.stat(key)
            if stat is not None:
                yield Listed(key, place.name, stat, place.header(key), place.is_in_use(key))


def find(cache: Cache, prefix: str) -> tuple[str, Header]:
    """Return the key that begins so, and its header.

    Raises:
        CacheError: no key does, several do, or the header cannot be read.
    """
    found = {key for place in cache.places for key in place.keys() if key.startswith(prefix)}  # noqa: SIM118
    if len(found) != 1:
        raise _not_one(prefix, sorted(found))
    (key,) = found
    for place in cache.places:
        header = place.header(key)
        if header is not None:
            return key, header
    raise CacheError(
        f"cache entry {key[:12]} cannot be shown",
        why="its header cannot be read",
        next_step="See: intarsia cache verify",
        subject=key,
    )


def defects(cache: Cache) -> Iterator[tuple[str, str, str]]:
    """Read every entry in full; return (key, store, reason) of those that no load would use."""
    for place in cache.places:
        for key in place.keys():  # noqa: SIM118  # no dict
            reason = _defect(cache, place, key)
            if reason:
                yield key, place.name, reason


def _defect(cache: Cache, place: Guarded, key: str) -> str:
    try:
        data = place.get(key)
        if data is not None:
            decode_entry(data, key=key, secret=cache.secret)
    except BadEntry as problem:
        return str(problem)
    return ""


def _not_one(prefix: str, found: list[str]) -> CacheError:
    if not found:
        return CacheError(
            f'no cache entry has a key that begins with "{prefix}"',
            next_step="See: intarsia cache ls",
            subject=prefix,
        )
    shown = ", ".join(key[: len(prefix) + 8] for key in found[:5])
    return CacheError(
        f'{len(found)} cache entries have a key that begins with "{prefix}"',
        why=f"{shown}{', ...' if len(found) > 5 else ''}",
        next_step="Give more of the key.",
        subject=prefix,
    )
