"""Records one call of a bound plan: piece by piece, or as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from attrs import define, field, frozen

from intarsia.interfaces import PieceSignature, TensorInfo
from intarsia.runtime.bound import BoundBox, Forward, PlannedPiece, spread, unboxed
from intarsia.runtime.memory import overlap, start_of
from intarsia.static_graph.budget import Budget, OutOfBudget
from intarsia.static_graph.forwards import Forwards
from intarsia.static_graph.pool import Pool
from intarsia.static_graph.recording import (
    CallInputs,
    Links,
    NotRecorded,
    Policy,
    RecordedCall,
    Recorder,
)
from intarsia.static_graph.step import Mode


@define(eq=False)
class RecordedPlan:
    """A bound plan with recordings in the place of its pieces, for calls of one size, key and mode.

    Attributes:
        forward: runs such a call.
        calls: the recordings.
        weights: what the plan was bound to when it was recorded.
        reasons: why pieces were not recorded.
        kept: results that stay in the recordings' memory between calls.
        released: not empty once the recordings are released; `forward` then runs the bound plan.
    """

    mode: Mode
    forward: Forward
    calls: Sequence[RecordedCall]
    weights: Sequence[Any]
    reasons: Sequence[str] = ()
    kept: Sequence[Any] = ()
    released: list[bool] = field(factory=list)
    _places: list[int] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._places = [address_of(weight) for weight in self.weights]

    def cost(self) -> dict[str, int]:
        """Return what the recordings take of each resource."""
        total: dict[str, int] = {}
        for call in self.calls:
            for resource, amount in call.cost.items():
                total[resource] = total.get(resource, 0) + amount
        return total

    def release(self) -> None:
        """Give back what the recordings hold; the pool's lock is held."""
        self.released.append(True)
        self.kept = ()
        for call in self.calls:
            call.release()

    def is_bound_to(self, weights: Sequence[Any]) -> bool:
        """Say whether these weights are the very tensors that were recorded, where they were then."""
        return len(weights) == len(self.weights) and all(
            a is b and address_of(a) == place
            for a, b, place in zip(weights, self.weights, self._places, strict=True)
        )


def address_of(weight: Any) -> int:
    """Return where a weight is."""
    return start_of(weight) if isinstance(weight, torch.Tensor) else 0


@frozen
class Arguments:
    """The arguments of a bound plan's forward, and how a replay treats them.

    Attributes:
        values: those that come first and are inputs of the graph.
        pinned: positions that are never copied.
        policies: position -> what was chosen.
    """

    values: tuple[Any, ...]
    pinned: frozenset[int]
    policies: Mapping[int, Policy]

    @classmethod
    def of(
        cls, values: Sequence[Any], pinned: frozenset[int], policies: Mapping[int, Policy]
    ) -> Arguments:
        """Return the arguments of a call; what overlaps pinned ones is pinned too."""
        tensors = {i: v for i, v in enumerate(values) if isinstance(v, torch.Tensor)}
        fixed = [tensors[i] for i in pinned if i in tensors]
        shared = (i for i, v in tensors.items() if any(o is not v and overlap(v, o) for o in fixed))
        return cls(tuple(values), frozenset((*pinned, *shared)), policies)

    def policy(self, position: int) -> Policy:
        """Return what a replay does where this argument is elsewhere."""
        return CallInputs(pinned=self.pinned, policies=self.policies).policy(position)

    def of_whole(self, arguments: Sequence[Any]) -> CallInputs:
        """Return the same for a call that takes all arguments of a forward."""
        # What follows are the call's own arguments, which hold the same tensors, and the sizes.
        rest = frozenset(range(len(self.values), len(arguments)))
        return CallInputs(rest, self.pinned, self.policies)

    def of_pieces(self, weights: Sequence[Any]) -> tuple[dict[int, Policy], frozenset[int]]:
        """Return id of an argument -> what a replay does with it, and the memory that stays where it is."""
        chosen: dict[int, Policy] = {}
        anchored = {start_of(w) for w in weights if isinstance(w, torch.Tensor)}
        for position, value in enumerate(self.values):
            if isinstance(value, torch.Tensor):
                chosen[id(value)] = self.policy(position)
                if chosen[id(value)] != "copy":
                    anchored.add(start_of(value))
        return chosen, frozenset(anchored - {0})


@frozen
class Recorded:
    """What came of recording a call.

    Attributes:
        plan: None where the budget was used up: nothing is left of what was recorded.
        result: the call's own.
        over_budget: why there is no plan.
    """

    plan: RecordedPlan | None
    result: Any
    over_budget: str = ""


