"""`verify`: a piece's first calls are compared with an eager run of the same inputs.

Where they differ, the caller gets eager's result, and the piece runs eagerly from then on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from attrs import define, field, frozen

from intarsia.runtime.memory import copied, in_original

Forward = Callable[..., Any]

TOLERANCES = {
    torch.float64: 1e-9, torch.complex128: 1e-9, torch.float32: 1e-3, torch.complex64: 1e-3,
    torch.float16: 2e-2, torch.bfloat16: 5e-2,
}  # fmt: skip
"""How far a result may be from eager's, as a part of the largest finite value of eager's.

Other dtypes: not at all. A compiler may add up in another order, and keep values in another precision.
"""


@frozen
class Mismatch:
    """Where a piece differs from eager.

    Attributes:
        piece: its name.
        compiler: who compiled it.
        what: "output 0" or "input 2 that it writes to".
        error: the largest difference, as a part of the largest value of eager's; infinite where one has a
            value that is no number and the other has not.
    """

    piece: str
    compiler: str
    what: str
    error: float
    reason: str = ""

    def __str__(self) -> str:
        how = self.reason or f"by {self.error:.2g} of its largest value"
        return f"{self.compiler} differs from eager in {self.what} of {self.piece}: {how}"


@define(eq=False)
class Verified:
    """A piece that is run twice as long as calls are left, compiled and eagerly.

    Attributes:
        function: the compiled piece, of positional inputs.
        eager: the same piece as it is.
        mutated: the inputs that it writes to.
        unfilled: the results that are memory which it does not write to.
        left: how many calls are still compared.
        on_done: called when none is left.
        on_mismatch: called with what differs; from then on the piece is eager here.
    """

    function: Forward
    eager: Forward
    mutated: Sequence[int]
    unfilled: frozenset[int]
    name: str
    compiler: str
    left: int
    on_done: Callable[[], None]
    on_mismatch: Callable[[Mismatch], None]
    _lock: threading.Lock = field(factory=threading.Lock)

    def __call__(self, *inputs: Any) -> Any:
        """Run the piece."""
        with self._lock:
            return self._compared(inputs) if self.left > 0 else self.function(*inputs)

    def _compared(self, inputs: tuple[Any, ...]) -> Any:
        given = copied(inputs, self.mutated)
        expected = tuple(self.eager(*given))
        found = tuple(self.function(*inputs))
        wrong = self._difference(found, expected, inputs, given)
        self.left -= 1
        if wrong is None:
            if not self.left:
                self.on_done()
            return found
        self.function, self.left = self.eager, 0
        for index in self.mutated:  # the caller's memory gets what eager wrote
            inputs[index].copy_(given[index])
        self.on_mismatch(wrong)
        placed = [in_original(value, given, inputs) for value in expected]
        return tuple(e if p is None else p for e, p in zip(expected, placed, strict=True))

    def _difference(
        self, found: Sequence[Any], expected: Sequence[Any], inputs: Sequence[Any],
        given: Sequence[Any],
    ) -> Mismatch | None:  # fmt: skip
        if len(found) != len(expected):
            reason = f"{len(found)} outputs, and eager has {len(expected)}"
            return Mismatch(self.name, self.compiler, "the outputs", float("inf"), reason)
        pairs = [
            (f"output {i}", a, b)
            for i, (a, b) in enumerate(zip(found, expected, strict=True))
            if i not in self.unfilled
        ]
        pairs += [(f"input {i}, which it writes to,", inputs[i], given[i]) for i in self.mutated]
        worst: Mismatch | None = None
        for what, mine, theirs in pairs:
            error, reason = difference(mine, theirs)
            if (error or reason) and (worst is None or error > worst.error):
                worst = Mismatch(self.name, self.compiler, what, error, reason)
        return worst


def difference(found: Any, expected: Any) -> tuple[float, str]:
    """Return how far a value is from what eager gave, 0 where that is near enough; and a reason in words."""
    if not isinstance(expected, torch.Tensor) or not isinstance(found, torch.Tensor):
        same = type(found) is type(expected) and found == expected
        return (0.0, "") if same else (float("inf"), f"{found!r} and not {expected!r}")
    if found.shape != expected.shape or found.dtype != expected.dtype:
        kinds = [f"{t.dtype} {tuple(t.shape)}" for t in (found, expected)]
        return float("inf"), f"{kinds[0]} and not {kinds[1]}"
    if not expected.numel():
        return 0.0, ""
    allowed = TOLERANCES.get(expected.dtype, 0.0)
    if not allowed:
        different = int((found != expected).sum())
        return (float(different), f"{different} values differ") if different else (0.0, "")
    wide = torch.complex128 if expected.is_complex() else torch.float64
    one, other = found.detach().to(wide), expected.detach().to(wide)
    finite = torch.isfinite(other)
    if not torch.equal(torch.isfinite(one), finite):
        return float("inf"), "one has values that are no finite numbers where the other has some"
    if not bool(finite.all()) and not torch.equal(torch.isnan(one), torch.isnan(other)):
        return float("inf"), "one has infinities where the other has NaN"
    zero = torch.zeros((), dtype=wide, device=one.device)
    largest = float(torch.where(finite, other, zero).abs().max())
    error = float(torch.where(finite, one - other, zero).abs().max())
    relative = error / largest if largest else error
    return (relative, "") if relative > allowed else (0.0, "")
