"""Compiled pieces in the cache: their keys, and how they are found, kept and claimed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import asdict, define, evolve, field

from intarsia.cache.cache import Cache
from intarsia.cache.entry import Entry, Unusable
from intarsia.cache.key import key_of
from intarsia.compiling.identity import (
    compiler_factors,
    platform_factors,
    torch_factors,
)
from intarsia.compiling.instances import Instance
from intarsia.digests import plain_digest
from intarsia.errors import CompileRejected
from intarsia.host import Host
from intarsia.interfaces import (
    CompileResult,
    CompilerSpec,
    IntInfo,
    PassRun,
    PieceSignature,
    PlatformSpec,
    Tier,
)
from intarsia.passes.plan import PassPlan
from intarsia.report.events import EventStream

KIND = "piece"


@define
class KeptPieces:
    """The compiled pieces of one compile, in a cache.

    Attributes:
        wait: how many seconds to wait for another process that compiles the same.
        passes: the passes of the compile.
        tiers: which artifacts are looked for, the best first.
    """

    cache: Cache
    host: Host
    platform: PlatformSpec
    device: int | None
    events: EventStream
    wait: float
    passes: PassPlan | None = None
    tiers: Sequence[Tier] = ("quick",)
    _common: Mapping[str, str] | None = field(default=None, init=False)
    _compilers: dict[str, Mapping[str, str] | None] = field(factory=dict, init=False)
    _missed: set[str] = field(factory=set, init=False)

    def factors(self, task: Any, spec: CompilerSpec, tier: Tier = "quick") -> dict[str, str] | None:
        """Return the factors of a task's key for a compiler; None: it is never kept."""
        own = self._compiler(spec)
        if own is None or not task.canonical.digest or spec.capabilities.weights == "bake":
            return None
        return {**self._shared(), **own, **piece_factors(task), "tier": tier}

    def find(
        self, task: Any, spec: CompilerSpec, made: Instance, signature: PieceSignature
    ) -> CompileResult | None:
        """Return a piece that was kept, loaded, of the best tier there is; None where there is none."""
        # A compiler with none of the wanted tiers makes one kind only, which is what it is asked for.
        wanted = [tier for tier in self.tiers if tier in spec.tiers] or ["quick"]
        factors = None
        for one in wanted:
            factors = self.factors(task, spec, one)
            if factors is None:
                return None
            found = self.cache.load(
                KIND, factors, lambda entry: loaded_piece(entry, made, signature, self.device)
            )
            if found is not None:
                return evolve(found, tier=one)
        if factors is not None and task.name not in self._missed:
            self._missed.add(task.name)  # it is looked for again once it is claimed
            self.events.miss(KIND, task.name, lambda: self._why_missed(factors))
        return None

    def _why_missed(self, factors: Mapping[str, str]) -> str:
        near = self.cache.nearest(KIND, factors)
        if near is not None and any(d.name == "piece graph" for d in near.differences):
            return "no entry of such a piece yet"
        return self.cache.explain_miss(KIND, factors)

    def keep(self, task: Any, spec: CompilerSpec, result: CompileResult) -> None:
        """Keep a compiled piece, if it left an artifact."""
        factors = self.factors(task, spec)
        if factors is not None and result.artifact is not None:
            meta = {
                "needs": list(result.needs), "note": result.note, "name": task.name,
                "passes": [asdict(run) for run in result.passes],
            }  # fmt: skip
            self.cache.save(KIND, factors, result.artifact, meta=meta)

    @contextlib.contextmanager
    def claim(self, task: Any, spec: CompilerSpec, wait: float | None = None) -> Iterator[bool]:
        """Lead the compile of a piece among all processes, or wait for the one that does.

        `wait` None: as long as the settings say.
        """
        factors = self.factors(task, spec)
        if factors is None:
            yield True
            return
        seconds = self.wait if wait is None else wait
        with self.cache.claim(key_of(KIND, factors), seconds) as leads:
            yield leads

    def _shared(self) -> Mapping[str, str]:
        if self._common is None:
            self._common = {
                **torch_factors(),
                **platform_factors(self.platform, self.device),
                **({} if self.passes is None else self.passes.factors()),
            }
        return self._common

    def _compiler(self, spec: CompilerSpec) -> Mapping[str, str] | None:
        if spec.name not in self._compilers:
            self._compilers[spec.name] = compiler_factors(spec, self.host, self.device)
        return self._compilers[spec.name]


def loaded_piece(
    entry: Entry, made: Instance, signature: PieceSignature, device: int | None
) -> CompileResult:
    """Return the piece of an entry.

    Raises:
        Unusable: it needs a module or operator that this process does not have, or its compiler says that
            the artifact is fine and cannot be used here.
        Whatever the compiler's `load` raises: the entry is moved aside then.
    """
    from intarsia.bundle.needs import ensure  # cycle: bundles are made of pieces

    needs = tuple(entry.meta["needs"])
    missing = ensure(needs, ())
    if missing:
        raise Unusable(f"it needs {missing}, which is not to be found in this process")
    artifact = bytes(entry.payload)
    try:
        function = made.compiler.load(artifact, signature, device)
    except CompileRejected as error:
        raise Unusable(str(error)) from error
    runs = tuple(PassRun(**run) for run in entry.meta.get("passes", ()))
    return CompileResult(function, artifact, needs, str(entry.meta["note"]), passes=runs)


def piece_factors(task: Any) -> dict[str, str]:
    """Return what a piece and its box add to the key, each aspect as a factor of its own."""
    form = task.canonical
    values = (*form.inputs, *form.outputs)
    shapes = [v.expression if isinstance(v, IntInfo) else list(v.shape) for v in values]
    tensors = [v for v in values if not isinstance(v, IntInfo)]
    graph, constants = without_constants(form.encoded)
    hints = [task.hints.get(name) for name in form.symbols]
    return {
        "piece graph": plain_digest(graph), "piece constants": plain_digest(constants),
        "piece shapes": json.dumps(shapes),
        "piece strides": json.dumps([list(v.stride) for v in tensors]),
        "piece dtypes": json.dumps([v.dtype for v in tensors]),
        "piece memory": plain_digest([
            [v.device_type, v.storage_offset, v.kind, v.alias_class, v.subclass, v.device_slot,
             v.requires_grad] for v in tensors
        ] + [list(form.mutated), len(form.inputs)]),
        "piece ranges": json.dumps([list(bounds) for bounds in form.ranges]),
        "box": json.dumps({n: list(bounds) for n, bounds in form.box(task.box).items()}),
        "example sizes": json.dumps(hints), "grad mode": "off",
    }  # fmt: skip


_CONSTANTS = ("float", "complex", "torch", "device", "enum", "bytes")


def without_constants(encoded: Any) -> tuple[Any, list[Any]]:
    """Return an encoded graph with its constants taken out, and the constants."""
    constants: list[Any] = []

    def visit(value: Any) -> Any:
        if isinstance(value, list):
            if value and value[0] == "node":
                return value
            if value and value[0] in _CONSTANTS:
                constants.append(value)
                return ["constant"]
            return [visit(item) for item in value]
        if isinstance(value, bool | int) or value is None:
            constants.append(value)
            return ["constant"]
        return value

    return visit(encoded), constants
