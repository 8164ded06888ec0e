"""From a bundle to a compiled model: compared with what tracing had read, restored, bound."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import evolve, field, frozen

from intarsia.assemble import assemble
from intarsia.bundle.bundle import Bundle
from intarsia.bundle.codec import NotHere
from intarsia.bundle.front import Front, front_from_data
from intarsia.bundle.needs import ensure
from intarsia.bundle.plans import PlanReader
from intarsia.bundle.reading import Present, Reading, compare, frozen_again, scope_for
from intarsia.cache.entry import BadEntry
from intarsia.cache.journal import Journal
from intarsia.compiled import Compiled
from intarsia.digests import plain_digest
from intarsia.errors import ContractError, IntarsiaError
from intarsia.host import Host
from intarsia.report.events import EventStream
from intarsia.report.records import Report, report_from_dict
from intarsia.report.text import explain
from intarsia.runtime.bound import BoundBox, PieceFunction
from intarsia.runtime.contract import values_problem
from intarsia.runtime.weights import live_weights, module_of


class Changed(IntarsiaError):
    """Something that tracing had read is no longer what it was."""

    def __init__(self, present: Present) -> None:
        super().__init__("; ".join(present.lines[:3]))
        self.present = present


@frozen
class Target:
    """The model that a bundle is loaded for.

    Attributes:
        values: the arguments of the example call by parameter, or None where there is none.
        defaults: the defaults of the model's parameters.
        check: the setting `check`.
        journal: the crash journal, or None.
    """

    model: Any
    name: str
    host: Host
    device: int | None
    events: EventStream
    check: str
    defaults: Mapping[str, Any] = field(factory=dict)
    values: Mapping[str, Any] | None = None
    journal: Journal | None = None


@frozen
class Loaded:
    """A compiled model, and its pieces by number."""

    compiled: Compiled
    functions: Mapping[int, PieceFunction]


def load_bundle(bundle: Bundle, target: Target) -> Loaded:
    """Return the compiled model of a bundle. Nothing is traced and nothing compiles.

    Raises:
        Changed: tracing had read something that is different now.
        NotHere: a module, operator or weight that it needs is not to be found.
        Whatever else a compiler's `load` raises.
    """
    reading = Reading.from_data(bundle.plan["reading"])
    missing = ensure(reading.needs, reading.imported)
    if missing:
        raise NotHere(f"it needs {missing}, which is not to be found in this process")
    scope = scope_for(target.model, reading.aliases)
    present = compare(reading, scope, target.model)
    if present is not None:
        raise Changed(present)
    front = front_from_data(bundle.plan["front"], target.defaults)
    _compare_values(front, target)
    reader = _reader(bundle, target, lambda text: eval(text, scope))
    boxes = reader.boxes({"values": "always"}.get(target.check, target.check), target.name)
    if not boxes or any({p.index for p in b.plan.pieces} != set(b.functions) for b in boxes):
        raise BadEntry("it has no piece for some sizes")
    _bind(boxes, target)
    engine = assemble(
        front, boxes, model=target.model, name=target.name, events=target.events,
        make_frozen=lambda: frozen_again(reading, scope, target.model),
        make_report=lambda: _report(bundle, target.name),
        explain=lambda now, sources: explain(now, bundle.meta["symbols"], sources),
    )  # fmt: skip
    functions = {i: reader.function(i) for i in range(len(bundle.plan["plans"]["functions"]))}
    return Loaded(Compiled(engine), functions)


def weight_problem(bundle: Bundle, target: Target) -> str:
    """Return which of the model's weights is not what was captured, and how; "" where none is found."""
    weights = _reader(bundle, target, None).weights()
    try:
        live_weights(weights, target.model, target.name)
    except ContractError as error:
        return f"{error.what}: {error.why}"
    return ""


def _reader(bundle: Bundle, target: Target, read: Callable[[str], Any] | None) -> PlanReader:
    return PlanReader(
        bundle.plan["plans"], bundle.artifacts.__getitem__, target.host, target.device,
        module_of(target.model), read, target.defaults, target.journal,
    )  # fmt: skip


def _compare_values(front: Front, target: Target) -> None:
    """Compare the example call with what the plan takes, beyond what the look-up key has of it."""
    if target.values is None:
        return
    nothing: Mapping[str, Any] = {"args": (), "kwargs": {}}
    left_out = {p.name: nothing[p.kind] for p in front.tree.parameters if p.kind in nothing}
    call = {**left_out, **target.defaults, **target.values}
    wrong = values_problem(target.name, front.tree, call)
    if wrong is not None:
        raise Changed(Present((wrong.why,), plain_digest(wrong.why)))


def _bind(boxes: Sequence[BoundBox], target: Target) -> None:
    weights: dict[int, list[Any]] = {}
    for box in boxes:
        if id(box.plan) not in weights:
            try:
                found = live_weights(box.plan.inputs, target.model, target.name)
            except ContractError as error:
                raise NotHere(str(error)) from error
            weights[id(box.plan)] = found
        box.bind(weights[id(box.plan)])


def _report(bundle: Bundle, name: str) -> Report:
    """Return the report of the compile that made it, as this process' own: it compiled nothing."""
    made = report_from_dict(json.loads(bundle.report))
    return evolve(made, name=name, captures=0, traces=0, compiler_calls=0, hits=0, bundle_reads=1,
                  warnings=())  # fmt: skip
