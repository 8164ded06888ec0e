"""The checks around a pass: what it leaves must be the same function, as far as one can see.

They are the core's, and stay on whatever manager runs the passes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import define, field
from torch import fx

from intarsia import torch_compat
from intarsia.capture import nodes
from intarsia.capture.fake_values import NodeFailed, Values, values_in
from intarsia.errors import PassError
from intarsia.interfaces import BoundPass, Pass, PassRun, PassSpec

__all__ = ["Checked"]


class _TooLong(BaseException):
    """A pass ran longer than it may; put into its thread from outside."""


@define(eq=False)
class Checked:
    """Runs passes over graphs with the checks around each.

    Attributes:
        fake_inputs: what the graph's placeholders stand for; None: nobody knows, so that values are not
            compared.
        where: what the graph is, for messages.
        strict: whether a bad pass raises; else what it did is undone, and its run says so.
        deadline: seconds that a pass may take; None: as long as it likes.
        dump: a folder for each pass' graph before and after, or None.
    """

    fake_inputs: Sequence[Any] | None
    where: str
    strict: bool
    owners: Any
    deadline: float | None = None
    dump: str | None = None
    runs: list[PassRun] = field(factory=list)
    _facts: tuple[str, _Facts] | None = None
    """The graph that the last pass left, as text, and what is known of it."""

    def bound(self, spec: PassSpec, made: Pass) -> BoundPass:
        """Return a pass with the checks around it."""
        return BoundPass(spec, lambda graph: self.run(spec, made, graph))

    def run(self, spec: PassSpec, made: Pass, graph: fx.Graph) -> PassRun:
        """Run a pass; returns how it went.

        Raises:
            PassError: in strict mode, where it fails or leaves a graph that is another function.
        """
        before = _snapshot(graph)
        # Running a graph on fake values takes longer than most passes, and most change nothing.
        has_constants = any(node.op == "get_attr" for node in graph.nodes)
        known = self._known(graph) if has_constants else None
        begun = time.perf_counter()
        try:
            with _limited(self.deadline):
                matches = made(graph)
            if has_constants or not _is_same(before, graph):
                self._compare(known or self._known(before), graph)
        except _TooLong:
            return self._failed(spec, graph, before, begun, f"it ran longer than {self.deadline} s")
        except _Wrong as error:
            return self._failed(spec, graph, before, begun, str(error))
        except Exception as error:
            text = f"it raised {type(error).__name__}: {error}"
            return self._failed(spec, graph, before, begun, text, error)
        self._dump(spec, before, graph)
        # A bool is a count of nothing.
        count = matches if isinstance(matches, int) and not isinstance(matches, bool) else None
        return self._noted(PassRun(spec.name, count, time.perf_counter() - begun, spec.stage))

    def _failed(
        self, spec: PassSpec, graph: fx.Graph, before: fx.Graph, begun: float, why: str,
        cause: BaseException | None = None,
    ) -> PassRun:  # fmt: skip
        self._dump(spec, before, graph)
        owner = self.owners.get(spec.name, "?")
        if self.strict:
            raise PassError(
                f'the pass "{spec.name}" of plugin {owner} spoilt {self.where}', why=why,
                next_step=f'Leave it out: passes.disable = ["{spec.name}"], or compile without strict.',
                subject=spec.name,
            ) from cause  # fmt: skip
        _restore(graph, before)
        seconds = time.perf_counter() - begun
        return self._noted(PassRun(spec.name, None, seconds, spec.stage, f"{why} (plugin {owner})"))

    def _noted(self, run: PassRun) -> PassRun:
        self.runs.append(run)
        return run

    def _known(self, graph: fx.Graph) -> _Facts | None:
        """Return what must stay the same; None where the graph cannot be run on fake values as it is."""
        if self.fake_inputs is None:
            return None
        if self._facts is not None and self._facts[0] == str(graph):
            return self._facts[1]
        try:
            return _Facts.of(graph, values_in(graph, self.fake_inputs))
        except NodeFailed:
            return None

    def _compare(self, known: _Facts | None, graph: fx.Graph) -> None:
        if known is None:
            _lint(graph)
            return
        now = _Facts.of(graph, self._values(graph))
        known.compare(now, graph)
        self._facts = (str(graph), now)

    def _values(self, graph: fx.Graph) -> Values:
        _lint(graph)
        assert self.fake_inputs is not None
        inputs = sum(node.op == "placeholder" for node in graph.nodes)
        if inputs != len(self.fake_inputs):
            raise _Wrong(f"there were {len(self.fake_inputs)} inputs and are {inputs}")
        try:
            return values_in(graph, self.fake_inputs)
        except NodeFailed as error:
            raise _Wrong(f"the graph cannot be run any more, at {error}") from error

    def _dump(self, spec: PassSpec, before: fx.Graph, after: fx.Graph) -> None:
        if self.dump is None:
            return
        folder = Path(self.dump) / "passes"
        folder.mkdir(parents=True, exist_ok=True)
        # Of all that ran so far: a piece comes once for each box and stage.
        number = sum(1 for _ in folder.glob("*-before.txt"))
        stem = f"{number:02}-{self.where.replace(os.sep, '_')}-{spec.name}"
        (folder / f"{stem}-before.txt").write_text(f"{before}\n", encoding="utf-8")
        (folder / f"{stem}-after.txt").write_text(f"{after}\n", encoding="utf-8")


def _lint(graph: fx.Graph) -> None:
    try:
        graph.output_node()  # lint does without
        graph.lint()
    except Exception as error:
        text = str(error).partition("\n")[0]  # the graph itself comes after it
        raise _Wrong(f"the graph is not sound any more: {text}") from error


class _Wrong(Exception):
    """What a pass left is another function."""


@define
class _Facts:
    """What must be the same before and after a pass."""

    inputs: list[str]
    outputs: list[Any]
    shares: list[str]
    writes: list[str]

    @classmethod
    def of(cls, graph: fx.Graph, values: Values) -> _Facts:
        holes = [n for n in graph.nodes if n.op == "placeholder"]
        known: dict[str, str] = {}
        outputs = [_facts(v, values, known) for v in _listed(graph.output_node().args[0])]
        names = [str(n.target) for n in holes]
        return cls(names, outputs, _shares(graph, values), _writes(graph, values))

    def compare(self, now: _Facts, graph: fx.Graph) -> None:
        """Refuse a graph whose facts differ, and name the first that does."""
        if now.inputs != self.inputs:
            raise _Wrong(
                f"the inputs were {', '.join(self.inputs)} and are {', '.join(now.inputs)}"
            )
        if len(now.outputs) != len(self.outputs):
            raise _Wrong(f"there were {len(self.outputs)} outputs and are {len(now.outputs)}")
        results = _listed(graph.output_node().args[0])
        for number, (then, new, node) in enumerate(
            zip(self.outputs, now.outputs, results, strict=True)
        ):
            different = _difference(then, new)
            if different:
                raise _Wrong(f"output {number} ({node}) {different}")
        for number, (whose, new) in enumerate(zip(self.shares, now.shares, strict=True)):
            if whose != new:
                raise _Wrong(f"output {number} ({results[number]}) had {whose} and has {new}")
        if now.writes != self.writes:
            earlier, later = ", ".join(self.writes) or "nothing", ", ".join(now.writes) or "nothing"
            raise _Wrong(f"it wrote, in order, to {earlier}, and writes to {later}")


def _listed(result: Any) -> list[Any]:
    return list(result) if isinstance(result, tuple | list) else [result]


def _facts(value: Any, values: Values, known: dict[str, str]) -> Any:
    if isinstance(value, fx.Node):
        value = values[value]
    if isinstance(value, torch.Tensor):
        strided = value.layout == torch.strided
        return {
            "dtype": str(value.dtype), "shape": _sizes(value.shape, known), "device": value.device.type,
            "stride": _sizes(value.stride(), known) if strided else None,
        }  # fmt: skip
    return None if value is None else type(value).__name__


def _sizes(sizes: Any, known: dict[str, str]) -> tuple[Any, ...]:
    """Return sizes to compare; `known`: a name for each that depends on data, as torch's own are new."""

    def name(match: re.Match[str]) -> str:
        return known.setdefault(match[0], f"u{len(known)}")

    found = (torch_compat.expression_of(size) for size in sizes)
    return tuple(s if isinstance(s, int) else _OF_DATA.sub(name, str(s)) for s in found)


