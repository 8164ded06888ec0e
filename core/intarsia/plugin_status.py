"""Which plugins are installed and which of them will load, from metadata alone.

No plugin is imported here, so the list works when every plugin is broken.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeAlias

from attrs import evolve, field, frozen

from intarsia.config import ResolvedConfig, load_config
from intarsia.entry_points import PluginEntry, normalized, plugin_entries

__all__ = ["BUILT_IN", "PluginState", "PluginStatus", "list_plugins"]

BUILT_IN = "intarsia"
"""The distribution of the built-in plugins."""

PluginState: TypeAlias = Literal[
    "unloaded", "loaded", "blocked", "failed", "incompatible", "shadowed"
]


@frozen(slots=False)
class PluginStatus:
    """One plugin, and what became of it.

    Attributes:
        name: the name of its entry point.
        distribution: the distribution that brings it; "code" for a plugin that was passed as an object.
        version: the distribution's version.
        module: the module that has its hooks.
        state: "unloaded" (not tried yet), "loaded", "blocked" (by config), "failed", "incompatible"
            (another API version), or "shadowed" (config prefers another distribution).
        error: why it is not loaded, or what is wrong with it, in one line; "" where all is well.
        traceback: the traceback of its exception, as text; "" where there is none.
        exception: the exception itself, or None.
    """

    name: str
    distribution: str
    version: str
    module: str
    state: PluginState = "unloaded"
    error: str = ""
    traceback: str = field(default="", repr=False)
    exception: BaseException | None = field(default=None, repr=False, eq=False)

    def __str__(self) -> str:
        return f'plugin "{self.name}" ({self.distribution} {self.version})'

    def to_dict(self) -> dict[str, Any]:
        """Return the status as JSON-able data."""
        names = ("name", "distribution", "version", "module", "state", "error", "traceback")
        return {name: getattr(self, name) for name in names}


def list_plugins(
    config: ResolvedConfig | None = None, entries: Sequence[PluginEntry] | None = None
) -> list[PluginStatus]:
    """Return every installed plugin, imported by nobody: unloaded, blocked, shadowed, or in a clash.

    Args:
        config: the settings; None: `load_config()`.
        entries: the entry points; None: those that are installed.
    """
    found = plugin_entries() if entries is None else entries
    statuses = [
        PluginStatus(entry.name, entry.distribution, entry.version, entry.module) for entry in found
    ]
    settings = load_config() if config is None else config
    allowed = [_gate(status, settings) for status in statuses]
    return _settle_clashes(allowed, [entry.location for entry in found], settings)


def is_named(status: PluginStatus, names: Iterable[str]) -> bool:
    """Say whether a list of plugin or distribution names has this plugin."""
    wanted = set(names)
    distributions = {normalized(name) for name in wanted}
    return status.name in wanted or normalized(status.distribution) in distributions


def _gate(status: PluginStatus, config: ResolvedConfig) -> PluginStatus:
    """Block what the settings do not let in."""
    plugins = config.config.plugins
    if is_named(status, plugins.block):
        return _blocked(status, f"named by plugins.block in {config.origin('plugins.block')}")
    if normalized(status.distribution) == BUILT_IN or is_named(status, plugins.allow or ()):
        return status
    if plugins.allow is not None:
        return _blocked(status, f"not in plugins.allow in {config.origin('plugins.allow')}")
    if not plugins.autoload:
        return _blocked(status, f"plugins.autoload is off in {config.origin('plugins.autoload')}")
    return status


def _blocked(status: PluginStatus, reason: str) -> PluginStatus:
    return evolve(status, state="blocked", error=reason)


def _settle_clashes(
    statuses: list[PluginStatus], locations: Sequence[str], config: ResolvedConfig
) -> list[PluginStatus]:
    """Mark plugins that claim one name: shadowed where the settings prefer another, else failed."""
    claims: defaultdict[str, list[int]] = defaultdict(list)
    for index, status in enumerate(statuses):
        if status.state == "unloaded":
            claims[status.name].append(index)
    for name, indices in claims.items():
        if len(indices) > 1:
            _settle(name, indices, statuses, locations, config.config.plugins.prefer.get(name))
    return statuses


def _settle(
    name: str,
    indices: list[int],
    statuses: list[PluginStatus],
    locations: Sequence[str],
    preferred: str | None,
) -> None:
    wins = [
        index
        for index in indices
        if preferred and normalized(statuses[index].distribution) == normalized(preferred)
    ]
    if len(wins) == 1:
        for index in set(indices) - set(wins):
            reason = f'plugins.prefer takes "{name}" from {preferred}'
            statuses[index] = evolve(statuses[index], state="shadowed", error=reason)
        return
    error = _clash(name, [statuses[index] for index in indices], [locations[i] for i in indices])
    for index in indices:
        statuses[index] = evolve(statuses[index], state="failed", error=error)


def _clash(name: str, claims: Sequence[PluginStatus], locations: Sequence[str]) -> str:
    places = " and ".join(
        f"{claim.distribution} {claim.version} in {location}"
        for claim, location in zip(claims, locations, strict=True)
    )
    if len({normalized(claim.distribution) for claim in claims}) == 1:
        return f"two versions of one distribution are visible: {places}. Uninstall one"
    first = claims[0].distribution
    return (
        f'the plugin name "{name}" is claimed by {places}. Block one, or choose: '
        f'[plugins] prefer = {{ {name} = "{first}" }}'
    )
