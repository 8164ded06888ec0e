"""The cache: the one path on which kept bytes become something that runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeVar

from attrs import frozen

from intarsia.cache.chain import Guarded
from intarsia.cache.entry import (
    BadEntry,
    Bytes,
    Entry,
    Header,
    Unusable,
    decode_entry,
    encode_entry,
)
from intarsia.cache.flight import Flight
from intarsia.cache.journal import Journal
from intarsia.cache.key import Difference, check_key, differences, key_of
from intarsia.cache.local import LocalStore
from intarsia.errors import CacheError
from intarsia.references import describe

__all__ = ["Cache", "Near"]

log = logging.getLogger("intarsia")
T = TypeVar("T")
Use = Callable[[Entry], T]

_COUNTERS = ("hits", "misses", "saves", "skipped_saves", "quarantined", "waits")
_LOOKED_AT = 256
_SHOWN_DIFFERENCES = 3


@frozen
class Near:
    """The entry of a kind whose factors differ least from those that were asked for."""

    key: str
    differences: tuple[Difference, ...]


class _Tally:
    """Counters that threads share."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(_COUNTERS, 0)
        self._lock = threading.Lock()

    def add(self, name: str) -> None:
        with self._lock:
            self.counts[name] += 1


class Cache:
    """Loads and saves entries in one or more stores, in order.

    Safe to use from several threads. File-system errors are misses and skipped saves, never exceptions.

    Attributes:
        counters: hits, misses, saves, skipped_saves, quarantined, waits.
        places: the stores, each behind its guard.
    """

    def __init__(
        self,
        places: Sequence[Guarded],
        *,
        secret: bytes | None = None,
        strict: bool = False,
        warn: Callable[[str], None] = log.warning,
        note: Callable[[str], None] = log.info,
    ) -> None:
        """Put stores behind each other.

        Args:
            places: the stores, the nearest first.
            secret: signs every entry; entries without its signature are not used.
            strict: raise where an entry is bad, instead of going on without it.
            warn: takes one line about what went wrong.
            note: takes one line about an entry that is fine and cannot be used here.
        """
        self.places = tuple(places)
        self._tally = _Tally()
        self.counters = self._tally.counts
        self.secret = secret
        self._strict = strict
        self._warn = warn
        self._note = note
        self._spurned: set[str] = set()
        self._headers: dict[str, Header] = {}
        self._flight = Flight(self.root, partial(self._tally.add, "waits"))

    @property
    def root(self) -> str | None:
        """The first directory on this machine, which locks and the journal live in; None without one."""
        local = self.local
        return local.root if local is not None else None

    @property
    def local(self) -> LocalStore | None:
        """The first store that is a directory on this machine."""
        return next((place.local for place in self.places if place.local is not None), None)

    def load(
        self, kind: str, factors: Mapping[str, str], use: Use[T], *, key: str | None = None
    ) -> T | None:
        """Return what `use` makes of an entry, or None where there is none that can be used.

        The checks come before `use` sees anything: whose directory it is, digest, signature, and that
        kind, key and factors are those that were asked for. An entry that fails them, or that `use`
        raises an exception for, is moved aside with one warning.

        Args:
            kind: what the payload is.
            factors: everything that it depends on.
            use: makes something of the entry; raises `Unusable` where it is fine and cannot be used here.
            key: where it is kept; None: at the key of kind and factors.

        Raises:
            CacheError: an entry is bad, and the cache is strict.
        """
        key = check_key(key) if key is not None else key_of(kind, factors)
        for number, place in enumerate(self.places):
            try:
                found = self._from(place, key, kind, factors, use)
            except Unusable as problem:
                self._note(f"cache entry {key[:12]} ({kind}) cannot be used here: {problem}")
                break
            if found is not None:
                data, value = found
                self._fill(self.places[:number], key, data)
                place.mark_used(key)
                self._tally.add("hits")
                return value
        self._tally.add("misses")
        return None

    def save(
        self,
        kind: str,
        factors: Mapping[str, str],
        payload: Bytes,
        *,
        meta: Mapping[str, Any] | None = None,
        key: str | None = None,
    ) -> bool:
        """Keep a payload; return whether this call stored it anywhere.

        An entry that is there already stays as it is: equal factors mean an equal payload.

        Args:
            kind: what the payload is.
            factors: everything that it depends on.
            payload: opaque bytes.
            meta: JSON-able data beside the payload.
            key: where to keep it; None: at the key of kind and factors.
        """
        key = check_key(key) if key is not None else key_of(kind, factors)
        entry = Entry(kind, key, dict(factors), dict(meta or {}), payload)
        return self.put(key, encode_entry(entry, self.secret)) is True

    def put(self, key: str, data: bytes) -> bool | None:
        """Keep the bytes of an entry in every store.

        Returns True where any of them stored it, False where one has it already, None where each skipped
        the save.
        """
        answers = self._fill(self.places, key, data)
        if True in answers:
            self._tally.add("saves")
            return True
        if False in answers:
            return False
        self._tally.add("skipped_saves")
        return None

    def nearest(
        self, kind: str, factors: Mapping[str, str], limit: int = _LOOKED_AT, *, besides: str = ""
    ) -> Near | None:
        """Return the entry of a kind with the fewest factors that differ, or None.

        Only headers are read, of the `limit` entries that were used last, in the nearest store.
        `besides` is a key that does not count.
        """
        best: Near | None = None
        for key, theirs in self._recent(kind, limit):
            if key == besides:
                continue
            found = tuple(differences(factors, theirs))
            if best is None or len(found) < len(best.differences):
                best = Near(key, found)
        return best

    def explain_miss(self, kind: str, factors: Mapping[str, str]) -> str:
        """Return one line: what differs from the nearest entry, or that there is none."""
        near = self.nearest(kind, factors)
        if near is None:
            usable = any(place.usable for place in self.places)
            return "no entry yet" if usable else "there is no store that can be used"
        if not near.differences:
            return f"entry {near.key[:12]} has the same factors and was not used"
        shown = [str(item) for item in near.differences[:_SHOWN_DIFFERENCES]]
        more = len(near.differences) - len(shown)
        shown += [f"{more} more factors differ"] if more else []
        return f"nearest entry {near.key[:12]}: {'; '.join(shown)}"

    def claim(self, key: str, wait: float) -> AbstractContextManager[bool]:
        """Lead the work on a key, or wait for the process that does.

        The block gets whether we lead: one process and thread at a time does. A waiter returns when
        the leader is done or `wait` seconds have passed, and does not lead; where the leader died, one of
        the waiters leads in its place. In each case the cache is to be asked again before working.
        """
        return self._flight.claim(key, wait)

    def journal(self) -> Journal | None:
        """Return the journal of risky work, or None where there is no directory to keep it in."""
        return Journal(self.root) if self.root is not None else None

    def _from(
        self, place: Guarded, key: str, kind: str, factors: Mapping[str, str], use: Use[T]
    ) -> tuple[bytes, T] | None:
        """Use the entry that one store has; None where it has none, or a bad one."""
        data: bytes | None = None
        if f"{place.name} {key}" in self._spurned:
            return None
        try:
            data = place.get(key)
            if data is None:
                return None
            entry = decode_entry(data, key=key, secret=self.secret)
            _check_asked_for(entry, kind, factors)
            return data, use(entry)
        except (Unusable, MemoryError):
            raise  # says nothing about the entry
        except Exception as problem:
            self._reject(place, key, kind, data, problem)
            return None

    def _reject(
        self, place: Guarded, key: str, kind: str, data: bytes | None, problem: Exception
    ) -> None:
        """Move a bad entry aside and say so once; strict raises."""
        gone, became = place.put_aside(key, data, problem)
        if not gone:
            self._spurned.add(f"{place.name} {key}")
        self._tally.add("quarantined")
        what = f"cache entry {key[:12]} ({kind}) in {place.name} cannot be used"
        why = str(problem) if isinstance(problem, BadEntry) else describe(problem)
        if self._strict:
            raise CacheError(
                what, why=f"{why}; {became}", next_step="Run again to make it anew.", subject=key
            ) from problem
        self._warn(f"{what}: {why}; {became}, and it is made anew")

    def _fill(self, places: Sequence[Guarded], key: str, data: bytes) -> list[bool | None]:
        answers = [place.put(key, data) for place in places]
        for place, stored in zip(places, answers, strict=True):
            if stored:
                self._spurned.discard(f"{place.name} {key}")
                place.mark_used(key)
        return answers

    def _recent(self, kind: str, limit: int) -> Iterator[tuple[str, Mapping[str, str]]]:
        place = next(iter([p for p in self.places if p.local is not None] or self.places), None)
        if place is None:
            return
        for key in place.newest(limit):
            header = self._headers.get(key) or place.header(key)
            if header is not None:
                self._headers[key] = header  # an entry never changes
                if header.kind == kind:
                    yield key, header.factors


def _check_asked_for(entry: Entry, kind: str, factors: Mapping[str, str]) -> None:
    if entry.kind != kind:
        raise BadEntry(f'it is a "{entry.kind}", not a "{kind}"')
    different = differences(factors, entry.factors)
    if different:
        raise BadEntry(f"it was made for something else: {different[0]}")
