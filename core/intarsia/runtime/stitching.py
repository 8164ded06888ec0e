"""The generated function of a graph, before it is known how its pieces take their inputs."""

from __future__ import annotations

import re
from collections.abc import Mapping

from attrs import evolve, frozen

from intarsia.runtime.source import Namespace

_OPEN, _CLOSE = "\x01", "\x02"
_CALL = re.compile(f"(\\w+)\\({_OPEN}([^{_CLOSE}]*){_CLOSE}\\)")


@frozen
class Stitching:
    """The generated function of a graph.

    Attributes:
        source: its Python source; the calls of pieces are marked until `rendered` writes them.
        name: its name in the source.
        space: the names that it uses, pieces and weights left out.
        pieces: piece index -> the name that its callable is bound to.
        weights: placeholder index -> the name that its tensor is bound to.
        parameters: its parameters.
        work: how many lines after the head run pieces and operators; those that follow build the result.
        results: the variables of the first that the second read.
    """

    source: str
    name: str
    space: Namespace
    pieces: Mapping[int, str]
    weights: Mapping[int, str]
    parameters: tuple[str, ...]
    work: int
    results: tuple[str, ...]

    def rendered(self, boxed: Mapping[int, bool]) -> Stitching:
        """Return it for callables of which some take one list of inputs."""
        lists = {self.pieces[index] for index, takes_list in boxed.items() if takes_list}

        def call(found: re.Match[str]) -> str:
            name, inputs = found.groups()
            return f"{name}([{inputs}])" if name in lists else f"{name}({inputs})"

        return evolve(self, source=_CALL.sub(call, self.source))


def piece_call(name: str, inputs: list[str]) -> str:
    """Return the marked call of a piece."""
    return f"{name}({_OPEN}{', '.join(inputs)}{_CLOSE})"
