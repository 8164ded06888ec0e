"""Which requirements each kind of component has; a kind's module is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module

from intarsia.testing.conformance.subject import Kind, Requirement

__all__ = ["capabilities_of", "requirements_for"]

_MODULES: dict[Kind, str] = {
    "compiler": "compilers",
    "platform": "platforms",
    "static-graph": "static_graphs",
    "passes": "passes",
    "pass-manager": "pass_managers",
    "store": "stores",
}


def requirements_for(kind: Kind) -> tuple[Requirement, ...]:
    """Return the requirements of a kind of component, in the order in which they run."""
    module = import_module(f"intarsia.testing.conformance.{_MODULES[kind]}")
    found: tuple[Requirement, ...] = module.REQUIREMENTS
    return found


def capabilities_of(kind: Kind) -> tuple[str, ...]:
    """Return the names of what such a component may be able to do."""
    return tuple(dict.fromkeys(r.capability for r in requirements_for(kind) if r.capability))
