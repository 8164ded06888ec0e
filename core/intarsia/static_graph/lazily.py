"""Recording during calls, for the door that has no phase for it: `torch.compile(backend="intarsia")`."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping
from typing import Any

from attrs import define, field

from intarsia.errors import RecordError
from intarsia.runtime.bound import BoundBox, Forward
from intarsia.static_graph.budget import OutOfBudget
from intarsia.static_graph.stage import StaticGraphs
from intarsia.static_graph.step import Mode, current_step


@define(eq=False)
class LazyRecording:
    """Records calls as they come: a size is recorded at its first call, in each mode at one call.

    Sizes that config lists are recorded, and graphs that have no symbols: any size would be one recording
    for each length of a prompt.

    Attributes:
        seen: (sizes, key) -> the modes that are still to be recorded.
    """

    graphs: StaticGraphs
    seen: dict[tuple[Any, Hashable], list[Mode]] = field(factory=dict)
    off: bool = False
    _lock: threading.Lock = field(factory=threading.Lock, alias="_lock")

    def __call__(self, at: Any, sizes: Mapping[str, int], box: BoundBox) -> Forward | None:
        """Return what runs a call in the place of the plan; None where it is not to be recorded."""
        wanted = current_step()
        if self.off or self.graphs.plans.is_frozen or not self._listed(sizes):
            return None
        if wanted.mode == "none":
            return box.forward  # for this call: None would be remembered for the steps to come
        left = self.seen.get((at, wanted.key))
        if left is None:
            left = self.seen[at, wanted.key] = list(self.graphs.settings.modes)
        if not left:
            return None

        def recording(*arguments: Any) -> Any:
            if not self._lock.acquire(blocking=False):
                return box.forward(*arguments)
            try:
                return self._record(box, arguments, sizes, wanted.key, left)
            finally:
                self._lock.release()

        return recording

    def _listed(self, sizes: Mapping[str, int]) -> bool:
        listed = self.graphs.settings.sizes
        return all(size and size in listed.get(name, ()) for name, size in sizes.items())

    def _record(
        self, box: BoundBox, arguments: Any, sizes: Mapping[str, int], key: Hashable,
        left: list[Mode],
    ) -> Any:  # fmt: skip
        graphs = self.graphs
        if not left or not self._ready():
            return box.forward(*arguments)
        mode = left.pop(0)
        assert graphs.pool is not None
        try:
            with graphs.plans.lock, graphs.pool.recording():
                recorded = graphs.record_call(box, arguments, sizes, key, mode)
        except OutOfBudget as error:
            self._stop(str(error))
            return box.forward(*arguments)
        if recorded.plan is None:
            self._stop(recorded.over_budget)
        else:
            graphs.plans.events.count("recorded")
            for reason in recorded.plan.reasons:
                graphs.plans.events.warn(f"not recorded: {reason}")
        return recorded.result

    def _ready(self) -> bool:
        if self.graphs.pool is not None:
            return True
        try:
            self.graphs.open()
        except RecordError as error:
            if self.graphs.settings.strict:
                raise
            self._stop(str(error))
            return False
        return True

    def _stop(self, why: str) -> None:
        self.off = True
        self.graphs.plans.dispatcher.forget()
        self.graphs.plans.events.warn(f"no more static graphs of {self.graphs.name}: {why}")