_OF_DATA = re.compile(r"\bu\d+\b")
"""What torch calls a size that depends on the values in a tensor, as of `nonzero`."""


def _difference(then: Any, now: Any) -> str:
    if then is None or now is None or not isinstance(then, dict):
        return ""
    if not isinstance(now, dict):
        return f"was a tensor and is {now}"
    for name in ("dtype", "shape", "device"):
        if then[name] != now[name]:
            return f"had the {name} {then[name]} and has {now[name]}"
    if _strides_that_matter(then) != _strides_that_matter(now):
        return f"had the stride {then['stride']} and has {now['stride']}"
    return ""


def _strides_that_matter(facts: Any) -> Any:
    """Return the strides of dimensions of more than one element; none where there is no element at all."""
    if facts["stride"] is None or any(size == 0 for size in facts["shape"]):
        return None
    return [s for size, s in zip(facts["shape"], facts["stride"], strict=True) if size != 1]


def _writes(graph: fx.Graph, values: Values) -> list[str]:
    """Return the inputs that are written to, in order; several writes in a row to one count once."""
    owners = {_storage(values[n]): str(n.target) for n in graph.nodes if n.op == "placeholder"}
    owners.pop(None, None)
    found: list[str] = []
    for node in graph.nodes:
        for target in nodes.mutated_arguments(node):
            name = owners.get(_storage(values[target]))
            if name is not None and found[-1:] != [name]:
                found.append(name)
    return found