@frozen
class PlanRecorder:
    """Records calls of one bound plan, inside `Pool.recording`.

    Attributes:
        owned: whether the caller gets results of its own.
        strict: whether a piece that cannot be recorded raises.
        on_differs: told when a replay's input differs so that it runs in general.
    """

    box: BoundBox
    pool: Pool
    budget: Budget
    owned: bool
    strict: bool
    on_differs: Callable[[str, str, Policy], None]

    def piecewise(self, arguments: Sequence[Any], known: Arguments) -> Recorded:
        """Record every compiled piece during one call.

        A piece that cannot be recorded stays as it is.

        Raises:
            RecordError: in strict mode, with what recording a piece raised as the cause.
            Whatever a piece raises when it runs. Nothing is left of the recordings then.
        """
        return _Pass(self, known).run(arguments)

    def full(self, arguments: Sequence[Any], known: Arguments) -> Recorded:
        """Record the work of a call as one.

        Raises:
            OutOfBudget: there is no room for it, and nothing has run.
            RecordError: in strict mode, with what recording it raised as the cause.
            Whatever the work itself raises.
        """
        forwards = Forwards.of(self.box)
        names = forwards.stitching.results
        work = forwards.work(
            {i: self.box.watched(i, unboxed(f)) for i, f in self.box.bound.items()}
        )
        weights = tuple(w for w in self.box.weights if isinstance(w, torch.Tensor))
        recorder = Recorder(self.pool, self.on_differs, weights=weights)
        # The forward has a parameter more for each real size of a padded call.
        given = [*arguments, *[None] * (len(forwards.stitching.parameters) - len(arguments))]
        name = f"{self.box.name}.forward"
        self.budget.before()
        try:
            call, values = recorder.record(name, work, given, known.of_whole(given), work)
        except NotRecorded as error:
            if self.strict:
                raise error.refused(name) from error.__cause__
            reason = f"{type(error.__cause__).__name__}: {error.__cause__}"
            result = forwards.rest(error.results)(*given)
            return Recorded(RecordedPlan("full", work, [], self.box.weights, [reason]), result)
        cloned, kept, own = self.results(names, values, recorder.links)
        result = forwards.rest(own)(*given)
        try:
            self.budget.take(call.cost)
        except OutOfBudget as error:
            return self.dropped([call], result, error)
        released: list[bool] = []
        forward = forwards.full(call.replay, cloned, self.pool.lock, released)
        plan = RecordedPlan("full", forward, [call], self.box.weights, (), kept, released)
        return Recorded(plan, result)

    def dropped(self, calls: Sequence[RecordedCall], result: Any, error: OutOfBudget) -> Recorded:
        """Release recordings for which there is no room."""
        for call in calls:
            call.release()
            self.budget.give(call.cost)
        return Recorded(None, result, str(error))

    def results(
        self, names: Sequence[str], values: Sequence[Any], links: Links
    ) -> tuple[list[str], list[Any], list[Any]]:
        """Return the results to clone for the caller, those to keep in the pool, and the caller's."""
        ours = [isinstance(v, torch.Tensor) and links.holds(v) for v in values]
        # What is borrowed is given as it is; the recording call's own result may stay the caller's.
        own = [v.clone() if mine else v for v, mine in zip(values, ours, strict=True)]
        if self.owned:
            return [n for n, mine in zip(names, ours, strict=True) if mine], [], own
        kept = [v for v, mine in zip(values, ours, strict=True) if mine]
        self.pool.lent.update(map(start_of, kept))
        return [], kept, own


