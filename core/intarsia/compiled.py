"""The compiled model: what `intarsia.compile` returns."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from attrs import define, field

from intarsia.capture.frozen import FrozenValue, changes
from intarsia.capture.graph import ArgumentTree
from intarsia.errors import CacheError, ConfigError, ContractError
from intarsia.report.records import Report
from intarsia.runtime.bound import BoundBox, close_callable
from intarsia.runtime.contract import Entry, TensorContract, diagnose, relayout
from intarsia.runtime.memory import Memory
from intarsia.runtime.source import compile_source
from intarsia.runtime.swapping import Swappable
from intarsia.runtime.weights import Announced, PlanInput, live_weights, owners, watch

if TYPE_CHECKING:
    from intarsia.static_graph.pool import Pool
    from intarsia.static_graph.stage import MakeInputs, Progress, StaticGraphs
    from intarsia.static_graph.table import RecordTable


@define(eq=False)
class Engine(Swappable):
    """All that a compiled model is made of, behind its `nn.Module` face.

    Attributes:
        stale: whether a weight was replaced since the plans were bound.
        write: writes the plan to a file, or raises CacheError where that is not possible.
        manifest: returns what another process must have to make the same plan; None where the settings of
            the compile are not known.
    """

    name: str
    model: Any
    entry: Entry
    tree: ArgumentTree
    tensors: Sequence[TensorContract]
    make_frozen: Callable[[], Sequence[FrozenValue]]
    make_report: Callable[[], Report]
    make_explanation: Callable[[bool], str]
    stale: bool = False
    write: Callable[[str], None] | None = None
    manifest: Callable[[Report], dict[str, dict[str, str]]] | None = None
    _frozen: Sequence[FrozenValue] | None = field(default=None, alias="_frozen", repr=False)
    _memory: Memory | None = field(default=None, alias="_memory", repr=False)
    _announced: list[Announced] = field(factory=list, init=False, repr=False)
    _announced_lock: threading.Lock = field(factory=threading.Lock, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        for box in self.dispatcher.boxes:
            box.on_converted = self._converted

    def inputs(self) -> list[PlanInput]:
        """Return the inputs of every plan."""
        plans = {id(b.plan): b.plan for b in self.dispatcher.boxes}
        return [entry for plan in plans.values() for entry in plan.inputs]

    def padding(self) -> tuple[str, ...]:
        """Return the symbols that a call may be padded in; none where config does not ask for it."""
        return self.uncovered.padded if self.uncovered.policy == "pad" else ()

    def call(self) -> Callable[..., Any]:
        """Return the generated entry, bound."""
        values = {
            **self.entry.space.values,
            "_table": self.dispatcher.table, "_miss": self._miss, "_refuse": self._refuse,
            "_relayout": self._relayout, "_compare_values": self.compare_values,
            "_own_weight": self._own_weight,
        }  # fmt: skip
        return compile_source(self.entry.source, "call", values, f"{self.name} entry")

    def _miss(self, key: Any) -> Callable[..., Any]:
        if self.stale:
            self.rebind()
        found = self.dispatcher.miss(key)
        if self.stale:  # a weight was replaced in between: the table must not keep this
            self.dispatcher.forget()
        return found

    def _refuse(self, **call: Any) -> Any:
        raise diagnose(self.name, self.tree, self.tensors, call, self.weights())

    def weights(self) -> list[tuple[str, torch.Tensor]]:
        """Return the tensors that the plans are bound to, by name."""
        found = {
            id(weight): (entry.name, weight) for box in self.dispatcher.boxes
            for entry, weight in zip(box.plan.inputs, box.weights, strict=True)
            if isinstance(weight, torch.Tensor)
        }  # fmt: skip
        return list(found.values())

    def _own_weight(self, written: Sequence[torch.Tensor]) -> bool:
        """Say whether one of the tensors that a call writes to lies in a weight's memory."""
        if self.stale:
            self.rebind()
        memory = self._memory
        if memory is None:
            memory = self._memory = Memory.of([weight for _, weight in self.weights()])
        return any(map(memory.holds, written))

    def _relayout(self, tensor: torch.Tensor, path: str, stride: Any = None) -> torch.Tensor:
        made = relayout(self.name, path, tensor, stride)
        if made is not tensor:
            self.events.count("relayout", path)
        return made

    def compare_values(self) -> None:
        """Compare the Python values that tracing read with what they are now, and weights with the bound.

        Raises:
            ContractError: one has changed; the message has its name and both values.
        """
        if self._frozen is None:
            self._frozen = self.make_frozen()
        lines = changes(self._frozen)
        if lines:
            raise ContractError(
                f"{self.name} was compiled with other Python values",
                why="; ".join(lines[:5]),
                next_step="Compile it again; tracing has baked these values in.",
                subject=self.name,
            )
        for box in {id(b.plan): b for b in self.dispatcher.boxes}.values():
            live = live_weights(box.plan.inputs, self.model, self.name)
            if any(now is not then for now, then in zip(live, box.weights, strict=True)):
                self.weight_changed()
                return

    def weight_changed(self, announced: Announced | None = None) -> None:
        """Note that a weight was replaced, or will be: the next call binds the plans anew."""
        self._waiting(announced)
        self.stale = True
        self._memory = None
        self.dispatcher.forget()

    def _waiting(self, announced: Announced | None = None) -> bool:
        """Add a replacement, forget those that are made, and say whether some are left."""
        with self._announced_lock:
            self._announced = [one for one in self._announced if not one.is_made()]
            if announced is not None:
                self._announced.append(announced)
            return bool(self._announced)

    def _converted(self) -> None:
        self.weight_changed()
        self.rebind()

    def rebind(self) -> None:
        """Bind every plan to the model's weights as they are now.

        Raises:
            ContractError: a weight is of another kind than the one that was captured.
        """
        with self._lock:
            self.stale = False
            self._memory = None
            waiting = self._waiting()
            try:
                self._rebind_boxes(self.dispatcher.boxes)
            except ContractError:
                self.stale = True
                raise
            if waiting:  # torch announced a weight that it has not put in place yet
                self.stale = True
            self.dispatcher.forget()
            if self.static_graphs is not None:
                self.static_graphs.bound_anew()
        self.events.count("rebind")
        self.events.send("rebind", phase="bind", message="bound to the model's present weights")

    def _rebind_boxes(self, boxes: Sequence[BoundBox]) -> None:
        read: dict[int, list[Any]] = {}
        for box in boxes:  # everything is read and checked before anything changes
            if id(box.plan) not in read:
                read[id(box.plan)] = live_weights(box.plan.inputs, self.model, self.name)
        for box in boxes:
            box.bind(read[id(box.plan)])


