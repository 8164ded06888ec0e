"""Makes `tests.models` importable from every test and from the processes that tests spawn."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

os.environ.setdefault("INTARSIA_CHECK", "1")
# a test that wants a cache says so, and where; nothing goes to the user's own
os.environ.setdefault("INTARSIA_CACHE", "false")
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="intarsia-tests-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
# spawned children inherit sys.path, and find the opaque ops of tests.models there
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> None:
    """Start every test that has torch loaded without graphs left over from another test."""
    if "torch" in sys.modules:
        import torch  # only where a test has imported it: the torch-free tests stay torch-free

        torch._dynamo.reset()
        torch.manual_seed(0)


@pytest.fixture
def saboteur(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the compiler that misbehaves, of `tests/plugins`, for one test."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent / "plugins"))


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Install the toy compilers of `tests/plugins` for one test and return their module."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent / "plugins"))
    module = import_module("intarsia_tests_toys")
    module.REQUESTS.clear()
    module.RUNS.clear()
    module.BINDS.clear()
    return module
