"""The kit fails a compiler for every defect."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from intarsia.errors import ConfigError
from intarsia.testing.conformance.compilers import claims_of
from intarsia.testing.conformance.runner import run_requirements
from intarsia.testing.conformance.subject import Outcome, Subject

ROOT = str(Path(__file__).parents[2])


def subject(defect: str, **more: object) -> Subject:
    return Subject(
        "compiler", "broken", settings={"options": {"broken": {"defect": defect}}},
        plugins="tests.conformance.broken:plugins", paths=[ROOT], **more,
    )  # type: ignore[arg-type]  # fmt: skip


def outcome(defect: str, requirement: str, **more: object) -> Outcome:
    (found,) = run_requirements(subject(defect, **more), [requirement])
    return found


@pytest.mark.parametrize(
    ("defect", "requirement", "shown"),
    [
        ("wrong-numbers", "elementwise", "not close"),
        ("nan", "block", "not close"),
        ("wrong-arity", "block", "expected 1, got 2"),
        ("wrong-dtype", "block", "dtype"),
        ("alias", "fresh-results", "changed what the first returned"),
        ("one-size", "dynamic-block", "not close"),
        ("hangs", "block", "longer than 6 s"),
        ("exits", "block", "the process ended with 7"),
        ("exits-in-a-call", "block", "the process ended with 7"),
        ("loads-another", "artifact", "a second process failed"),
        ("refuses-all", "block", "it was refused: it refuses everything"),
    ],
)
def test_a_defect_fails(defect: str, requirement: str, shown: str) -> None:
    found = outcome(defect, requirement, deadline=6.0 if defect == "hangs" else 60.0)
    assert found.status == "failed"
    assert shown in found.detail


def test_after_a_crash_the_other_requirements_still_run() -> None:
    found = run_requirements(subject("exits-in-a-call"), ["factors", "block", "elementwise"])
    assert [(o.name, o.status) for o in found] == [
        ("block", "failed"), ("elementwise", "failed"), ("factors", "passed"),
    ]  # fmt: skip


def test_without_a_defect_it_passes() -> None:
    assert outcome("", "dynamic-block").status == "passed"


def test_what_is_not_opened_must_be_refused() -> None:
    found = outcome("", "integers", opened=())
    assert found.status == "failed"
    assert "open the capability 'integers'" in found.detail
    assert outcome("", "integers", opened=["integers"]).status == "passed"
    refused = outcome("refuses-all", "integers", opened=())
    assert (refused.status, refused.detail) == ("refused", "it refuses everything")
    assert outcome("refuses-all", "integers").status == "refused"
    assert outcome("refuses-all", "integers", opened=["integers"]).status == "failed"


def test_what_its_record_claims_may_not_be_refused() -> None:
    claims = claims_of(subject("").host()[1], "broken")
    assert claims == {"dynamic-shapes", "mutation", "custom-ops", "live-weights"}
    found = outcome("refuses-all", "mutation", opened=(), claims=claims)
    assert (found.status, found.detail) == ("failed", "it was refused: it refuses everything")


@pytest.mark.parametrize(
    "wrong", [{"names": ["blok"]}, {"opened": ["dynamic-shape"]}], ids=["requirement", "capability"]
)
def test_names_that_do_not_exist_are_refused(wrong: dict[str, list[str]]) -> None:
    with pytest.raises(ConfigError, match="there is no"):
        run_requirements(subject("", opened=wrong.get("opened")), wrong.get("names"))


def test_the_command_prints_a_table_and_says_what_failed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "intarsia.cli", "conformance", "broken", "--only", "block,integers",
         "--plugins", "tests.conformance.broken:plugins", "--open", ""],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "compiler broken on cpu" in done.stdout
    assert "open the capability 'integers'" in done.stdout
    assert "1 hold, 0 are refused, 1 failed" in done.stdout
