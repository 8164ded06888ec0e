"""Components that config names beside compilers and rules: passes, and the static-graph backend."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from intarsia.compiling.instances import static_graph_backend
from intarsia.config import Config, ResolvedConfig
from intarsia.errors import ConfigError
from intarsia.host import Host
from intarsia.interfaces import PlatformSpec, StaticGraphBackend, StaticGraphSpec
from intarsia.passes.plan import PassPlan, pass_plan


@frozen
class Components:
    """What config or the platform names, built; None where nothing is named."""

    passes: PassPlan
    static_graph: StaticGraphBackend | None
    static_graph_name: str


def components(
    config: Config, platform: PlatformSpec, host: Host, device: int | None
) -> Components:
    """Build the named pass manager and static-graph backend.

    Raises:
        ConfigError, PluginError: a name is unknown, or its plugin cannot be used.
    """
    plan = pass_plan(host, platform, config)
    backend_name = config.static_graph_backend or platform.static_graph
    backend: Any = None
    if config.static_graph != "none" and backend_name is None:
        raise ConfigError(
            f'static-graph = "{config.static_graph}" cannot be served',
            why=f'the platform "{platform.name}" has no static-graph backend',
            next_step="Leave static-graph out, or name a backend in static-graph-backend.",
            subject="static_graph",
        )
    if backend_name is not None and (config.static_graph_backend or config.static_graph != "none"):
        spec = host.static_graph(backend_name)
        _refuse_device(spec, platform)
        backend = static_graph_backend(spec, host.options(spec), device)
    return Components(plan, backend, backend_name or "none")


def _refuse_device(spec: StaticGraphSpec, platform: PlatformSpec) -> None:
    if spec.devices and platform.device_type not in spec.devices:
        raise ConfigError(
            f'the static-graph backend "{spec.name}" cannot be used on {platform.device_type}',
            why=f"it is for {', '.join(spec.devices)}",
            next_step="Name another in static-graph-backend.",
            subject="static_graph_backend",
        )


def refuse_unserved(resolved: ResolvedConfig) -> None:
    """Refuse a setting that asks for something this version does not do.

    Raises:
        ConfigError: naming the setting, where it was set, and the value that works.
    """
    _refuse_package_without(resolved)


def _refuse_package_without(resolved: ResolvedConfig) -> None:
    config = resolved.config
    if config.artifact != "package":
        return
    for key, missing in (("cache", config.cache is False), ("workers", config.workers == 0)):
        if missing:
            raise ConfigError(
                f'artifact = "package" ({resolved.origin("artifact")}) cannot be served',
                why=f"packages are made by a worker and kept in a cache, and {key} = "
                f"{getattr(config, key)!r} ({resolved.origin(key)})",
                next_step=f'Leave {key} out, or set artifact to "quick".',
                subject="artifact",
            )
