"""What a store must do. The subject's name is a URL; each requirement uses keys of its own."""

from __future__ import annotations

import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from intarsia.cache.opening import open_store
from intarsia.interfaces import Store
from intarsia.testing.conformance.subject import Requirement, Subject

__all__ = ["REQUIREMENTS", "store_of"]


def store_of(subject: Subject) -> Store:
    """Return the store under test."""
    _, host = subject.host()
    return open_store(subject.name, host.store)


@contextmanager
def _key(store: Store) -> Iterator[str]:
    """Yield a key that nobody uses, of the form that the cache's keys have, and delete it afterwards."""
    key = secrets.token_hex(32)
    try:
        yield key
    finally:
        store.delete(key)


def _keeps_bytes(subject: Subject, folder: Path) -> None:
    store = store_of(subject)
    for data in (b"", b"\x00", secrets.token_bytes(100), secrets.token_bytes(3 << 20)):
        with _key(store) as key:
            assert store.get(key) is None, "a key that was never stored is there"
            assert store.put_if_absent(key, data) is True, (
                "put_if_absent() of a new key is not True"
            )
            found = store.get(key)
            assert found == data, f"{len(data)} bytes were stored, and come back otherwise"


def _never_changes(subject: Subject, folder: Path) -> None:
    store = store_of(subject)
    with _key(store) as key:
        assert store.put_if_absent(key, b"first")
        assert store.put_if_absent(key, b"second, and longer") is False, "an entry was stored twice"
        assert store.get(key) == b"first", "an entry was changed"


def _lists(subject: Subject, folder: Path) -> None:
    store = store_of(subject)
    with _key(store) as one, _key(store) as other:
        store.put_if_absent(one, b"1")
        listed = set(store.list())
        assert one in listed, "list() lacks an entry"
        assert other not in listed, "list() has what was never stored"


def _deletes(subject: Subject, folder: Path) -> None:
    store = store_of(subject)
    with _key(store) as key:
        store.delete(key)  # absent is fine
        store.put_if_absent(key, b"1")
        store.delete(key)
        assert store.get(key) is None, "a deleted entry is there"
        assert store.stat(key) is None, "stat() has a deleted entry"
        assert key not in set(store.list()), "list() has a deleted entry"
        assert store.put_if_absent(key, b"2"), "a deleted key cannot be stored again"
        assert store.get(key) == b"2"


def _knows_sizes(subject: Subject, folder: Path) -> None:
    store = store_of(subject)
    with _key(store) as key:
        assert store.stat(key) is None
        store.put_if_absent(key, b"12345")
        found = store.stat(key)
        assert found is not None, "stat() does not know an entry"
        assert found.size == 5, f"stat() says {found.size} bytes of 5"
        assert abs(found.modified - time.time()) < 3600, "stat() has a time that is not now"


def _takes_one_of_many(subject: Subject, folder: Path) -> None:
    """Of several threads that store one key at a time, one is told that it did, and no bytes are mixed."""
    store = store_of(subject)
    values = [bytes([n]) * (1 << 20) for n in range(4)]
    with _key(store) as key:
        stored: list[int] = []
        start = threading.Barrier(len(values))

        def put(number: int) -> None:
            start.wait()
            if store.put_if_absent(key, values[number]):
                stored.append(number)

        _in_threads([lambda n=n: put(n) for n in range(len(values))])  # type: ignore[misc]
        found = store.get(key)
        assert found in values, "bytes of several writers are mixed"
        assert stored, "nobody was told that its bytes were stored"


def _shows_no_part(subject: Subject, folder: Path) -> None:
    """Who reads while another writes gets all or nothing."""
    store = store_of(subject)
    data = secrets.token_bytes(8 << 20)
    with _key(store) as key:
        done = threading.Event()
        wrong: list[int] = []

        def read() -> None:
            while not done.is_set():
                found = store.get(key)
                if found is not None and found != data:
                    wrong.append(len(found))

        def write() -> None:
            try:
                store.put_if_absent(key, data)
            finally:
                done.set()

        _in_threads([read, read, write])
        assert not wrong, f"a reader got {wrong[0]} bytes of {len(data)}"


def _in_threads(functions: list[Callable[[], None]]) -> None:
    errors: list[BaseException] = []

    def run(function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(f,)) for f in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


_PUT = """
import sys
from intarsia.testing.conformance.stores import store_of
from intarsia.testing.conformance.subject import Subject
subject = Subject.from_json(sys.stdin.read())
print(store_of(subject).put_if_absent(sys.argv[1], b"theirs"))
"""


def _is_shared(subject: Subject, folder: Path) -> None:
    """What one process stores, another one has."""
    store = store_of(subject)
    with _key(store) as key:
        done = subprocess.run(
            [sys.executable, "-c", _PUT, key], input=subject.to_json(), text=True,
            capture_output=True, timeout=subject.deadline, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-1500:]
        assert done.stdout.split() == ["True"]
        assert store.get(key) == b"theirs", "what another process stored is not there"
        assert store.put_if_absent(key, b"ours") is False


REQUIREMENTS: tuple[Requirement, ...] = (
    Requirement("bytes", "", "what was stored comes back, nothing else does", _keeps_bytes),
    Requirement("first-wins", "", "an entry never changes", _never_changes),
    Requirement("list", "", "it lists what is there", _lists),
    Requirement("delete", "", "what is deleted is gone, and absent is fine", _deletes),
    Requirement("stat", "", "it knows sizes and times", _knows_sizes),
    Requirement("writers", "", "several writers of one key do not mix", _takes_one_of_many),
    Requirement("readers", "", "a reader gets all of an entry or none", _shows_no_part),
    Requirement("processes", "shared", "processes share it", _is_shared, may_fail=True),
)
