"""What plugins' factories build: a factory is called once per (process, options, device)."""

from __future__ import annotations

import atexit
import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from attrs import define, field

from intarsia import torch_compat
from intarsia.host import Host
from intarsia.interfaces import Compiler, CompilerSpec, StaticGraphBackend, StaticGraphSpec
from intarsia.references import resolve_reference


@define
class Instance:
    """A compiler that was built, and the lock that serialises one that is not concurrent."""

    compiler: Compiler
    lock: threading.Lock = field(factory=threading.Lock)

    @contextlib.contextmanager
    def turn(self, spec: CompilerSpec) -> Iterator[None]:
        """Wait until this thread may compile with it; at once where the compiler is concurrent."""
        if spec.capabilities.concurrent:
            yield
            return
        with torch_compat.tracing_lock(), self.lock:
            yield


@define
class _Place:
    """Where what a factory built is kept, and the lock under which it is built."""

    made: Any = None
    lock: threading.RLock = field(factory=threading.RLock)


_lock = threading.Lock()
_places: dict[tuple[Any, ...], _Place] = {}


def instance(spec: CompilerSpec, options: Mapping[str, Any], device: int | None) -> Instance:
    """Return the compiler of a spec, built at its first use with these options on this device."""
    factory = resolve_reference(spec.factory, owner=f'compiler "{spec.name}"')
    key = (spec.name, spec.version, factory, _frozen(options), device)
    found: Instance = _built(key, lambda: Instance(factory(dict(options), device)))
    return found


def static_graph_backend(
    spec: StaticGraphSpec, options: Mapping[str, Any], device: int | None
) -> StaticGraphBackend:
    """Return the static-graph backend of a spec, which all models on a device share with its resources."""
    factory = resolve_reference(spec.factory, owner=f'static-graph backend "{spec.name}"')
    key = (spec.name, "static graphs", factory, _frozen(options), device)
    found: StaticGraphBackend = _built(key, lambda: factory(dict(options), device))
    return found


def _built(key: tuple[Any, ...], build: Callable[[], Any]) -> Any:
    with _lock:
        place = _places.setdefault(key, _Place())
    with place.lock:  # of its own: a factory may build another compiler
        if place.made is None:
            place.made = build()
        return place.made


def built_for(host: Host, spec: CompilerSpec, device: int | None) -> Instance:
    """Return the compiler of a spec with the options that a host's config gives it."""
    if not spec.uses_others:
        return instance(spec, host.options(spec), device)
    from intarsia.compiling.others import HostCompilers  # cycle: it builds compilers

    factory: Any = resolve_reference(spec.factory, owner=f'compiler "{spec.name}"')
    others = HostCompilers(host, device)
    options = host.options(spec)
    key = (spec.name, spec.version, factory, _frozen(options), device, others.identity())
    found: Instance = _built(key, lambda: Instance(factory(dict(options), device, others)))
    return found


@atexit.register
def close_all() -> None:
    """Close everything, at the interpreter's exit: models share it, so none of them may do it."""
    with _lock:
        places = list(_places.values())
        _places.clear()
    for place in places:
        made = place.made.compiler if isinstance(place.made, Instance) else place.made
        close = getattr(made, "close", None)
        if close is not None:
            with contextlib.suppress(Exception):  # nobody is left to tell
                close()


def _frozen(options: Mapping[str, Any]) -> str:
    return json.dumps(options, sort_keys=True, default=repr)
