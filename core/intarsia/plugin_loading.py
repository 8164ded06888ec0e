"""Loads plugins: imports, checks and registers each, and collects what it brings."""

from __future__ import annotations

import logging
import traceback
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from typing import Any

from attrs import evolve, frozen

from intarsia.config import ResolvedConfig
from intarsia.config.settings import unknown
from intarsia.entry_points import PluginEntry, normalized
from intarsia.errors import PluginError
from intarsia.hook_calls import Registry, call, check_api_version, check_hooks
from intarsia.interfaces import (
    Check,
    CompilerSpec,
    OpSafety,
    PassManagerSpec,
    PassSpec,
    PlatformSpec,
    SplitRuleSpec,
    StaticGraphSpec,
    StoreSpec,
)
from intarsia.plugin_status import BUILT_IN, PluginStatus, is_named, list_plugins
from intarsia.references import describe

__all__ = ["Component", "Kind", "LoadedPlugins"]

log = logging.getLogger("intarsia")


@frozen
class Kind:
    """One kind of component: the hook that brings it, and where config names it."""

    word: str
    hook: str
    record: type
    key: str = "name"
    """The attribute that must be unique, or "" where nothing must."""
    setting: str = ""


COMPILER = Kind("compiler", "intarsia_compilers", CompilerSpec, setting="compilers")
PLATFORM = Kind("platform", "intarsia_platforms", PlatformSpec, setting="platform")
RULE = Kind("split rule", "intarsia_split_rules", SplitRuleSpec, setting="split_rule")
PASS = Kind("pass", "intarsia_passes", PassSpec, setting="passes.enable")
PASS_MANAGER = Kind(
    "pass manager", "intarsia_pass_managers", PassManagerSpec, setting="pass_manager"
)
STATIC_GRAPH = Kind(
    "static-graph backend",
    "intarsia_static_graphs",
    StaticGraphSpec,
    setting="static_graph_backend",
)
STORE = Kind("store", "intarsia_stores", StoreSpec, key="scheme", setting="cache")
SAFETY = Kind("op safety", "intarsia_op_safety", OpSafety, key="")
CHECK = Kind("doctor check", "intarsia_doctor", Check, key="")
KINDS = (
    COMPILER,
    PLATFORM,
    RULE,
    PASS,
    PASS_MANAGER,
    STATIC_GRAPH,
    STORE,
    SAFETY,
    CHECK,
)


@frozen
class Component:
    """A record, and the plugin that brought it."""

    record: Any
    plugin: PluginStatus


