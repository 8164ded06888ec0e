"""The order of passes: every constraint kept, nothing moved without a reason, and cycles named."""

from __future__ import annotations

from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from intarsia.errors import ConfigError
from intarsia.interfaces import PassSpec
from intarsia.passes.order import ordered

NAMES = tuple("abcdefg")


def spec(name: str, before: Sequence[str] = (), after: Sequence[str] = ()) -> PassSpec:
    return PassSpec(name, "1", "piece", "nowhere:Pass", before=tuple(before), after=tuple(after))


@st.composite
def listings(draw: st.DrawFn) -> list[PassSpec]:
    """Any set of passes in any order, with any constraints, also on passes that are not there."""
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=len(NAMES)))
    some = st.lists(st.sampled_from((*NAMES, "absent")), unique=True, max_size=2)
    return [spec(name, draw(some), draw(some)) for name in names]


def pairs(specs: Sequence[PassSpec]) -> set[tuple[str, str]]:
    """Return (earlier, later) for each constraint between two passes that are there."""
    here = {one.name for one in specs}
    found = {(other, one.name) for one in specs for other in one.after}
    found |= {(one.name, other) for one in specs for other in one.before}
    return {(earlier, later) for earlier, later in found if {earlier, later} <= here}


def has_cycle(specs: Sequence[PassSpec]) -> bool:
    graph: dict[str, set[str]] = {one.name: set() for one in specs}
    for earlier, later in pairs(specs):
        graph[later].add(earlier)
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError:
        return True
    return False


def names(specs: Sequence[PassSpec]) -> list[str]:
    return [one.name for one in specs]


@given(listings())
def test_every_constraint_is_kept_or_the_cycle_is_named(specs: list[PassSpec]) -> None:
    if has_cycle(specs):
        with pytest.raises(ConfigError, match="cannot be put in order") as caught:
            ordered(specs)
        cycle = caught.value.why.split(" runs after ")
        assert cycle[0] == cycle[-1]
        assert caught.value.subject == cycle[0]
        for later, earlier in pairwise(cycle):
            assert (earlier, later) in pairs(specs)
        return
    found = names(ordered(specs))
    assert sorted(found) == sorted(names(specs))
    for earlier, later in pairs(specs):
        assert found.index(earlier) < found.index(later)


@given(listings())
def test_a_pass_moves_only_behind_one_that_it_waits_for(specs: list[PassSpec]) -> None:
    assume(not has_cycle(specs))
    listed, found = names(specs), names(ordered(specs))
    for place, name in enumerate(found):
        # whoever is listed before it and runs behind it had to wait for somebody that is still to come
        for other in found[place + 1 :]:
            if listed.index(other) < listed.index(name):
                waits = {earlier for earlier, later in pairs(specs) if later == other}
                assert waits & set(found[place:])


@given(listings())
def test_what_is_in_order_stays_as_it_is(specs: list[PassSpec]) -> None:
    assume(not has_cycle(specs))
    once = ordered(specs)
    assert names(ordered(once)) == names(once)


def test_constraints_alone_decide_where_they_decide_all() -> None:
    chain = [spec("c", after=["b"]), spec("a"), spec("b", after=["a"])]
    for turned in (chain, chain[::-1], chain[1:] + chain[:1]):
        assert names(ordered(turned)) == ["a", "b", "c"]


def test_a_pass_that_is_to_run_before_itself_is_a_cycle() -> None:
    with pytest.raises(ConfigError, match="a runs after a"):
        ordered([spec("b"), spec("a", before=["a"])])


def test_passes_that_only_wait_for_a_cycle_are_not_in_its_error() -> None:
    specs = [spec("late", after=["x"]), spec("x", after=["y"]), spec("y", after=["x"])]
    with pytest.raises(ConfigError) as caught:
        ordered(specs)
    assert "late" not in caught.value.why
