"""Static graphs of plain eager code: `intarsia.record`, without capture, Dynamo or a compiler."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from attrs import define, field, frozen

from intarsia import torch_compat
from intarsia.capture.call import describe
from intarsia.components import Components
from intarsia.config import Config, ResolvedConfig, load_config
from intarsia.device_ops import device_ops
from intarsia.errors import RecordError
from intarsia.host import Host
from intarsia.place import effective_settings
from intarsia.report.events import EventStream
from intarsia.runtime.memory import start_of
from intarsia.runtime.weights import watch
from intarsia.static_graph.budget import Budget
from intarsia.static_graph.pool import Pool
from intarsia.static_graph.segments import Rehearsal, Segments
from intarsia.static_graph.setup import settings_of
from intarsia.static_graph.step import current_step

Key = Any


def record(
    fn: Callable[..., Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, *,
    config: ResolvedConfig | Config | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    host: Host | None = None, pool: Pool | None = None, **overrides: Any,
) -> RecordedFunction:  # fmt: skip
    """Record static graphs of a plain function or module, with no compiler and no tracing.

    The function runs twice, once to see what it does and once more while it is recorded. Operators marked
    `break` run eagerly between recordings, on replay too. A replay runs no Python of the function: a branch,
    a print or an attribute that it sets happens while it is recorded and never again.

    Args:
        fn: a function, a module or a bound method. It may not read values on the host.
        args, kwargs: a call, whose shapes, dtypes and Python values are recorded.
        config: a settings file, or settings; of these `static-graph-backend`, `op-safety`, `unknown-ops`,
            `static-inputs`, `static-graph-budget`, `outputs` and `strict` mean something here.
        host: plugins that are already loaded; None loads them.
        pool: the `pool` of another recorded function, to share its memory.
        overrides: settings in snake_case, which win over everything.

    Returns:
        A callable that replays calls of the recorded kind, and runs `fn` for all others.

    Raises:
        RecordError: an operation may not be recorded, or recording failed; nothing is left of it.
        ConfigError, PluginError: there is no backend for the device.
    """
    torch_compat.require_supported_torch()
    chosen = {"static_graph": "full", **overrides}
    resolved = load_config(config, **chosen)
    plugins = Host(resolved) if host is None else host
    leaves, _ = torch_compat.flattened((tuple(args), dict(kwargs or {})))
    tensors = [v for v in leaves if isinstance(v, torch.Tensor)]
    module = _module_of(fn)
    if module is not None:
        tensors += [*module.parameters(), *module.buffers()]
    place = effective_settings(resolved, plugins, tensors)
    made = RecordedFunction(
        fn, describe(fn), place.components, settings_of(place.resolved.config, plugins, place.device_type),
        EventStream(describe(fn), (plugins.emit,)),
        pool or _pool(place, place.components),
    )  # fmt: skip
    made.record(args, kwargs)
    return made


def _pool(place: Any, components: Components) -> Pool:
    assert components.static_graph is not None
    return Pool(components.static_graph, place.device, device_ops(place.platform, place.device))


@frozen
class _Recorded:
    """A recorded call, and the tensors of the function's own that it reads."""

    segments: Segments
    outside: tuple[tuple[torch.Tensor, int], ...]

    def is_in_place(self) -> bool:
        """Say whether the function's own tensors are where they were."""
        return all(tensor.data_ptr() == address for tensor, address in self.outside)


