"""The kit fails passes, pass managers, stores, platforms and static-graph backends for their defects."""

from __future__ import annotations

from pathlib import Path

import pytest

from intarsia.testing.conformance.runner import run_requirements
from intarsia.testing.conformance.subject import Kind, Subject

ROOT = str(Path(__file__).parents[2])
HERE = "tests.conformance.broken_kinds"


def failures(kind: Kind, name: str, plugins: str, *wanted: str) -> dict[str, str]:
    """Return requirement -> why, of those that failed."""
    subject = Subject(kind, name, plugins=f"{HERE}:{plugins}", paths=[ROOT], deadline=60.0)
    found = run_requirements(subject, wanted or None)
    return {o.name: o.detail for o in found if o.status == "failed"}


@pytest.mark.parametrize(
    ("plugins", "requirement", "shown"),
    [
        ("restless", "identity", 'the pass "pass-restless" has another uuid() in another process'),
        ("cycle", "order", "passes cannot be put in order"),
        ("wrong", "alone", "pass-wrong-numbers over 'elementwise'"),
        ("raising", "alone", "was undone"),
    ],
)
def test_a_broken_pass_fails(plugins: str, requirement: str, shown: str) -> None:
    assert shown in failures("passes", "broken-kinds", plugins, requirement)[requirement]


def test_a_pass_without_a_defect_passes() -> None:
    assert failures("passes", "broken-kinds", "quiet", "identity", "order") == {}


def test_a_broken_pass_manager_fails() -> None:
    found = failures("pass-manager", "unruly", "quiet")
    assert set(found) == {"runs"}, found  # constraints are a capability that nobody opened


def test_a_broken_store_fails() -> None:
    found = failures("store", "forgetful://here", "quiet", "first-wins", "list", "delete", "stat")
    assert found == {
        "first-wins": "an entry was stored twice",
        "list": "list() lacks an entry",
        "delete": "a deleted entry is there",
        "stat": "stat() does not know an entry",
    }


def test_a_broken_platform_fails() -> None:
    found = failures("platform", "restless", "quiet", "traits", "names")
    assert "traits are" in found["traits"]
    assert "nobody" in found["names"]


def test_a_broken_static_graph_backend_fails() -> None:
    found = failures("static-graph", "careless", "quiet", "full", "budget")
    assert "not close" in found["full"]
    assert "recordings take nothing" in found["budget"]
