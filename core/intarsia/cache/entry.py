"""Entries: a JSON header and an opaque payload, under one digest and, with a secret, one HMAC.

The bytes of an entry, numbers little-endian:

    magic and version   8   "INTARSA" and one byte
    header length       4
    payload length      8
    HMAC               32   of the content's hash, made with the secret; zeros where there is none
    digest             32   of the content's hash and the HMAC
    header                  JSON: kind, key, factors, meta
    payload

where the content is everything but HMAC and digest. So every bit of an entry is under the digest, and a
payload is hashed once whether it is signed or not.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from collections.abc import Mapping
from typing import Any, TypeAlias

from attrs import Factory, frozen

from intarsia.errors import CacheError

__all__ = [
    "HEAD", "BadEntry", "Entry", "Header", "Unusable", "WrongSecret",
    "decode_entry", "encode_entry", "header_end", "read_header",
]  # fmt: skip

_MAGIC = b"INTARSA\x01"
_SIZES = struct.Struct("<8sIQ")
_HASH = hashlib.sha256().digest_size
_PREAMBLE = _SIZES.size + 2 * _HASH
_UNSIGNED = bytes(_HASH)
HEAD = 8 * 1024
"""Bytes from the front of an entry that hold the header of nearly every one."""

Bytes: TypeAlias = bytes | memoryview


class BadEntry(CacheError):
    """The bytes of an entry are not what was written, or they belong to something else."""


class WrongSecret(BadEntry):
    """An entry is whole, but not signed with the secret in use."""


class Unusable(CacheError):
    """An entry is fine and cannot be used here: other device traits, a module that is missing.

    Whoever uses an entry raises it with the reason alone, and the entry stays where it is.
    """


@frozen
class Entry:
    """What is kept under one key.

    Attributes:
        kind: what the payload is: "piece", "plan"...
        factors: everything that the key was computed from.
        meta: JSON-able data beside the payload. The list `uses` names the keys of other entries that
            are packed with this one.
        payload: opaque bytes. Nothing of them is looked at before the checks have passed.
    """

    kind: str
    key: str
    factors: Mapping[str, str]
    meta: Mapping[str, Any] = Factory(dict)
    payload: Bytes = b""


@frozen
class Header:
    """An entry without its payload, for listings: nothing of it has been verified."""

    kind: str
    key: str
    factors: Mapping[str, str]
    meta: Mapping[str, Any]
    payload_size: int
    signed: bool


def encode_entry(entry: Entry, secret: bytes | None = None) -> bytes:
    """Return the bytes of an entry."""
    header = json.dumps(
        {
            "kind": entry.kind,
            "key": entry.key,
            "factors": dict(entry.factors),
            "meta": dict(entry.meta),
        },
        sort_keys=True,
        separators=(",", ":"),
    ).encode("ascii")
    sizes = _SIZES.pack(_MAGIC, len(header), len(entry.payload))
    content = _content_hash(sizes, header, entry.payload)
    signature = _sign(content, secret) if secret else _UNSIGNED
    digest = hashlib.sha256(content + signature).digest()
    return b"".join((sizes, signature, digest, header, entry.payload))


def decode_entry(data: Bytes, *, key: str, secret: bytes | None = None) -> Entry:
    """Return the entry that the bytes hold; its payload is a view of them.

    Raises:
        BadEntry: they are damaged, or hold the entry of another key.
        WrongSecret: they are not signed with the secret.
    """
    view = memoryview(data)
    header_size = _verified(view, secret)
    end = _PREAMBLE + header_size
    header = _parsed(view, header_size)
    if header.key != key:
        raise BadEntry(f"it is the entry of another key, {header.key[:12]}")
    return Entry(header.kind, header.key, header.factors, header.meta, view[end:])


def read_header(data: Bytes) -> Header | None:
    """Return the header from the first bytes of an entry, or None where they do not reach far enough.

    Raises:
        BadEntry: they are not the beginning of an entry.
    """
    view = memoryview(data)
    header_size, _ = _sizes(view)
    return _parsed(view, header_size) if len(view) >= _PREAMBLE + header_size else None


def header_end(data: Bytes) -> int:
    """Return how many bytes from the front hold the header; raises as `read_header` does."""
    return _PREAMBLE + _sizes(memoryview(data))[0]


def _sizes(view: memoryview) -> tuple[int, int]:
    if len(view) < _PREAMBLE:
        raise BadEntry(f"it is cut short: {len(view)} bytes")
    magic, header_size, payload_size = _SIZES.unpack_from(view)
    if magic != _MAGIC:
        raise BadEntry("it is no entry of this version of the cache")
    return header_size, payload_size


def _verified(view: memoryview, secret: bytes | None) -> int:
    """Check length, digest and signature, in this order; return the header's length."""
    header_size, payload_size = _sizes(view)
    expected = _PREAMBLE + header_size + payload_size
    if len(view) != expected:
        raise BadEntry(f"it has {len(view)} bytes instead of {expected}")
    signature = view[_SIZES.size : _SIZES.size + _HASH]
    digest = view[_SIZES.size + _HASH : _PREAMBLE]
    content = _content_hash(view[: _SIZES.size], view[_PREAMBLE:])
    if hashlib.sha256(content + signature).digest() != digest:
        raise BadEntry("its digest does not match")
    if secret and not hmac.compare_digest(_sign(content, secret), signature):
        how = "not signed" if signature == _UNSIGNED else "signed with another secret"
        raise WrongSecret(f"it is {how}, and a secret is set")
    return header_size


def _content_hash(*parts: Bytes) -> bytes:
    content = hashlib.sha256()
    for part in parts:
        content.update(part)
    return content.digest()


def _sign(content: bytes, secret: bytes) -> bytes:
    return hmac.digest(secret, content, "sha256")


def _parsed(view: memoryview, header_size: int) -> Header:
    _, payload_size = _sizes(view)
    signed = view[_SIZES.size : _SIZES.size + _HASH] != _UNSIGNED
    try:
        fields = json.loads(bytes(view[_PREAMBLE : _PREAMBLE + header_size]))
        kind, key, factors, meta = (fields[name] for name in ("kind", "key", "factors", "meta"))
    except (ValueError, KeyError, TypeError, RecursionError) as problem:
        raise BadEntry("its header cannot be read") from problem
    if not (isinstance(kind, str) and isinstance(key, str) and _is_text(factors)):
        raise BadEntry("its header has fields of the wrong type")
    return Header(kind, key, factors, meta if isinstance(meta, dict) else {}, payload_size, signed)


def _is_text(factors: object) -> bool:
    return isinstance(factors, dict) and all(isinstance(value, str) for value in factors.values())