@define(eq=False)
class RecordedFunction:
    """A function with recorded calls. What was not recorded runs as it is.

    Attributes:
        pool: what its recordings share.
        counters: what happened on calls: "unrecorded", "replay-general".
    """

    fn: Callable[..., Any]
    name: str
    components: Components
    settings: Any
    events: EventStream
    pool: Pool
    is_frozen: bool = False
    _calls: dict[Key, _Recorded] = field(factory=dict)
    _budget: Budget | None = None
    _lock: threading.RLock = field(factory=threading.RLock)
    _is_stale: list[bool] = field(factory=lambda: [False])

    def __attrs_post_init__(self) -> None:
        self.pool.join(self)
        module = _module_of(self.fn)
        if module is not None:
            # A weight that is replaced by another tensor leaves the recorded one behind.
            stale = self._is_stale
            stop = watch(list(module.modules()), lambda _: stale.__setitem__(0, True))
            weakref.finalize(self, stop)

    # -- the phase

    def record(self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> None:
        """Record another call, with other shapes or under another key of `intarsia.step`.

        Raises:
            RecordError: see `intarsia.record`; or it is frozen.
        """
        if self.is_frozen:
            raise RecordError(f"{self.name} is frozen", why="nothing is recorded after freeze()",
                              next_step="Record before freeze().", subject=self.name)  # fmt: skip
        leaves, form = torch_compat.flattened((tuple(args), dict(kwargs or {})))
        with self._lock, torch.no_grad(), self.pool.recording():
            self._drop_stale()
            rehearsal = Rehearsal(self.name, self.settings.safety, leaves)
            rehearsal.run(self.fn, args, kwargs or {})
            segments = Segments.record(
                self.fn, leaves, form, rehearsal, self.pool, self._room(), self.settings,
                self._differs, self.name,
            )  # fmt: skip
        key = self._key(leaves, form)
        self._release(self._calls.pop(key, None))
        outside = tuple((t, t.data_ptr()) for t in rehearsal.outside() if start_of(t))
        self._calls[key] = _Recorded(segments, outside)
        self.events.gauge("recordings", self.recordings)

    def _room(self) -> Budget:
        if self._budget is None:
            pool = self.pool
            self._budget = Budget.open(pool.backend, pool.device, self.settings.limits)
        return self._budget

    # -- calls

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Replay the call where it was recorded, else run the function."""
        leaves, form = torch_compat.flattened((args, kwargs))
        step = current_step()
        if step.mode == "none":
            return self.fn(*args, **kwargs)
        found = None if self._is_stale[0] else self._calls.get(self._key(leaves, form))
        if found is None or (torch.is_grad_enabled() and _needs_grad(leaves)):
            return self._general("unrecorded", args, kwargs)
        with torch.no_grad(), self.pool.lock:
            if found.is_in_place() and found.segments.fits(leaves):
                return found.segments.replay(leaves)
        return self._general("replay-general", args, kwargs)

    def _general(self, why: str, args: Any, kwargs: Any) -> Any:
        if self._is_stale[0]:
            with self._lock:
                self._drop_stale()
        self.events.count(why)
        return self.fn(*args, **kwargs)

    def _key(self, leaves: Sequence[Any], form: Any) -> Key:
        kinds = tuple(
            (v.shape, v.dtype, v.device) if isinstance(v, torch.Tensor) else _plain(v)
            for v in leaves
        )
        return kinds, form, current_step().key

    def _differs(self, reason: str) -> None:
        self.events.count("differs", reason)

    # -- what becomes of recordings

    @property
    def recordings(self) -> int:
        """How many recordings there are."""
        return sum(len(call.segments.recordings) for call in self._calls.values())

    @property
    def counters(self) -> Mapping[str, int]:
        """What has happened on calls."""
        return dict(self.events.counters)

    def memory(self) -> dict[str, int]:
        """Return what the recordings take of each resource, and the bytes of copied inputs."""
        used = {} if self._budget is None else self._budget.used
        return {**used, "input bytes": self.pool.inputs.bytes()}

    def freeze(self) -> None:
        """Record nothing from now on."""
        self.is_frozen = True

    def close(self) -> None:
        """Release every recording; calls run the function as it is."""
        with self._lock:
            for key in list(self._calls):
                self._release(self._calls.pop(key))
            self.pool.leave(self)

    def _drop_stale(self) -> None:
        if not self._is_stale[0]:
            return
        self._is_stale[0] = False
        for key in list(self._calls):
            self._release(self._calls.pop(key))
        self.events.gauge("recordings", 0)
        self.events.warn("a weight was replaced by another tensor, so every recording was released; "
                         "call record() again")  # fmt: skip

    def _release(self, call: _Recorded | None) -> None:
        if call is not None:
            with self.pool.lock:
                call.segments.release(self._room())


def _module_of(fn: Any) -> torch.nn.Module | None:
    owner = getattr(fn, "__self__", fn)
    return owner if isinstance(owner, torch.nn.Module) else None


def _needs_grad(leaves: Sequence[Any]) -> bool:
    return any(isinstance(v, torch.Tensor) and v.requires_grad for v in leaves)


def _plain(value: Any) -> Any:
    """Return what a Python value is compared by: 1, 1.0 and True are three."""
    return (type(value), repr(value)) if isinstance(value, float) else (type(value), value)


__all__ = ["RecordedFunction", "record"]
