"""Compile tasks: one for each distinct (piece, box), each with its chain of compilers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from attrs import field, frozen

from intarsia.cache.journal import Crash
from intarsia.interfaces import Box, CompileResult, CompilerSpec, PieceSignature
from intarsia.report.records import Attempt
from intarsia.runtime.first_call import FirstCall

if TYPE_CHECKING:  # a start whose tasks are all in the cache imports none of these
    import torch

    from intarsia.compiling.instances import Instance
    from intarsia.compiling.routes import RouteChoice
    from intarsia.split.canonical import CanonicalPiece
    from intarsia.split.partition import Piece


@frozen
class Task:
    """One piece and one box, and the compilers to ask in order.

    Attributes:
        weights: input index -> tensor, for a compiler that bakes them in; None if none of them does.
    """

    piece: Piece
    canonical: CanonicalPiece
    box: Box
    choice: RouteChoice
    name: str
    hints: Mapping[str, int] = field(factory=dict)
    weights: Mapping[int, torch.Tensor] | None = field(default=None, eq=False, repr=False)

    def key(self, dedupe: bool) -> tuple[Any, ...]:
        """Return what equal tasks share."""
        own = tuple(sorted(self.canonical.box(self.box).items()))
        if not dedupe or not self.canonical.digest:
            return (self.name, own)
        hints = tuple(self.hints.get(name) for name in self.canonical.symbols)
        baked = tuple((i, id(w)) for i, w in sorted((self.weights or {}).items()))
        return (self.canonical.digest, own, self.choice.compilers, hints, baked)


@frozen
class Outcome:
    """What came of a task.

    Attributes:
        result: the compiled piece.
        compiler: the name of who compiled it.
        instance: the compiler itself, for `bind`.
        attempts: everybody who was asked.
        baked: the weights that are part of what was compiled, by input index; None: they stay inputs.
        watch: notes the first call of it in the crash journal, or None.
    """

    result: CompileResult
    compiler: str
    instance: Instance
    attempts: tuple[Attempt, ...]
    baked: Mapping[int, torch.Tensor] | None = field(default=None, eq=False, repr=False)
    watch: FirstCall | None = field(default=None, eq=False, repr=False)

    @property
    def fell_back(self) -> bool:
        """Say whether somebody else was asked first."""
        return len(self.attempts) > 1


class PieceCache(Protocol):
    """Where compiled pieces are kept. No method raises for what is wrong with the cache, except in
    strict mode."""

    def find(
        self, task: Task, spec: CompilerSpec, made: Instance, signature: PieceSignature
    ) -> CompileResult | None:
        """Return a compiled piece that is ready to run, or None."""

    def keep(self, task: Task, spec: CompilerSpec, result: CompileResult) -> None:
        """Keep a compiled piece that has an artifact."""

    def claim(
        self, task: Task, spec: CompilerSpec, wait: float | None = None
    ) -> AbstractContextManager[bool]:
        """Claim a piece among the processes that share the cache; the block gets whether it leads.

        A block that does not lead has waited for the leader to be done or gone. With `wait=0` it has
        not: it gets False at once where another process leads. None waits as long as the settings say.
        """


class Journal(Protocol):
    """Notes on disk what this process is compiling, so that the next one knows what took it down."""

    def running(self, key: str, what: str = "") -> AbstractContextManager[None]:
        """Note a key for as long as the block runs."""

    def culprit(self, key: str) -> Crash | None:
        """Return the crash of a process that was running a key, or None where there was none."""


def journal_key(task: Task, spec: CompilerSpec, *more: str) -> str:
    """Return what the journal calls a piece, its box and the compiler: a new version is not the culprit."""
    parts = [task.canonical.digest or task.name, sorted(task.canonical.box(task.box).items()),
             spec.name, spec.version, *more]  # fmt: skip
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def bakes(spec: CompilerSpec) -> bool:
    """Say whether a compiler makes the weights part of what it compiles."""
    return spec.capabilities.weights == "bake"


def describe(task: Task) -> str:
    """Return a task for messages: "model.piece_3 (41 nodes) for {tokens: 1..8}"."""
    from intarsia.boxes_text import describe_box

    return f"{task.name} ({len(task.piece.nodes)} nodes) for {describe_box(task.box)}"
