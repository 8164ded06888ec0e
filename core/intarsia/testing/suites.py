"""The conformance kit as pytest classes: subclass one, name the component, open what it can do.

    from intarsia.testing.suites import CompilerSuite

    class TestAcme(CompilerSuite):
        name = "acme"
        opened = {"dynamic-shapes", "integers", "artifacts"}

A capability that is not opened must be refused, by a typed error; one that is not opened and works is an
error too. `intarsia conformance NAME` runs the same without pytest.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import pytest

from intarsia.testing.conformance.requirements import requirements_for
from intarsia.testing.conformance.runner import run_requirements
from intarsia.testing.conformance.subject import Kind, Outcome, Subject

__all__ = [
    "CompilerSuite",
    "PassManagerSuite",
    "PassSuite",
    "PlatformSuite",
    "StaticGraphSuite",
    "StoreSuite",
]


class Suite:
    """What all suites share. The attributes are those of `Subject`; override `subject` to compute them."""

    kind: ClassVar[Kind]
    name: ClassVar[str] = ""
    device: ClassVar[str] = "cpu"
    opened: ClassVar[Collection[str] | None] = ()
    settings: ClassVar[Mapping[str, Any]] = {}
    plugins: ClassVar[str] = ""
    paths: ClassVar[Collection[str]] = ()
    tolerances: ClassVar[Mapping[str, float]] = {}
    deadline: ClassVar[float] = 120.0

    @pytest.fixture(scope="class")
    @classmethod
    def subject(cls) -> Subject:
        """Return what is tested."""
        made = Subject(
            cls.kind, cls.name, cls.device, cls.opened, (), cls.settings, cls.plugins,
            cls.paths, cls.tolerances, cls.deadline,
        )  # fmt: skip
        if cls.kind != "compiler":
            return made
        from attrs import evolve

        from intarsia.testing.conformance.compilers import claims_of

        return evolve(made, claims=claims_of(made.host()[1], cls.name))

    @pytest.fixture(scope="class")
    @classmethod
    def outcomes(cls, subject: Subject, request: pytest.FixtureRequest) -> Mapping[str, Outcome]:
        """Run the requirements that were selected, all in one child process, and return what came of them."""
        mine = [item for item in request.session.items if getattr(item, "cls", None) is request.cls]
        names = [item.callspec.params["requirement"] for item in mine if hasattr(item, "callspec")]
        return {outcome.name: outcome for outcome in run_requirements(subject, names)}

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Make a test of each requirement of the suite's kind."""
        if "requirement" in metafunc.fixturenames:
            names = [requirement.name for requirement in requirements_for(self.kind)]
            metafunc.parametrize("requirement", names)

    def test_requirement(self, requirement: str, outcomes: Mapping[str, Outcome]) -> None:
        """Fail as the requirement did."""
        outcome = outcomes[requirement]
        if outcome.status == "failed":
            pytest.fail(outcome.detail, pytrace=False)


class CompilerSuite(Suite):
    """What a compiler must do: graphs in, numbers out."""

    kind = "compiler"


class PlatformSuite(Suite):
    """What a platform must do; `device` is its device type."""

    kind = "platform"


class StaticGraphSuite(Suite):
    """What a static-graph backend must do; `device` is where it records."""

    kind = "static-graph"


class PassSuite(Suite):
    """What a plugin's passes must do; `name` is the plugin's."""

    kind = "passes"


class PassManagerSuite(Suite):
    """What a pass manager must do."""

    kind = "pass-manager"


class StoreSuite(Suite):
    """What a store must do; `name` is a folder or URL that may be written to."""

    kind = "store"