def _shares(graph: fx.Graph, values: Values) -> list[str]:
    """Return whose memory each output has: an input's, that of an output before it, or its own."""
    holes = [n for n in graph.nodes if n.op == "placeholder"]
    owners = {_storage(values[n]): f"the memory of {n.target}" for n in reversed(holes)}
    owners.pop(None, None)
    found = []
    for number, node in enumerate(_listed(graph.output_node().args[0])):
        key = _storage(values[node]) if isinstance(node, fx.Node) else None
        found.append(owners.get(key, "memory of its own"))
        if key is not None:
            owners.setdefault(key, f"the memory of output {number}")
    return found


def _storage(value: Any) -> Any:
    strided = isinstance(value, torch.Tensor) and value.layout == torch.strided
    return torch_compat.storage_id(value) if strided else None


# ------------------------------------------------------------------------------------ undoing a pass


def _snapshot(graph: fx.Graph) -> fx.Graph:
    copy = fx.Graph()
    copy.output(copy.graph_copy(graph, {})).meta = dict(graph.output_node().meta)
    return copy


def _is_same(one: fx.Graph, other: fx.Graph) -> bool:
    """Say whether two graphs hold the same calls in the same order."""
    if len(one.nodes) != len(other.nodes):
        return False
    twins: dict[Any, fx.Node] = {}
    for mine, theirs in zip(one.nodes, other.nodes, strict=True):
        if mine.op != theirs.op or mine.target != theirs.target:
            return False
        pairs = ((mine.args, theirs.args), (mine.kwargs, theirs.kwargs))
        if not all(_is_equal(a, b, twins) for a, b in pairs):
            return False
        twins[mine] = theirs
    return True


def _is_equal(mine: Any, theirs: Any, twins: Mapping[Any, fx.Node]) -> bool:
    if isinstance(mine, fx.Node):
        return twins.get(mine) is theirs
    if type(mine) is not type(theirs):
        return False
    if isinstance(mine, list | tuple):
        return len(mine) == len(theirs) and all(
            _is_equal(a, b, twins) for a, b in zip(mine, theirs, strict=True)
        )
    if isinstance(mine, slice):
        parts = ((mine.start, theirs.start), (mine.stop, theirs.stop), (mine.step, theirs.step))
        return all(_is_equal(a, b, twins) for a, b in parts)
    if isinstance(mine, dict):
        return list(mine) == list(theirs) and all(
            _is_equal(v, theirs[k], twins) for k, v in mine.items()
        )
    return mine is theirs or repr(mine) == repr(theirs)


def _restore(graph: fx.Graph, before: fx.Graph) -> None:
    """Make a graph what it was, in place, also where a pass left it unsound."""
    for node in graph.nodes:
        node.args, node.kwargs = (), {}
    for node in reversed(list(graph.nodes)):
        graph.erase_node(node)
    graph.output(graph.graph_copy(before, {})).meta = dict(before.output_node().meta)
    graph.lint()


@contextlib.contextmanager
def _limited(seconds: float | None) -> Iterator[None]:
    """Stop the block's Python when it takes longer.

    A loop inside C code cannot be stopped from here: a worker's own deadline ends that.
    """
    if seconds is None:
        yield
        return
    thread = threading.get_ident()
    lock = threading.Lock()
    done: list[bool] = []

    def stop() -> None:
        with lock:
            if not done:
                done.append(True)
                _raise_in(thread, _TooLong)

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        with lock:
            done.append(True)


def _raise_in(thread: int, error: type[BaseException]) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error))
