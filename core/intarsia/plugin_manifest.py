"""Says which plugins a process has, so that another process can make sure that it has the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from intarsia.errors import PluginError
from intarsia.host import Host
from intarsia.plugin_status import PluginStatus

__all__ = ["check_manifest", "manifest"]


def manifest(host: Host) -> dict[str, dict[str, str]]:
    """Return plugin -> its distribution, version and module, for the plugins that are loaded."""
    return {
        status.name: {
            "distribution": status.distribution,
            "version": status.version,
            "module": status.module,
        }
        for status in host.plugins
        if status.state == "loaded"
    }


def check_manifest(host: Host, expected: Mapping[str, Mapping[str, str]]) -> None:
    """Make sure that a host has the plugins of a manifest; more of them do no harm.

    Raises:
        PluginError: some are missing, not loaded, or of another version; each is named.
    """
    differences = list(_differences(host, expected))
    if differences:
        raise PluginError(
            "this process does not have the plugins that were planned with",
            why="; ".join(differences),
            next_step="Install and allow the same plugins here",
        )


def _differences(host: Host, expected: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    for name, planned in expected.items():
        label = f'plugin "{name}" ({planned["distribution"]} {planned["version"]})'
        here = [status for status in host.plugins if status.name == name]
        loaded = [status for status in here if status.state == "loaded"]
        if not here:
            yield f"{label} is not installed here"
        elif not loaded:
            yield f"{label} is {here[0].state} here: {here[0].error}"
        else:
            yield from _other(label, planned, loaded[0])


def _other(label: str, planned: Mapping[str, str], here: PluginStatus) -> Iterator[str]:
    for part in ("distribution", "version"):
        if getattr(here, part) != planned[part]:
            yield f"{label} is {part} {getattr(here, part)} here"
