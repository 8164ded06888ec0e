"""The order of passes: as they are listed, moved as little as their constraints ask for."""

from __future__ import annotations

from collections.abc import Sequence

from intarsia.errors import ConfigError
from intarsia.interfaces import PassSpec

__all__ = ["ordered"]


def ordered(specs: Sequence[PassSpec]) -> list[PassSpec]:
    """Return passes in an order that keeps every `before` and `after`; ties stay as they are listed.

    Names that are not among the passes are ignored.

    Raises:
        ConfigError: constraints contradict each other; the message has the passes of the cycle.
    """
    earlier = _earlier(specs)
    left, found = list(specs), []
    while left:
        free = next((s for s in left if not earlier[s.name] & {o.name for o in left}), None)
        if free is None:
            raise _cycle(left, earlier)
        left.remove(free)
        found.append(free)
    return found


def _earlier(specs: Sequence[PassSpec]) -> dict[str, set[str]]:
    """Return name -> the names of passes that run before it."""
    known = {spec.name for spec in specs}
    earlier: dict[str, set[str]] = {name: set() for name in known}
    for spec in specs:
        earlier[spec.name] |= known & set(spec.after)
        for later in known & set(spec.before):
            earlier[later].add(spec.name)
    return earlier


def _cycle(left: Sequence[PassSpec], earlier: dict[str, set[str]]) -> ConfigError:
    names = {spec.name for spec in left}
    path = [left[0].name]
    while path[-1] not in path[:-1]:
        path.append(min(earlier[path[-1]] & names))
    around = path[path.index(path[-1]) :]
    return ConfigError(
        "passes cannot be put in order",
        why=" runs after ".join(around),
        next_step=f"Change a before or after of one of them, or disable {around[0]}.",
        subject=around[0],
    )