class Compiled(torch.nn.Module):
    """A compiled model: called like the model, with the model's parameters and state dict.

    Attributes:
        module: the model that was compiled.
    """

    module: Any

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        # Set past nn.Module's __setattr__: as a registered submodule the model would put its name in
        # front of every key of the state dict.
        fields = self.__dict__
        fields["module"] = engine.model
        fields["_engine"] = engine
        fields["_call"] = engine.call()
        stop = watch(owners(engine.inputs(), engine.model), _forwarder(engine))
        fields["_finalizer"] = weakref.finalize(self, _ended, stop, engine)

    # nn.Module.__call__ costs 8 us of hook look-ups; the model's own hooks were traced into the graph.
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model.

        Raises:
            ContractError: the call does not fit what was captured.
            MetadataError: a piece's result is not what was recorded.
        """
        return self._call(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model, as `__call__` does."""
        return self._call(*args, **kwargs)

    @property
    def report(self) -> Report:
        """What was compiled, and what has happened on calls so far."""
        return self._engine.make_report()

    def explain(self, code: bool = False) -> str:
        """Return what runs and why, for a reader; with `code`, the generated stitching too."""
        return self._engine.make_explanation(code)

    def rebind(self) -> None:
        """Bind the pieces to the model's weights as they are now.

        Replaced parameters and buffers are noticed without it; call it after a change that no torch
        hook sees, such as a write to `module._parameters`. Frozen Python values are compared too.

        Raises:
            ContractError: a weight is of another kind than captured, or a Python value has changed.
        """
        self._engine.compare_values()
        self._engine.rebind()

    def __deepcopy__(self, memo: Any) -> Compiled:
        """Refuse: the copy would run on the original's weights.

        Raises:
            ContractError: always.
        """
        raise ContractError(
            f"{self._engine.name} cannot be copied or pickled",
            why="its pieces are bound to this model's weights and to this process",
            next_step="Copy or save the model itself (compiled.module), and compile that.",
            subject=self._engine.name,
        )

    def __copy__(self) -> Compiled:
        """Refuse, as `__deepcopy__` does."""
        return self.__deepcopy__({})

    def __reduce_ex__(self, _protocol: Any) -> Any:
        """Refuse, as `__deepcopy__` does."""
        return self.__deepcopy__({})

    def wait_packages(self, timeout: float | None = None) -> bool:
        """Wait until the packages that are made in the background are in use, or will not be.

        Args:
            timeout: seconds; None waits for as long as it takes.

        Returns:
            Whether nothing is on its way any more. True at once where no packages are made.
        """
        packages = self._engine.packages
        return True if packages is None else packages.wait(timeout)

    def record(
        self, make_inputs: MakeInputs, *, sizes: Mapping[str, Sequence[int]] | None = None,
        keys: Sequence[Hashable] = (None,), budget: Mapping[str, int] | None = None,
        pool: Pool | None = None, progress: Progress | None = None,
    ) -> RecordTable:  # fmt: skip
        """Record static graphs, as `static-graph` says, for calls of some sizes; the largest sizes first.

        The model runs on the inputs, so what it writes to (caches, buffers) is written. Each call runs once
        before it is recorded. What cannot be recorded runs without static graphs: the table says why.

        Args:
            make_inputs: `(sizes, key) -> (args, kwargs)` of a valid call of these sizes.
            sizes: symbol -> sizes, every combination of which is recorded; None: the setting `sizes`.
            keys: the keys to record under, see `intarsia.step`.
            budget: what the recordings may take of resources; None: the setting `static-graph-budget`.
            pool: `static_graph_pool` of another model, to share its memory. Calls of models that share a
                pool run one after the other.
            progress: called with (done, total, row) after each size, key and mode.

        Returns:
            One row for each size, key and mode, with what it took.

        Raises:
            ConfigError: `static-graph` is "none".
            RecordError: the model is frozen, an operation may not be recorded, there is no box for a size,
                or `make_inputs` makes other sizes; with `strict`, whatever could not be recorded.
        """
        return self._static_graphs().record(
            self._call, make_inputs, sizes=sizes, keys=keys, budget=budget, pool=pool,
            progress=progress,
        )  # fmt: skip

    @property
    def static_graph_pool(self) -> Pool | None:
        """What the recordings share, for `record(pool=...)` of another model; None before the first."""
        return self._static_graphs().pool

    def memory(self) -> dict[str, int]:
        """Return what static graphs take of each resource; empty where nothing is recorded."""
        graphs = self._engine.static_graphs
        return {} if graphs is None else graphs.memory()

    def _static_graphs(self) -> StaticGraphs:
        found = self._engine.static_graphs
        if found is None:
            raise ConfigError(
                f"{self._engine.name} has no static graphs", why='static-graph = "none"',
                next_step='Compile it with static_graph = "piecewise" or "full".',
                subject="static_graph",
            )  # fmt: skip
        return found

    def freeze(self, *, packages: bool = False) -> None:
        """Keep everything as it is from now on: nothing compiles or is recorded, no piece is replaced.

        Args:
            packages: let those that are on their way be finished and put in.
        """
        self._engine.freeze(packages)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan and the artifacts of its pieces to one file, which `intarsia.load` reads.

        Weights are not in it. The file is written whole or not at all.

        Raises:
            CacheError: a piece has no artifact, or tracing read something that another process cannot
                compare; the message says which.
            OSError: the file cannot be written.
        """
        write = self._engine.write
        if write is None:
            raise CacheError(f"{self._engine.name} was closed", subject=self._engine.name)
        write(os.fspath(path))

    def manifest(self) -> dict[str, dict[str, str]]:
        """Return the resolved plan as plain data for another process: `intarsia.compile(..., expect=it)`.

        "setup" has versions, plugins, settings and rules with the digests of their sources; "plan" has the
        boxes and the pieces, with who compiled each.

        Raises:
            CacheError: the model was closed, or loaded from a file, which has its own record of all that.
        """
        make = self._engine.manifest
        if make is None:
            raise CacheError(
                f"{self._engine.name} has no manifest",
                why="it was closed, or intarsia.load has read it from a file",
                next_step="Ask one that intarsia.compile returned.", subject=self._engine.name,
            )  # fmt: skip
        return make(self._engine.make_report())

    def close(self) -> None:
        """Let go of what the model holds beside its weights; a later call raises."""
        self._finalizer()
        self._engine.end()
        self._engine.write = None
        self._engine.manifest = None
        if self._engine.static_graphs is not None:
            self._engine.static_graphs.close()
        name = self._engine.name
        boxes = self._engine.dispatcher.boxes
        for box in boxes:
            box.close()
        shared = {id(f.callable): f.callable for b in boxes for f in b.functions.values()}
        for function in shared.values():  # equal pieces share one
            close_callable(function)
        self.__dict__["_call"] = _closed(name)

    # -- the model's own face

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["module"], name)

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, torch.nn.Module]]:
        """Return the model's own modules."""
        return self.module.named_modules(*args, **kwargs)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Return the model's own parameters."""
        return self.module.named_parameters(*args, **kwargs)

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Return the model's own buffers."""
        return self.module.named_buffers(*args, **kwargs)

    def named_children(self) -> Iterator[tuple[str, torch.nn.Module]]:
        """Return the model's own children."""
        return self.module.named_children()

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the model's own state dict."""
        return self.module.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load the model's own state dict; works with `assign=True`."""
        return self.module.load_state_dict(state_dict, *args, **kwargs)

    def train(self, mode: bool = True) -> Compiled:
        """Refuse training mode unless the model was compiled in it.

        Raises:
            ContractError: tracing has baked the present mode in.
        """
        if isinstance(self.module, torch.nn.Module) and self.module.training != mode:
            raise ContractError(
                f"{self._engine.name} was compiled with training={self.module.training}",
                why="tracing has baked the mode in",
                next_step="Call train() or eval() on the model and compile it again.",
            )
        return self

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Compiled:
        self.module._apply(fn)
        self._engine.weight_changed()
        return self

    def __repr__(self) -> str:
        return f"Compiled({self._engine.name})"


def _forwarder(engine: Engine) -> Callable[[Announced], None]:
    reference = weakref.ref(engine)

    def changed(announced: Announced) -> None:
        live = reference()
        if live is not None:
            live.weight_changed(announced)

    return changed


def _ended(stop: Callable[[], None], engine: Engine) -> None:
    """Stop watching weights, and what is made in the background for a model that is gone."""
    stop()
    engine.end()


def _closed(name: str) -> Callable[..., Any]:
    def call(*_args: Any, **_kwargs: Any) -> Any:
        raise ContractError(
            f"{name} was closed", next_step="Compile the model again.", subject=name
        )

    return call
