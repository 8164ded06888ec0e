"""Finds the entry points of plugins; the only module that imports importlib_metadata.

Only two small files of each installed distribution are read, and no plugin is imported.
`importlib_metadata.entry_points()` with each one's `dist.name` and `dist.version` takes about 0.5 ms a
plugin, because it parses the whole metadata of every plugin twice; reading the two header lines takes a
tenth of that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import importlib_metadata
from attrs import frozen

__all__ = ["GROUP", "PluginEntry", "normalized", "plugin_entries"]

GROUP = "intarsia"
"""The entry-point group of plugins; the value of an entry point is a module."""

_SECTION = re.compile(rf"^\s*\[\s*{GROUP}\s*\]\s*$", re.MULTILINE)


@frozen(slots=False)
class PluginEntry:
    """One entry point: a plugin's name, its module, and the distribution that brings it."""

    name: str
    module: str
    distribution: str
    version: str
    location: str = ""
    """The folder that the distribution was found in, for telling two of one name apart."""


def plugin_entries(path: Iterable[str] | None = None) -> tuple[PluginEntry, ...]:
    """Return the entry points of all installed plugins, in order of distribution and name.

    A distribution that is visible twice in one version is listed once; in two versions, twice.

    Args:
        path: the folders to look in; None: `sys.path`.
    """
    found: dict[tuple[str, str, str], PluginEntry] = {}
    where = {} if path is None else {"path": list(path)}
    for distribution in importlib_metadata.distributions(**where):
        for entry in _entries(distribution):
            key = (normalized(entry.distribution), entry.version, entry.name)
            found.setdefault(key, entry)
    return tuple(found[key] for key in sorted(found))


def normalized(distribution: str) -> str:
    """Return a distribution's name as packaging tools compare it."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _entries(distribution: Any) -> Iterator[PluginEntry]:
    text = distribution.read_text("entry_points.txt")
    section = _SECTION.search(text) if text else None
    if not text or section is None:
        return
    name, version = _name_and_version(distribution)
    location = str(distribution.locate_file(""))
    for line in text[section.end() :].splitlines():
        line = line.strip()
        if line.startswith("["):
            return
        key, equals, value = line.partition("=")
        if equals and not line.startswith(("#", ";")):
            # Extras in brackets after the module are allowed by the format and mean nothing here.
            yield PluginEntry(key.strip(), value.split("[")[0].strip(), name, version, location)


def _name_and_version(distribution: Any) -> tuple[str, str]:
    text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    header: dict[str, str] = {}
    for line in text.splitlines():
        if not line:
            break  # the description follows, and may have lines that look like headers
        key, _, value = line.partition(":")
        header[key.lower()] = value.strip()
    return header.get("name", "unknown"), header.get("version", "unknown")
