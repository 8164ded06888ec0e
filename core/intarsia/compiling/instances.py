"""Compiler instances: a factory is called once per (process, options, device)."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any

from attrs import define, field

from intarsia.host import Host
from intarsia.interfaces import Compiler, CompilerSpec
from intarsia.references import resolve_reference


@define
class Instance:
    """A compiler that was built, and the lock that serialises one that is not concurrent."""

    compiler: Compiler
    lock: threading.Lock = field(factory=threading.Lock)


_lock = threading.Lock()
_built: dict[tuple[Any, ...], Instance] = {}


def instance(spec: CompilerSpec, options: Mapping[str, Any], device: int | None) -> Instance:
    """Return the compiler of a spec, built at its first use with these options on this device."""
    factory = resolve_reference(spec.factory, owner=f'compiler "{spec.name}"')
    key = (spec.name, spec.version, factory, _frozen(options), device)
    with _lock:
        found = _built.get(key)
        if found is None:
            found = _built[key] = Instance(factory(dict(options), device))
        return found


def built_for(host: Host, spec: CompilerSpec, device: int | None) -> Instance:
    """Return the compiler of a spec with the options that a host's config gives it."""
    return instance(spec, host.options(spec), device)


def _frozen(options: Mapping[str, Any]) -> str:
    return json.dumps(options, sort_keys=True, default=repr)
