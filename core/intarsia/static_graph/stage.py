"""The stage of static graphs of one compiled model: what is recorded, within which budget, and what runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from attrs import define, evolve, field, frozen

from intarsia.errors import ConfigError, RecordError
from intarsia.interfaces import DeviceOps, StaticGraphBackend
from intarsia.runtime.bound import BoundBox, Forward
from intarsia.static_graph.budget import Budget, OutOfBudget, estimate
from intarsia.static_graph.plan import Arguments, PlanRecorder, Recorded, RecordedPlan
from intarsia.static_graph.pool import Pool
from intarsia.static_graph.recording import Policy
from intarsia.static_graph.safety import SafetyTable, packet
from intarsia.static_graph.step import Mode, Step, current_step, step
from intarsia.static_graph.table import RecordTable, Row, Status, amounts, shown_sizes

if TYPE_CHECKING:
    from intarsia.runtime.swapping import Swappable

Sizes = Mapping[str, int]
MakeInputs = Callable[[dict[str, int], Hashable], tuple[Sequence[Any], Mapping[str, Any]]]
Progress = Callable[[int, int, Row], None]


@frozen
class StaticGraphSettings:
    """What is recorded, and how.

    Attributes:
        mode: the setting `static-graph`.
        sizes: symbol -> the sizes to record where the caller names none.
        limits: what recordings may take of resources, over what the backend says.
        policies: argument -> what a replay does where it is elsewhere.
        owned: whether results of a replay are the caller's own.
        strict: whether what cannot be recorded raises.
        safety: which operations may be recorded.
        partition_at: the operators at which a compiler cuts its own schedule.
    """

    mode: str
    sizes: Mapping[str, Sequence[int]]
    limits: Mapping[str, int]
    policies: Mapping[str, Policy]
    owned: bool
    strict: bool
    safety: SafetyTable
    partition_at: tuple[str, ...] = ()

    def cuts_at(self, op: str) -> bool:
        """Say whether a compiler cuts its own schedule at an operator."""
        return op in self.partition_at or packet(op) in self.partition_at

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes to record."""
        if self.mode == "full-and-piecewise":
            return ("piecewise", "full")
        return () if self.mode == "none" else ("full" if self.mode == "full" else "piecewise",)


@define(eq=False)
class _Recordings:
    """What is recorded for calls of some sizes, and which of it a step gets."""

    events: Any
    shown: str
    general: Callable[[], Forward]
    lazily: Callable[[], Forward | None]
    plans: dict[tuple[Hashable, Mode], RecordedPlan] = field(factory=dict)
    chosen: dict[Step, Forward] = field(factory=dict)

    def forward(self, *arguments: Any) -> Any:
        """Run a call as its step says."""
        run = self.chosen.get(current_step())
        return (run or self._choose(current_step()))(*arguments)

    def _choose(self, wanted: Step) -> Forward:
        if wanted.mode == "none":
            return self.general()
        recording = self.lazily()
        if recording is not None:
            return recording
        modes: Sequence[Mode] = ("full", "piecewise") if wanted.mode is None else (wanted.mode,)
        for mode in modes:
            plan = self.plans.get((wanted.key, mode))
            if plan is not None:
                self.chosen[wanted] = plan.forward
                return plan.forward
        key = "" if wanted.key is None else f" under the key {wanted.key!r}"
        self.events.count("unrecorded", f"{self.shown}{key}, mode {wanted.mode or 'any'}")
        return self.general()


