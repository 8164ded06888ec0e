"""The order of passes: as they are listed, moved as little as their constraints ask for."""

from __future__ import annotations

from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter

from intarsia.errors import ConfigError
from intarsia.interfaces import PassSpec

__all__ = ["ordered"]


def ordered(specs: Sequence[PassSpec]) -> list[PassSpec]:
    """Return passes in an order that keeps every `before` and `after`; ties stay as they are listed.

    Names that are not among the passes are ignored.

    Raises:
        ConfigError: constraints contradict each other; the message has the passes of the cycle.
    """
    by_name = {spec.name: spec for spec in specs}
    places = {name: place for place, name in enumerate(by_name)}
    sorter: TopologicalSorter[str] = TopologicalSorter(dict.fromkeys(by_name, ()))
    for spec in specs:
        sorter.add(spec.name, *(name for name in spec.after if name in by_name))
        for later in by_name.keys() & set(spec.before):
            sorter.add(later, spec.name)
    try:
        sorter.prepare()
    except CycleError as error:
        raise _contradiction(error.args[1][::-1]) from None
    free: list[str] = []
    found = []
    while sorter.is_active():
        free = sorted([*free, *sorter.get_ready()], key=places.__getitem__)
        found.append(by_name[free[0]])
        sorter.done(free.pop(0))
    return found


def _contradiction(cycle: Sequence[str]) -> ConfigError:
    return ConfigError(
        "passes cannot be put in order",
        why=" runs after ".join(cycle),
        next_step=f"Change a before or after of one of them, or disable {cycle[0]}.",
        subject=cycle[0],
    )
