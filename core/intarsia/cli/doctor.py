"""`intarsia doctor`: check torch, the plugins, and the tools that compilers need."""

from __future__ import annotations

import os
import platform
import shutil
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable
from functools import partial
from importlib.util import find_spec
from typing import Any

from attrs import asdict, frozen

from intarsia.cli.config_options import add_config_arguments, read_config
from intarsia.cli.table import print_json, render_table
from intarsia.errors import IntarsiaError
from intarsia.host import Host
from intarsia.interfaces import Check, Decision
from intarsia.references import describe, resolve_reference

__all__ = ["Finding", "add_arguments", "run"]


@frozen
class Finding:
    """One thing that was looked at.

    Attributes:
        state: "ok", "absent" (a fact, not a fault), or "failed".
    """

    section: str
    name: str
    state: str
    detail: str = ""


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of this subcommand."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_config_arguments(parser, shortcuts=False)


def run(options: Namespace) -> int:
    """Look at everything; return 1 if something failed."""
    host = Host(read_config(options))
    findings = [*_versions(), *_plugins(host), *_components(host), *_checks(host), *_probes()]
    failed = [finding for finding in findings if finding.state == "failed"]
    if options.json:
        print_json({"ok": not failed, "findings": [asdict(finding) for finding in findings]})
    else:
        _print(findings, failed)
    return 1 if failed else 0


def _print(findings: list[Finding], failed: list[Finding]) -> None:
    for section in dict.fromkeys(finding.section for finding in findings):
        rows = [(f.name, f.state, f.detail) for f in findings if f.section == section]
        print(f"{render_table((section, 'state', 'detail'), rows)}\n")
    names = ", ".join(finding.name for finding in failed)
    print(f"{len(failed)} failed: {names}" if failed else "everything is fine")


# ------------------------------------------------------------------------------------ sections


def _versions() -> Iterable[Finding]:
    from intarsia import torch_compat

    yield Finding("version", "python", "ok", platform.python_version())
    yield _decided("version", "torch", lambda: _torch_version(torch_compat))
    yield _module_version("triton")
    yield _module_version("transformers")
    compiler = _cpp_compiler()
    missing = "none: Inductor cannot compile for the CPU; install g++ or clang++, or set CXX"
    yield Finding("version", "C++ compiler", "ok" if compiler else "absent", compiler or missing)


def _torch_version(torch_compat: Any) -> Decision:
    import torch

    torch_compat.require_supported_torch()
    low, high = (".".join(map(str, v)) for v in (torch_compat.OLDEST, torch_compat.NEWEST))
    return Decision(True, f"{torch.__version__} (supported: {low} to {high})")


def _module_version(name: str) -> Finding:
    if find_spec(name) is None:
        return Finding("version", name, "absent", "not installed")
    import importlib_metadata

    try:
        return Finding("version", name, "ok", importlib_metadata.version(name))
    except importlib_metadata.PackageNotFoundError:
        return Finding("version", name, "ok", "installed, version unknown")


def _cpp_compiler() -> str | None:
    named = os.environ.get("CXX", "").split()
    return next(filter(None, map(shutil.which, [*named, "g++", "c++", "clang++"])), None)


_PLUGIN_STATES = {"loaded": "ok", "blocked": "absent", "shadowed": "absent"}


def _plugins(host: Host) -> Iterable[Finding]:
    for status in host.plugins:
        state = _PLUGIN_STATES.get(status.state, "failed")
        text = f"{status.distribution} {status.version}, {status.state}"
        yield Finding(
            "plugin", status.name, state, f"{text}: {status.error}" if status.error else text
        )


def _components(host: Host) -> Iterable[Finding]:
    specs: list[tuple[str, Any]] = [
        *(("platform", spec) for spec in host.platforms()),
        *(("compiler", spec) for spec in host.compilers()),
        *(("static graph", spec) for spec in host.static_graphs()),
    ]
    for section, spec in specs:
        found = _decided(section, spec.name, partial(host.availability, spec), "absent")
        yield _with_hint(found, getattr(spec, "install_hint", ""))


def _with_hint(finding: Finding, hint: str) -> Finding:
    if finding.state != "absent" or not hint:
        return finding
    return Finding(finding.section, finding.name, finding.state, f"{finding.detail}. {hint}")


def _checks(host: Host) -> Iterable[Finding]:
    for check in host.doctor_checks():
        yield _decided("check", check.name, partial(_run_check, check))


def _run_check(check: Check) -> Any:
    return resolve_reference(check.run, owner=f"Check {check.name!r}")()


def _probes() -> Iterable[Finding]:
    from intarsia.torch_compat import run_probes

    for name, decision in run_probes().items():
        yield _decided("private torch name", name, partial(_itself, decision))


def _itself(decision: Decision) -> Decision:
    return decision


def _decided(section: str, name: str, ask: Callable[[], Any], otherwise: str = "failed") -> Finding:
    """Ask for a Decision; a no counts as `otherwise`, an exception as failed."""
    try:
        decision = ask()
    except IntarsiaError as error:
        return Finding(section, name, "failed", str(error))
    except Exception as error:  # somebody else's check: whatever it raises is its answer
        return Finding(section, name, "failed", describe(error))
    if not isinstance(decision, Decision):
        return Finding(section, name, "failed", f"answered {decision!r}, not a Decision")
    detail = "" if decision.reason == name else decision.reason
    return Finding(section, name, "ok" if decision else otherwise, detail)