@define(eq=False)
class StaticGraphs:
    """The static graphs of one compiled model.

    Attributes:
        plans: the bound plans, which static graphs are recorded of.
        paths: the paths of a forward's first arguments.
        ops: the operations of each piece: (piece index or None where it runs as it is, names).
        padded: the symbols that may be padded, so that calls between recorded sizes go to the next.
        pool: what recordings share; made when the first is.
    """

    name: str
    plans: Swappable
    paths: Sequence[str]
    ops: Callable[[], Sequence[tuple[int | None, Sequence[str]]]]
    settings: StaticGraphSettings
    backend: StaticGraphBackend
    device: int | None
    device_ops: DeviceOps
    padded: tuple[str, ...] = ()
    pool: Pool | None = None
    budget: Budget | None = None
    recorded: dict[Any, _Recordings] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        known = [(p, p.partition(".")[0].partition("[")[0]) for p in self.paths]
        for name in self.settings.policies:
            if not any(name in names for names in known):
                raise ConfigError(
                    f'static-inputs names "{name}", which is no argument of {self.name}',
                    next_step=f"Its arguments are {', '.join(self.paths) or 'none'}.",
                    subject="static_inputs",
                )  # fmt: skip

    # -- the phase

    def record(
        self, call: Callable[..., Any], make_inputs: MakeInputs, *,
        sizes: Mapping[str, Sequence[int]] | None, keys: Sequence[Hashable],
        budget: Mapping[str, int] | None, pool: Pool | None, progress: Progress | None,
    ) -> RecordTable:  # fmt: skip
        """Record every size under every key, the largest size first.

        Raises:
            RecordError: the model is frozen, an operation may not be recorded, a size is in no box, or
                `make_inputs` makes inputs of other sizes; in strict mode also what cannot be recorded.
        """
        if self.plans.is_frozen:
            raise RecordError(f"{self.name} is frozen", why="nothing is recorded after freeze()",
                              next_step="Record before freeze().", subject=self.name)  # fmt: skip
        # A call during the phase may bind the plans anew, and a rebind elsewhere releases recordings: both
        # take the plans' lock first, then the pool's.
        with self.plans.lock, self.plans.events.phase("record") as told:
            planned = self._sizes(sizes)
            self.open(pool, budget)
            tasks = [(s, k, m) for s in planned for k in keys for m in self.settings.modes]
            rows: list[Row] = []
            kept, dropped = self._prune(tasks)
            assert self.pool is not None
            with self.pool.recording():
                for sizes_of, key, mode in kept:
                    row = self._row(call, make_inputs, sizes_of, key, mode)
                    rows.append(row)
                    told(f"{shown_sizes(sizes_of)}: {row.status}")
                    if progress is not None:
                        progress(len(rows), len(tasks), row)
        rows += dropped
        if any(row.status != "recorded" for row in rows):
            self.device_ops.empty_cache()  # a failed recording leaves memory that nobody uses
        assert self.budget is not None
        table = RecordTable(tuple(rows), dict(self.budget.limits), dict(self.budget.used))
        self._tell(table)
        return table

    def _check_ops(self) -> None:
        safety = self.settings.safety
        for mode in self.settings.modes:
            for index, ops in self.ops():
                if mode == "piecewise":  # a compiler that cuts its own schedule cuts at these
                    ops = [op for op in ops if not self.settings.cuts_at(op)]
                if mode == "full":
                    safety.check(ops, f"the whole forward of {self.name}")
                elif index is not None:
                    safety.check(ops, f"{self.name}.piece_{index}")

    def _sizes(self, given: Mapping[str, Sequence[int]] | None) -> list[Sizes]:
        symbols = self.plans.dispatcher.symbols
        wanted = given if given is not None else self.settings.sizes
        unknown = [n for n in wanted if n not in symbols] if given is not None else []
        missing = [n for n in symbols if not wanted.get(n)]
        if unknown or missing:
            why = f"it has no symbol {unknown[0]!r}" if unknown else f"no sizes for {missing[0]!r}"
            raise RecordError(
                f"{self.name} cannot be recorded", why=why,
                next_step=f"Give sizes for {', '.join(symbols) or 'nothing: it has no symbols'}: "
                "record(make_inputs, sizes={...}), or sizes in config.",
                subject=(unknown or missing)[0],
            )  # fmt: skip
        made = [dict(zip(symbols, v, strict=True)) for v in product(*(wanted[n] for n in symbols))]
        for one in made:
            if self.plans.dispatcher.box_for(one) is None or not all(one.values()):
                raise RecordError(
                    f"{self.name} cannot be recorded at {shown_sizes(one)}",
                    why="no box holds these sizes", next_step="Leave them out, or add a box.",
                    subject=self.name,
                )  # fmt: skip
        return sorted(made, key=lambda s: (_volume(s), tuple(s.values())), reverse=True)

    def open(self, pool: Pool | None = None, budget: Mapping[str, int] | None = None) -> None:
        """Make ready to record: check the operations, and open the pool and the budget.

        Raises:
            RecordError: an operation may not be recorded, or there is another pool already.
        """
        self._check_ops()
        if pool is not None and pool is not self.pool:
            if self.pool is not None:
                raise RecordError(
                    f"{self.name} has recordings in another pool",
                    next_step="Name the pool at the first record().", subject="pool",
                )  # fmt: skip
            self.pool = pool
        if self.pool is None:
            self.pool = Pool(self.backend, self.device, self.device_ops)
        self.pool.join(self)
        chosen = self.settings.limits if budget is None else budget
        self.budget = Budget.open(self.backend, self.device, chosen, self.budget)

    def _prune(
        self, tasks: Sequence[tuple[Sizes, Hashable, Mode]]
    ) -> tuple[list[tuple[Sizes, Hashable, Mode]], list[Row]]:
        """Leave out what will not fit, where the backend can tell before it is recorded."""
        assert self.budget is not None
        room = Budget(self.budget.limits, dict(self.budget.used))
        kept: list[tuple[Sizes, Hashable, Mode]] = []
        dropped: list[Row] = []
        for sizes, key, mode in tasks:
            plan = self._plan(sizes, key, mode)
            if plan is not None:  # it is released before the new one is made
                room.give(plan.cost())
            cost = self._estimate(sizes, mode)
            why = room.room_for(cost) if cost is not None else ""
            if why:
                dropped.append(Row(sizes, key, mode, "dropped", reason=why))
                continue
            room.take(cost or {})
            kept.append((sizes, key, mode))
        return kept, dropped

    def _estimate(self, sizes: Sizes, mode: Mode) -> dict[str, int] | None:
        box = self._box(sizes)
        point = {name: (size, size) for name, size in sizes.items()}
        # One recording of the whole is what no single piece stands for.
        pieces = box.plan.pieces[:1] if mode == "full" else box.plan.pieces
        at = {**box.planned.box, **point}
        return estimate(self.backend, [(box.signature(p), at) for p in pieces])

    def _box(self, sizes: Sizes) -> BoundBox:
        box = self.plans.dispatcher.box_for(sizes)
        assert box is not None
        return box

    # -- one size

    def _row(
        self, call: Callable[..., Any], make_inputs: MakeInputs, sizes: Sizes, key: Hashable, mode: Mode,
    ) -> Row:  # fmt: skip
        begun = time.perf_counter()
        row = Row(sizes, key, mode, "failed")
        assert self.budget is not None
        try:
            if self._plan(sizes, key, mode) is None:
                self.budget.before()
            recorded = self._called(call, make_inputs, sizes, key, mode)
        except OutOfBudget as error:
            return evolve(row, status="dropped", reason=str(error))
        except RecordError:
            raise
        except Exception as error:
            if self.settings.strict:
                raise RecordError(
                    f"{self.name} could not be recorded at {shown_sizes(sizes)}",
                    why=f"{type(error).__name__}: {error}", subject=self.name,
                ) from error  # fmt: skip
            return evolve(row, reason=f"{type(error).__name__}: {error}",
                          seconds=time.perf_counter() - begun)  # fmt: skip
        seconds = time.perf_counter() - begun
        if recorded.plan is None:
            return evolve(row, status="dropped", reason=recorded.over_budget, seconds=seconds)
        return self._row_of(row, recorded.plan, seconds)

    def _row_of(self, row: Row, plan: RecordedPlan, seconds: float) -> Row:
        status: Status = "recorded" if not plan.reasons else "partly" if plan.calls else "failed"
        return evolve(
            row, status=status, recordings=len(plan.calls), cost=plan.cost(), seconds=seconds,
            reason="; ".join(plan.reasons),
        )  # fmt: skip

    def _called(
        self, call: Callable[..., Any], make_inputs: MakeInputs, sizes: Sizes, key: Hashable, mode: Mode,
    ) -> Recorded:  # fmt: skip
        """Call the model so that its forward for these sizes is recorded."""
        with step(key, mode):
            args, kwargs = make_inputs(dict(sizes), key)
            dispatcher, thread = self.plans.dispatcher, threading.get_ident()
            at = self._at(sizes)
            found: list[Recorded] = []

            def recording(*arguments: Any) -> Any:
                box = self._box(sizes)
                if threading.get_ident() != thread:
                    return box.forward(*arguments)
                found.append(self.record_call(box, arguments, sizes, key, mode))
                return found[0].result

            self.forget(sizes, key, mode)
            dispatcher.override[at] = recording
            dispatcher.forget()
            try:
                call(*args, **kwargs)
            finally:
                dispatcher.override.pop(at, None)
                dispatcher.forget()
        if not found:
            raise RecordError(
                f"make_inputs made no inputs with {shown_sizes(sizes)}",
                why="the call that it made has other sizes", subject="make_inputs",
            )  # fmt: skip
        return found[0]

    def record_call(
        self, box: BoundBox, arguments: Sequence[Any], sizes: Sizes, key: Hashable, mode: Mode
    ) -> Recorded:
        """Record one call of a bound plan, and keep what was recorded for calls like it."""
        assert self.pool is not None
        assert self.budget is not None
        settings = self.settings
        recorder = PlanRecorder(
            box, self.pool, self.budget, settings.owned, settings.strict, self._differs
        )
        known = self._known(box, arguments)
        if mode == "full":
            recorded = recorder.full(arguments, known)
        else:
            recorded = recorder.piecewise(arguments, known)
        if recorded.plan is not None and recorded.plan.calls:
            self._keep(sizes, key, recorded.plan)
        return recorded

    def _known(self, box: BoundBox, arguments: Sequence[Any]) -> Arguments:
        pinned = frozenset(i for i, path in enumerate(self.paths) if path in box.plan.pinned)
        policies: dict[int, Policy] = {}
        for position, path in enumerate(self.paths):
            chosen = self.settings.policies.get(path) or self.settings.policies.get(
                path.partition(".")[0].partition("[")[0]
            )
            if chosen is not None:
                policies[position] = chosen
            elif _is_static(box, position):
                policies[position] = "general"
        return Arguments.of(arguments[: len(self.paths)], pinned, policies)

    def _keep(self, sizes: Sizes, key: Hashable, plan: RecordedPlan) -> None:
        at = self._at(sizes)
        found = self.recorded.get(at)
        if found is None:
            found = self.recorded[at] = _Recordings(
                self.plans.events, shown_sizes(sizes), lambda: self._box(sizes).forward,
                lambda: self._lazily(at, sizes),
            )  # fmt: skip
        found.plans[key, plan.mode] = plan
        found.chosen.clear()
        self.plans.dispatcher.recorded[at] = found.forward
        self.plans.dispatcher.forget()
        self.plans.events.gauge("recordings", self.recordings)

    def _lazily(self, at: Any, sizes: Sizes) -> Forward | None:
        lazily = self.plans.dispatcher.lazily
        return None if lazily is None else lazily(at, sizes, self._box(sizes))

    def pad(self, sizes: Sizes) -> Forward | None:
        """Return what runs a call through the nearest recorded sizes above its own; None: there are none."""
        best: Any = None
        for at in self.plans.dispatcher.recorded:
            target = self.plans.dispatcher.values_of(at)
            fits = all(
                n <= target[s] if s in self.padded else n == target[s] for s, n in sizes.items()
            )
            if fits and all(sizes.values()) and (best is None or _volume(target) < best[0]):
                best = _volume(target), target, self.recorded[at].forward
        return None if best is None else self.plans.uncovered.padding(best[2], best[1], sizes)

    def _plan(self, sizes: Sizes, key: Hashable, mode: Mode) -> RecordedPlan | None:
        found = self.recorded.get(self._at(sizes))
        return None if found is None else found.plans.get((key, mode))

    # -- what becomes of recordings

    def forget(self, sizes: Sizes, key: Hashable, mode: Mode) -> None:
        """Release what was recorded for a size, key and mode."""
        found = self.recorded.get(self._at(sizes))
        plan = found.plans.pop((key, mode), None) if found is not None else None
        if found is None or plan is None:
            return
        found.chosen.clear()
        if not found.plans:
            del self.recorded[self._at(sizes)]
            self.plans.dispatcher.recorded.pop(self._at(sizes), None)
        self.plans.dispatcher.forget()
        self._release(plan)

    def _release(self, plan: RecordedPlan) -> None:
        assert self.budget is not None
        assert self.pool is not None
        self.plans.events.gauge("recordings", self.recordings)
        self.budget.give(plan.cost())
        with self.pool.lock:
            plan.release()

    def bound_anew(self) -> None:
        """Release the recordings of plans that are bound to other weights than they were recorded with."""
        gone = 0
        for at, found in list(self.recorded.items()):
            box = self.plans.dispatcher.box_for(self.plans.dispatcher.values_of(at))
            for (key, mode), plan in list(found.plans.items()):
                if box is None or not plan.is_bound_to(box.weights):
                    gone += 1
                    self.forget(self.plans.dispatcher.values_of(at), key, mode)
        if gone:
            self.device_ops.empty_cache()
            self.plans.events.count("recordings released")
            self.plans.events.warn(
                f"{gone} recorded sizes were released, since a weight was replaced by another tensor; calls "
                "run without static graphs until record() is called again"
            )

    def memory(self) -> dict[str, int]:
        """Return what static graphs take: each resource of the backend, and the bytes of copied inputs."""
        if self.pool is None or self.budget is None:
            return {}
        return {**self.budget.used, "input bytes": self.pool.inputs.bytes()}

    @property
    def recordings(self) -> int:
        """How many recordings there are."""
        return sum(len(p.calls) for r in self.recorded.values() for p in r.plans.values())

    def close(self) -> None:
        """Release every recording, and the pool unless others record into it."""
        for at, found in list(self.recorded.items()):
            for key, mode in list(found.plans):
                self.forget(self.plans.dispatcher.values_of(at), key, mode)
        if self.pool is not None:
            self.pool.leave(self)
        self.pool = None

    # -- help

    def _at(self, sizes: Sizes) -> Any:
        symbols = self.plans.dispatcher.symbols
        values = tuple(sizes[name] for name in symbols)
        return 0 if not symbols else values[0] if len(values) == 1 else values

    def _differs(self, name: str, reason: str, policy: Policy) -> None:
        count = self.plans.events.count("replay-general", f"{name}: {reason}")
        if policy == "same-address" and count == 1:
            self.plans.events.warn(
                f"{name} was not replayed: {reason}, though static-inputs says same-address; "
                "further ones are only counted"
            )

    def _tell(self, table: RecordTable) -> None:
        events = self.plans.events
        if table.dropped:
            shown = ", ".join(dict.fromkeys(shown_sizes(r.sizes) for r in table.dropped))
            events.warn(f"no static graphs for {shown}: {table.dropped[0].reason} "
                        f"(budget {amounts(table.budget)})")  # fmt: skip
        for row in table.rows:
            if row.status in ("failed", "partly"):
                events.warn(f"{shown_sizes(row.sizes)} was recorded {row.status}: {row.reason}"
                            if row.status == "partly" else
                            f"{shown_sizes(row.sizes)} could not be recorded: {row.reason}")  # fmt: skip


def _volume(sizes: Sizes) -> int:
    total = 1
    for size in sizes.values():
        total *= size
    return total


def _is_static(box: BoundBox, position: int) -> bool:
    """Say whether an argument is a parameter or buffer, which Dynamo passes among a graph's inputs."""
    inputs = box.plan.inputs
    entry = inputs[position] if position < len(inputs) else None
    return entry is not None and entry.kind == "argument" and entry.is_parameter
