"""Holds the plugins: loads them, records what became of each, and finds what they bring by name."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args

from attrs import evolve

from intarsia.config import ResolvedConfig, load_config
from intarsia.config.settings import unknown
from intarsia.entry_points import PluginEntry
from intarsia.errors import ConfigError, PluginError, nearest
from intarsia.hook_calls import call
from intarsia.interfaces import (
    Check,
    CompilerSpec,
    ConfigChange,
    Decision,
    Event,
    OpSafety,
    Option,
    PassManagerSpec,
    PassSpec,
    PieceView,
    PlatformSpec,
    SplitRuleSpec,
    StaticGraphSpec,
    StoreSpec,
    Weights,
)
from intarsia.partition_at import partition_ops
from intarsia.plugin_loading import (
    CHECK,
    COMPILER,
    PASS,
    PASS_MANAGER,
    PLATFORM,
    RULE,
    SAFETY,
    STATIC_GRAPH,
    STORE,
    Component,
    Kind,
    LoadedPlugins,
    clash_text,
)
from intarsia.plugin_status import PluginStatus, is_named, list_plugins
from intarsia.references import describe, resolve_reference

__all__ = ["Host", "PluginStatus", "list_plugins", "resolve_reference"]

log = logging.getLogger("intarsia")
_BECAME = {
    "unloaded": "is not loaded",
    "blocked": "is blocked",
    "failed": "failed",
    "incompatible": "is incompatible",
    "shadowed": "is shadowed",
}


class Host:
    """The plugins of one configuration, loaded.

    A host is an ordinary object: two of them, with different settings, live side by side.

    Args:
        config: the settings; None: `load_config()`.
        extra_plugins: modules or objects with hooks, besides the installed plugins. They are asked for,
            so one that fails raises.
        entries: the entry points; None: those that are installed.

    Raises:
        PluginError: a plugin that was asked for by name, in `plugins.allow` or as an extra plugin,
            failed.
        ConfigError: `plugins.allow` names one that is not installed.
    """

    def __init__(
        self,
        config: ResolvedConfig | None = None,
        *,
        extra_plugins: Iterable[object] = (),
        entries: Sequence[PluginEntry] | None = None,
    ) -> None:
        self.config = load_config() if config is None else config
        self._loaded = LoadedPlugins(self.config, extra_plugins, entries)
        self._settle_weights()

    def _settle_weights(self) -> None:
        """Let a compiler's option "weights", where it has one, say whether it bakes weights in."""
        for claims in self._loaded.found[COMPILER.word].values():
            for place, component in enumerate(claims):
                spec: CompilerSpec = component.record
                if "weights" not in spec.options:
                    continue
                chosen = self.options(spec)["weights"]
                if chosen not in get_args(Weights):
                    raise ConfigError(
                        f'{spec.name} has no weights = "{chosen}"',
                        next_step=f"Use {' or '.join(get_args(Weights))}.", subject="weights",
                    )  # fmt: skip
                able = evolve(spec.capabilities, weights=chosen)
                claims[place] = evolve(component, record=evolve(spec, capabilities=able))

    @property
    def plugins(self) -> tuple[PluginStatus, ...]:
        """Every plugin, and what became of it."""
        return tuple(self._loaded.statuses)

    def compiler(self, name: str, *, usable: bool = True) -> CompilerSpec:
        """Return a compiler by name; with `usable`, only if it can be used on this machine.

        Raises:
            ConfigError: nobody brings it.
            PluginError: its plugin failed or was blocked, two plugins claim it, or it cannot be used here.
        """
        return self._usable(COMPILER, name, usable)

    def platform(self, name: str, *, usable: bool = True) -> PlatformSpec:
        """Return a platform by name; raises as `compiler` does."""
        return self._usable(PLATFORM, name, usable)

    def static_graph(self, name: str, *, usable: bool = True) -> StaticGraphSpec:
        """Return a static-graph backend by name; raises as `compiler` does."""
        return self._usable(STATIC_GRAPH, name, usable)

    def split_rule(self, name: str) -> SplitRuleSpec:
        """Return a named split rule; raises as `compiler` does."""
        return self._component(RULE, name).record

    def pass_(self, name: str) -> PassSpec:
        """Return a pass by name; raises as `compiler` does."""
        return self._component(PASS, name).record

    def pass_manager(self, name: str) -> PassManagerSpec:
        """Return a pass manager by name; raises as `compiler` does."""
        return self._component(PASS_MANAGER, name).record

    def store(self, scheme: str) -> StoreSpec:
        """Return a store by URL scheme; raises as `compiler` does."""
        return self._component(STORE, scheme).record

    def compilers(self) -> tuple[CompilerSpec, ...]:
        """Return every compiler whose name is not in a clash."""
        return tuple(self._single(COMPILER))

    def platforms(self) -> tuple[PlatformSpec, ...]:
        """Return every platform whose name is not in a clash."""
        return tuple(self._single(PLATFORM))

    def split_rules(self) -> tuple[SplitRuleSpec, ...]:
        """Return every named split rule whose name is not in a clash."""
        return tuple(self._single(RULE))

    def pass_managers(self) -> tuple[PassManagerSpec, ...]:
        """Return every pass manager whose name is not in a clash."""
        return tuple(self._single(PASS_MANAGER))

    def static_graphs(self) -> tuple[StaticGraphSpec, ...]:
        """Return every static-graph backend whose name is not in a clash."""
        return tuple(self._single(STATIC_GRAPH))

    def stores(self) -> tuple[StoreSpec, ...]:
        """Return every store whose scheme is not in a clash."""
        return tuple(self._single(STORE))

    def passes(self) -> tuple[PassSpec, ...]:
        """Return every pass.

        Raises:
            PluginError: two plugins claim one name; passes run without being named, so none may be lost.
        """
        return tuple(self._component(PASS, name).record for name in self._loaded.found[PASS.word])

    def op_safety(self) -> tuple[OpSafety, ...]:
        """Return what plugins say about operations in recordings."""
        return tuple(component.record for component in self._loaded.found[SAFETY.word][""])

    def doctor_checks(self) -> tuple[Check, ...]:
        """Return the checks of `intarsia doctor`."""
        return tuple(component.record for component in self._loaded.found[CHECK.word][""])

    def provider(self, record: object) -> PluginStatus:
        """Return the plugin that brought a record.

        Raises:
            KeyError: no plugin of this host did.
        """
        for names in self._loaded.found.values():
            for components in names.values():
                for component in components:
                    if component.record is record:
                        return component.plugin
        raise KeyError(record)

    def _single(self, kind: Kind) -> Iterator[Any]:
        for claims in self._loaded.found[kind.word].values():
            if len(claims) == 1:
                yield claims[0].record

    def _usable(self, kind: Kind, name: str, usable: bool) -> Any:
        component = self._component(kind, name)
        if not usable:
            return component.record
        decision = self.availability(component.record)
        if decision:
            return component.record
        plugin = component.plugin
        raise PluginError(
            f'{kind.word} "{name}" is installed ({plugin.distribution} {plugin.version}), but cannot '
            "be used here",
            why=decision.reason,
            next_step=getattr(component.record, "install_hint", ""),
            subject=name,
        )

    def availability(self, record: CompilerSpec | PlatformSpec | StaticGraphSpec) -> Decision:
        """Return whether a compiler, platform or static-graph backend can be used on this machine.

        Raises:
            PluginError: it cannot say, because its own check failed.
        """
        owner = f"{type(record).__name__} {record.name!r}"
        check = resolve_reference(record.available, owner=owner)
        try:
            decision = check()
        except KeyboardInterrupt:
            raise
        except BaseException as problem:
            raise PluginError(
                f"{owner} cannot say whether it is available",
                why=describe(problem),
                subject=record.name,
            ) from problem
        if not isinstance(decision, Decision):
            raise PluginError(
                f"{owner} cannot say whether it is available",
                why=f"available() returned {decision!r}, not a Decision",
                subject=record.name,
            )
        return decision

    def _component(self, kind: Kind, name: str) -> Component:
        claims = self._loaded.found[kind.word].get(name, [])
        if len(claims) == 1:
            return claims[0]
        if claims:
            raise PluginError(clash_text(kind, name, claims), subject=name)
        self._raise_for_its_plugin(kind, name)
        raise self._missing(kind, name)

    def _raise_for_its_plugin(self, kind: Kind, name: str) -> None:
        """Raise if the plugin that goes by a component's name is there, but not loaded."""
        aliases = [name, f"intarsia-{name}"]
        for status in self._loaded.statuses:
            if status.state != "loaded" and is_named(status, aliases):
                raise PluginError(
                    f'{kind.word} "{name}"{self._asked_in(kind, name)} cannot be used: {status} '
                    f"{_BECAME[status.state]}",
                    why=status.error,
                    next_step="Run `intarsia plugins` for all plugins",
                    subject=name,
                ) from status.exception

    def _missing(self, kind: Kind, name: str) -> ConfigError:
        known = nearest(name, (key for key in self._loaded.found[kind.word] if key))
        absent = [
            status for status in self._loaded.statuses if status.state in ("failed", "incompatible")
        ]
        reasons = "; ".join(f"{status}: {status.error}" for status in absent)
        return ConfigError(
            f'unknown {kind.word} "{name}"{self._asked_in(kind, name)}; {known}',
            next_step=f"Plugins that did not load and may bring it: {reasons}" if absent else "",
            subject=name,
        )

    def _asked_in(self, kind: Kind, name: str) -> str:
        """Return " in <place>" where config asks for the component."""
        value: Any = self.config.config
        for part in kind.setting.split("."):
            value = getattr(value, part)
        named = value == name or (isinstance(value, tuple) and name in value)
        key = kind.setting.replace("_", "-")
        return f' in "{key}" ({self.config.origin(kind.setting)})' if named else ""

    def options(
        self,
        record: CompilerSpec | PassSpec | StaticGraphSpec,
        given: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return the options of a component, checked, with its defaults filled in.

        Args:
            record: the component.
            given: option -> value; None: what config says under the component's name.

        Raises:
            ConfigError: an option is unknown or has the wrong type.
        """
        known: Mapping[str, Option] = {
            name.replace("-", "_"): option for name, option in record.options.items()
        }
        chosen = self._chosen_for(record, known) if given is None else given
        if "*" in known:  # the component checks the names that it does not list itself
            listed = {name: value for name, value in chosen.items() if name in known}
            free = {name: value for name, value in chosen.items() if name not in known}
        else:
            listed, free = dict(chosen), {}
        for name, value in listed.items():
            self._check_option(record.name, name, value, known)
        defaults = {name: option.default for name, option in known.items() if name != "*"}
        return {**defaults, **listed, **free, **self._partition_at(record)}

    def check_options(self) -> None:
        """Refuse options that no component of their name has, and values of the wrong type.

        Raises:
            ConfigError: naming the option, where it was set, and the nearest one that there is.
        """
        for name in self.config.config.options:
            for record in self._with_options(name):
                self.options(record)

    def _with_options(self, name: str) -> Iterator[CompilerSpec | PassSpec | StaticGraphSpec]:
        for kind in (COMPILER, PASS, STATIC_GRAPH):
            for claim in self._loaded.found[kind.word].get(name, ()):
                yield claim.record

    def _chosen_for(
        self, record: CompilerSpec | PassSpec | StaticGraphSpec, known: Mapping[str, Option]
    ) -> Mapping[str, Any]:
        """Return what config says under a component's name, less what is another component's of that name.

        A vendor may well call the compiler and the static-graph backend of a device by one name.
        """
        others = {
            option.replace("-", "_")
            for other in self._with_options(record.name) if other is not record
            for option in other.options
        }  # fmt: skip
        chosen = self.config.config.options.get(record.name, {})
        return {n: v for n, v in chosen.items() if n in known or n not in others}

    def _partition_at(self, record: CompilerSpec | PassSpec | StaticGraphSpec) -> dict[str, Any]:
        config = self.config.config
        if config.split_by != record.name or not isinstance(record, CompilerSpec):
            return {}
        return {"partition_at": partition_ops(config)}

    def _check_option(self, owner: str, name: str, value: Any, known: Mapping[str, Option]) -> None:
        place = f'options of "{owner}" ({self.config.origin(f"options.{owner}.{name}")})'
        option = known.get(name)
        if option is None:
            raise unknown("option", name, place, list(known))
        if not isinstance(value, option.type):
            types = option.type if isinstance(option.type, tuple) else (option.type,)
            raise ConfigError(
                f'wrong value for option "{name}" in {place}',
                why=f"expected {' or '.join(item.__name__ for item in types)}, got {value!r}",
                subject=f"options.{owner}.{name}",
            )

    def choose_platform(self, device_type: str | None) -> PlatformSpec:
        """Return the platform that config names, else the one for a device type.

        Args:
            device_type: the type of the model's tensors, or None where it has none; then the available
                platform with the highest priority is taken.

        Raises:
            ConfigError: no platform is for that device type, or two are equally good.
            PluginError: one is, but cannot be used. No other device is taken instead.
        """
        named = self.config.config.platform
        if named != "auto":
            return self.platform(named)
        decisions = [(spec, self.availability(spec)) for spec in self._platforms_for(device_type)]
        usable = [spec for spec, decision in decisions if decision]
        arguments = {"device_type": device_type, "available": usable, "config": self.config}
        chosen = self._first_answer("intarsia_choose_platform", arguments)
        return self.platform(chosen) if chosen is not None else _best(device_type, decisions, self)

    def _platforms_for(self, device_type: str | None) -> Iterator[PlatformSpec]:
        """Yield the platforms for a device type (None: all); a clash among them raises."""
        for name, claims in self._loaded.found[PLATFORM.word].items():
            if any(device_type in (None, claim.record.device_type) for claim in claims):
                yield self._component(PLATFORM, name).record

    def choose_compiler(
        self, piece: PieceView, platform: PlatformSpec, available: Sequence[CompilerSpec]
    ) -> tuple[str, ...] | None:
        """Return the compilers that plugins want for a piece, in order, or None.

        Raises:
            PluginError: a plugin failed while choosing.
        """
        arguments = {
            "piece": piece,
            "platform": platform,
            "available": available,
            "config": self.config,
        }
        chosen = self._first_answer("intarsia_choose_compiler", arguments)
        return None if chosen is None else tuple(chosen)

    def adjust_config(
        self, traits: Mapping[str, str], config: ResolvedConfig | None = None
    ) -> tuple[ResolvedConfig, tuple[tuple[str, ConfigChange], ...]]:
        """Return the settings after the changes that plugins ask for, and (plugin, change) for each.

        Args:
            traits: the device's traits.
            config: the settings to start from; None: the host's own.

        Raises:
            ConfigError: a plugin wants to change what the user has set.
            PluginError: a plugin failed.
        """
        hook = "intarsia_adjust_config"
        resolved = self.config if config is None else config
        changes: list[tuple[str, ConfigChange]] = []
        for implementation in self._loaded.registry.implementations(hook):
            name = self._loaded.plugin_name(implementation.plugin_name)
            arguments = {"config": resolved, "traits": traits}
            for change in self._ask(hook, implementation, arguments, list) or ():
                resolved = resolved.with_change(change.key, change.value, plugin=name)
                changes.append((name, change))
        return resolved, tuple(changes)

    def deciding_plugins(self) -> tuple[PluginStatus, ...]:
        """Return the plugins that may choose a piece's compilers."""
        hooks = self._loaded.registry.implementations("intarsia_choose_compiler")
        names = {self._loaded.plugin_name(implementation.plugin_name) for implementation in hooks}
        return tuple(status for status in self._loaded.statuses if status.name in names)

    def emit(self, event: Event) -> None:
        """Tell every plugin of an event; a plugin that fails is logged and stops nothing."""
        for implementation in self._loaded.registry.implementations("intarsia_event"):
            try:
                call(implementation, {"event": event})
            except KeyboardInterrupt:
                raise
            except BaseException:
                name = self._loaded.plugin_name(implementation.plugin_name)
                log.warning('plugin "%s" failed in intarsia_event', name, exc_info=True)

    def _first_answer(self, hook: str, arguments: dict[str, Any]) -> Any:
        for implementation in self._loaded.registry.implementations(hook):
            answer = self._ask(hook, implementation, arguments)
            if answer is not None:
                return answer
        return None

    def _ask(
        self,
        hook: str,
        implementation: Any,
        arguments: dict[str, Any],
        collect: Callable[[Any], Any] = lambda answer: answer,
    ) -> Any:
        # A plugin that fails while choosing is not skipped: then something else would run.
        try:
            answer = call(implementation, arguments)
            return None if answer is None else collect(answer)
        except KeyboardInterrupt:
            raise
        except BaseException as problem:
            name = self._loaded.plugin_name(implementation.plugin_name)
            raise PluginError(
                f'plugin "{name}" failed in {hook}',
                why=describe(problem),
                next_step=f'To run without it: [plugins] block = ["{name}"]',
                subject=name,
            ) from problem


def _best(
    device_type: str | None, decisions: Sequence[tuple[PlatformSpec, Decision]], host: Host
) -> PlatformSpec:
    usable = [spec for spec, decision in decisions if decision]
    if not usable:
        raise _no_platform(device_type, decisions, host)
    highest = max(spec.priority for spec in usable)
    best = [spec for spec in usable if spec.priority == highest]
    if len(best) == 1:
        return best[0]
    names = " and ".join(f'"{spec.name}" ({host.provider(spec).distribution})' for spec in best)
    raise ConfigError(
        f"platforms {names} are equally good",
        why=f"both have priority {highest}",
        next_step=f'Choose: platform = "{best[0].name}"',
        subject="platform",
    )


def _no_platform(
    device_type: str | None, decisions: Sequence[tuple[PlatformSpec, Decision]], host: Host
) -> PluginError:
    where = f'for device type "{device_type}"' if device_type else "on this machine"
    unusable = [f'platform "{spec.name}": {decision.reason}' for spec, decision in decisions]
    broken = [
        f"{status} {_BECAME[status.state]}: {status.error}"
        for status in host.plugins
        if status.state not in ("loaded", "shadowed")
    ]
    installed = ", ".join(sorted(spec.name for spec in host.platforms())) or "none"
    return PluginError(
        f"no platform can be used {where}",
        why="; ".join(unusable + broken) or f"installed platforms: {installed}",
        next_step="Install a plugin for it, or name one: platform = ...",
        subject=device_type,
    )
