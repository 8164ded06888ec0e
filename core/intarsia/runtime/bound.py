"""Bound plans: a graph's pieces with weights and callables attached, and the table that finds them."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from attrs import define, evolve, field, frozen

from intarsia.errors import ContractError
from intarsia.interfaces import Box, PieceSignature, Tier
from intarsia.runtime.check import CheckedCallable
from intarsia.runtime.first_call import FirstCall
from intarsia.runtime.source import bind_code, code_of
from intarsia.runtime.stitching import Stitching
from intarsia.runtime.verify import Mismatch, Verified
from intarsia.runtime.weights import Conversions, PlanInput, check_weights, conversions

if TYPE_CHECKING:
    from intarsia.compiling.boxes import PlannedBox

Forward = Callable[..., Any]
_TABLE_LIMIT = 1 << 16
"""Entries of a dispatch table; a model that sees more sizes than this starts it anew."""


@frozen
class PlannedPiece:
    """A compiled piece of a plan.

    Attributes:
        weights: input index -> the whole graph's placeholder index, for inputs that are weights.
        signature: the piece's signature for a box.
    """

    index: int
    weights: Mapping[int, int]
    signature: Callable[[Box], PieceSignature]


@frozen
class PieceFunction:
    """What runs for a piece and a box.

    Attributes:
        callable: the compiled piece, which equal pieces share.
        compiler: who made it.
        bind: the compiler's own `bind`, or None.
        baked: the weights that are part of it, by input index; empty: they stay inputs.
        artifact: what restores it in another process, or None.
        needs: modules and operators that a load of the artifact requires.
        note: one line for `explain()`.
        tier: which artifact it is.
        watch: notes its first call in the crash journal, or None.
    """

    callable: Forward
    compiler: str
    bind: Callable[..., Forward] | None = None
    baked: Mapping[int, torch.Tensor] = field(factory=dict, eq=False, repr=False)
    artifact: bytes | None = field(default=None, eq=False, repr=False)
    needs: tuple[str, ...] = ()
    note: str = ""
    tier: Tier = "quick"
    watch: FirstCall | None = field(default=None, eq=False, repr=False)


@define
class Plan:
    """A partitioned graph and its stitching.

    Attributes:
        inputs: one per placeholder of the graph.
        pieces: the pieces that are called, by index.
        fixed: symbols that this graph was captured at exactly one size of.
        stitching: the generated function.
        root: the module whose weights are read by name.
        pinned: the arguments, by path, that may not be copied: the graph writes to their memory, or a
            result has it.
    """

    inputs: tuple[PlanInput, ...]
    pieces: tuple[PlannedPiece, ...]
    fixed: Mapping[str, int]
    stitching: Stitching = field(repr=False)
    title: str = "plan"
    root: Any = field(default=None, repr=False)
    pinned: tuple[str, ...] = ()
    conversions: Conversions = field(init=False, repr=False)
    _made: dict[frozenset[int], tuple[Stitching, Any]] = field(
        factory=dict, alias="_made", repr=False
    )

    def __attrs_post_init__(self) -> None:
        self.conversions = conversions(self.inputs, self.stitching.weights)

    def made(self) -> list[tuple[Stitching, Any]]:
        """Return the stitchings that were needed so far."""
        return list(self._made.values())

    def stitched(self, boxed: Mapping[int, bool]) -> tuple[Stitching, Any]:
        """Return the stitching and its code for callables of which some take one list."""
        key = frozenset(index for index, takes_list in boxed.items() if takes_list)
        if key not in self._made:
            made = _testing(self.stitching.rendered(boxed), self.conversions.tests)
            self._made[key] = (made, code_of(made.source, self.title))
        return self._made[key]


def _testing(made: Stitching, tests: Sequence[str]) -> Stitching:
    """Return a stitching that first tests whether weights were converted."""
    if not tests:
        return made
    head, _, body = made.source.partition("\n")
    names = ", ".join(name.partition("=")[0] for name in made.parameters)
    test = " or ".join(tests)
    return evolve(
        made, source=f"{head}\n    if {test}:\n        return _converted({names})\n{body}"
    )


class _Lease:
    """Lives as long as a generated function that uses the bound callables, also where it still runs."""


def _close_all(functions: Sequence[Forward]) -> None:
    for function in functions:
        close_callable(function)


def close_callable(function: Any) -> None:
    """Call `close()` of a compiled piece, if it has one."""
    close = getattr(function, "close", None)
    if close is not None:
        close()


@define
class Verification:
    """How the pieces of a box are compared with eager.

    Attributes:
        eager: each piece as it is, of positional inputs.
        mutated: the inputs that each piece writes to.
        unfilled: the results of each piece that are memory which it does not write to.
        left: how many calls of each piece are still compared.
        on_mismatch: told what differs.
    """

    eager: Mapping[int, Forward]
    mutated: Mapping[int, Sequence[int]]
    unfilled: Mapping[int, frozenset[int]]
    left: dict[int, int]
    on_mismatch: Callable[[Mismatch], None]


def boxed_call(function: Forward) -> bool:
    """Say whether a compiled piece takes one list of its inputs."""
    return bool(getattr(function, "boxed_call", False))


def spread(function: Forward) -> Forward:
    """Return a function of one list as one of positional inputs."""
    return lambda *inputs: function(list(inputs))


def unboxed(function: Forward) -> Forward:
    """Return a compiled piece as a function of positional inputs."""
    return spread(function) if boxed_call(function) else function


@define
class BoundBox:
    """A plan bound for one box: the pieces' callables, bound to the weights.

    `forward` is what the table holds: the checking one until a call has gone through it, the plain one
    from then on.

    Attributes:
        verification: how the pieces are compared with eager; None where they are not, or any more.
        values: what the names of the stitching stand for, pieces left out.
        bound: the pieces' callables, bound to the weights; those with `boxed_call` take one list.
    """

    planned: PlannedBox
    plan: Plan
    functions: Mapping[int, PieceFunction]
    check: str
    name: str
    forward: Forward = field(init=False)
    on_checked: Callable[[], None] = field(default=lambda: None)
    on_converted: Callable[[], None] = field(default=lambda: None)
    verification: Verification | None = field(default=None, repr=False)
    weights: Sequence[Any] = field(default=(), init=False, repr=False)
    values: Mapping[str, Any] = field(factory=dict, init=False, repr=False)
    bound: Mapping[int, Forward] = field(factory=dict, init=False, repr=False)
    _release: Callable[[], Any] = field(default=lambda: None, init=False, repr=False)
    _signatures: dict[int, PieceSignature] = field(factory=dict, init=False, repr=False)
    binds: int = 0

    def signature(self, piece: PlannedPiece) -> PieceSignature:
        """Return a piece's signature for this box; recording asks for it at every size."""
        if piece.index not in self._signatures:
            self._signatures[piece.index] = piece.signature(self.planned.box)
        return self._signatures[piece.index]

    def bind(self, weights: Sequence[Any]) -> None:
        """Attach weights (one per placeholder of the graph, None for others) and callables."""
        functions = {p.index: self._bound(p, self.functions[p.index], weights)
                     for p in self.plan.pieces}  # fmt: skip
        boxed = {i: boxed_call(f) for i, f in functions.items()}
        stitching, code = self.plan.stitched(boxed)
        names = {name: weights[i] for i, name in stitching.weights.items()}
        tests = self.plan.conversions.values(self.plan.root, weights)
        lease = _Lease()
        values = {**stitching.space.values, **names, **tests, "_converted": self._converted,
                  "_lease": lease}  # fmt: skip
        own = [f for i, f in functions.items() if f is not self.functions[i].callable]
        self._release = weakref.finalize(lease, _close_all, own)
        self.weights, self.values, self.bound = weights, values, functions
        if self.verification is not None:
            stitching, code = self.plan.stitched({})
            boxed = dict.fromkeys(boxed, False)
            functions = self._verified(functions, self.verification)
        plain = {stitching.pieces[i]: f for i, f in functions.items()}
        fast = bind_code(code, stitching.name, {**values, **plain})
        if self.check == "none" and not any(map(self._is_watched, functions)):
            self.forward = fast
            return
        checked = {
            stitching.pieces[p.index]: self._checking(p, functions[p.index], boxed[p.index])
            for p in self.plan.pieces
        }
        careful = self._weighed(bind_code(code, stitching.name, {**values, **checked}), weights)
        self.forward = careful if self.check == "always" else self._first(careful, fast)

    def _verified(self, functions: Mapping[int, Forward], how: Verification) -> dict[int, Forward]:
        """Return pieces that are compared with eager."""
        return {
            index: Verified(
                unboxed(function), how.eager[index], how.mutated[index], how.unfilled[index],
                f"{self.name}.piece_{index}", self.functions[index].compiler, how.left[index],
                functools.partial(self._verified_enough, index),
                functools.partial(self._quarantine, index),
            )
            for index, function in functions.items()
        }  # fmt: skip

    def _verified_enough(self, index: int) -> None:
        assert self.verification is not None
        self.verification.left[index] = 0
        if not any(self.verification.left.values()):
            self.verification = None
            self._again()

    def _quarantine(self, index: int, wrong: Mismatch) -> None:
        """Let eager run a piece from now on, and every equal one for these sizes."""
        how = self.verification
        assert how is not None
        culprit = self.functions[index].callable
        for other, made in self.functions.items():
            if made.callable is culprit:
                how.left[other] = 0
                eager = PieceFunction(how.eager[other], "eager", note=f"quarantined: {wrong}")
                self.functions = {**self.functions, other: eager}
        how.on_mismatch(wrong)
        self._again()

    def _again(self) -> None:
        self.bind(self.weights)
        self.on_checked()

    def close(self) -> None:
        """Close what `bind` made. What an earlier `bind` made was closed when its last call was done."""
        self._release()

    def _converted(self, *arguments: Any) -> Any:
        """Bind anew, to the weights as they are now, and run."""
        self.on_converted()
        return self.forward(*arguments)

    def _weighed(self, forward: Forward, weights: Sequence[Any]) -> Forward:
        def weighed(*arguments: Any) -> Any:
            check_weights(self.plan.inputs, weights, self.name)
            return forward(*arguments)

        return weighed

    def _bound(self, piece: PlannedPiece, made: PieceFunction, weights: Sequence[Any]) -> Forward:
        for i, baked in made.baked.items():
            if weights[piece.weights[i]] is not baked:
                entry = self.plan.inputs[piece.weights[i]]
                raise ContractError(
                    f"the weight {entry.name} of {self.name} was replaced",
                    why=f'compiler "{made.compiler}" has made it part of what it compiled',
                    next_step="Compile the model again, or put the weight back.",
                    subject=entry.name,
                )
        if made.bind is None:
            return made.callable
        self.binds += 1
        return made.bind(made.callable, {i: weights[p] for i, p in piece.weights.items()})

    def _is_watched(self, index: int) -> bool:
        watch = self.functions[index].watch
        return watch is not None and watch.is_due

    def watched(self, index: int, function: Forward) -> Forward:
        """Return what runs a piece as a callable that notes its first call, if that is still to come."""
        watch = self.functions[index].watch
        return watch.noting(function) if watch is not None and watch.is_due else function

    def _checking(self, piece: PlannedPiece, function: Forward, boxed: bool) -> Forward:
        function = self.watched(piece.index, function)
        if self.check == "none":
            return function
        return CheckedCallable(
            function, self.signature(piece),
            f"{self.name}.piece_{piece.index}", self.functions[piece.index].compiler, boxed,
        )  # fmt: skip

    def _first(self, careful: Forward, fast: Forward) -> Forward:
        def first_call(*arguments: Any) -> Any:
            result = careful(*arguments)
            if self.forward is first_call:  # else it was bound anew meanwhile, to other weights
                self.forward = fast
                self.on_checked()
            return result

        return first_call


