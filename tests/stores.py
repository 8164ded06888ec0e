"""What the tests of the cache share: a cache at a path with its warnings, and processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import define, field

from intarsia.cache import Cache, Entry, key_of, open_cache

FACTORS = {"graph": "g1", "torch": "2.13", "device": "cpu"}
PAYLOAD = bytes(range(256)) * 40
KEY = key_of("piece", FACTORS)


@define
class Opened:
    """A cache, and what it had to say."""

    cache: Cache
    warnings: list[str]
    notes: list[str] = field(factory=list)

    def load(self, factors: dict[str, str] = FACTORS, use: Any = None) -> Any:
        return self.cache.load("piece", factors, use or payload_of)

    def save(self, factors: dict[str, str] = FACTORS, payload: bytes = PAYLOAD) -> bool:
        return self.cache.save("piece", factors, payload)


STRANGER = 12345
"""A user that nobody knows."""


def as_stranger() -> tuple[str, ...]:
    """Return the command that starts a process as a user without a name, who may read everything.

    The interpreter may be in a folder of root's. Skips the test where there is no such command.
    """
    import pytest

    command = (
        "setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups",
        "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search",
    )  # fmt: skip
    try:
        done = subprocess.run([*command, "true"], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no setpriv command")
    if done.returncode != 0:
        pytest.skip(f"this machine lets nobody become another user: {done.stderr!r}")
    return command


def opened(setting: Any, **options: Any) -> Opened:
    """Open a cache whose warnings are kept."""
    warnings: list[str] = []
    notes: list[str] = []
    if isinstance(setting, Path):
        setting = str(setting)
    cache = open_cache(setting, warn=warnings.append, note=notes.append, **options)
    assert cache is not None
    return Opened(cache, warnings, notes)


def payload_of(entry: Entry) -> bytes:
    return bytes(entry.payload)


def entry_file(root: Path, key: str = KEY) -> Path:
    return root / key[:2] / key


def files_of(root: Path) -> list[str]:
    """Return every file below a root, as paths relative to it."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())


def works_again(root: Path) -> bool:
    """Say whether the next process, opening the same root, saves and loads with nothing to complain of."""
    first = opened(root)
    if first.load() is None:
        first.save()
    second = opened(root)
    return second.load() == PAYLOAD and not first.warnings and not second.warnings


def child(code: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Start a Python process that finds what this one finds; its output is a pipe.

    `under` is a command that starts it, `program` another Python.
    """
    under: Sequence[str] = options.pop("under", ())
    program = options.pop("program", sys.executable)
    environment = options.pop("env", dict(os.environ))
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    return subprocess.Popen(
        [*under, program, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


def ran(code: str, *arguments: object, **options: Any) -> str:
    """Run a Python process to its end and return its output; it must end well."""
    process = child(code, *arguments, **options)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out.strip()


@contextmanager
def blocked(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run a process until it prints a line, for the block; then kill it as `kill -9` does."""
    process = child(code, *arguments)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate(timeout=60)[1]
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)


@contextmanager
def mounted(
    folder: Path, options: str, kind: Sequence[str] = ("-t", "tmpfs", "tmpfs")
) -> Iterator[Path]:
    """Mount a file system for the block; skips the test where the machine does not allow that."""
    import pytest

    folder.mkdir(exist_ok=True)
    command = ["mount", "-o", options, *kind, str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode != 0:
        pytest.skip(f"this machine mounts nothing: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
