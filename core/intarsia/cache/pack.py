"""Packs: entries in one file, to carry to another machine.

The bytes of a pack, numbers little-endian:

    magic and version   8   "INTARSP" and one byte
    count               4
    for each entry: length 8, and the entry as a store holds it

There are no names or paths in it: an entry says its key itself, under its digest.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator

from attrs import frozen

from intarsia.cache.cache import Cache
from intarsia.cache.entry import BadEntry, Entry, decode_entry, read_header
from intarsia.cache.key import is_key
from intarsia.errors import CacheError

__all__ = ["Unpacked", "pack", "unpack"]

_HEAD = struct.Struct("<8sI")
_LENGTH = struct.Struct("<Q")
_MAGIC = b"INTARSP\x01"


@frozen
class Unpacked:
    """The keys of a pack: stored now, there before, or skipped for a reason that was warned of."""

    stored: tuple[str, ...] = ()
    present: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()


def pack(cache: Cache, keys: Iterable[str], path: str) -> list[str]:
    """Write entries, and those that they use, to a file; return the keys that are in it.

    An entry names those that it uses in the list `uses` of its meta. A file of that name is replaced
    when the new one is whole.

    Raises:
        CacheError: an entry is missing or bad, or the file cannot be written.
    """
    found = _with_used(cache, keys)
    temporary = f"{path}.{os.urandom(4).hex()}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(_HEAD.pack(_MAGIC, len(found)))
            for data in found.values():
                file.write(_LENGTH.pack(len(data)))
                file.write(data)
        os.replace(temporary, path)
    except OSError as problem:
        raise CacheError(
            f"the pack {path} cannot be written", why=problem.strerror or str(problem), subject=path
        ) from problem
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
    return list(found)


def unpack(cache: Cache, path: str) -> Unpacked:
    """Store the entries of a pack, all of them checked before the first is stored.

    Raises:
        CacheError: the file cannot be read, or an entry in it is bad; nothing is stored then.
    """
    try:
        with open(path, "rb") as file:
            view = memoryview(file.read())
        checked = [(_checked(data, cache.secret).key, bytes(data)) for data in _split(view)]
    except OSError as problem:
        raise _unreadable(path, problem.strerror or str(problem)) from problem
    except BadEntry as problem:
        raise _unreadable(path, str(problem)) from problem
    answers: dict[bool | None, list[str]] = {True: [], False: [], None: []}
    for key, data in checked:
        answers[cache.put(key, data)].append(key)
    return Unpacked(tuple(answers[True]), tuple(answers[False]), tuple(answers[None]))


def _with_used(cache: Cache, keys: Iterable[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    wanted = list(keys)
    while wanted:
        key = wanted.pop(0)
        if key in found:
            continue
        data, entry = _get(cache, key)
        found[key] = data
        uses = entry.meta.get("uses", ())
        wanted += [used for used in uses if isinstance(used, str)]
    return found


def _get(cache: Cache, key: str) -> tuple[bytes, Entry]:
    reasons = []
    for place in cache.places:
        try:
            data = place.get(key) if is_key(key) else None
            if data is not None:
                return data, decode_entry(data, key=key, secret=cache.secret)
        except BadEntry as problem:
            reasons.append(f"in {place.name} {problem}")
    raise CacheError(
        f"cache entry {key[:12]} cannot be packed",
        why="; ".join(reasons) or "it is in no store",
        subject=key,
    )


def _split(view: memoryview) -> Iterator[memoryview]:
    if len(view) < _HEAD.size or view[:8] != _MAGIC:
        raise BadEntry("it is no pack of this version")
    at = _HEAD.size
    for _ in range(_HEAD.unpack_from(view)[1]):
        if len(view) < at + _LENGTH.size:
            raise BadEntry("it is cut short")
        size = _LENGTH.unpack_from(view, at)[0]
        at += _LENGTH.size + size
        if len(view) < at:
            raise BadEntry("it is cut short")
        yield view[at - size : at]
    if at != len(view):
        raise BadEntry("it is longer than it says")


def _checked(data: memoryview, secret: bytes | None) -> Entry:
    header = read_header(data)
    if header is None or not is_key(header.key):
        raise BadEntry("an entry in it has no key")
    return decode_entry(data, key=header.key, secret=secret)


def _unreadable(path: str, reason: str) -> CacheError:
    return CacheError(f"the pack {path} cannot be unpacked", why=reason, subject=path)
