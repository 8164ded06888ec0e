"""Where a model is compiled for: its device, the platform, and the settings in effect there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from attrs import frozen

from intarsia.components import Components, components, refuse_unserved
from intarsia.config import Config, ResolvedConfig
from intarsia.errors import ConfigError
from intarsia.host import Host
from intarsia.interfaces import ConfigChange, PlatformSpec
from intarsia.partition_at import check_split_by
from intarsia.references import resolve_reference


@frozen
class Place:
    """Where a model is compiled for, and the settings in effect there."""

    platform: PlatformSpec
    device_type: str
    device: int | None
    resolved: ResolvedConfig
    changes: tuple[tuple[str, ConfigChange], ...]
    components: Components


def effective_settings(
    resolved: ResolvedConfig, host: Host, tensors: Sequence[torch.Tensor]
) -> Place:
    """Return the platform for some tensors, and the settings with its defaults and plugins' changes.

    Raises:
        ConfigError, PluginError: there is no usable platform, the one that config names is for another device
            type, or a plugin wants to override the user.
    """
    kind, index = device_of(tensors)
    platform = host.choose_platform(kind or "cpu")
    _refuse_elsewhere(resolved, platform, kind)
    defaults = dict(platform.config_defaults)
    if defaults:
        resolved = resolved.with_layer(defaults, f"platform {platform.name}")
    traits = resolve_reference(platform.traits, owner=f'platform "{platform.name}"')
    resolved, changes = host.adjust_config(traits(index) if traits is not None else {}, resolved)
    refuse_unserved(resolved)
    host.check_options()
    check_split_by(resolved.config, host, kind or platform.device_type)
    built = components(resolved.config, platform, host, index)
    return Place(platform, kind or platform.device_type, index, resolved, changes, built)


def device_of(tensors: Sequence[torch.Tensor]) -> tuple[str | None, int | None]:
    """Return the device type and index that tensors are on.

    Raises:
        ConfigError: they are on several device types other than the CPU, or on several devices of one.
    """
    kinds = {t.device for t in tensors}
    accelerators = {d for d in kinds if d.type != "cpu"}
    types = {d.type for d in accelerators}
    if len(types) > 1:
        raise ConfigError(f"the model is on several device types: {', '.join(sorted(types))}")
    if accelerators:
        indices = sorted({d.index for d in accelerators if d.index is not None})
        if len(indices) > 1:
            shown = ", ".join(str(d) for d in sorted(accelerators, key=str))
            raise ConfigError(
                f"the model is on several devices: {shown}",
                why="a piece is compiled for one device",
                next_step="Compile the part on each device as a model of its own.",
            )
        return types.pop(), indices[0] if indices else None
    return ("cpu" if kinds else None), None


def _refuse_elsewhere(resolved: ResolvedConfig, platform: PlatformSpec, kind: str | None) -> None:
    if kind in (None, platform.device_type):
        return
    raise ConfigError(
        f'platform = "{platform.name}" ({resolved.origin("platform")}) cannot serve a model on {kind}',
        why=f"it is for the device type {platform.device_type}",
        next_step=f'Move the model and its inputs, or leave platform at "auto": the one for {kind} is taken.',
        subject="platform",
    )


def check_names(config: Config, host: Host) -> None:
    """Refuse unknown compilers before anything is captured.

    Raises:
        ConfigError, PluginError: see `Host.compiler`.
    """
    named: list[Any] = [*(config.compilers or ()), *config.split_by_support]
    for route in config.routes:
        named.extend(route.compilers)
    if config.compilers is not None and not config.compilers:
        raise ConfigError("compilers is empty", next_step='Write compilers = ["eager"] at least.')
    for name in dict.fromkeys(named):
        host.compiler(name)
