"""One recorded call: how it is recorded, and the function that checks its inputs and replays it."""

from __future__ import annotations

import functools
import traceback
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from attrs import define, field, frozen

from intarsia import torch_compat
from intarsia.errors import RecordError
from intarsia.interfaces import Recording
from intarsia.runtime.memory import copy_values, is_plain, repeats, start_of
from intarsia.runtime.source import bind_code, code_of
from intarsia.static_graph.pool import Pool

Policy = Literal["copy", "same-address", "general"]
Forward = Callable[..., Any]


@frozen
class CallInputs:
    """What is known of the inputs of a call before it is recorded, by position.

    Attributes:
        weights: bound to the plan, so not compared.
        pinned: never copied: the call writes to them, or an output shares their memory.
        policies: what was chosen for the others; "copy" where nothing was.
        anchored: addresses of memory that stays where it is, as that of weights: its views do too.
        constants: inputs that nothing writes to while the forward runs -> the argument that each is. The call
            may return them: what it returns then is the copy, which later recordings find where it was.
        passed: inputs that nobody reads after the call but by what it returns: it may write to them, and
            return them.
    """

    weights: frozenset[int] = frozenset()
    pinned: frozenset[int] = frozenset()
    policies: Mapping[int, Policy] = {}
    anchored: frozenset[int] = frozenset()
    constants: Mapping[int, int] = {}
    passed: frozenset[int] = frozenset()

    def policy(self, position: int) -> Policy:
        """Return what a replay does with an input that is elsewhere than it was recorded."""
        if position in self.pinned:
            chosen = self.policies.get(position, "general")
            return "general" if chosen == "copy" else chosen
        return self.policies.get(position, "copy")


class NotRecorded(Exception):
    """A call ran and was not recorded; the cause says why.

    Attributes:
        results: what the call returned.
    """

    def __init__(self, results: tuple[Any, ...]) -> None:
        super().__init__("a call was not recorded")
        self.results = results

    def refused(self, name: str) -> RecordError:
        """Return the error of strict mode."""
        cause = self.__cause__
        return RecordError(
            f"{name} could not be recorded", why=f"{type(cause).__name__}: {cause}", subject=name,
            next_step="Without strict it runs without static graphs.",
        )  # fmt: skip


