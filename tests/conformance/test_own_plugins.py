"""Our own plugins pass the conformance kit, as anybody's do."""

from __future__ import annotations

from pathlib import Path

import pytest

from intarsia.testing.conformance.runner import run_requirements
from intarsia.testing.conformance.subject import Subject
from intarsia.testing.suites import (
    CompilerSuite,
    PassManagerSuite,
    PassSuite,
    PlatformSuite,
    StaticGraphSuite,
    StoreSuite,
)

EVERYTHING = {
    "artifacts", "attention", "bfloat16", "booleans", "custom-ops", "dynamic-shapes", "float16", "float64",
    "integers", "live-weights", "mutation", "overlap", "several-symbols", "strides", "views",
}  # fmt: skip


class TestEager(CompilerSuite):
    name = "eager"
    opened = EVERYTHING


@pytest.mark.slow
class TestInductor(CompilerSuite):
    name = "inductor"
    opened = EVERYTHING


def test_inductor_keeps_what_it_claims() -> None:
    wanted = ["dynamic-block", "mutation", "custom-op", "fresh-results"]
    found = run_requirements(Subject("compiler", "inductor", opened=EVERYTHING), wanted)
    assert {o.name: o.status for o in found} == dict.fromkeys(wanted, "passed"), found


class TestCpu(PlatformSuite):
    name = "cpu"


class TestNullDevice(StaticGraphSuite):
    name = "null"
    plugins = "intarsia.testing.null_device:plugins"


class TestPasses(PassSuite):
    name = "passes"


@pytest.mark.slow
class TestFusions(PassSuite):
    name = "cuda"


class TestBuiltInManager(PassManagerSuite):
    name = "built-in"
    opened = {"declared-order"}


class TestLocalStore(StoreSuite):
    opened = {"shared"}

    @pytest.fixture(scope="class")
    @classmethod
    def subject(cls, tmp_path_factory: pytest.TempPathFactory) -> Subject:
        return Subject("store", str(tmp_path_factory.mktemp("store")), opened=cls.opened)


class TestRemoteStore(StoreSuite):
    opened = {"shared"}

    @pytest.fixture(scope="class")
    @classmethod
    def subject(cls, tmp_path_factory: pytest.TempPathFactory) -> Subject:
        folder: Path = tmp_path_factory.mktemp("remote")
        return Subject("store", f"dir::file://{folder}", opened=cls.opened)


class TestMemory(StoreSuite):
    name = "memory://conformance"
    opened = ()
