"""Passes that replace a pattern: two functions, example inputs, and a check."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import define, field
from attrs.validators import is_callable, optional
from torch import fx

from intarsia import torch_compat
from intarsia.capture import nodes
from intarsia.digests import function_identity, source_digest
from intarsia.passes import writes

__all__ = ["Match", "PatternPass"]

Match = Mapping[str, Any]
"""What a pattern's parameters stand for in the graph, in their order: fake tensors and numbers, by name."""


@define(eq=False)
class PatternPass:
    """Replaces what a function computes by what another one does, at the stage "piece-aten".

    Both are traced to ATen operators as pieces are, in the form that the piece has: functional, or with
    mutation where the piece writes to its inputs. A match is traced again at its own shapes before it is
    replaced, so that sizes that the example inputs brought along do not count.

    Custom operators that write to their arguments (`mutates_args`) match too, alone or in a chain, on a
    piece's own tensors or on its inputs; what a pattern's parameters end as is part of what it computes. One
    whose memory is read afterwards under another name, through a view, is left alone.

    Attributes:
        pattern: computes what is looked for. Its parameters are the tensors that go in.
        replacement: computes the same of the same parameters.
        examples: returns an example of each parameter; small tensors, on any device.
        check: `(match) -> bool` on the fake tensors of a match; None: every match is replaced.
        numbers: parameters that are Python numbers, with the value that they have in the trace of the
            pattern; any number matches there. Each must be one that the pattern holds nowhere else.
    """

    pattern: Callable[..., Any] = field(validator=is_callable())
    replacement: Callable[..., Any] = field(validator=is_callable())
    examples: Callable[[], Sequence[Any]] = field(validator=is_callable())
    check: Callable[[Match], bool] | None = field(default=None, validator=optional(is_callable()))
    numbers: Mapping[str, float] = field(factory=dict)
    _matchers: dict[bool, Callable[[fx.Graph], int]] = field(factory=dict)

    def __call__(self, graph: fx.Graph) -> int:
        """Replace every match; returns how many there were."""
        functional = not _writes(graph)
        if functional not in self._matchers:
            self._matchers[functional] = self._matcher(functional)
        inputs = writes.as_values(graph)
        try:
            return self._matchers[functional](graph)
        finally:
            writes.as_writes(graph, inputs)

    def _matcher(self, functional: bool) -> Callable[[fx.Graph], int]:
        examples = list(self.examples())
        if functional and torch_compat.has_node(self.pattern, examples, writes.is_custom_write):
            return lambda graph: 0  # a graph without writes has none of it
        return torch_compat.pattern_matcher(
            self.pattern, self.replacement, examples, self.check, self.numbers,
            writes.pattern_values, functional=functional,
        )  # fmt: skip

    def uuid(self) -> str:
        """Return the identity of the functions and of the modules that they stand in."""
        functions = [self.pattern, self.replacement, self.examples, *filter(None, [self.check])]
        modules = dict.fromkeys(f.__module__ for f in functions)
        names = [function_identity(f) for f in functions]
        return repr([names, source_digest(modules), sorted(self.numbers.items())])


def _writes(graph: fx.Graph) -> bool:
    """Say whether a graph writes to something, so that it is no functional form."""
    return any(nodes.mutated_arguments(node) for node in graph.nodes)
