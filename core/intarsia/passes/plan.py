"""Which passes run in a compile: those of the platform and of config, built, and in the manager's order."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import define, evolve, field

from intarsia.config import Config
from intarsia.digests import source_digest
from intarsia.errors import ConfigError, PluginError
from intarsia.host import Host
from intarsia.interfaces import Box, Pass, PassManager, PassSetup, PassSpec, PlatformSpec, Stage
from intarsia.passes.manager import BuiltInManager
from intarsia.references import describe, resolve_reference

__all__ = ["STAGES", "PassPlan", "pass_plan"]

STAGES: tuple[Stage, ...] = (
    "graph", "piece", "piece-aten", "inductor-pre-grad", "inductor-joint", "inductor-post-grad-before",
    "inductor-post-grad-after",
)  # fmt: skip
"""In the order in which they run."""


@define(eq=False)
class PassPlan:
    """The passes of one compile.

    Attributes:
        specs: those that are on, as they are listed.
        manager: puts them in order and runs them.
        manager_reference: what builds it in another process; None: the built-in one.
    """

    host: Host
    config: Config
    specs: tuple[PassSpec, ...]
    manager: PassManager
    manager_name: str
    manager_reference: Any
    _identities: Mapping[str, str] = field(init=False)

    def __attrs_post_init__(self) -> None:
        # Also where nothing is cached: a pass that cannot be built is no compiler's failure, and must not
        # send pieces on to a compiler that runs no passes of its stage.
        self._identities = {spec.name: self._identity(spec) for spec in self.specs}

    def at(self, box: Box, stages: Sequence[Stage] = STAGES) -> tuple[PassSpec, ...]:
        """Return the passes that run for a box, in order, stage after stage; no more than `passes.limit`.

        Raises:
            ConfigError: their constraints contradict each other.
            PluginError: the manager adds passes, or names one twice.
        """
        found = [spec for stage in STAGES for spec in self._at(stage, box)]
        limit = self.config.passes.limit
        allowed = found if limit is None else found[:limit]
        return tuple(spec for spec in allowed if spec.stage in stages)

    def _at(self, stage: Stage, box: Box) -> Sequence[PassSpec]:
        mine = [s for s in self.specs if s.stage == stage and _is_for(s, box)]
        if not mine:
            return ()
        found = list(self.manager.order(mine, stage, box, self.config))
        if len({s.name for s in found}) != len(found) or any(s not in mine for s in found):
            raise PluginError(
                f'the pass manager "{self.manager_name}" gave an order that is none',
                why=f"it was asked for {_names(mine)} and answered {_names(found)}",
                subject=self.manager_name,
            )
        return found

    def for_request(self, box: Box, deadline: float | None = None) -> dict[str, Any]:
        """Return what a request of a box has of the passes; nothing where there are none.

        `deadline`: seconds after which a request is given up, where it is compiled elsewhere; a pass may take
        half of them.
        """
        specs = tuple(spec for spec in self.at(box) if spec.stage != "graph")
        if not specs:
            return {}
        setup = evolve(self.setup(), deadline=None if deadline is None else deadline / 2)
        return {"passes": specs, "pass_setup": setup}

    def setup(self) -> PassSetup:
        """Return what it takes to run the passes, besides themselves."""
        return PassSetup(
            options={s.name: self.host.options(s) for s in self.specs},
            owners={s.name: _owner(self.host, s) for s in self.specs},
            manager=self.manager_reference, manager_name=self.manager_name,
            strict=self.config.strict, dump=self.config.dump,
        )  # fmt: skip

    # -- for the cache

    def factors(self) -> dict[str, str]:
        """Return all that the passes add to a key; nothing where there are none."""
        if not self.specs:
            return {}
        found = [self._factors(spec) for spec in self.specs]
        made = {"passes": json.dumps(found, sort_keys=True, default=repr)}
        if self.config.passes.limit is not None:
            made["passes limit"] = str(self.config.passes.limit)
        if self.manager_reference is not None:
            own = {self.manager_name: dict(self.manager.factors())}
            made["pass manager"] = json.dumps(own, sort_keys=True)
        return made

    def _factors(self, spec: PassSpec) -> list[Any]:
        references = [spec.factory, spec.boxes]
        modules = [self.host.provider(spec).module]
        modules += [r.partition(":")[0] if isinstance(r, str) else r.__module__
                    for r in references if r is not None]  # fmt: skip
        source = source_digest(dict.fromkeys(m for m in modules if m))[:32]
        return [
            spec.name, spec.version, spec.stage, list(spec.before), list(spec.after),
            dict(self.host.options(spec)), source, self._identities[spec.name],
        ]  # fmt: skip

    def _identity(self, spec: PassSpec) -> str:
        try:
            identity = built(spec, self.host.options(spec)).uuid()
        except (PluginError, KeyboardInterrupt):
            raise
        except BaseException as problem:
            raise PluginError(
                f'the pass "{spec.name}" of plugin {_owner(self.host, spec)} cannot be built, or does not '
                "say its identity",
                why=describe(problem),
                next_step=f'Leave it out: passes.disable = ["{spec.name}"].', subject=spec.name,
            ) from problem  # fmt: skip
        # One that cannot be told from another is never found again.
        return f"none {uuid.uuid4()}" if identity is None else repr(identity)


def pass_plan(host: Host, platform: PlatformSpec, config: Config) -> PassPlan:
    """Return the passes that the platform and config ask for.

    Raises:
        ConfigError: a name is unknown, or listed twice.
        PluginError: a plugin that is named cannot be used, or a pass cannot be built.
    """
    for name in config.passes.disable:
        host.pass_(name)
    listed = [*platform.passes, *config.passes.enable]
    twice = {name for name in listed if listed.count(name) > 1}
    if twice:
        name = sorted(twice)[0]
        raise ConfigError(
            f'the pass "{name}" is asked for twice',
            why=f"{'the platform has it, and ' if name in platform.passes else ''}"
            f"passes.enable lists it {config.passes.enable.count(name)} times",
            next_step="Leave it out of passes.enable.", subject=name,
        )  # fmt: skip
    specs = tuple(host.pass_(name) for name in listed if name not in config.passes.disable)
    chosen = config.pass_manager or platform.pass_manager
    if chosen is None:
        return PassPlan(host, config, specs, BuiltInManager(), "built-in", None)
    reference = host.pass_manager(chosen).factory
    manager = resolve_reference(reference, owner=f'pass manager "{chosen}"')()
    return PassPlan(host, config, specs, manager, chosen, reference)


def built(spec: PassSpec, options: Mapping[str, Any]) -> Pass:
    """Return a pass, built with its options.

    Raises:
        PluginError: the factory made something else.
    """
    factory = resolve_reference(spec.factory, owner=f'pass "{spec.name}"')
    made = factory(options)
    if not isinstance(made, Pass):
        raise PluginError(
            f'the factory of pass "{spec.name}" made {made!r}',
            why="a pass has `__call__(graph)` and `uuid()`",
            subject=spec.name,
        )
    return made


def _is_for(spec: PassSpec, box: Box) -> bool:
    if spec.boxes is None:
        return True
    return bool(resolve_reference(spec.boxes, owner=f'boxes of pass "{spec.name}"')(box))


def _names(specs: Sequence[PassSpec]) -> str:
    return ", ".join(spec.name for spec in specs) or "none"


def _owner(host: Host, spec: PassSpec) -> str:
    plugin = host.provider(spec)
    return f"{plugin.name} ({plugin.distribution})"
