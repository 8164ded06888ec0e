"""What the passes of a plugin must do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import intarsia
from intarsia.interfaces import PassSpec
from intarsia.passes.order import ordered
from intarsia.passes.plan import built
from intarsia.testing.conformance.graphs import GRAPHS, GraphCase
from intarsia.testing.conformance.numbers import agree
from intarsia.testing.conformance.subject import Requirement, Subject

__all__ = ["REQUIREMENTS"]


def _specs(subject: Subject) -> tuple[list[PassSpec], Any]:
    _, host = subject.host()
    mine = [s for s in host.passes() if host.provider(s).name == subject.name]
    assert mine, f'the plugin "{subject.name}" brings no passes'
    return mine, host


def _identities(subject: Subject) -> dict[str, str]:
    specs, host = _specs(subject)
    return {spec.name: repr(built(spec, host.options(spec)).uuid()) for spec in specs}


_IDENTITIES = """
import json, sys
from intarsia.testing.conformance.passes import identities_of
from intarsia.testing.conformance.subject import Subject
print(json.dumps(identities_of(Subject.from_json(sys.stdin.read()))))
"""


def identities_of(subject: Subject) -> dict[str, str]:
    """Return the identity of every pass, as this process sees it."""
    return _identities(subject)


def _is_the_same_everywhere(subject: Subject, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _IDENTITIES], input=subject.to_json(), text=True,
        capture_output=True, timeout=subject.deadline, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-1500:]
    here, there = _identities(subject), json.loads(done.stdout.splitlines()[-1])
    differing = [name for name in here if here[name] != there.get(name)]
    assert not differing, f'the pass "{differing[0]}" has another uuid() in another process'
    specs, _ = _specs(subject)
    nameless = [spec.name for spec in specs if not spec.version]
    assert not nameless, f'the pass "{nameless[0]}" has no version'


def _can_be_ordered(subject: Subject, folder: Path) -> None:
    specs, _ = _specs(subject)
    for stage in dict.fromkeys(spec.stage for spec in specs):
        ordered([spec for spec in specs if spec.stage == stage])


def _keeps_what_graphs_compute(subject: Subject, folder: Path) -> None:
    """With each pass alone every graph computes what it did, and no check undoes the pass."""
    specs, _ = _specs(subject)
    for spec in specs:
        for case in GRAPHS:
            _agrees(subject, case, [spec.name])


def _work_together(subject: Subject, folder: Path) -> None:
    specs, _ = _specs(subject)
    for case in GRAPHS:
        _agrees(subject, case, [spec.name for spec in specs])


def _agrees(subject: Subject, case: GraphCase, names: list[str]) -> None:
    specs, host = _specs(subject)
    inductor = any(s.stage.startswith("inductor") for s in specs if s.name in names)
    defaults = host.choose_platform(
        subject.device
    ).passes  # on already, where the plugin has a platform
    chosen = {
        "enable": [name for name in names if name not in defaults],
        "disable": [spec.name for spec in specs if spec.name not in names],
    }
    resolved, host = subject.host(compilers=["inductor" if inductor else "eager"], passes=chosen)
    function = case.make()
    if hasattr(function, "to"):
        function = function.to(subject.device)
    try:
        made = intarsia.compile(
            function, tuple(case.inputs(subject.device, 4)), dynamic=case.dynamic or None,
            config=resolved, host=host,
        )  # fmt: skip
        for total in made.report.passes:  # not strict: too few matches are no defect here
            assert not total.failures, f'the pass "{total.name}" was undone: {total.failures[0]}'
        for n in case.sizes:
            agree(subject, made, function, case.inputs(subject.device, n))
    except (AssertionError, intarsia.IntarsiaError) as error:
        raise AssertionError(f"{', '.join(names)} over {case.name!r}: {error}") from error


REQUIREMENTS: tuple[Requirement, ...] = (
    Requirement("identity", "", "name, version and uuid() are the same in every process",
                _is_the_same_everywhere),
    Requirement("order", "", "the constraints of its passes have no cycle", _can_be_ordered),
    Requirement("alone", "", "each pass alone keeps what graphs compute", _keeps_what_graphs_compute),
    Requirement("together", "", "all of them together do", _work_together),
)  # fmt: skip
