"""What is tested, and what came of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from attrs import asdict, field, frozen

from intarsia.config import load_config
from intarsia.errors import ConfigError
from intarsia.host import Host
from intarsia.references import resolve_reference
from intarsia.words import one_of

__all__ = ["Kind", "Outcome", "Requirement", "Status", "Subject"]

Kind: TypeAlias = Literal["compiler", "platform", "static-graph", "passes", "pass-manager", "store"]
"""What a plugin may bring that has requirements."""

Status: TypeAlias = Literal["passed", "refused", "failed"]


def _perhaps_set(values: Iterable[str] | None) -> frozenset[str] | None:
    return None if values is None else frozenset(values)


def _set(values: Iterable[str]) -> frozenset[str]:
    return frozenset(values)


def _names(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(values)


@frozen
class Subject:
    """A component under test. All of it is plain data: requirements run in other processes.

    Attributes:
        kind: what it is.
        name: its name; of passes the plugin's, of a store its URL.
        device: torch's device type that tensors are made on.
        opened: the capabilities that it has. Each other one must be refused, by a typed error. None: whatever
            it does is taken for an answer, but a wrong number or a crash still fails.
        claims: capabilities that its own record claims, which it may not refuse in any case.
        settings: settings of intarsia to use, as keyword arguments of `intarsia.compile`.
        plugins: "module:function" that returns plugins which no entry point names, or "".
        paths: folders that are on the path of the child processes.
        tolerances: dtype ("bfloat16") -> relative and absolute error, where the kit's own are too strict.
        deadline: seconds that one requirement may take.
    """

    kind: Kind = field(validator=one_of(Kind))
    name: str
    device: str = "cpu"
    opened: frozenset[str] | None = field(default=None, converter=_perhaps_set)
    claims: frozenset[str] = field(default=(), converter=_set)
    settings: Mapping[str, Any] = field(factory=dict)
    plugins: str = ""
    paths: tuple[str, ...] = field(default=(), converter=_names)
    tolerances: Mapping[str, float] = field(factory=dict)
    deadline: float = 120.0

    def host(self, **settings: Any) -> tuple[Any, Host]:
        """Return settings, and the plugins under them; nothing of the user's files or environment counts.

        Raises:
            ConfigError, PluginError: there is no such plugin or setting.
        """
        chosen = {"cache": False, **self.settings, **settings}
        resolved = load_config(None, environ={}, **chosen)
        extra = (
            resolve_reference(self.plugins, owner="the conformance kit")() if self.plugins else ()
        )
        return resolved, Host(resolved, extra_plugins=extra)

    def tolerance(self, dtype: str) -> float:
        """Return the relative and absolute error that a result of a dtype may have."""
        return self.tolerances.get(dtype, _TOLERANCES.get(dtype, 0.0))

    def to_json(self) -> str:
        """Return it as text for another process.

        Raises:
            ConfigError: a setting is no plain data.
        """
        opened = None if self.opened is None else sorted(self.opened)
        data = {**asdict(self), "opened": opened, "claims": sorted(self.claims)}
        try:
            return json.dumps(data)
        except TypeError as error:
            raise ConfigError(
                "what is tested is no plain data", why=str(error),
                next_step="Requirements run in other processes: use names and numbers.",
            ) from error  # fmt: skip

    @classmethod
    def from_json(cls, text: str) -> Subject:
        """Return what `to_json` wrote, and put its paths in front of this process'."""
        made = cls(**json.loads(text))
        sys.path[:0] = [path for path in made.paths if path not in sys.path]
        return made


_TOLERANCES = {"float64": 1e-6, "float32": 1e-4, "float16": 1e-2, "bfloat16": 4e-2}


@frozen
class Requirement:
    """One thing that a component must do.

    Attributes:
        capability: what it belongs to; "": nobody may refuse it.
        about: one line for the table.
        run: `(subject, empty folder)`; raises AssertionError where it does not hold.
        may_fail: whether who lacks the capability just does not do it, instead of refusing.
    """

    name: str
    capability: str
    about: str
    run: Callable[[Subject, Path], None] = field(repr=False)
    may_fail: bool = False


@frozen
class Outcome:
    """What came of a requirement.

    Attributes:
        detail: why it failed, or the reason of the refusal.
        seconds: how long it took.
    """

    name: str
    capability: str
    status: Status
    detail: str = ""
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def unknown(names: Sequence[str], known: Sequence[str]) -> list[str]:
    """Return the names that are not known."""
    return sorted(set(names) - set(known))