@define(eq=False)
class Links:
    """The outputs of the recordings of one forward, while it is recorded.

    A recording whose input is the output of one before it needs no copy, as long as that one was replayed
    in the same forward: then its output is the very same object.
    """

    _made: dict[int, tuple[weakref.ref[torch.Tensor], torch.Tensor]] = field(factory=dict)
    starts: set[int] = field(factory=set)
    _returned: dict[int, tuple[torch.Tensor, int]] = field(factory=dict)

    def add(self, owned: torch.Tensor, view: torch.Tensor) -> None:
        """Note an output: what the forward that is recorded gets, and what a replay returns."""
        self._made[id(owned)] = weakref.ref(owned), view
        self.starts.add(owned.untyped_storage().data_ptr())

    def view(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Return what a replay returns in the place of a tensor; None where it is no such output."""
        found = self._made.get(id(tensor))
        return found[1] if found is not None and found[0]() is tensor else None

    def returned(self, copy: torch.Tensor, argument: int) -> None:
        """Note the copy of an argument that a recording returned."""
        self._returned[id(copy)] = copy, argument
        self.starts.add(start_of(copy))

    def argument(self, tensor: torch.Tensor) -> int | None:
        """Return the argument of which a tensor is the copy that a recording returned."""
        found = self._returned.get(id(tensor))
        return None if found is None else found[1]

    def holds(self, tensor: torch.Tensor) -> bool:
        """Say whether a tensor lies in the memory of an output."""
        return start_of(tensor) in self.starts


@frozen
class _Place:
    """Where a tensor was that was recorded, and what it was like."""

    address: int
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> _Place:
        return cls(tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())


@frozen
class _Input:
    """How a replay checks one input.

    Attributes:
        kind: "free" is not compared, "number" must be equal, "linked" is the object of an earlier
            replay or copied there, "copied" is at `value` or copied there, "fixed" must be where it was.
        value: the number, or the tensor that the recording reads; None for "fixed": it is the caller's,
            who may let go of it.
        place: where a tensor was.
    """

    kind: Literal["free", "number", "linked", "copied", "fixed"]
    value: Any = None
    place: _Place | None = None
    policy: Policy = "copy"


@frozen
class _Output:
    """What a replay returns: a tensor of the recording, a view of an input, or a plain value.

    Attributes:
        value: what is returned; of a view its shape, stride, and offset from the input's start.
        of: the input that it is a view of.
    """

    value: Any
    of: int | None = None


@define(eq=False)
class RecordedCall:
    """A recorded call.

    Attributes:
        name: what messages call it.
        pool: where its memory is.
        cost: what it takes of each resource.
        replay: checks the inputs, replays, and returns the outputs; runs `general` where an input does
            not fit.
        kept: what the recording reads, and outputs that must stay as they are between calls.
    """

    name: str
    recording: Recording
    pool: Pool
    cost: dict[str, int]
    replay: Forward
    kept: list[Any] = field(factory=list)
    _end: Any = field(init=False)

    def __attrs_post_init__(self) -> None:
        # A model that nobody closes gives back what it holds when it is gone.
        self._end = weakref.finalize(self, _release, self.recording, self.pool)
        self._end.atexit = False

    def release(self) -> None:
        """Give back what the recording holds."""
        self._end()
        self.kept.clear()


def _release(recording: Recording, pool: Pool) -> None:
    """Release a recording before its pool, which this keeps until then."""
    recording.release()


@frozen
class Recorder:
    """Records calls of one forward, in the order in which they run.

    Attributes:
        on_differs: told when a call runs in general since an input differs: (name, reason, policy).
        weights: tensors that calls read, or write to, besides their inputs.
    """

    pool: Pool
    on_differs: Callable[[str, str, Policy], None]
    links: Links = field(factory=Links)
    weights: tuple[torch.Tensor, ...] = ()

    def record(
        self, name: str, function: Forward, inputs: Sequence[Any], known: CallInputs, general: Forward,
    ) -> tuple[RecordedCall, Any]:  # fmt: skip
        """Run a call, and record it; returns the recording, and the outputs in its memory.

        It runs first and once: what compiles or tunes itself at a first run could not do so in a recording,
        and a recording does not run what it records. The outputs own their memory in the pool: when the
        forward lets go of them, later recordings may use it.

        Raises:
            NotRecorded: it ran, and could not be recorded. Nothing is left of the recording.
            Whatever the call itself raises.
        """
        checks, given = self._inputs(inputs, known)
        results = tuple(function(*given))
        for value in results:
            self._note_constant(value, given, checks, known)
        self._give_place(name, results, checks, given, known.passed)
        results = _uncopied(results, inputs, checks, given, self.links)
        try:
            call, outputs = self._recorded(name, function, given, checks, general)
        except Exception as error:
            raise NotRecorded(results) from error
        try:
            self._fill(outputs, results)
        except Exception as error:
            call.release()
            raise NotRecorded(results) from error
        return call, outputs

    def _note_constant(
        self, value: Any, given: Sequence[Any], checks: Sequence[_Input], known: CallInputs
    ) -> None:
        for position, argument in known.constants.items():
            if value is given[position] and checks[position].kind == "copied":
                self.links.returned(value, argument)

    def _give_place(
        self, name: str, results: Sequence[Any], checks: list[_Input], given: list[Any],
        passed: frozenset[int],
    ) -> None:  # fmt: skip
        """Give inputs that the call returned memory of their own, which no other recording copies to."""
        for position in passed:
            value = given[position]
            if checks[position].kind == "copied" and any(r is value for r in results):
                own = self.pool.inputs.like(f"{name} {position}", value)
                given[position] = own
                checks[position] = _Input("copied", own, _Place.of(own))

    def _fill(self, outputs: Sequence[Any], results: Sequence[Any]) -> None:
        with torch.no_grad():
            for output, result in zip(outputs, results, strict=True):
                if isinstance(output, torch.Tensor) and self.links.view(output) is not None:
                    copy_values(output, result)

    def _recorded(
        self, name: str, function: Forward, given: Sequence[Any], checks: Sequence[_Input],
        general: Forward,
    ) -> tuple[RecordedCall, tuple[Any, ...]]:  # fmt: skip
        pool = self.pool
        outputs: tuple[Any, ...] = ()
        try:
            pool.backend.begin(pool.handle, pool.stream)
            outputs = tuple(self._run(function, given))
            recording = pool.backend.end()
        except BaseException as error:
            outputs = ()
            _let_go(error)
            pool.backend.abort(pool.stream)
            raise
        try:
            shapes = self._outputs(name, outputs, given, checks)
            cost = dict(pool.backend.measure(recording))
        except BaseException as error:
            outputs = ()
            _let_go(error)
            recording.release()
            raise
        replay = _replay_function(name, recording, checks, shapes, general, self.on_differs)
        kept = [c.value for c in checks if c.kind == "copied"]
        return RecordedCall(name, recording, pool, cost, replay, kept), outputs

    def _run(self, function: Forward, inputs: Sequence[Any]) -> Any:
        run = getattr(self.pool.backend, "run", None)
        return function(*inputs) if run is None else run(function, inputs, self.weights)

    # -- inputs

    def _inputs(self, inputs: Sequence[Any], known: CallInputs) -> tuple[list[_Input], list[Any]]:
        checks: list[_Input] = []
        given: list[Any] = []
        slot = 0
        for position, value in enumerate(inputs):
            check = self._input(position, value, known, slot)
            if check.kind == "copied":
                slot += 1
                check.value.copy_(value)
            checks.append(check)
            given.append(check.value if check.kind == "copied" else value)
        return checks, given

    def _input(self, position: int, value: Any, known: CallInputs, slot: int) -> _Input:
        if position in known.weights:
            return _Input("free")
        if not isinstance(value, torch.Tensor):
            return _Input("number", value)
        policy = known.policy(position)
        view = self.links.view(value)
        if view is not None:
            return _Input("linked", view, _Place.of(view), policy)
        if policy == "copy" and start_of(value) in known.anchored:
            policy = "general"
        if policy == "copy" and is_plain(value) and not repeats(value):
            argument = known.constants.get(position)
            static = self.pool.inputs.like(
                slot if argument is None else f"argument {argument}", value
            )
            return _Input("copied", static, _Place.of(static), policy)
        return _Input("fixed", None, _Place.of(value), "general" if policy == "copy" else policy)

    # -- outputs

    def _outputs(
        self, name: str, outputs: Sequence[Any], given: Sequence[Any], checks: Sequence[_Input]
    ) -> list[_Output]:
        owners = {
            start_of(value): position for position, value in enumerate(given)
            if isinstance(value, torch.Tensor) and is_plain(value) and value.numel()
        }  # fmt: skip
        bound = {start_of(weight) for weight in self.weights} - {0}
        found: list[_Output] = []
        for number, value in enumerate(outputs):
            # A view of a weight stays one: it is where it is, and no recording's memory. So does the copy
            # of an argument.
            if (
                not isinstance(value, torch.Tensor)
                or start_of(value) in bound
                or self.links.argument(value) is not None
            ):
                found.append(_Output(value))
                continue
            if not is_plain(value):
                raise RecordError(f"{name} cannot be recorded",
                                  why=f"its output {number} is not a plain strided tensor")  # fmt: skip
            position = owners.get(start_of(value)) if value.numel() else None
            if position is not None and checks[position].kind in ("free", "fixed"):
                found.append(_Output(view_of(name, value, given[position]), position))
                continue
            view = torch_compat.borrowed(value)
            self.links.add(value, view)
            found.append(_Output(view))
        return found


def _uncopied(
    results: tuple[Any, ...], inputs: Sequence[Any], checks: list[_Input], given: list[Any],
    links: Links,
) -> tuple[Any, ...]:  # fmt: skip
    """Let no input be copied whose memory a result has, and give the results the caller's memory.

    At some sizes an operator returns its input, as `contiguous` does for one row: nobody knew it before the
    call ran. Later copies would overwrite what is returned.
    """
    copied = {start_of(c.value): (i, c.value) for i, c in enumerate(checks) if c.kind == "copied"}
    found: list[Any] = []
    for result in results:
        start = start_of(result) if isinstance(result, torch.Tensor) else 0
        if not start or start not in copied or links.argument(result) is not None:
            found.append(result)
            continue
        position, static = copied[start]
        original = given[position] = inputs[position]
        checks[position] = _Input("fixed", None, _Place.of(original), "general")
        offset = original.storage_offset() + result.storage_offset() - static.storage_offset()
        found.append(original.as_strided(result.shape, result.stride(), offset)
                     if result.dtype == original.dtype else result.clone())  # fmt: skip
    return tuple(found)


def _let_go(error: BaseException) -> None:
    """Let an error keep no tensor of a failed recording: the pool could not give its memory back."""
    traceback.clear_frames(error.__traceback__)


def view_of(name: str, value: torch.Tensor, base: torch.Tensor) -> tuple[Any, Any, int]:
    """Return shape, stride and offset of a tensor in the memory of an input, from the input's own start.

    Raises:
        RecordError: its elements are of another kind.
    """
    if value.dtype != base.dtype:
        raise RecordError(
            f"{name} cannot be recorded",
            why=f"it returns an input's memory, of {base.dtype}, as {value.dtype}",
        )
    offset = int(value.storage_offset()) - int(base.storage_offset())
    return value.shape, value.stride(), offset


# ------------------------------------------------------------------------------- the replay function


@define
class _ReplayWriter:
    """Writes the function in a recorded call's place: it compares every input, then it replays."""

    inputs: Sequence[_Input]
    outputs: Sequence[_Output]
    lines: list[str] = field(factory=list)
    values: dict[str, Any] = field(factory=dict)

    def source(self) -> str:
        names = [f"i{n}" for n in range(len(self.inputs))]
        for position, check in enumerate(self.inputs):
            self._check(position, check, ", ".join(names))
        self.lines += ["_replay()", f"return {self._result()}"]
        text = "\n    ".join(self.lines)
        return f"def replay({', '.join(names)}):\n    {text}\n"

    def _check(self, position: int, check: _Input, call: str) -> None:
        name, known = f"i{position}", f"_r{position}"
        if check.kind == "free":
            return
        self.values[known] = check.value
        leave = f"return _differs({position}, {call})"
        if check.place is None:
            self.lines += [f"if {name} != {known}:", f"    {leave}"]
            return
        elsewhere, other = self._tests(position, check.place)
        linked = check.kind == "linked"
        self.lines.append(f"if {name} is not {known}:" if linked else f"if {elsewhere} or {other}:")
        if check.kind == "fixed" or check.policy != "copy":
            self.lines.append(f"    {leave}")
        else:
            self.lines += [f"    if {other}:", f"        {leave}", f"    {known}.copy_({name})"]

    def _tests(self, position: int, place: _Place) -> tuple[str, str]:
        """Return the tests whether a tensor is elsewhere in memory, and whether it is of another kind."""
        # Bound as names, not written out: then calls of one form share their code at all sizes.
        for what in ("address", "stride", "shape", "dtype"):
            self.values[f"_{what}{position}"] = getattr(place, what)
        n, name = position, f"i{position}"
        return (f"{name}.data_ptr() != _address{n} or {name}.stride() != _stride{n}",
                f"{name}.shape != _shape{n} or {name}.dtype is not _dtype{n}")  # fmt: skip

    def _result(self) -> str:
        if all(output.of is None for output in self.outputs):
            self.values["_outputs"] = tuple(output.value for output in self.outputs)
            return "_outputs"
        parts = []
        for number, output in enumerate(self.outputs):
            self.values[f"_o{number}"] = output.value
            if output.of is None:
                parts.append(f"_o{number}")
                continue
            # From the input's start: another storage may begin elsewhere before the same address.
            view = f"_shape_o{number}, _stride_o{number}"
            shape, stride, self.values[f"_o{number}"] = output.value
            self.values.update({f"_shape_o{number}": shape, f"_stride_o{number}": stride})
            base = f"i{output.of}"
            parts.append(f"{base}.as_strided({view}, {base}.storage_offset() + _o{number})")
        return f"({', '.join(parts)},)"


_code = functools.lru_cache(256)(lambda source: code_of(source, "replay"))
"""Compiled source of replay functions; a few forms serve all pieces and sizes, and compiling takes 0.3 ms."""


def _replay_function(
    name: str, recording: Recording, inputs: Sequence[_Input], outputs: Sequence[_Output],
    general: Forward, on_differs: Callable[[str, str, Policy], None],
) -> Forward:  # fmt: skip
    writer = _ReplayWriter(inputs, outputs)
    source = writer.source()

    def differs(position: int, *arguments: Any) -> Any:
        check = inputs[position]
        on_differs(
            name, f"input {position} {_difference(check, arguments[position])}", check.policy
        )
        return general(*arguments)

    values = {**writer.values, "_replay": recording.replay, "_differs": differs}
    return bind_code(_code(source), "replay", values)


def _difference(check: _Input, value: Any) -> str:
    place = check.place
    if place is None:
        return f"was {check.value} and is {value}"
    for what, then, now in (
        ("dtype", place.dtype, value.dtype), ("shape", tuple(place.shape), tuple(value.shape)),
        ("stride", place.stride, value.stride()),
    ):  # fmt: skip
        if then != now:
            return f"had the {what} {then} and has {now}"
    return "is at another address"
