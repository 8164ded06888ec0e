"""Bound plans as plain data and artifacts, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import define, evolve, field

from intarsia.bundle.codec import (
    Known,
    NotHere,
    decode,
    recorded_from_data,
    recorded_to_data,
    space_to_data,
)
from intarsia.cache.journal import Journal
from intarsia.compiling.boxes import PlannedBox
from intarsia.compiling.instances import built_for
from intarsia.compiling.plain import signature_from_dict, signature_to_dict
from intarsia.errors import CompileRejected, IntarsiaError
from intarsia.host import Host
from intarsia.interfaces import Box, PieceSignature
from intarsia.runtime.bound import BoundBox, PieceFunction, Plan, PlannedPiece
from intarsia.runtime.first_call import FirstCall, crashed
from intarsia.runtime.size_test import SizeTest
from intarsia.runtime.source import Namespace
from intarsia.runtime.stitching import Stitching
from intarsia.runtime.weights import PlanInput
from intarsia.split.encode import Encoded


class NoArtifact(IntarsiaError):
    """A piece of a plan leaves no artifact, so the plan cannot be kept; the text says which."""


# ------------------------------------------------------------------------------------------- writing


@define
class PlanWriter:
    """Writes the bound plans of a model; equal parts are written once.

    Attributes:
        known: objects that values of generated code may be by identity.
        blobs: the artifacts.
    """

    known: Known
    blobs: list[bytes] = field(factory=list)
    _plans: list[Plan] = field(factory=list, init=False)
    _functions: dict[int, int] = field(factory=dict, init=False)
    _function_data: list[Encoded] = field(factory=list, init=False)
    _signatures: dict[str, int] = field(factory=dict, init=False)
    _signature_data: list[Encoded] = field(factory=list, init=False)
    _kept: list[Any] = field(factory=list, init=False)

    def data(self, boxes: Sequence[BoundBox]) -> Encoded:
        """Return boxes as plain data; their artifacts are added to `blobs`.

        Raises:
            NoArtifact: a piece has none.
            CannotEncode: generated code uses a value without a plain form.
        """
        written = [self._box(box) for box in boxes]
        return {
            "boxes": written, "plans": [self._plan(plan) for plan in self._plans],
            "functions": self._function_data, "signatures": self._signature_data,
        }  # fmt: skip

    def number(self, function: Any) -> int | None:
        """Return the number of a piece's callable, or None for one that is not in the data."""
        return self._functions.get(id(function))

    def numbered(self, boxes: Sequence[BoundBox]) -> list[tuple[Any, int]]:
        """Return the callables of boxes that were written, each with its number."""
        found = {id(f.callable): f.callable for box in boxes for f in box.functions.values()}
        return [(function, self._functions[key]) for key, function in found.items()]

    def _box(self, box: BoundBox) -> Encoded:
        plan = next((i for i, p in enumerate(self._plans) if p is box.plan), len(self._plans))
        if plan == len(self._plans):
            self._plans.append(box.plan)
        planned = box.planned
        test = planned.test
        if test is not None and not isinstance(test, SizeTest):
            raise NoArtifact(f"the test of the box {dict(planned.box)} has no plain form")
        pieces = {p.index: p for p in box.plan.pieces}
        return {
            "plan": plan, "box": _box_to_data(planned.box), "origin": planned.origin,
            "test": None if test is None else [list(test.names), list(test.sources)],
            "hints": dict(planned.hints),
            "pieces": [
                [i, self._function(pieces[i], f, planned.box), self._signature(pieces[i], planned.box)]
                for i, f in box.functions.items()
            ],
        }  # fmt: skip

    def _function(self, piece: PlannedPiece, made: PieceFunction, box: Box) -> int:
        if id(made.callable) not in self._functions:
            if made.artifact is None or made.baked:
                why = "bakes weights in" if made.baked else "leaves no artifact"
                raise NoArtifact(f'piece {piece.index} by "{made.compiler}" {why}')
            self._functions[id(made.callable)] = len(self._function_data)
            self._kept.append(made.callable)  # or its id could be given to another one
            entry = {
                "compiler": made.compiler, "artifact": self._blob(made.artifact),
                "signature": self._signature(piece, box), "needs": list(made.needs),
                "note": made.note, "tier": made.tier,
                "first_call": None if made.watch is None else [made.watch.key, made.watch.what],
            }  # fmt: skip
            self._function_data.append(entry)
        return self._functions[id(made.callable)]

    def _blob(self, data: bytes) -> int:
        if data not in self.blobs:
            self.blobs.append(data)
        return self.blobs.index(data)

    def _signature(self, piece: PlannedPiece, box: Box) -> int:
        data = signature_to_dict(piece.signature(box))
        key = repr(data)
        if key not in self._signatures:
            self._signatures[key] = len(self._signature_data)
            self._signature_data.append(data)
        return self._signatures[key]

    def _plan(self, plan: Plan) -> Encoded:
        stitching = plan.stitching
        return {
            "title": plan.title, "fixed": dict(plan.fixed), "pinned": list(plan.pinned),
            "inputs": [_input_to_data(entry) for entry in plan.inputs],
            "pieces": [[p.index, sorted(p.weights.items())] for p in plan.pieces],
            "stitching": {
                "source": stitching.source, "name": stitching.name,
                "values": space_to_data(stitching.space, frozenset(), self.known),
                "pieces": sorted(stitching.pieces.items()),
                "weights": sorted(stitching.weights.items()),
                "parameters": list(stitching.parameters),
                "work": stitching.work, "results": list(stitching.results),
            },
        }  # fmt: skip


