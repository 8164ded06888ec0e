"""What a worker does for a compile besides compiling: take on the asking process' settings, and make sure
that it would make the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from intarsia.compiling.ambient import ambient_state, take_on
from intarsia.compiling.identity import compiler_factors, environment_factors, torch_factors
from intarsia.compiling.instances import Instance, built_for
from intarsia.config import ResolvedConfig, load_config
from intarsia.errors import CompileFailed, ConfigError, PluginError
from intarsia.host import Host
from intarsia.interfaces import CompileRequest, CompilerSpec


class Unfit(CompileFailed):
    """A worker cannot compile a request as the process that asks would; so that one does it itself."""


def settings_for(
    spec: CompilerSpec, host: Host, device: int | None, resolved: ResolvedConfig
) -> dict[str, Any]:
    """Return what a worker needs to know besides the request, as plain data."""
    plugins = resolved.config.plugins
    chosen: dict[str, Any] = {
        "block": list(plugins.block), "prefer": dict(plugins.prefer), "autoload": plugins.autoload,
    }  # fmt: skip
    if plugins.allow is not None:
        chosen["allow"] = list(plugins.allow)
    return {
        "options": dict(resolved.config.options), "plugins": chosen, "state": ambient_state(),
        "identity": _identity(spec, host, device),
    }  # fmt: skip


def _identity(spec: CompilerSpec, host: Host, device: int | None) -> dict[str, str]:
    """Return all that changes what a compiler makes: what the cache's key has of it."""
    plugin = host.provider(spec)
    return {
        "plugin": f"{plugin.distribution} {plugin.version}", "version": spec.version,
        **torch_factors(), **environment_factors(spec.environment),
        **(compiler_factors(spec, host, device) or {}),
    }  # fmt: skip


def host_of(settings: Mapping[str, Any]) -> Host:
    """Load the plugins that the asking process has."""
    chosen = {name: settings[name] for name in ("options", "plugins")}
    return Host(load_config(chosen, environ={}))


def prepared(
    request: bytes, compiler: str, settings: Mapping[str, Any], host: Host | None
) -> tuple[CompileRequest, CompilerSpec, Instance]:
    """Return a request and its compiler, ready to compile as the asking process would.

    Raises:
        Unfit: something is missing here, or the compiler would make something else.
    """
    take_on(settings["state"])
    try:
        host = host or host_of(settings)
        spec = host.compiler(compiler)
        restored = CompileRequest.from_bytes(request)
        made = built_for(host, spec, restored.device)
    except (ConfigError, PluginError, CompileFailed) as error:
        raise Unfit("a worker cannot do it", why=str(error)) from error
    _compare(settings["identity"], _identity(spec, host, restored.device))
    return restored, spec, made


def _compare(wanted: Mapping[str, str], here: Mapping[str, str]) -> None:
    names = sorted({*wanted, *here})
    different = [name for name in names if wanted.get(name) != here.get(name)]
    if different:
        shown = "; ".join(f"{n} is {here.get(n)!r}, not {wanted.get(n)!r}" for n in different)
        raise Unfit("a worker would make something else", why=shown)


def get_ready() -> None:
    """Import what every request needs, before a worker gets its first one."""
    from intarsia import torch_compat
    from intarsia.compiling import soundness, transport  # noqa: F401 - they import the rest

    torch_compat.tracing_lock()
    torch_compat.new_fake_mode()


_hosts: dict[str, Host] = {}
"""The plugins that earlier jobs of this worker have loaded, by settings; only workers fill it."""


def compile_job(request: bytes, compiler: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Compile a request in a worker of the pool, which loads the plugins once for equal settings."""
    from intarsia.compiling.transport import compile_in_worker

    key = json.dumps([settings["options"], settings["plugins"]], sort_keys=True, default=repr)
    host = _hosts.get(key)
    if host is None:
        host = _hosts[key] = host_of(settings)
    return compile_in_worker(request, compiler, settings, host=host)
