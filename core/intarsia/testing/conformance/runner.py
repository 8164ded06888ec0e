"""Run requirements in a child process, one after the other, each within a deadline.

A requirement that hangs or takes the process down has failed, and the rest goes on in a new process.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from intarsia.errors import CompileFailed, CompileRejected, ConfigError, IntarsiaError, RecordError
from intarsia.testing.conformance.requirements import capabilities_of, requirements_for
from intarsia.testing.conformance.subject import Outcome, Requirement, Subject, unknown

__all__ = ["run_requirements"]

_POLL = 0.02
_START = 120.0
"""Seconds that a child may take to import everything."""


def run_requirements(
    subject: Subject, names: Sequence[str] | None = None,
    seen: Callable[[Outcome], None] = lambda outcome: None,
) -> tuple[Outcome, ...]:  # fmt: skip
    """Run a component's requirements, or those named, and return what came of each.

    `seen` gets each outcome as it comes.

    Raises:
        ConfigError: a capability or requirement that does not exist is named.
    """
    known = requirements_for(subject.kind)
    _check_names("requirement", names or (), [r.name for r in known])
    _check_names("capability", sorted(subject.opened or ()), capabilities_of(subject.kind))
    left = [r for r in known if names is None or r.name in names]
    found: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="intarsia-conformance-") as folder:
        while left:
            for outcome in _in_a_child(subject, left, Path(folder)):
                found.append(outcome)
                seen(outcome)
            done = {outcome.name for outcome in found}
            left = [r for r in left if r.name not in done]
    return tuple(found)


def _check_names(what: str, names: Sequence[str], known: Sequence[str]) -> None:
    wrong = unknown(names, known)
    if wrong:
        raise ConfigError(f"there is no {what} {wrong[0]!r}", next_step=f"Known: {', '.join(known)}.",
                          subject=wrong[0])  # fmt: skip


def _in_a_child(
    subject: Subject, requirements: Sequence[Requirement], folder: Path
) -> Iterator[Outcome]:
    """Yield outcomes until all have run, or one has ended the child."""
    results, log = folder / "results", folder / "log"
    for file in (results, log):
        file.unlink(missing_ok=True)
    by_name = {r.name: r for r in requirements}
    command = [sys.executable, "-m", "intarsia.testing.conformance.child", str(results), *by_name]
    path = os.pathsep.join([*subject.paths, *filter(None, [os.environ.get("PYTHONPATH")])])
    with log.open("wb") as output:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=output,
            env={**os.environ, "PYTHONPATH": path}, start_new_session=True,
        )  # fmt: skip
    try:
        assert child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it ended already, and its log says why
            child.stdin.write(subject.to_json().encode())
            child.stdin.close()
        yield from _followed(subject, child, results, log, by_name)
    finally:
        _end(child)


def _followed(
    subject: Subject, child: subprocess.Popen[bytes], results: Path, log: Path,
    by_name: Mapping[str, Requirement],
) -> Iterator[Outcome]:  # fmt: skip
    waiting = list(by_name)
    read, begun = 0, time.monotonic()
    allowed = _START
    while waiting:
        ended = child.poll() is not None
        lines = results.read_text().splitlines() if results.exists() else []
        for line in lines[read:]:
            read += 1
            begun, allowed = time.monotonic(), subject.deadline
            data = json.loads(line)
            if "ready" in data:
                continue
            waiting.remove(data["name"])
            yield _judged(subject, by_name[data["name"]], data)
        if not waiting:
            return
        late = time.monotonic() - begun > allowed
        if ended or late:
            why = (
                f"it took longer than {allowed:g} s" if late
                else f"the process ended with {child.returncode}: {_end_of(log)}"
            )  # fmt: skip
            requirement = by_name[waiting[0]]
            yield Outcome(requirement.name, requirement.capability, "failed", why,
                          time.monotonic() - begun)  # fmt: skip
            return
        time.sleep(_POLL)


def _judged(subject: Subject, requirement: Requirement, data: Mapping[str, Any]) -> Outcome:
    """Say what an answer means: what was not opened has to be refused."""
    closed = (
        bool(requirement.capability)
        and subject.opened is not None
        and requirement.capability not in subject.opened
    )
    may_refuse = (
        bool(requirement.capability)
        and requirement.capability not in subject.claims
        and (subject.opened is None or closed)
    )
    status, detail = data["status"], data["detail"]
    if status == "failed" and requirement.may_fail and may_refuse:
        status = "refused"
    if status == "passed" and closed:
        status = "failed"
        detail = f"it works, and is declared not to: open the capability {requirement.capability!r}"
    elif status == "refused" and not may_refuse:
        status, detail = "failed", f"it was refused: {detail}"
    return Outcome(requirement.name, requirement.capability, status, detail, data["seconds"])


def _end_of(log: Path) -> str:
    lines = [x for x in log.read_text(errors="replace").splitlines() if x.strip()]
    return lines[-1][:300] if lines else "it printed nothing"


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a child and what it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, 9)
    child.wait()


# ------------------------------------------------------------------------------------ inside the child


def run_here(subject: Subject, names: Sequence[str], results: Path) -> None:
    """Run requirements in this process, and write a line of JSON for each."""
    by_name = {r.name: r for r in requirements_for(subject.kind)}
    _write(results, {"ready": True})
    for name in names:
        begun = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="intarsia-conformance-") as folder:
            status, detail = _tried(by_name[name], subject, Path(folder))
        _write(results, {"name": name, "status": status, "detail": detail,
                         "seconds": round(time.monotonic() - begun, 3)})  # fmt: skip


def _tried(requirement: Requirement, subject: Subject, folder: Path) -> tuple[str, str]:
    try:
        requirement.run(subject, folder)
    except IntarsiaError as error:
        if is_refusal(error):
            return "refused", str(error.__cause__ or error)
        return "failed", f"{type(error).__name__}: {error}"
    except AssertionError as error:
        return "failed", str(error) or _place(error)
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error}\n{_place(error)}"
    return "passed", ""


def is_refusal(error: IntarsiaError) -> bool:
    """Say whether an error is a clean refusal: by the compiler, or of a capability that is not claimed."""
    if isinstance(error, CompileFailed):
        return isinstance(error.__cause__, CompileRejected)
    return isinstance(error, CompileRejected | ConfigError | RecordError)


def _place(error: BaseException) -> str:
    return "".join(traceback.format_tb(error.__traceback__)[-3:])


def _write(results: Path, data: Mapping[str, Any]) -> None:
    with results.open("a") as file:
        file.write(json.dumps(data) + "\n")