@define(eq=False)
class _Pass:
    """One call during which every piece is recorded as it runs."""

    recorder: PlanRecorder
    known: Arguments
    calls: dict[tuple[int, int], RecordedCall] = field(factory=dict)
    reasons: list[str] = field(factory=list)
    over: OutOfBudget | None = None
    cloned: list[str] = field(factory=list)
    kept: list[Any] = field(factory=list)

    def run(self, arguments: Sequence[Any]) -> Recorded:
        recorder, box = self.recorder, self.recorder.box
        forwards = Forwards.of(box)
        inner = Recorder(recorder.pool, recorder.on_differs)
        general = {
            p.index: box.watched(p.index, unboxed(box.bound[p.index])) for p in box.plan.pieces
        }
        chosen, anchored = self.known.of_pieces(box.weights)
        names = forwards.stitching.results

        def seen(values: Sequence[Any]) -> Sequence[Any]:
            self.cloned, self.kept, own = recorder.results(names, values, inner.links)
            return own

        recording = {
            p.index: self._partitioned(p, inner, chosen, anchored)
            if hasattr(box.bound[p.index], "partitions")
            else self._recording(p, general[p.index], inner, chosen, anchored)
            for p in box.plan.pieces
        }
        try:
            result = forwards.recording(recording, seen)(*arguments)
        except BaseException:
            recorder.dropped(list(self.calls.values()), None, OutOfBudget())
            raise
        calls = list(self.calls.values())
        if self.over is not None:
            return recorder.dropped(calls, result, self.over)
        released: list[bool] = []
        forward = forwards.piecewise(
            {**general, **self._replays()}, self.cloned, recorder.pool.lock, released,
            self._perhaps_lent(forwards), recorder.pool.lent,
        )  # fmt: skip
        plan = RecordedPlan(
            "piecewise", forward, calls, box.weights, self.reasons, self.kept, released
        )
        return Recorded(plan, result)

    def _perhaps_lent(self, forwards: Forwards) -> list[str]:
        """Return the arguments that may be borrowed results, overwritten before a piece reads them."""
        if self.recorder.owned:
            return []
        names = forwards.stitching.parameters[: len(self.known.values)]
        return [
            name for i, (name, value) in enumerate(zip(names, self.known.values, strict=True))
            if isinstance(value, torch.Tensor) and i not in self.known.pinned
        ]  # fmt: skip

    def _replays(self) -> dict[int, Forward]:
        """Return what runs the pieces of which something was recorded."""
        bound = self.recorder.box.bound
        found = {index: call.replay for (index, part), call in self.calls.items() if part < 0}
        for index in {index for index, part in self.calls if part >= 0}:
            parts = [
                _listing(self.calls[index, n].replay) if (index, n) in self.calls else part
                for n, part in enumerate(bound[index].partitions)  # type: ignore[attr-defined]
            ]
            call = bound[index].with_partitions(parts)  # type: ignore[attr-defined]
            found[index] = spread(call)
        return found

    def _partitioned(
        self, piece: PlannedPiece, inner: Recorder, chosen: Mapping[int, Policy],
        anchored: frozenset[int],
    ) -> Forward:  # fmt: skip
        """Return what runs a piece that its compiler has cut, and records what runs between the cuts."""
        call: Any = self.recorder.box.bound[piece.index]
        weights = {id(w) for w in self.recorder.box.weights if isinstance(w, torch.Tensor)}
        # A partition returns what later ones read, arguments among it. Those that may be copied are not
        # written to by anybody.
        arguments = {
            id(v): i for i, v in enumerate(self.known.values)
            if isinstance(v, torch.Tensor) and self.known.policy(i) == "copy"
        }  # fmt: skip

        def recording(part: Any, number: int) -> Any:
            general = spread(part)
            name = f"{self.recorder.box.name}.piece_{piece.index}.{number}"

            def record(inputs: list[Any]) -> Any:
                values = tuple(inputs)
                inputs.clear()  # as a partition does: the caller lets go of them
                mine = frozenset(i for i, v in enumerate(values) if id(v) in weights)
                # What a partition makes, a later one may write to: then it cannot be copied.
                linked = {i: "general" for i, v in enumerate(values)
                          if isinstance(v, torch.Tensor) and inner.links.view(v) is not None}  # fmt: skip
                policies: dict[int, Any] = {
                    **linked, **{i: chosen[id(v)] for i, v in enumerate(values) if id(v) in chosen},
                }  # fmt: skip
                constants = {
                    i: argument for i, v in enumerate(values) if isinstance(v, torch.Tensor)
                    and (argument := arguments.get(id(v), inner.links.argument(v))) is not None
                }  # fmt: skip
                # What the operations between partitions made; a partition may work in its memory.
                passed = frozenset(
                    i for i, v in enumerate(values)
                    if i not in mine and i not in policies and i not in constants
                )  # fmt: skip
                known = CallInputs(mine, frozenset(), policies, anchored, constants, passed)
                return self._record((piece.index, number), inner, name, general, values, known)

            return record

        return spread(
            call.with_partitions([recording(part, n) for n, part in enumerate(call.partitions)])
        )

    def _recording(
        self, piece: PlannedPiece, general: Forward, inner: Recorder,
        chosen: Mapping[int, Policy], anchored: frozenset[int],
    ) -> Forward:  # fmt: skip
        box = self.recorder.box
        name = f"{box.name}.piece_{piece.index}"
        pinned = pinned_inputs(box.signature(piece))

        def record(*inputs: Any) -> Any:
            policies = {i: chosen[id(v)] for i, v in enumerate(inputs) if id(v) in chosen}
            known = CallInputs(frozenset(piece.weights), pinned, policies, anchored)
            return self._record((piece.index, -1), inner, name, general, inputs, known)

        return record

    def _record(
        self, at: tuple[int, int], inner: Recorder, name: str, general: Forward,
        inputs: Sequence[Any], known: CallInputs,
    ) -> Any:  # fmt: skip
        if self.over is not None:
            return general(*inputs)
        budget = self.recorder.budget
        try:
            budget.before()
            call, outputs = inner.record(name, general, inputs, known, general)
        except OutOfBudget as error:
            self.over = error
            return general(*inputs)
        except NotRecorded as error:
            if self.recorder.strict:
                raise error.refused(name) from error.__cause__
            self.reasons.append(f"{name}: {type(error.__cause__).__name__}: {error.__cause__}")
            return error.results
        self.calls[at] = call
        try:
            budget.take(call.cost)
        except OutOfBudget as error:
            self.over = error
        return outputs


def _listing(function: Forward) -> Forward:
    """Return a function of positional inputs as one of a list, which it empties as partitions do."""

    def called(inputs: list[Any]) -> Any:
        values = tuple(inputs)
        inputs.clear()
        return function(*values)

    return called


def pinned_inputs(signature: PieceSignature) -> frozenset[int]:
    """Return the inputs of a piece that it writes to, or whose memory an output has."""
    outside = {o.alias_class for o in signature.outputs if isinstance(o, TensorInfo)} - {None}
    shared = (
        i for i, value in enumerate(signature.inputs)
        if isinstance(value, TensorInfo) and value.alias_class in outside
    )  # fmt: skip
    return frozenset((*signature.mutated, *shared))
