"""Two rounds in which ranks compare what they compile: before they compile it, and before they use it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from attrs import define

from intarsia.digests import plain_digest
from intarsia.errors import MismatchError
from intarsia.ranks.difference import Notes, Summary, difference
from intarsia.ranks.exchange import exchange_of
from intarsia.ranks.protocol import Exchange, RoundEnded
from intarsia.report.records import Report

_SHOWN = 3
"""How many differences an error names."""
_DIFFERENCES = 60.0
"""How many seconds ranks that are known to be there may take to say in what they differ."""


@contextlib.contextmanager
def agreeing(given: Any, name: str | None, first: str = "setup") -> Iterator[Agreement]:
    """Compare what a block compiles with the other ranks; where it fails, they are told at once.

    Args:
        given: the argument `exchange`.
        name: the name that the user gave the model, or None.
        first: the first round: "setup", or "plan" where nothing is compiled.

    Raises:
        MismatchError: another rank has something else, has failed, or is late. All ranks raise it,
            except one that has an error of its own.
    """
    exchange = exchange_of(given)
    if exchange is None:
        yield Agreement(None, "", 0)
        return
    agreement = Agreement(exchange, exchange.begin(name or "model"), exchange.rank, first)
    try:
        yield agreement
    except BaseException as error:
        agreement.tell(error)
        raise


@define
class Agreement:
    """The rounds of one compile, on this rank; without an exchange nothing is compared.

    Attributes:
        key: what the rounds' keys begin with.
        open: the round that this rank has not finished yet, or "".
    """

    exchange: Exchange | None
    key: str
    rank: int
    open: str = "setup"

    def setup(self, mine: Summary, deadline: float) -> None:
        """Compare what is asked for, and with which plugins, before anything is compiled.

        Raises:
            MismatchError.
        """
        self._round("setup", mine, {}, deadline)
        self.open = "plan"

    def plan_of(self, make: Callable[[], Report], deadline: float) -> None:
        """Compare what was made, before it is used.

        Raises:
            MismatchError.
        """
        if self.exchange is None:
            return
        from intarsia.ranks.summary import notes_of, plan_of

        report = make()
        self._round("plan", plan_of(report), notes_of(report), deadline)
        self.open = ""

    def tell(self, error: BaseException) -> None:
        """Tell the other ranks that this one has failed, if they may be waiting for it."""
        if self.exchange is None or not self.open:
            return
        with contextlib.suppress(RoundEnded):  # the error itself is on its way to the caller
            self.exchange.end(
                f"{self.key}/{self.open}", f"rank {self.rank} failed: {_text(error)}"
            )  # fmt: skip

    def _round(self, name: str, mine: Summary, notes: Notes, deadline: float) -> None:
        if self.exchange is None:
            return
        try:
            digests = self.exchange.gather(
                f"{self.key}/{name}", plain_digest(dict(mine)).encode(), deadline
            )
            if len(set(digests)) == 1:
                return
            self.open = ""  # every rank knows that they differ
            payload = json.dumps([dict(mine), dict(notes)]).encode()
            told = self.exchange.gather(f"{self.key}/{name} differs", payload, _DIFFERENCES)
        except RoundEnded as error:
            self.open = ""  # that round has ended for all
            raise _disagree(str(error)) from error
        raise _disagree("; ".join(_differences([json.loads(text) for text in told])))


def _differences(told: Sequence[Any]) -> list[str]:
    """Return what each rank has other than the first, one line for each thing and set of ranks."""
    first, first_notes = told[0]
    found: dict[str, list[int]] = {}
    for rank, (summary, notes) in enumerate(told):
        for line in difference(first, summary, first_notes, notes):
            found.setdefault(line, []).append(rank)
    lines = [
        line.format(left="on rank 0", right=f"on rank {', '.join(map(str, ranks))}")
        for line, ranks in found.items()
    ]
    more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return [*lines[:_SHOWN], *more]


def _disagree(why: str) -> MismatchError:
    return MismatchError(
        "the ranks do not have the same plan", why=why,
        next_step="No rank goes on: each raises, and nothing of the model has run.",
    )  # fmt: skip


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def check_expected(expected: Mapping[str, Any] | None, part: str, mine: Summary) -> None:
    """Make sure that a process has what another one, whose manifest came along, has compiled with.

    Args:
        expected: the manifest, or None: nothing is compared.
        part: "setup" or "plan".
        mine: what there is here.

    Raises:
        MismatchError: it differs; what differs is named.
    """
    if expected is None or part not in expected:
        return
    lines = [
        line.format(left="in the manifest's process", right="in this one")
        for line in difference(expected[part], _without_more_plugins(mine, expected[part]), {}, {})
    ]
    if lines:
        raise MismatchError(
            "this process cannot make the plan of its manifest", why="; ".join(lines[:_SHOWN]),
            next_step="Give it the same settings, plugins and versions.",
        )  # fmt: skip


def _without_more_plugins(mine: Summary, expected: Summary) -> Summary:
    """Leave out plugins that the other process did not have: those that decide anything are factors, too."""
    return {n: v for n, v in mine.items() if n in expected or not n.startswith('plugin "')}
