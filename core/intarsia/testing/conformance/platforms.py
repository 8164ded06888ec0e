"""What a platform must do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

import intarsia
from intarsia.device_ops import AcceleratorOps
from intarsia.interfaces import DeviceOps, PlatformSpec
from intarsia.references import resolve_reference
from intarsia.testing.conformance.graphs import GRAPHS
from intarsia.testing.conformance.numbers import agree
from intarsia.testing.conformance.subject import Requirement, Subject

__all__ = ["REQUIREMENTS"]

BLOCK = GRAPHS[0]


def _spec(subject: Subject) -> tuple[PlatformSpec, Any]:
    _, host = subject.host()
    return host.platform(subject.name, usable=False), host


def _ops(subject: Subject) -> DeviceOps:
    spec, _ = _spec(subject)
    if spec.device is None:
        return AcceleratorOps(spec.device_type)
    made: DeviceOps = resolve_reference(spec.device, owner=f'platform "{spec.name}"')(None)
    return made


def _is_available(subject: Subject, folder: Path) -> None:
    spec, host = _spec(subject)
    decision = host.availability(spec)
    assert decision.ok, f"it is not available here: {decision.reason}"
    assert spec.device_type == subject.device, (
        f"its device type is {spec.device_type}, and the tests make tensors on {subject.device}"
    )


_LISTED = """
import json, sys
from intarsia.testing.conformance.subject import Subject
subject = Subject.from_json(sys.stdin.read())
_, host = subject.host()
host.availability(host.platform(subject.name, usable=False))
import torch
device = getattr(torch, subject.device, None)
begun = getattr(device, "is_initialized", lambda: False)()
print(json.dumps(bool(begun) and subject.device != "cpu"))
"""


def _is_not_initialised(subject: Subject, folder: Path) -> None:
    """Finding the platform and asking whether it is there must not touch the device."""
    done = subprocess.run(
        [sys.executable, "-c", _LISTED], input=subject.to_json(), text=True, capture_output=True,
        timeout=subject.deadline, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-1500:]
    assert json.loads(done.stdout.splitlines()[-1]) is False, (
        "asking whether it is available initialises the device"
    )


def _has_steady_traits(subject: Subject, folder: Path) -> None:
    spec, _ = _spec(subject)
    if spec.traits is None:
        return
    traits = resolve_reference(spec.traits, owner=f'platform "{spec.name}"')
    one, other = dict(traits(None)), dict(traits(None))
    assert one == other, f"traits are {one}, and then {other}"
    wrong = [k for k, v in one.items() if not isinstance(k, str) or not isinstance(v, str)]
    assert not wrong, f"the trait {wrong[0]!r} is no text"
    accepts = resolve_reference(spec.accepts, owner=f'platform "{spec.name}"')
    assert accepts(one, one).ok, "it does not accept an artifact built for its own traits"


def _names_what_exists(subject: Subject, folder: Path) -> None:
    """Its default compilers, rules, passes and static-graph backend are there."""
    spec, host = _spec(subject)
    for name in spec.compilers:
        devices = host.compiler(name, usable=False).devices
        assert not devices or spec.device_type in devices, f'its compiler "{name}" is for {devices}'
    for name in spec.passes:
        host.pass_(name)
    if spec.pass_manager is not None:
        host.pass_manager(spec.pass_manager)
    if spec.static_graph is not None:
        devices = host.static_graph(spec.static_graph, usable=False).devices
        assert not devices or spec.device_type in devices, f"its static graphs are for {devices}"


def _operates_its_device(subject: Subject, folder: Path) -> None:
    ops = _ops(subject)
    ops.synchronize()
    first, last = ops.event(), ops.event()
    first.record()
    x = torch.randn(64, 64).to(subject.device)
    (x @ x).sum()
    last.record()
    ops.synchronize()
    assert first.elapsed_time(last) >= 0, "an event says that time has gone back"
    with ops.stream():
        (x @ x).sum()
    ops.synchronize()
    memory = ops.memory()
    assert all(isinstance(v, int) and v >= 0 for v in memory.values()), f"memory() is {memory}"
    assert ops.device_count() >= 1
    with ops.guard(0):
        pass
    ops.empty_cache()


def _is_chosen_by_the_tensors(subject: Subject, folder: Path) -> None:
    """A model on the device is compiled for it with no argument that names it, and stays there."""
    spec, _ = _spec(subject)
    torch.manual_seed(0)
    model = BLOCK.make().to(subject.device)  # type: ignore[attr-defined]
    resolved, host = subject.host()
    args = tuple(BLOCK.inputs(subject.device, 4))
    compiled = intarsia.compile(model, args, config=resolved, host=host)
    report = compiled.report
    assert report.platform == spec.name, f"it was compiled for the platform {report.platform}"
    compilers = {box.compiler for piece in report.piece_reports for box in piece.boxes}
    assert compilers - {""} <= set(spec.compilers), f"{compilers} compiled it, not {spec.compilers}"
    agree(subject, compiled, model, BLOCK.inputs(subject.device, 4))


def _computes_what_the_cpu_does(subject: Subject, folder: Path) -> None:
    torch.manual_seed(0)
    model = BLOCK.make()
    x = torch.randn(5, 8)
    with torch.no_grad():
        expected = model(x)
        resolved, host = subject.host()
        there = model.to(subject.device)  # type: ignore[attr-defined]
        compiled = intarsia.compile(there, (x.to(subject.device),), config=resolved, host=host)
        made = compiled(x.to(subject.device))
    assert made.device.type == subject.device, f"the result is on {made.device}"
    torch.testing.assert_close(made.cpu(), expected, rtol=1e-3, atol=1e-3)


def _leaves_other_platforms_alone(subject: Subject, folder: Path) -> None:
    """In the same process a model on the CPU goes to the CPU's platform."""
    resolved, host = subject.host()
    torch.manual_seed(0)
    model = BLOCK.make()
    args = tuple(BLOCK.inputs("cpu", 4))
    for _ in range(2):
        _is_chosen_by_the_tensors(subject, folder)
        compiled = intarsia.compile(model, args, config=resolved, host=host)
        assert compiled.report.device == "cpu"
        results = pytree.tree_leaves(compiled(*args))
        assert all(x.device.type == "cpu" for x in results)


REQUIREMENTS: tuple[Requirement, ...] = (
    Requirement("available", "", "it says that it can be used here", _is_available),
    Requirement("not-initialised", "", "finding it does not touch the device", _is_not_initialised),
    Requirement("traits", "", "its traits are text and stay the same", _has_steady_traits),
    Requirement("names", "", "what it names as defaults exists and is for it", _names_what_exists),
    Requirement("device-operations", "", "streams, events, memory of the device", _operates_its_device),
    Requirement("chosen", "", "a model on the device needs no argument", _is_chosen_by_the_tensors),
    Requirement("numbers", "", "it computes what the CPU does, on the device", _computes_what_the_cpu_does),
    Requirement("beside-others", "", "another platform in the process works on",
                _leaves_other_platforms_alone),
)  # fmt: skip
