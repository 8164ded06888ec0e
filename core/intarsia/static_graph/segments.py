"""A call of eager code as a list of segments: recordings, and the operators that run between them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from attrs import define, field, frozen

from intarsia import torch_compat
from intarsia.errors import RecordError
from intarsia.interfaces import Recording
from intarsia.runtime.memory import is_plain, repeats, start_of
from intarsia.static_graph.budget import Budget, OutOfBudget
from intarsia.static_graph.pool import Pool
from intarsia.static_graph.recording import view_of
from intarsia.static_graph.safety import SafetyTable

_SHAPE_FROM_DATA = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)


@define(eq=False)
class Rehearsal:
    """A run of a function that only looks: at its operators, at what it writes to, and what it reads.

    Attributes:
        pinned: positions of inputs that may not be copied: they are written to, or a result has their memory.
    """

    name: str
    safety: SafetyTable
    leaves: Sequence[Any]
    pinned: set[int] = field(factory=set)
    _starts: dict[int, list[int]] = field(factory=dict)
    _made: dict[int, Any] = field(factory=dict)
    _read: dict[int, torch.Tensor] = field(factory=dict)
    _unsafe: dict[str, str] = field(factory=dict)

    def run(self, fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Run the function once.

        Raises:
            RecordError: an operation may not be recorded.
        """
        for position, value in enumerate(self.leaves):
            if isinstance(value, torch.Tensor):
                self._starts.setdefault(start_of(value), []).append(position)
        with torch_compat.operations_seen(self._see):
            result = fn(*args, **kwargs)
        leaves, _ = torch_compat.flattened(result)
        for value in leaves:
            if isinstance(value, torch.Tensor):
                self.pinned.update(self._starts.get(start_of(value), ()))
        self._check()

    def breaks(self, op: Any) -> bool:
        """Say whether an operator runs between recordings."""
        return self.safety.verdict(op.name()).safety == "break"

    def outside(self) -> list[torch.Tensor]:
        """Return the tensors that the function has from elsewhere: weights, buffers, globals."""
        return list(self._read.values())

    def _see(self, op: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        verdict = self.safety.verdict(op.name())
        if verdict.safety == "unknown" and not self.safety.allow_unknown:
            self._unsafe[op.name()] = f"is unknown ({verdict.reason})"
        tensors = _tensors((args, dict(kwargs)))
        masks = any(tensor.dtype in (torch.bool, torch.uint8) for tensor in tensors)
        if masks and any(tag in op.tags for tag in _SHAPE_FROM_DATA):
            self._unsafe[op.name()] = "has a mask, and a result whose shape depends on it"
        for tensor in tensors:
            if id(tensor) not in self._made and start_of(tensor) not in self._starts:
                self._read[id(tensor)] = tensor
        self._note_writes(op, args, kwargs)
        result = op(*args, **kwargs)
        if verdict.safety == "break":
            self._check_break(op, result, verdict.reason)
        for tensor in _tensors(result):
            self._made[id(tensor)] = tensor  # kept alive, so that an id means one tensor
        return result

    def _note_writes(self, op: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        for argument, value in zip(op._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._note_write(value)
        for argument in op._schema.arguments[len(args) :]:
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._note_write(kwargs.get(argument.name))

    def _note_write(self, value: Any) -> None:
        for tensor in _tensors(value):
            self.pinned.update(self._starts.get(start_of(tensor), ()))

    def _check_break(self, op: Any, result: Any, reason: str) -> None:
        leaves, _ = torch_compat.flattened(result)
        if any(not isinstance(v, torch.Tensor) and v is not None for v in leaves):
            self._unsafe[op.name()] = (
                f"gives the host a value that later work may depend on ({reason})"
            )
        elif any(tag in op.tags for tag in _SHAPE_FROM_DATA):
            self._unsafe[op.name()] = "has a result whose shape depends on values"

    def _check(self) -> None:
        if not self._unsafe:
            return
        raise RecordError(
            f"{self.name} cannot be recorded",
            why="; ".join(f"{op} {why}" for op, why in self._unsafe.items()),
            next_step='A custom operation needs a word: op_safety={"ns::op": "safe"}, or "break" to run it '
            "between recordings. What reads values on the host must stay outside the function.",
            subject=next(iter(self._unsafe)),
        )  # fmt: skip


@frozen
class _Eager:
    """An operator that runs between recordings.

    Attributes:
        leaves: its arguments; tensors of recordings stand at the recorded addresses.
        results: number of a result -> the tensor that later recordings read it from.
    """

    op: Any
    leaves: tuple[Any, ...]
    form: Any
    results: tuple[tuple[int, torch.Tensor], ...]

    def __call__(self) -> None:
        args, kwargs = torch_compat.unflattened(self.leaves, self.form)
        made, _ = torch_compat.flattened(self.op(*args, **kwargs))
        for number, target in self.results:
            target.copy_(made[number])


@define(eq=False)
class Segments:
    """A recorded call.

    Attributes:
        inputs: position -> (where the recordings read a tensor, whether it is copied there).
        steps: what runs in order.
    """

    inputs: dict[int, tuple[torch.Tensor, bool]]
    addresses: dict[int, tuple[int, tuple[int, ...]]]
    steps: list[Callable[[], None]]
    recordings: list[Recording]
    cost: dict[str, int]
    results: list[Any]
    result_form: Any
    owned: bool
    kept: list[Any]
    differs: Callable[[str], None]

    @classmethod
    def record(
        cls, fn: Callable[..., Any], leaves: Sequence[Any], form: Any, rehearsal: Rehearsal, pool: Pool,
        budget: Budget, settings: Any, differs: Callable[[str], None], name: str,
    ) -> Segments:  # fmt: skip
        """Record a call, inside `Pool.recording`.

        Raises:
            RecordError: it failed, or the budget is used up; nothing is left of it.
        """
        recorder = _SegmentRecorder(rehearsal, pool, budget)
        made = cls({}, {}, [], recorder.recordings, recorder.cost, [], None, settings.owned,
                   recorder.kept, differs)  # fmt: skip
        # Functions that nobody closes give back what they hold when they are gone.
        weakref.finalize(made, _release_all, recorder.recordings, pool).atexit = False
        given = [made._placed(i, v, rehearsal, pool) for i, v in enumerate(leaves)]
        try:
            args, kwargs = torch_compat.unflattened(given, form)
            result = recorder.run(fn, args, kwargs)
            values, made.result_form = torch_compat.flattened(result)
            made.results = [made._result(v, given, recorder, name) for v in values]
        except BaseException as error:
            made.release(budget)
            if isinstance(error, RecordError) or not isinstance(error, Exception):
                raise
            raise RecordError(
                f"{name} could not be recorded", why=f"{type(error).__name__}: {error}", subject=name
            ) from error  # fmt: skip
        made.steps = recorder.steps
        return made

    def _placed(self, position: int, value: Any, rehearsal: Rehearsal, pool: Pool) -> Any:
        """Return where the recordings read an input."""
        if not isinstance(value, torch.Tensor):
            return value
        copied = position not in rehearsal.pinned and is_plain(value) and not repeats(value)
        static = value
        if copied:
            static = pool.inputs.like(sum(c for _, c in self.inputs.values()), value)
            static.copy_(value)
        self.inputs[position] = static, copied
        self.addresses[position] = static.data_ptr(), static.stride()
        return static

    def _result(
        self, value: Any, given: Sequence[Any], recorder: _SegmentRecorder, name: str
    ) -> Callable[[Sequence[Any]], Any]:
        """Return what makes a result of a replay, from the call's leaves."""
        if not isinstance(value, torch.Tensor):
            return lambda leaves: value
        if not is_plain(value):
            raise RecordError(
                f"{name} cannot be recorded", why="a result is no plain strided tensor"
            )
        start = start_of(value)
        for position, tensor in enumerate(given):
            if isinstance(tensor, torch.Tensor) and start_of(tensor) == start and start:
                return _viewing(position, view_of(name, value, tensor))
        if not recorder.is_ours(value):
            return lambda leaves: value  # a tensor of the function's own
        if self.owned:
            view = torch_compat.borrowed(value)
            return lambda leaves: view.clone()
        self.kept.append(value)
        return lambda leaves: value

    # -- calls

    def fits(self, leaves: Sequence[Any]) -> bool:
        """Say whether the inputs that cannot be copied are where they were."""
        for position, (_, copied) in self.inputs.items():
            address, stride = self.addresses[position]
            value = leaves[position]
            if not copied and (value.data_ptr() != address or value.stride() != stride):
                self.differs(f"input {position} is elsewhere")
                return False
        return True

    def replay(self, leaves: Sequence[Any]) -> Any:
        """Run the call on other inputs of the same kind."""
        for position, (static, copied) in self.inputs.items():
            if copied:
                static.copy_(leaves[position])
        for step in self.steps:
            step()
        return torch_compat.unflattened([make(leaves) for make in self.results], self.result_form)

    def release(self, budget: Budget) -> None:
        """Give back what the recordings hold."""
        _release_all(self.recordings)
        budget.give(self.cost)
        self.cost.clear()
        self.steps = []
        self.kept.clear()
        self.inputs = {pos: (value, c) for pos, (value, c) in self.inputs.items() if c}


@define(eq=False)
class _SegmentRecorder:
    """Records a function's operators as they come, and cuts the recording at those that must run eagerly."""

    rehearsal: Rehearsal
    pool: Pool
    budget: Budget
    steps: list[Callable[[], None]] = field(factory=list)
    recordings: list[Recording] = field(factory=list)
    cost: dict[str, int] = field(factory=dict)
    kept: list[Any] = field(factory=list)
    _starts: set[int] = field(factory=set)
    _is_open: bool = False

    def run(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        try:
            with torch_compat.operations_seen(self._see):
                result = fn(*args, **kwargs)
            self._close()
        except BaseException:
            if self._is_open:
                self._is_open = False
                self.pool.backend.abort(self.pool.stream)
            raise
        return result

    def is_ours(self, tensor: torch.Tensor) -> bool:
        """Say whether a tensor lies in memory that a replay writes."""
        return start_of(tensor) in self._starts

    def _see(self, op: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if self.rehearsal.breaks(op):
            self._close()
            return self._eager(op, args, kwargs)
        self._open()
        result = self._inside(op, args, kwargs)
        self._starts.update(start_of(t) for t in _tensors(result))
        return result

    def _inside(self, op: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        run = getattr(self.pool.backend, "run", None)
        if run is None:
            return op(*args, **kwargs)
        leaves, form = torch_compat.flattened((args, dict(kwargs)))
        forms: list[Any] = []

        def called(*given: Any) -> tuple[Any, ...]:
            inner_args, inner_kwargs = torch_compat.unflattened(given, form)
            made, made_form = torch_compat.flattened(op(*inner_args, **inner_kwargs))
            forms.append(made_form)
            return tuple(made)

        return torch_compat.unflattened(list(run(called, leaves, ())), forms[0])

    def _open(self) -> None:
        if self._is_open:
            return
        try:
            self.budget.before()
        except OutOfBudget as error:
            raise RecordError(f"{self.rehearsal.name} was not recorded", why=str(error)) from error
        self._is_open = True
        self.pool.backend.begin(self.pool.handle, self.pool.stream)

    def _close(self) -> None:
        if not self._is_open:
            return
        recording = self.pool.backend.end()
        self._is_open = False
        self.recordings.append(recording)
        self.steps.append(recording.replay)
        cost = self.pool.backend.measure(recording)
        for resource, amount in cost.items():
            self.cost[resource] = self.cost.get(resource, 0) + amount
        try:
            self.budget.take(cost)
        except OutOfBudget as error:
            raise RecordError(f"{self.rehearsal.name} was not recorded", why=str(error)) from error
        recording.replay()  # the operators in between, and the caller, need the values

    def _eager(self, op: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        leaves, form = torch_compat.flattened((args, dict(kwargs)))
        # What recordings made is lent: later ones may use its memory when the function is done with it.
        lent = tuple(
            torch_compat.borrowed(v) if isinstance(v, torch.Tensor) and self.is_ours(v) else v
            for v in leaves
        )
        result = op(*args, **kwargs)
        made, _ = torch_compat.flattened(result)
        inside = {start_of(v) for v in leaves if isinstance(v, torch.Tensor)}
        results = []
        for number, value in enumerate(made):
            if isinstance(value, torch.Tensor) and start_of(value) not in inside:
                self.kept.append(value)  # later recordings read it here
                self._starts.add(start_of(value))
                results.append((number, value))
        self.steps.append(_Eager(op, lent, form, tuple(results)))
        return result


def _viewing(position: int, facts: tuple[Any, Any, int]) -> Callable[[Sequence[Any]], Any]:
    shape, stride, offset = facts

    def made(leaves: Sequence[Any]) -> Any:
        base = leaves[position]
        return base.as_strided(shape, stride, base.storage_offset() + offset)

    return made


def _release_all(recordings: list[Recording], _pool: Pool | None = None) -> None:
    """Release recordings before their pool, which a finaliser keeps until then."""
    while recordings:
        recordings.pop().release()


def _tensors(value: Any) -> list[torch.Tensor]:
    leaves, _ = torch_compat.flattened(value)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
