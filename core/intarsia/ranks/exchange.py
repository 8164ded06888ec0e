"""The ranks of a `torch.distributed` job as an exchange: over the key-value store that they share.

No collective is used: one that a rank does not join hangs, and a second one cannot say so.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from attrs import define

from intarsia import torch_compat
from intarsia.errors import ConfigError
from intarsia.ranks.protocol import Exchange, RoundEnded

_COMPLETE = b"complete"
_SLICE = 1.0
"""How many seconds one wait for the store lasts: other threads may need its connection."""
_GRACE = 10.0
"""How many seconds a decision that another rank has made may take to be there."""


def exchange_of(given: Any) -> Exchange | None:
    """Return what the argument `exchange` means: None, "torch", or an object with the methods.

    Raises:
        ConfigError: it is something else, or there is no job.
    """
    if given is None:
        return None
    if given == "torch":
        return TorchExchange.of_group()
    if isinstance(given, Exchange):
        return given
    raise ConfigError(
        f"exchange = {given!r} is no exchange",
        why="it has not the methods of intarsia.Exchange",
        next_step='Give "torch", a TorchExchange, an object with these methods, or None.',
        subject="exchange",
    )


@define
class TorchExchange:
    """An exchange over a `torch.distributed.Store`.

    How a round ends is decided once, by whoever comes first to "all are there", "I have failed" or "it is
    too late"; every rank, also one that comes afterwards, is told that decision.

    Attributes:
        store: TCPStore, FileStore, or any other with `set`, `get`, `add` and `wait`.
        rank: this process, from 0.
        size: how many there are.
    """

    store: Any
    rank: int
    size: int

    @staticmethod
    def of_group(group: dist.ProcessGroup | None = None) -> TorchExchange:
        """Return the exchange of the ranks of a process group; None: of all.

        Raises:
            ConfigError: `torch.distributed` is not initialised, or this process is not in the group.
        """
        if not (dist.is_available() and dist.is_initialized()):
            raise ConfigError(
                "there are no ranks to exchange plans with",
                why="torch.distributed is not initialised",
                next_step="Call torch.distributed.init_process_group before intarsia.compile.",
                subject="exchange",
            )
        members = dist.get_process_group_ranks(group)
        if dist.get_rank() not in members:
            raise ConfigError(
                f"rank {dist.get_rank()} is not in the group that is to exchange plans",
                why=f"its ranks are {members}", subject="exchange",
            )  # fmt: skip
        store = torch_compat.default_store()
        name = "all" if len(members) == dist.get_world_size() else "-".join(map(str, members))
        mine = dist.PrefixStore(f"intarsia/{name}", store)
        return TorchExchange(mine, members.index(dist.get_rank()), len(members))

    def begin(self, name: str) -> str:
        """Return the key of the next compile: its name, and how many of that name have begun."""
        return f"{name}/{self.store.add(f'{name}/begun/{self.rank}', 1)}"

    def gather(self, key: str, value: bytes, deadline: float) -> Sequence[bytes]:
        """Give a value and return those of all ranks, by rank."""
        try:
            return self._gather(key, value, deadline)
        except RuntimeError as error:  # the errors of torch's stores
            raise RoundEnded(f"the ranks' store does not answer: {error}") from error

    def end(self, key: str, why: str) -> None:
        """End a round that cannot become complete: who waits for it, or will, raises."""
        try:
            self._decide(key, why.encode())
        except RuntimeError as error:
            raise RoundEnded(f"the ranks' store does not answer: {error}") from error

    # -- steps

    def _gather(self, key: str, value: bytes, deadline: float) -> Sequence[bytes]:
        self.store.set(f"{key}/{self.rank}", value)
        if self.store.add(f"{key}/given", 1) == self.size:
            self._decide(key, _COMPLETE)
        if not self._decided(key, deadline):
            missing = [
                str(r) for r in range(self.size) if not self.store.check([f"{key}/{r}"])
            ]  # fmt: skip
            late = f"rank {', '.join(missing)} did not come within {deadline:g} s"
            self._decide(key, late.encode())
            if not self._decided(key, _GRACE):
                raise RoundEnded(f"{late}, and no rank has said how the round ended")
        verdict = self.store.get(f"{key}/decision")
        if verdict != _COMPLETE:
            raise RoundEnded(verdict.decode())
        return [self.store.get(f"{key}/{r}") for r in range(self.size)]

    def _decide(self, key: str, verdict: bytes) -> None:
        if self.store.add(f"{key}/deciders", 1) == 1:
            self.store.set(f"{key}/decision", verdict)

    def _decided(self, key: str, seconds: float) -> bool:
        """Wait until it is decided how a round ended; says whether it was in time."""
        end = time.monotonic() + seconds
        while not self.store.check([f"{key}/decision"]):
            left = end - time.monotonic()
            if left <= 0:
                return False
            begun = time.monotonic()
            try:
                self.store.wait([f"{key}/decision"], timedelta(seconds=min(left, _SLICE)))
            except RuntimeError:
                if time.monotonic() - begun < min(left, _SLICE) / 2:  # not for lack of time
                    raise
        return True
