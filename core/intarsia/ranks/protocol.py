"""What serves as an exchange: the contract, and how a round of it ends badly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable


class RoundEnded(Exception):
    """A round of an exchange ended without all values; the text says why, and is the same on all ranks."""


@runtime_checkable
class Exchange(Protocol):
    """How the ranks of a job tell each other what they have: the argument `exchange` of `intarsia.compile`.

    `intarsia.TorchExchange` is one for `torch.distributed`. How a round ends is the same for all ranks,
    also for one that comes after it has ended: else one goes on while another raises.
    """

    @property
    def rank(self) -> int:
        """This process, from 0."""

    @property
    def size(self) -> int:
        """How many ranks there are."""

    def begin(self, name: str) -> str:
        """Begin a compile; returns the start of its keys: the same on all ranks, another for each compile."""

    def gather(self, key: str, value: bytes, deadline: float) -> Sequence[bytes]:
        """Give a value and return those of all ranks, by rank.

        Raises:
            RoundEnded: a rank ended the round, or one did not come within `deadline` seconds.
        """

    def end(self, key: str, why: str) -> None:
        """End a round that cannot become complete, and return at once: who waits for it raises."""
