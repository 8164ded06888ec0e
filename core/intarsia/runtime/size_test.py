"""A test of a call's sizes, as Python source that travels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property

from attrs import frozen


@frozen(slots=False)
class SizeTest:
    """Says for which sizes a graph is valid.

    Attributes:
        names: the symbols, in the order in which each function takes their values.
        sources: the source of one function for each condition; all must hold.
    """

    names: tuple[str, ...]
    sources: tuple[str, ...]

    @cached_property
    def _tests(self) -> list[Callable[..., bool]]:
        return [eval(source, {"math": math}) for source in self.sources]

    def __call__(self, sizes: Mapping[str, int]) -> bool:
        """Say whether all conditions hold."""
        values = [sizes[name] for name in self.names]
        return all(test(*values) for test in self._tests)
