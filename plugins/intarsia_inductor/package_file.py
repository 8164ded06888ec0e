"""The bytes of a package, and loading them: needs torch itself and nothing of Inductor."""

from __future__ import annotations

import functools
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import frozen

from intarsia import torch_compat
from intarsia.errors import CompileRejected
from intarsia.interfaces import Decision
from intarsia_inductor.calls import PackageCall
from intarsia_inductor.container import cut, joined, opened

MAGIC = b"intarsia-aoti-1\n"


@frozen
class Package:
    """A package: its call, what it was made with, and its files by name."""

    call: PackageCall
    made_with: Mapping[str, str]
    files: Mapping[str, bytes | memoryview]

    def to_bytes(self) -> bytes:
        """Return it as bytes: a mark, a JSON header, and the files one after the other."""
        header = {
            "call": self.call.to_dict(),
            "made_with": dict(self.made_with),
            "files": {name: len(data) for name, data in self.files.items()},
        }
        return joined(MAGIC, header, self.files.values())

    @staticmethod
    def from_bytes(data: bytes | memoryview) -> Package:
        """Read what `to_bytes` wrote; nothing of it runs.

        Raises:
            ValueError: the bytes are no package.
        """
        header, rest = opened(MAGIC, data, "package")
        sizes = header["files"]
        files = dict(zip(sizes, cut(rest, list(sizes.values())), strict=True))
        return Package(PackageCall.from_dict(header["call"]), header["made_with"], files)


def is_package(data: bytes | memoryview) -> bool:
    """Say whether an artifact is a package."""
    return bytes(data[: len(MAGIC)]) == MAGIC


def packages_load_here() -> Decision:
    """Say whether a package could be loaded in this process: whether a file of ours can be executed."""
    try:
        folder = private_folder()
        try:
            executable = _is_executable(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except CompileRejected as error:
        return Decision(False, str(error))
    return Decision(True) if executable else Decision(False, str(_noexec(folder.parent)))


def load_package(data: bytes | memoryview, device: torch.device) -> Callable[..., Sequence[Any]]:
    """Return the callable of a package.

    Its library lies in a private folder for the moment that it takes to load it.

    Raises:
        CompileRejected: the package is fine, and cannot be used here: the reason says why.
    """
    package = Package.from_bytes(data)
    refuse_other_torch(package.made_with)
    _refuse_second_library(package.files[LIBRARY])
    folder = private_folder()
    try:
        if not _is_executable(folder):
            raise _noexec(folder.parent)
        for name, content in package.files.items():
            write_private(folder / name, content)
        run = torch_compat.package_runner(str(folder / LIBRARY), device)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # a loaded library stays mapped without its file
    return package.call.bind(run, threading.Lock())


def _refuse_second_library(library: bytes | memoryview) -> None:
    """Refuse a library that brings a C++ standard library of its own.

    Torch's and its own then mix in `std::regex`, with which AOTInductor reads the device's name: a crash
    on CUDA with torch 2.11, seen with a compiler whose libstdc++ is static.
    """
    if sys.platform == "linux" and cpp_library() and CPP_LIBRARY not in bytes(library):
        raise CompileRejected(
            "the package holds a C++ standard library of its own, and crashes beside torch's",
            next_step="Set CXX to a compiler that links libstdc++ dynamically (often /usr/bin/g++).",
        )


@functools.cache
def cpp_library() -> str:
    """Return the C++ standard library that torch has loaded; "" where the system does not tell."""
    try:
        with Path("/proc/self/maps").open(encoding="utf-8", errors="replace") as lines:
            paths = (line.split(maxsplit=5)[-1].strip() for line in lines if "/" in line)
            return next((p for p in paths if CPP_LIBRARY.decode() in p), "")
    except OSError:
        return ""


CPP_LIBRARY = b"libstdc++.so"
"""How a library that does not hold the C++ standard library names it."""

LIBRARY = "piece.so"
"""The library's name in a package; "piece.json" beside it names the operators that it calls by name."""


def made_with() -> dict[str, str]:
    """Return what a package or artifact made in this process holds for."""
    return {"torch": torch.__version__}


def refuse_other_torch(made: Mapping[str, str]) -> None:
    """Refuse an artifact of another torch than this one.

    Raises:
        CompileRejected: with both versions.
    """
    for name, here in made_with().items():
        if made.get(name) != here:
            raise CompileRejected(f"made with {name} {made.get(name)}, here is {here}")


def private_folder() -> Path:
    """Return a new folder that only this user can enter: below the user's caches where there are any."""
    for parent in _parents():
        try:
            return Path(tempfile.mkdtemp(prefix="package-", dir=parent))
        except OSError:
            continue  # not writable: the next one
    raise CompileRejected(
        "no folder is writable, so that a package could be unpacked",
        next_step="Set XDG_CACHE_HOME or TMPDIR to a folder of your own.",
    )


def _parents() -> list[Path | None]:
    import platformdirs

    try:
        own = platformdirs.user_cache_path("intarsia")
        if not own.is_absolute():  # "~" as it is, where nothing says what it stands for
            return [None]
        own.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = os.lstat(own)
    except (OSError, RuntimeError, KeyError):  # no home and no passwd entry, or a read-only one
        return [None]
    # A folder that others may write to would let them exchange ours between our write and the load.
    is_own = found.st_uid == os.getuid() and not found.st_mode & 0o022
    return [own, None] if is_own else [None]


def executable_folder() -> Path:
    """Return a new private folder from which libraries can be loaded: anywhere, if not with our caches.

    Raises:
        CompileRejected: there is none.
    """
    folder = private_folder()
    if _is_executable(folder):
        return folder
    shutil.rmtree(folder)
    folder = Path(tempfile.mkdtemp(prefix="intarsia-"))
    if _is_executable(folder):
        return folder
    shutil.rmtree(folder)
    raise _noexec(folder.parent)


def _is_executable(folder: Path) -> bool:
    return not os.statvfs(folder).f_flag & getattr(os, "ST_NOEXEC", 0)


def _noexec(folder: Path) -> CompileRejected:
    return CompileRejected(
        f"{folder} is mounted noexec, so that no library can be loaded from there",
        next_step="Set XDG_CACHE_HOME or TMPDIR to a folder from which libraries can be loaded.",
    )


def write_private(path: Path, content: bytes | memoryview) -> None:
    """Write a new file that only this user can read and execute."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o700)
    with open(descriptor, "wb") as file:
        file.write(content)
