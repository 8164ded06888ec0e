"""The functions of a recorded plan, made from its stitching: while it is recorded, and afterwards."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from attrs import frozen

from intarsia.runtime.bound import BoundBox, Forward
from intarsia.runtime.source import bind_code, code_of
from intarsia.runtime.stitching import Stitching


@frozen
class Forwards:
    """Makes the functions of one plan.

    Attributes:
        box: the plan, bound.
        stitching: how its pieces are called, with positional inputs.
    """

    box: BoundBox
    stitching: Stitching

    @classmethod
    def of(cls, box: BoundBox) -> Forwards:
        """Return the maker for a bound plan."""
        return cls(box, box.plan.stitching.rendered({}))

    @property
    def _lines(self) -> list[str]:
        return self.stitching.source.rstrip("\n").split("\n")[1:]

    @property
    def _work(self) -> list[str]:
        return self._lines[: self.stitching.work]

    @property
    def _rest(self) -> list[str]:
        return self._lines[self.stitching.work :]

    @property
    def _names(self) -> str:
        return ", ".join(name.partition("=")[0] for name in self.stitching.parameters)

    @property
    def _results(self) -> str:
        return "".join(f"{name}, " for name in self.stitching.results)

    def work(self, pieces: Mapping[int, Forward]) -> Forward:
        """Return what runs the pieces and gives the values that the result is built of."""
        lines = [*self._work, f"    return ({self._results})"]
        # A recording may keep this function; it must not keep the model, whose end releases the recording.
        return self._bound("work", lines, pieces, {"_converted": None})

    def recording(self, pieces: Mapping[int, Forward], seen: Forward) -> Forward:
        """Return the forward to record by; the result is built of what `seen` makes of its values."""
        seeing = (
            [f"    {self._results}= _seen(({self._results}))"] if self.stitching.results else []
        )
        lines = [*self._work, *seeing, *self._rest]
        return self._bound("forward", lines, pieces, {"_seen": seen})

    def rest(self, values: Sequence[Any]) -> Forward:
        """Return what builds the result of these values and writes the call's effects."""
        got = [f"    {self._results}= _values"] if self.stitching.results else []
        return self._bound("forward", [*got, *self._rest], {}, {"_values": values})

    def piecewise(
        self, pieces: Mapping[int, Forward], cloned: Iterable[str], lock: Any, released: list[bool],
        perhaps_lent: Sequence[str], lent: set[int],
    ) -> Forward:  # fmt: skip
        """Return the forward whose pieces are replays; the caller gets clones of some results.

        Arguments of `perhaps_lent` that lie in the memory of `lent` are set aside first.
        """
        aside = [
            f"    if {name}.untyped_storage().data_ptr() in _lent: {name} = {name}.clone()"
            for name in perhaps_lent
        ]
        lines = [*aside, *self._work, *_clones(cloned), *self._rest]
        return self._locked(lines, pieces, lock, {"_released": released, "_lent": lent})

    def full(
        self, whole: Forward, cloned: Iterable[str], lock: Any, released: list[bool]
    ) -> Forward:
        """Return the forward whose work is one replay."""
        call = f"_whole({self._names})"
        got = f"    {self._results}= {call}" if self.stitching.results else f"    {call}"
        lines = [got, *_clones(cloned), *self._rest]
        return self._locked(lines, {}, lock, {"_whole": whole, "_released": released})

    def _locked(
        self, lines: Sequence[str], pieces: Mapping[int, Forward], lock: Any,
        more: Mapping[str, Any],
    ) -> Forward:  # fmt: skip
        anchor = next((w for w in self.box.weights if isinstance(w, torch.nn.Parameter)), None)
        tests = " or ".join(self.box.plan.conversions.tests)
        if (
            anchor is not None
        ):  # `double()` and `float()` again leave the dtypes, and move every weight
            tests += f"{' or ' if tests else ''}_anchor.data_ptr() != _place"
            more = {**more, "_anchor": anchor, "_place": anchor.data_ptr()}
        head = [f"    if {tests}:", f"        return _converted({self._names})"] if tests else []
        # While a call waits for the lock, its recordings may be released.
        held = ["    with _lock:", "        if not _released:", *(f"        {line}" for line in lines),
                f"    return _general({self._names})"]  # fmt: skip
        values = {**more, "_lock": lock, "_general": lambda *given: self.box.forward(*given)}
        return self._bound("forward", [*head, *held], pieces, values)

    def _bound(
        self, name: str, lines: Sequence[str], pieces: Mapping[int, Forward],
        more: Mapping[str, Any],
    ) -> Forward:  # fmt: skip
        source = "\n".join([f"def {name}({', '.join(self.stitching.parameters)}):", *lines, ""])
        called = {self.stitching.pieces[index]: function for index, function in pieces.items()}
        values = {**self.box.values, **called, **more}
        return bind_code(_code(source, f"{self.box.name} {name}"), name, values)


_code = functools.lru_cache(64)(code_of)
"""Compiled source, which all sizes of a plan share."""


def _clones(names: Iterable[str]) -> list[str]:
    return [f"    {name} = {name}.clone()" for name in names]