class LoadedPlugins:
    """The plugins of one configuration: what became of each, and what the loaded ones bring.

    Attributes:
        registry: the loaded plugins and their hooks.
        statuses: every plugin.
        found: kind -> name -> who brings it; more than one is a clash that config does not settle.
    """

    def __init__(
        self,
        config: ResolvedConfig,
        extra_plugins: Iterable[object],
        entries: Sequence[PluginEntry] | None,
    ) -> None:
        self.config = config
        self.registry = Registry()
        self.statuses: list[PluginStatus] = []
        self.found: dict[str, defaultdict[str, list[Component]]] = {
            kind.word: defaultdict(list) for kind in KINDS
        }
        extras = list(extra_plugins)
        self._load_installed(entries, {getattr(extra, "__name__", "") for extra in extras})
        self._load_extras(extras)
        self._check_allowed_exist()
        self._settle_components()

    def plugin_name(self, registered: str) -> str:
        """Return the name of the plugin that is registered under a name."""
        names = (item.name for item in self.statuses if registered_name(item) == registered)
        return next(names, registered)

    def _load_installed(self, entries: Sequence[PluginEntry] | None, asked: set[str]) -> None:
        listed = list_plugins(self.config, entries)
        # The built-in ones are registered first, so that they are asked last.
        listed.sort(key=lambda status: normalized(status.distribution) != BUILT_IN)
        for status in listed:
            if status.state == "unloaded":
                status = self._load(status, None)
            self._record(status, required=self._is_required(status, asked))

    def _is_required(self, status: PluginStatus, asked: set[str]) -> bool:
        if status.state == "blocked":
            return False
        return status.module in asked or is_named(status, self.config.config.plugins.allow or ())

    def _load_extras(self, extras: Iterable[object]) -> None:
        for extra in extras:
            if self.registry.is_registered(extra):
                continue  # it is installed as well
            name = self._free_name(getattr(extra, "__name__", type(extra).__name__))
            status = PluginStatus(name, "code", "-", name)
            if name in self.config.config.plugins.block:
                blocked = evolve(status, state="blocked", error="named by plugins.block")
                self._record(blocked, required=False)
                continue
            self._record(self._load(status, extra), required=True)

    def _free_name(self, name: str) -> str:
        taken = {status.name for status in self.statuses}
        numbered = (f"{name}#{number}" for number in range(2, len(taken) + 3))
        return name if name not in taken else next(free for free in numbered if free not in taken)

    def _load(self, status: PluginStatus, plugin: object | None) -> PluginStatus:
        """Import, check and register one plugin; return its status, with nothing of it left on failure."""
        try:
            plugin = import_module(status.module) if plugin is None else plugin
            mismatch = check_api_version(plugin)
            if mismatch:
                return evolve(status, state="incompatible", error=mismatch)
            check_hooks(self.registry, plugin)
            self.registry.register(plugin, name=registered_name(status))
            loaded = evolve(status, state="loaded")
            components = list(self._ask_for_components(loaded))
        except KeyboardInterrupt:
            raise
        except BaseException as problem:  # a plugin may even call sys.exit()
            if self.registry.has_plugin(registered_name(status)):
                self.registry.unregister(name=registered_name(status))
            text = "".join(traceback.format_exception(problem))
            return evolve(
                status, state="failed", error=describe(problem), traceback=text, exception=problem
            )
        for kind, component in components:
            name = getattr(component.record, kind.key) if kind.key else ""
            self.found[kind.word][name].append(component)
        return loaded

    def _ask_for_components(self, status: PluginStatus) -> Iterator[tuple[Kind, Component]]:
        for kind in KINDS:
            for implementation in self.registry.implementations(kind.hook):
                if implementation.plugin_name != registered_name(status):
                    continue
                for record in call(implementation, {}) or ():
                    if not isinstance(record, kind.record):
                        raise PluginError(
                            f"{kind.hook} returned {record!r}",
                            why=f"every item must be a {kind.record.__name__}",
                            subject=kind.hook,
                        )
                    yield kind, Component(record, status)

    def _record(self, status: PluginStatus, *, required: bool) -> None:
        self.statuses.append(status)
        if status.state not in ("failed", "incompatible"):
            return
        if required:
            raise PluginError(
                f"{status} was asked for and cannot be used",
                why=status.error,
                next_step="Mend or uninstall it, or do not ask for it",
                subject=status.name,
            ) from status.exception
        log.warning("%s is skipped: %s", status, status.error, exc_info=status.exception or False)

    def _check_allowed_exist(self) -> None:
        for name in self.config.config.plugins.allow or ():
            if not any(is_named(status, [name]) for status in self.statuses):
                place = f"plugins.allow in {self.config.origin('plugins.allow')}"
                raise unknown("plugin", name, place, [status.name for status in self.statuses])

    def _settle_components(self) -> None:
        """Drop components that config does not prefer; warn once of each clash that is left."""
        lost: set[str] = set()
        for kind in KINDS:
            for name, claims in self.found[kind.word].items():
                if not kind.key or len(claims) < 2:
                    continue
                winners = self._preferred(name, claims)
                if len(winners) == 1:
                    lost |= {registered_name(claim.plugin) for claim in claims} - {
                        registered_name(winners[0].plugin)
                    }
                    self.found[kind.word][name] = winners
                else:
                    log.warning("%s", clash_text(kind, name, claims))
        self._mark_shadowed(lost)

    def _preferred(self, name: str, claims: Sequence[Component]) -> list[Component]:
        wanted = self.config.config.plugins.prefer.get(name, "")
        return [
            claim for claim in claims if normalized(claim.plugin.distribution) == normalized(wanted)
        ]

    def _mark_shadowed(self, lost: set[str]) -> None:
        """A plugin that lost all it brings is shadowed; its other hooks go with it."""
        left = {
            registered_name(component.plugin)
            for names in self.found.values()
            for components in names.values()
            for component in components
        }
        for index, status in enumerate(self.statuses):
            if registered_name(status) in lost - left:
                self.registry.unregister(name=registered_name(status))
                reason = "plugins.prefer takes all that it brings from elsewhere"
                self.statuses[index] = evolve(status, state="shadowed", error=reason)


def registered_name(status: PluginStatus) -> str:
    """Return the name that a plugin is registered under; names of shadowed plugins repeat."""
    return f"{status.name} ({status.distribution} {status.version})"


def clash_text(kind: Kind, name: str, claims: Sequence[Component]) -> str:
    plugins = " and ".join(str(claim.plugin) for claim in claims)
    return (
        f'{kind.word} "{name}" is claimed by {plugins}. Block one, or choose: [plugins] prefer = '
        f'{{ {name} = "{claims[0].plugin.distribution}" }}'
    )
