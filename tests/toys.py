"""Toy distributions: real metadata and modules in a folder, as an installer would leave them."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

from intarsia.config import ResolvedConfig
from intarsia.entry_points import plugin_entries
from intarsia.host import Host
from intarsia.plugin_manifest import check_manifest

GOOD = """
    from intarsia.interfaces import CompilerSpec
    intarsia_api_version = (1, 0)
    def intarsia_compilers():
        return [CompilerSpec(name="{name}", version="1", factory="{name}_heavy:Compiler")]
"""


def write_distribution(
    site: Path,
    distribution: str,
    plugins: dict[str, str],
    modules: dict[str, str] | None = None,
    version: str = "1.0",
) -> None:
    """Install a distribution with entry points (plugin -> module) and modules (name -> source)."""
    folder = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    folder.joinpath("METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n\nName: not this one\n"
    )
    lines = "".join(f"{name} = {module}\n" for name, module in plugins.items())
    folder.joinpath("entry_points.txt").write_text(
        f"[console_scripts]\nrun = elsewhere:main\n\n[intarsia]\n{lines}\n[other]\nx = y\n"
    )
    for name, source in (modules or {}).items():
        site.joinpath(f"{name}.py").write_text(textwrap.dedent(source))


def write_good(site: Path, name: str, distribution: str | None = None) -> None:
    """Install a distribution whose plugin brings one compiler, both of the same name."""
    write_distribution(
        site,
        distribution or f"intarsia-{name}",
        {name: f"{name}_plugin"},
        {f"{name}_plugin": GOOD.format(name=name)},
    )


def host_in_child(
    config: ResolvedConfig, expected: Mapping[str, Mapping[str, str]], paths: list[str]
) -> list[str]:
    """Make a host from what another process sent; return the names of its compilers."""
    sys.path[:0] = paths
    host = Host(config, entries=plugin_entries(paths))
    check_manifest(host, expected)
    return [compiler.name for compiler in host.compilers()]
