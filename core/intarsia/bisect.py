"""Narrows a wrong result down to one piece, box and pass, by switching pieces to eager and passes off."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from attrs import define, evolve, frozen

from intarsia.api import compile as compile_model
from intarsia.boxes_text import describe_box
from intarsia.capture.call import Call, bind_call
from intarsia.capture.dynamic import Dynamic, named_dims
from intarsia.capture.structure import Path, walk
from intarsia.config import ResolvedConfig
from intarsia.config.layers import Level
from intarsia.host import Host
from intarsia.runtime.bound import BoundBox, PieceFunction, Verification
from intarsia.runtime.memory import copied, is_plain
from intarsia.runtime.verify import difference
from intarsia.runtime.weights import module_of

__all__ = ["Culprit", "Subject", "bisect"]


@frozen
class Culprit:
    """What makes a result wrong.

    Attributes:
        kind: "nothing": every result is right; "graph": it is wrong with every piece eager and no pass, so
            tracing or splitting is to blame; "piece": a compiled piece; "pass": a graph pass.
        piece: the piece's name, or "".
        compiler: who compiled it, or "".
        passed: the pass, or "".
        box: the sizes that it was compiled for, as text.
        error: the largest difference from eager, as a part of eager's largest value.
        runs: how often the model was run compiled.
        source: the user's lines that the piece comes from.
    """

    kind: str
    piece: str = ""
    compiler: str = ""
    passed: str = ""
    box: str = ""
    error: float = 0.0
    runs: int = 0
    source: tuple[str, ...] = ()

    def __str__(self) -> str:
        runs = f"({self.runs} runs)"
        if self.kind == "nothing":
            return f"every result equals eager's {runs}"
        how = (
            f"by {self.error:.2g} of its largest value" if self.error != float("inf") else "wholly"
        )
        if self.kind == "graph":
            return f"the result differs {how} with every piece eager: tracing or splitting {runs}"
        where = f"{self.piece} by {self.compiler} for {self.box}" if self.piece else self.box
        what = f'the pass "{self.passed}", in {where},' if self.passed else where
        return f"{what} makes the result differ {how} {runs}"


@frozen
class Subject:
    """A model and an example call, as `intarsia.compile` takes them.

    Attributes:
        config: the settings under which the result is wrong.
        host: loads the plugins for some settings.
    """

    model: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    dynamic: Dynamic | None
    config: ResolvedConfig
    host: Callable[[ResolvedConfig], Host] = Host
    name: str | None = None


def bisect(subject: Subject, told: Callable[[str], None] = lambda line: None) -> Culprit:
    """Return what makes a model's result differ from eager's.

    The example call is run, and for each other box a call of the same tensors, repeated or cut to sizes in
    it. What the model writes to its buffers and to the call's tensors is put back after every run.

    Args:
        subject: the model, and the settings under which its result is wrong.
        told: gets a line about each run.

    Raises:
        Whatever compiling or running the model raises.
    """
    return _Bisection(subject, told).run()


@frozen
class _Case:
    """A call, and what eager returns for it."""

    sizes: Mapping[str, int]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    expected: list[Any]


@frozen
class _Whole:
    """A compiled model, and every piece of it as it is."""

    compiled: Any
    eager: Mapping[int, Verification]

    @property
    def dispatcher(self) -> Any:
        return self.compiled._engine.dispatcher

    def box(self, case: _Case) -> BoundBox | None:
        found: BoundBox | None = self.dispatcher.box_for(case.sizes)
        return found


@define
class _Bisection:
    subject: Subject
    told: Callable[[str], None]
    runs: int = 0

    def run(self) -> Culprit:
        whole = self._compiled(None)
        try:
            for case in self._cases(whole):
                error = self._error(whole, case, "as it is")
                if error:
                    return evolve(self._blamed(whole, case, error), runs=self.runs)
            return Culprit("nothing", runs=self.runs)
        finally:
            whole.compiled.close()

    def _blamed(self, whole: _Whole, case: _Case, error: float) -> Culprit:
        box = whole.box(case)
        shown = ", ".join(f"{n} = {s}" for n, s in case.sizes.items()) or "its sizes"
        if box is None:
            return Culprit("graph", box=shown, error=error)
        remaining = self._mixed(whole, case, ())
        if remaining:
            return self._pass(Culprit("graph", box=shown, error=remaining), whole, case)
        left = sorted(box.functions)
        while len(left) > 1:
            half = left[: len(left) // 2]
            left = half if self._mixed(whole, case, half) else left[len(half) :]
        return self._pass(self._piece(whole, box, left[0], error), whole, case)

    def _piece(self, whole: _Whole, box: BoundBox, index: int, error: float) -> Culprit:
        reports = {p.index: p for p in whole.compiled.report.piece_reports}
        return Culprit(
            "piece", f"{box.name}.piece_{index}", box.functions[index].compiler,
            box=describe_box(box.planned.box), error=error,
            source=reports[index].source if index in reports else (),
        )  # fmt: skip

    def _mixed(self, whole: _Whole, case: _Case, compiled: Sequence[int]) -> float:
        """Run with these pieces compiled and the others eager."""
        dispatcher = whole.dispatcher
        boxes = dispatcher.boxes
        try:
            dispatcher.boxes = [_mix(box, set(compiled), whole.eager[id(box)]) for box in boxes]
            dispatcher.forget()
            shown = ", ".join(map(str, compiled)) or "none"
            return self._error(whole, case, f"compiled pieces: {shown}")
        finally:
            dispatcher.boxes = boxes
            dispatcher.forget()

    def _pass(self, blamed: Culprit, whole: _Whole, case: _Case) -> Culprit:
        """Blame a pass instead, where the result is right without it."""
        names = [t.name for t in whole.compiled.report.passes]
        names = list(dict.fromkeys(names))
        if not names or self._limited(0, case):
            return blamed
        low, high = 0, len(names)  # right with so many passes, wrong with so many
        while high - low > 1:
            middle = (low + high) // 2
            if self._limited(middle, case):
                high = middle
            else:
                low = middle
        return evolve(blamed, kind="pass", passed=names[high - 1])

    def _limited(self, limit: int, case: _Case) -> float:
        whole = self._compiled(limit)
        try:
            return self._error(whole, case, f"passes: the first {limit}")
        finally:
            whole.compiled.close()

    # -- runs

    def _compiled(self, limit: int | None) -> _Whole:
        subject = self.subject
        # With `verify` every piece is kept as it is, too; the comparison itself is taken off.
        changes: dict[str, Any] = {"verify": 1, "static_graph": "none"}
        if limit is not None:
            changes["passes"] = {**subject.config.config.passes.to_dict(), "limit": limit}
        config = subject.config.with_layer(changes, "bisect", Level.CODE)
        compiled = compile_model(
            subject.model, subject.args, dict(subject.kwargs), dynamic=subject.dynamic,
            config=config, host=subject.host(config), name=subject.name,
        )  # fmt: skip
        eager = {}
        for box in compiled._engine.dispatcher.boxes:
            assert box.verification is not None
            eager[id(box)] = box.verification
            box.verification = None
            box.bind(box.weights)
        compiled._engine.dispatcher.forget()
        return _Whole(compiled, eager)

    def _error(self, whole: _Whole, case: _Case, what: str) -> float:
        """Return how far a run is from eager's result; 0 where that is near enough."""
        self.runs += 1
        found = self._called(whole.compiled, case.args, case.kwargs)
        error = _far(found, case.expected)
        self.told(f"run {self.runs}, {what}: {'right' if not error else f'wrong ({error:.2g})'}")
        return error

    def _called(self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """Call with copies of the tensors, and put back what it writes to the model."""
        values = _tensors_of(self.subject.model)
        before = [value.detach().clone() for value in values]
        given, named = _copies(args, kwargs)
        with torch.no_grad():
            try:
                result = function(*given, **named)
                parts = [*walk(result, Path("result")), *walk([given, named], Path("call"))]
                written = [v.detach().clone() for v in values]
            finally:
                for value, old in zip(values, before, strict=True):
                    value.copy_(old)
        return [value for _, value in parts if isinstance(value, torch.Tensor)] + written

    def _cases(self, whole: _Whole) -> Iterator[_Case]:
        """Yield the example call, and one for each box that it is not in."""
        subject = self.subject
        call = bind_call(subject.model, subject.args, dict(subject.kwargs))
        dims = named_dims(subject.dynamic or {}, call.values)
        here = {d.name: _at(d.path, call).shape[d.dim] for d in dims}
        first = self._case(call, here)
        yield first
        mine = whole.box(first)
        for box in whole.dispatcher.boxes:
            if box is mine or any(d.path.steps for d in dims):
                continue
            sizes = {n: _size_in(box.planned.box.get(n, (s, s)), s) for n, s in here.items()}
            if box.planned.holds(sizes):
                yield self._case(_resized(call, dims, sizes), sizes)

    def _case(self, call: Call, sizes: Mapping[str, int]) -> _Case:
        args, kwargs = call.split()
        return _Case(dict(sizes), args, kwargs, self._called(self.subject.model, args, kwargs))


def _mix(box: BoundBox, keep: set[int], eager: Verification) -> BoundBox:
    functions = {
        index: made if index in keep else PieceFunction(eager.eager[index], "eager")
        for index, made in box.functions.items()
    }
    mixed = BoundBox(box.planned, box.plan, functions, "none", box.name)
    mixed.bind(box.weights)
    return mixed


def _far(found: Sequence[Any], expected: Sequence[Any]) -> float:
    if len(found) != len(expected):
        return float("inf")
    errors = [difference(one, other) for one, other in zip(found, expected, strict=True)]
    return max(
        (error or float("inf") if reason else error for error, reason in errors), default=0.0
    )


def _tensors_of(model: Any) -> list[torch.Tensor]:
    owner = module_of(model)
    if not isinstance(owner, torch.nn.Module):
        return []
    return [*owner.parameters(), *owner.buffers()]


def _at(path: Path, call: Call) -> Any:
    value = call.values[path.root]
    for kind, step in path.steps:
        value = getattr(value, step) if kind == "." else value[step]
    return value


def _size_in(bounds: tuple[int, int], size: int) -> int:
    """Return a size in a range: the example's own, if it is inside."""
    low, high = bounds
    return size if low <= size <= high else max(low, min(high, 2))


def _resized(call: Call, dims: Sequence[Any], sizes: Mapping[str, int]) -> Call:
    """Return a call whose tensors are repeated or cut to other sizes."""
    values = dict(call.values)
    for dim in dims:
        tensor, wanted = values[dim.path.root], sizes[dim.name]
        times = [1] * tensor.dim()
        times[dim.dim] = -(-wanted // max(tensor.shape[dim.dim], 1))
        values[dim.path.root] = tensor.repeat(times).narrow(dim.dim, 0, wanted).clone()
    return Call(call.parameters, values)


def _copies(
    args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return copies of a call's arguments; tensors that share memory go on doing so.

    Tensors are not left to `deepcopy`, which wants a storage made: no torch can on a device in Python.
    """
    values = [value for _, value in walk([args, kwargs], Path("call"))]
    tensors = [v for v in values if isinstance(v, torch.Tensor) and is_plain(v)]
    known = {id(t): c for t, c in zip(tensors, copied(tensors, range(len(tensors))), strict=True)}
    made: tuple[tuple[Any, ...], dict[str, Any]] = copy.deepcopy((tuple(args), dict(kwargs)), known)
    return made