@define
class Dispatcher:
    """Finds the bound plan for the sizes of a call, and remembers it.

    Attributes:
        symbols: their order in the keys of `table`.
        table: sizes -> forward; the generated entry reads it directly.
        boxes: best first.
        uncovered: makes the forward for sizes outside every box.
        recorded: sizes -> the forward that replays static graphs.
        override: sizes -> what runs in the place of everything else, for as long as it is there.
        lazily: says what runs a call that is to be recorded while it runs, or None.
        pad: says what runs a call that is padded to recorded sizes, or None.
    """

    symbols: tuple[str, ...]
    boxes: Sequence[BoundBox]
    uncovered: Callable[[Mapping[str, int]], Forward]
    table: dict[Any, Forward] = field(factory=dict)
    recorded: dict[Any, Forward] = field(factory=dict)
    override: dict[Any, Forward] = field(factory=dict)
    lazily: Callable[[Any, Mapping[str, int], BoundBox], Forward | None] | None = None
    pad: Callable[[Mapping[str, int]], Forward | None] | None = None
    _lock: threading.Lock = field(factory=threading.Lock, alias="_lock")

    def miss(self, key: Any) -> Forward:
        """Find the forward for sizes that the table does not have yet."""
        if key in self.override:
            return self.override[key]
        values = self.values_of(key)
        boxes = self.boxes
        box = self.box_for(values)
        if box is None:
            padded = self.pad(values) if self.pad is not None else None
            return padded or self.uncovered(values)  # counted and decided anew on each call
        recorded = self.recorded.get(key)
        if recorded is None:
            other = self._in_its_place(key, values, box)
            if other is not None:
                return other
        forward = recorded or box.forward
        with self._lock:
            if len(self.table) >= _TABLE_LIMIT:
                self.table.clear()
            self.table[key] = forward
        swapped = box.forward is not forward if recorded is None else key not in self.recorded
        if swapped or self.boxes is not boxes or key in self.override:
            self.table.pop(key, None)  # it was put in the place of another meanwhile
        return forward

    def _in_its_place(self, key: Any, values: Mapping[str, int], box: BoundBox) -> Forward | None:
        """Return what runs this one call in the place of its box: padded, or recorded as it runs."""
        found = self.pad(values) if self.pad is not None else None
        if found is None and self.lazily is not None:
            found = self.lazily(key, values, box)
        return found

    def box_for(self, values: Mapping[str, int]) -> BoundBox | None:
        """Return the best box that holds some sizes, or None."""
        for box in self.boxes:
            if box.planned.holds(values):
                return box
        return None

    def forget(self) -> None:
        """Empty the table, after a forward was swapped."""
        with self._lock:
            self.table.clear()

    def values_of(self, key: Any) -> dict[str, int]:
        """Return the sizes of a key by symbol."""
        if not self.symbols:
            return {}
        numbers = key if len(self.symbols) > 1 else (key,)
        return dict(zip(self.symbols, numbers, strict=True))
