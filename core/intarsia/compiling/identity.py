"""What a compiler is, for a cache key: everything that changes what it makes of a piece."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from intarsia import __version__
from intarsia.compiling.instances import built_for
from intarsia.digests import source_digest
from intarsia.host import Host
from intarsia.interfaces import CompilerSpec, PlatformSpec
from intarsia.references import resolve_reference


def compiler_factors(spec: CompilerSpec, host: Host, device: int | None) -> dict[str, str] | None:
    """Return the factors of a compiler: its version, plugin, sources, options and environment.

    None where the compiler says that nothing of it may be kept (`factors()` is None).
    """
    own = built_for(host, spec, device).compiler.factors()
    if own is None:
        return None
    name = f"compiler {spec.name}"
    found = {
        name: spec.version,
        f"{name} options": _options(host.options(spec), spec),
        **_provider(host, spec, name, spec.factory),
        **environment_factors(spec.environment),
    }
    found.update({f"{name} {key}": str(value) for key, value in sorted(own.items())})
    return found


def _options(values: Mapping[str, Any], spec: CompilerSpec) -> str:
    free = spec.options.get("*")
    known = {**spec.options}
    kept = {
        key: value for key, value in values.items()
        if key != "*" and getattr(known.get(key, free), "in_key", True)
    }  # fmt: skip
    return json.dumps(kept, sort_keys=True, default=_told_by)


def _told_by(value: Any) -> str:
    """Return what an option's object is told from others by: its `uuid()`, as passes have; else itself."""
    uuid = getattr(value, "uuid", None)
    found = uuid() if callable(uuid) else None
    return repr(value) if found is None else f"{type(value).__qualname__} {found!r}"


def _provider(host: Host, spec: object, name: str, factory: Any) -> dict[str, str]:
    """Return the version and the sources of the plugin that brings a component."""
    plugin = host.provider(spec)
    reference = factory if isinstance(factory, str) else f"{factory.__module__}:"
    modules = [plugin.module, reference.partition(":")[0]]
    return {
        f"{name} plugin": f"{plugin.distribution} {plugin.version}",
        f"{name} source": source_digest(dict.fromkeys(m for m in modules if m))[:32],
    }


def environment_factors(names: Iterable[str]) -> dict[str, str]:
    """Return the values of declared environment variables; one that is not set counts as such."""
    return {f"environment {n}": repr(os.environ.get(n)) for n in sorted(set(names))}


def platform_factors(platform: PlatformSpec, device: int | None) -> dict[str, str]:
    """Return what a platform adds to every key: its name, the device and its traits, declared variables.

    The index is one of them: what compilers generate names the device that it was generated for.
    """
    return {
        "platform": platform.name,
        "device type": platform.device_type,
        "device index": str(device),
        **{f"trait {n}": str(value) for n, value in sorted(_traits(platform, device).items())},
        **environment_factors(platform.environment),
    }


def _traits(platform: PlatformSpec, device: int | None) -> dict[str, str]:
    """Return the traits of a device."""
    if platform.traits is None:
        return {}
    traits = resolve_reference(platform.traits, owner=f'platform "{platform.name}"')
    return dict(traits(device))


@functools.cache
def torch_factors() -> Mapping[str, str]:
    """Return the versions that everything depends on."""
    import platform

    return {
        "torch": f"{torch.__version__} {torch.version.git_version[:12]}",
        "python": f"{platform.python_implementation()} {'.'.join(platform.python_version_tuple()[:2])}",
        "intarsia": f"{__version__} {source_digest(['intarsia'])[:32]}",
    }
