"""The first call of what a compiler made, noted in the crash journal while it runs.

What takes the process down at its first call would do so at every start. The note that stays tells the next
start, which asks the next compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from attrs import define

__all__ = ["FirstCall", "crashed"]


class Notes(Protocol):
    """Where it is noted."""

    def running(self, key: str, what: str = "") -> AbstractContextManager[None]:
        """Note a key for as long as the block runs."""


@define(eq=False)
class FirstCall:
    """The first call of a compiled piece, which equal pieces share.

    Attributes:
        key: what the journal calls the piece, its box and the compiler.
        what: the same for people.
        notes: the journal; None where there is none.
        is_over: whether a call has returned.
    """

    key: str
    what: str = ""
    notes: Notes | None = None
    is_over: bool = False

    def anew(self) -> FirstCall:
        """Return the same for what is put in the place of the piece."""
        return FirstCall(self.key, self.what, self.notes)

    @property
    def is_due(self) -> bool:
        """Say whether the next call is to be noted."""
        return self.notes is not None and not self.is_over

    def noting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a callable whose calls are noted until one has returned."""

        def noted(*inputs: Any) -> Any:
            if self.notes is None or self.is_over:
                return function(*inputs)
            with self.notes.running(self.key, self.what):
                result = function(*inputs)
            self.is_over = True
            return result

        return noted


def crashed(pid: int) -> str:
    """Return how to tell that a first call took down a process."""
    return f"what it made took down process {pid} in its first call"