def _box_to_data(box: Box) -> Encoded:
    return {name: list(bounds) for name, bounds in box.items()}


def _input_to_data(entry: PlanInput) -> Encoded:
    return [entry.kind, entry.name, list(entry.names), entry.source, entry.is_parameter,
            recorded_to_data(entry.recorded), entry.read is not None]  # fmt: skip


# ------------------------------------------------------------------------------------------- reading


@define
class PlanReader:
    """Restores bound plans; nothing is traced and nothing compiles.

    Attributes:
        data: what `PlanWriter.data` returned.
        blobs: index -> artifact.
        host: the plugins, whose compilers load the artifacts.
        device: the device index of this process, or None.
        model: the root whose weights and attributes are read by name.
        read: evaluates Dynamo's sources.
        defaults: the defaults of the model's parameters.
        journal: tells what took down a process in its first call, and notes first calls; or None.
    """

    data: Mapping[str, Any]
    blobs: Callable[[int], bytes]
    host: Host
    device: int | None
    model: Any
    read: Callable[[str], Any] | None = None
    defaults: Mapping[str, Any] = field(factory=dict)
    journal: Journal | None = None
    _loaded: dict[int, PieceFunction] = field(factory=dict, init=False)
    _signatures: dict[int, PieceSignature] = field(factory=dict, init=False)

    def boxes(self, check: str, name: str) -> list[BoundBox]:
        """Return the boxes, not bound yet.

        Raises:
            Anything that a compiler's `load` raises; NotHere for a name that is not to be found, and for
            a piece that took down a process.
        """
        by_plan: dict[int, list[Mapping[str, Any]]] = {}
        for entry in self.data["boxes"]:
            by_plan.setdefault(entry["plan"], []).append(entry)
        plans = {i: self._plan(self.data["plans"][i], entries) for i, entries in by_plan.items()}
        return [
            BoundBox(_planned(entry), plans[entry["plan"]],
                     {i: self.function(f) for i, f, _ in entry["pieces"]}, check, name)
            for entry in self.data["boxes"]
        ]  # fmt: skip

    def weights(self) -> list[PlanInput]:
        """Return the weights that the plans read; no artifact is loaded."""
        entries = [self._input(entry) for plan in self.data["plans"] for entry in plan["inputs"]]
        return [entry for entry in entries if entry.kind == "weight"]

    def function(self, index: int) -> PieceFunction:
        """Return a compiled piece, loaded at its first use."""
        if index not in self._loaded:
            entry = self.data["functions"][index]
            watch = self._watch(entry)
            artifact = self.blobs(entry["artifact"])
            self._loaded[index] = load_function(
                entry["compiler"], artifact, self._signature(entry["signature"]), self.host,
                self.device, needs=entry["needs"], note=entry["note"], tier=entry["tier"],
                watch=watch,
            )  # fmt: skip
        return self._loaded[index]

    def _watch(self, entry: Mapping[str, Any]) -> FirstCall | None:
        if entry["first_call"] is None:
            return None
        key, what = entry["first_call"]
        watch = FirstCall(key, what, self.journal)
        crash = None if self.journal is None else self.journal.culprit(watch.key)
        if crash is not None:
            raise NotHere(
                f"{crashed(crash.pid)} ({watch.what}); to try it again, run: intarsia cache crashes --forget"
            )
        return watch

    def _signature(self, index: int) -> PieceSignature:
        if index not in self._signatures:
            self._signatures[index] = signature_from_dict(self.data["signatures"][index])
        return self._signatures[index]

    def _plan(self, data: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> Plan:
        signatures = {
            _key(entry["box"]): {i: s for i, _, s in entry["pieces"]} for entry in entries
        }

        def signature_for(index: int) -> Callable[[Box], PieceSignature]:
            return lambda box: self._signature(signatures[_key(_box_to_data(box))][index])

        pieces = tuple(
            PlannedPiece(i, dict(weights), signature_for(i)) for i, weights in data["pieces"]
        )
        return Plan(
            tuple(self._input(entry) for entry in data["inputs"]), pieces, data["fixed"],
            self._stitching(data["stitching"]), data["title"], self.model, tuple(data["pinned"]),
        )  # fmt: skip

    def _input(self, data: Any) -> PlanInput:
        kind, name, names, source, is_parameter, recorded, readable = data
        return PlanInput(
            kind, name, tuple(names), source, is_parameter,
            recorded_from_data(recorded), None, self.read if readable else None,
        )  # fmt: skip

    def _stitching(self, data: Mapping[str, Any]) -> Stitching:
        values = {
            name: decode(value, model=self.model, defaults=self.defaults)
            for name, value in data["values"].items()
        }
        return Stitching(
            data["source"], data["name"], Namespace(values), dict(data["pieces"]),
            dict(data["weights"]), tuple(data["parameters"]), data["work"],
            tuple(data["results"]),
        )  # fmt: skip


def _key(box: Mapping[str, Sequence[int]]) -> str:
    return repr(sorted((name, tuple(bounds)) for name, bounds in box.items()))


def _planned(data: Mapping[str, Any]) -> PlannedBox:
    test = data["test"]
    return PlannedBox(
        {name: (low, high) for name, (low, high) in data["box"].items()}, data["origin"],
        None if test is None else SizeTest(tuple(test[0]), tuple(test[1])), data["hints"],
    )  # fmt: skip


def load_function(
    compiler: str, artifact: bytes, signature: PieceSignature, host: Host, device: int | None,
    *, needs: Sequence[str] = (), note: str = "", tier: Any = "quick", watch: FirstCall | None = None,
) -> PieceFunction:  # fmt: skip
    """Return a compiled piece from its artifact.

    Raises:
        NotHere: the compiler says that the artifact is fine and cannot be used here.
        Whatever else its `load` raises; ConfigError and PluginError where there is no such compiler.
    """
    spec = host.compiler(compiler)
    made = built_for(host, spec, device)
    own = evolve(signature, options=host.options(spec))
    try:
        function = made.compiler.load(artifact, own, device)
    except CompileRejected as error:
        raise NotHere(str(error)) from error
    return PieceFunction(
        function,
        compiler,
        getattr(made.compiler, "bind", None),
        {},
        artifact,
        tuple(needs),
        note,
        tier,
        watch,
    )
