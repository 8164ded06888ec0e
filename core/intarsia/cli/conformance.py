"""`intarsia conformance`: run the conformance kit over a component, and print what it can do."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from intarsia import __version__
from intarsia.cli.table import print_json, print_table
from intarsia.errors import ConfigError
from intarsia.host import Host
from intarsia.testing.conformance.subject import Kind, Outcome, Subject

__all__ = ["add_arguments", "run"]

_SHOWN = {"passed": "yes", "refused": "no", "failed": "FAILED"}


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of this subcommand."""
    parser.add_argument("name", help="a compiler, platform, static-graph backend or pass manager; of "
                        "passes the plugin; of a store its folder or URL")  # fmt: skip
    parser.add_argument("--kind", choices=get_args(Kind), help="where several have the name")
    parser.add_argument("--device", help="the device type to test on; default: the component's own")
    parser.add_argument("--open", metavar="CAPABILITIES", help="what it can do, separated by commas; the "
                        "rest must be refused. Without it, whatever it does is an answer")  # fmt: skip
    parser.add_argument("--plugins", default="", metavar="MODULE:FUNCTION",
                        help="a function that returns plugins which are not installed")  # fmt: skip
    parser.add_argument("--only", metavar="NAMES", help="these requirements, separated by commas")
    parser.add_argument("--deadline", type=float, default=120.0, help="seconds for one requirement")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: Namespace) -> int:
    """Run the requirements; return 1 if one failed."""
    from intarsia.testing.conformance.requirements import requirements_for  # these import torch
    from intarsia.testing.conformance.runner import run_requirements

    subject = _subject(options)
    names = None if options.only is None else _listed(options.only)
    about = {requirement.name: requirement.about for requirement in requirements_for(subject.kind)}
    outcomes = run_requirements(subject, names)
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    if options.json:
        print_json(_data(subject, outcomes))
        return 1 if failed else 0
    print(f"{subject.kind} {subject.name} on {subject.device}")
    print_table(
        ("requirement", "capability", "", "what", "why not"),
        (
            (o.name, o.capability, _SHOWN[o.status], about[o.name], o.detail.partition("\n")[0])
            for o in outcomes
        ),
    )  # fmt: skip
    able = capabilities(outcomes)
    if able:
        print()
        print_table(("capability", ""), able.items())
    for outcome in failed:
        print(f"\n{outcome.name} failed: {outcome.detail}")
    refused = sum(outcome.status == "refused" for outcome in outcomes)
    print(
        f"\n{len(outcomes) - len(failed) - refused} hold, {refused} are refused, {len(failed)} failed"
    )
    return 1 if failed else 0


def capabilities(outcomes: Iterable[Outcome]) -> dict[str, str]:
    """Return what a component can do: "yes", "no", "partly" (some of it is refused) or "FAILED"."""
    found: dict[str, list[str]] = {}
    for outcome in outcomes:
        if outcome.capability:
            found.setdefault(outcome.capability, []).append(_SHOWN[outcome.status])
    return {name: _summed(said) for name, said in found.items()}


def _summed(said: list[str]) -> str:
    if "FAILED" in said:
        return "FAILED"
    return said[0] if len(set(said)) == 1 else "partly"


def _data(subject: Subject, outcomes: tuple[Outcome, ...]) -> Mapping[str, Any]:
    import torch

    return {
        "kind": subject.kind, "name": subject.name, "device": subject.device,
        "intarsia": __version__, "torch": torch.__version__,
        "ok": all(outcome.status != "failed" for outcome in outcomes),
        "capabilities": capabilities(outcomes),
        "outcomes": [outcome.to_dict() for outcome in outcomes],
    }  # fmt: skip


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _subject(options: Namespace) -> Subject:
    opened = None if options.open is None else _listed(options.open)
    plain = Subject("compiler", options.name, plugins=options.plugins)
    _, host = plain.host()
    kind = options.kind or _kind_of(host, options.name)
    claims: frozenset[str] = frozenset()
    if kind == "compiler":
        from intarsia.testing.conformance.compilers import claims_of

        claims = claims_of(host, options.name)
    device = options.device or _device_of(host, kind, options.name)
    return Subject(kind, options.name, device, opened, claims, {}, options.plugins,
                   deadline=options.deadline)  # fmt: skip


def _found(host: Host, name: str) -> list[Kind]:
    """Return the kinds of components that have a name."""
    named: dict[Kind, list[str]] = {
        "compiler": [spec.name for spec in host.compilers()],
        "platform": [spec.name for spec in host.platforms()],
        "static-graph": [spec.name for spec in host.static_graphs()],
        "pass-manager": ["built-in", *(spec.name for spec in host.pass_managers())],
        "passes": [host.provider(spec).name for spec in host.passes()],
    }
    return [kind for kind, names in named.items() if name in names]


def _kind_of(host: Host, name: str) -> Kind:
    if "://" in name or "/" in name:
        return "store"
    found = _found(host, name)
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"several components are called {name!r}: {', '.join(found)}",
                          next_step=f"Say which: --kind {found[0]}", subject=name)  # fmt: skip
    raise ConfigError(f"nothing is called {name!r}", next_step="Run: intarsia plugins --load",
                      subject=name)  # fmt: skip


def _device_of(host: Host, kind: Kind, name: str) -> str:
    if kind == "platform":
        return host.platform(name, usable=False).device_type
    if kind == "compiler":
        devices = host.compiler(name, usable=False).devices
    elif kind == "static-graph":
        devices = host.static_graph(name, usable=False).devices
    else:
        devices = ()
    return devices[0] if devices and "cpu" not in devices else "cpu"
