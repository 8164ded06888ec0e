"""Kernels of loaded artifacts: libraries that Inductor compiled, imported without compiling anything."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from intarsia import torch_compat
from intarsia_inductor.package_file import executable_folder, write_private

_given: dict[str, Callable[..., Any]] = {}


def kernel(digest: str) -> Callable[..., Any]:
    """Return the kernel of a library; generated modules call this while `given` holds theirs."""
    return _given[digest]


@contextlib.contextmanager
def given(kernels: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Let generated modules find their kernels. The caller holds the process's lock around Inductor."""
    _given.update(kernels)
    try:
        yield
    finally:
        _given.clear()


def import_kernels(libraries: Mapping[str, bytes | memoryview]) -> dict[str, Callable[..., Any]]:
    """Import libraries by digest, from a private folder that is gone afterwards.

    Raises:
        CompileRejected: there is no folder from which libraries can be loaded.
    """
    if not libraries:
        return {}
    folder = executable_folder()
    try:
        with torch_compat.kernel_imports():
            return {d: _imported(folder, d, data) for d, data in libraries.items()}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _imported(folder: Path, digest: str, data: bytes | memoryview) -> Callable[..., Any]:
    name = f"intarsia_{digest}.kernel"  # the last part is what the library's start-up function is named by
    if name not in sys.modules:
        path = folder / f"{digest}.so"
        write_private(path, data)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
    made: Callable[..., Any] = sys.modules[name].kernel
    return made
