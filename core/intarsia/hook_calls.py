"""Registers plugins with pluggy and calls their hooks one plugin at a time.

pluggy's own call stops at the first exception and does not say whose it was, so it is used for what
it is good at (registration, order, passing only the parameters that a hook names) and each
implementation is called on its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pluggy
from pluggy import HookImpl, HookimplOpts

from intarsia import hookspecs
from intarsia.errors import PluginError, nearest
from intarsia.interfaces import API_VERSION

__all__ = ["HOOKS", "Registry", "check_api_version", "check_hooks"]

HOOKS: dict[str, tuple[str, ...]] = {
    name: tuple(inspect.signature(function).parameters)
    for name, function in vars(hookspecs).items()
    if name.startswith("intarsia_")
}
"""Hook name -> the parameters that it may have."""

_UNMARKED: HookimplOpts = {
    "wrapper": False,
    "hookwrapper": False,
    "optionalhook": False,
    "tryfirst": False,
    "trylast": False,
    "specname": None,
}


class Registry(pluggy.PluginManager):
    """A pluggy manager that takes hooks by their name alone, without a decorator."""

    def __init__(self) -> None:
        super().__init__(hookspecs.PROJECT)
        self.add_hookspecs(hookspecs)

    def parse_hookimpl_opts(self, plugin: object, name: str) -> HookimplOpts | None:
        """Return how a hook is marked; one of ours without a mark counts as marked."""
        marked = super().parse_hookimpl_opts(plugin, name)
        return marked or (_UNMARKED if name in HOOKS else None)

    def implementations(self, hook: str) -> Iterator[HookImpl]:
        """Yield the implementations of a hook in the order in which they are asked."""
        # pluggy keeps them in calling order reversed: the last registered is asked first.
        yield from reversed(getattr(self.hook, hook).get_hookimpls())


def call(implementation: HookImpl, arguments: dict[str, Any]) -> Any:
    """Call one implementation with the parameters that it names."""
    return implementation.function(*(arguments[name] for name in implementation.argnames))


def check_api_version(plugin: object) -> str:
    """Return why a plugin's API version does not fit, or "".

    The same major number and a minor number not above ours fits.
    """
    ours = ".".join(map(str, API_VERSION))
    theirs = getattr(plugin, "intarsia_api_version", None)
    if theirs is None:
        return f"it declares no intarsia_api_version; this intarsia speaks {ours}"
    if not _is_version(theirs):
        return (
            f"its intarsia_api_version is {theirs!r}, not two numbers; this intarsia speaks {ours}"
        )
    major, minor = theirs
    if major == API_VERSION[0] and minor <= API_VERSION[1]:
        return ""
    return f"it is written for plugin API {major}.{minor}; this intarsia speaks {ours}"


def _is_version(value: object) -> bool:
    return (
        isinstance(value, tuple | list)
        and len(value) == 2
        and all(isinstance(part, int) and not isinstance(part, bool) for part in value)
    )


def check_hooks(registry: Registry, plugin: object) -> None:
    """Refuse hooks that nobody would call as the plugin's author meant.

    Raises:
        PluginError: a name or parameter is not in `hookspecs`, or the hook is a wrapper.
    """
    for name in dir(plugin):
        value = getattr(plugin, name)
        marked = pluggy.PluginManager.parse_hookimpl_opts(registry, plugin, name)
        if not (callable(value) and (marked or name.startswith("intarsia_"))):
            continue
        hook = (marked and marked["specname"]) or name
        if hook not in HOOKS:
            raise PluginError(f'unknown hook "{hook}"; {nearest(hook, HOOKS)}', subject=hook)
        if marked and (marked["wrapper"] or marked["hookwrapper"]):
            raise PluginError(f'hook "{hook}" is a wrapper', why="wrappers are not supported")
        _check_parameters(hook, value)


def _check_parameters(hook: str, function: Any) -> None:
    for name, parameter in inspect.signature(function).parameters.items():
        optional = parameter.default is not parameter.empty or parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        )
        if name not in HOOKS[hook] and not optional:
            raise PluginError(
                f'hook "{hook}" has an unknown parameter "{name}"; {nearest(name, HOOKS[hook])}',
                subject=hook,
            )
