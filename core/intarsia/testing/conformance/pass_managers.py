"""What a pass manager must do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import fx

from intarsia.interfaces import BoundPass, PassContext, PassManager, PassRun, PassSpec
from intarsia.passes.manager import BuiltInManager
from intarsia.references import resolve_reference
from intarsia.testing.conformance.subject import Requirement, Subject

__all__ = ["REQUIREMENTS"]


def _manager(subject: Subject) -> PassManager:
    if subject.name == "built-in":
        return BuiltInManager()
    _, host = subject.host()
    spec = host.pass_manager(subject.name)
    made: PassManager = resolve_reference(spec.factory, owner=f'pass manager "{spec.name}"')()
    return made


class _Nothing:
    """A pass that changes nothing."""

    def __call__(self, graph: fx.Graph) -> int:
        return 0

    def uuid(self) -> str:
        """Return its identity."""
        return "nothing"


def _spec(name: str, **more: Any) -> PassSpec:
    return PassSpec(name, "1", "piece-aten", lambda options: _Nothing(), **more)


SPECS = (_spec("third"), _spec("first"), _spec("second"))


def _ordered(subject: Subject) -> list[str]:
    resolved, _ = subject.host()
    made = _manager(subject).order(SPECS, "piece-aten", {"n": (1, 8)}, resolved.config)
    return [spec.name for spec in made]


def _is_steady(subject: Subject, folder: Path) -> None:
    one, other = _ordered(subject), _ordered(subject)
    assert one == other, f"the order is {one}, and then {other}"
    twice = [name for name in one if one.count(name) > 1]
    assert not twice, f"{twice[0]} is there twice"
    strange = set(one) - {spec.name for spec in SPECS}
    assert not strange, f"{sorted(strange)} was not given"


def _keeps_constraints(subject: Subject, folder: Path) -> None:
    resolved, _ = subject.host()
    specs = (_spec("late", after=("early",)), _spec("early"), _spec("between", before=("late",),
             after=("early",)))  # fmt: skip
    made = [s.name for s in _manager(subject).order(specs, "piece-aten", {}, resolved.config)]
    assert made == ["early", "between", "late"], f"the order is {made}"


def _runs_each_once(subject: Subject, folder: Path) -> None:
    seen: list[str] = []

    def bound(spec: PassSpec) -> BoundPass:
        def run(graph: fx.Graph) -> PassRun:
            seen.append(spec.name)
            return PassRun(spec.name, 1, 0.0, spec.stage)

        return BoundPass(spec, run)

    graph = fx.Graph()
    graph.output(graph.placeholder("x"))
    context = PassContext({"n": (1, 8)}, "cpu")
    report = _manager(subject).run([bound(s) for s in SPECS], "piece-aten", graph, context)
    assert sorted(seen) == sorted(s.name for s in SPECS), f"what ran is {seen}"
    assert report.stage == "piece-aten"
    assert [run.name for run in report.runs] == seen, "the report is not what ran"


def _has_factors(subject: Subject, folder: Path) -> None:
    one, other = (_manager(subject).factors() for _ in range(2))
    assert dict(one) == dict(other), f"factors() is {one}, and then {other}"
    wrong = [k for k, v in one.items() if not isinstance(k, str) or not isinstance(v, str)]
    assert not wrong, f"factors() has {wrong[0]!r}, which is no text"


REQUIREMENTS: tuple[Requirement, ...] = (
    Requirement("steady", "", "the order is the same every time, each pass once", _is_steady),
    Requirement("constraints", "declared-order", "`before` and `after` are kept", _keeps_constraints,
                may_fail=True),
    Requirement("runs", "", "each pass runs once, and the report says so", _runs_each_once),
    Requirement("factors", "", "its identity is text and stays the same", _has_factors),
)  # fmt: skip
