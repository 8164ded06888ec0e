"""Times what every candidate makes of a piece, in turns, and keeps the fastest that agrees with eager."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from attrs import define, evolve, field

from intarsia.capture.nodes import unfilled_results
from intarsia.errors import CompileFailed, CompileRejected, ConfigError, PassError
from intarsia.interfaces import (
    CompileRequest,
    CompileResult,
    Decision,
    DeviceOps,
    OpView,
    OtherCompilers,
    PieceSignature,
)
from intarsia.runtime.memory import copied
from intarsia.runtime.verify import difference
from intarsia_auto.inputs import CannotMake, random_inputs, sizes

WARM_UPS = 2


class Chosen:
    """What a candidate made, with the candidate's name, by which weights are bound."""

    def __init__(self, compiler: str, function: Callable[..., Any]) -> None:
        self.compiler, self.function = compiler, function
        self.boxed_call = bool(getattr(function, "boxed_call", False))

    def __call__(self, *inputs: Any) -> Any:
        """Run the piece."""
        return self.function(*inputs)

    def close(self) -> None:
        """Close what the candidate made, if it can be."""
        close = getattr(self.function, "close", None)
        if close is not None:
            close()


@define
class Candidate:
    """One compiler's try.

    Attributes:
        result: what it made, or None.
        problem: why it cannot win, or "".
        seconds: of each timed call.
    """

    name: str
    result: CompileResult | None = None
    problem: str = ""
    error: Exception | None = None
    seconds: list[float] = field(factory=list)

    @property
    def median(self) -> float:
        """The seconds of a call."""
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        if self.problem:
            return f"{self.name}: {self.problem}"
        return (
            f"{self.name} {self.median * 1e6:.1f} us" if self.seconds else f"{self.name} not timed"
        )


class AutoCompiler:
    """The `Compiler` that chooses among others."""

    def __init__(
        self, options: Mapping[str, Any], device: int | None, others: OtherCompilers
    ) -> None:
        self.named = tuple(options["candidates"])
        self.rounds, self.budget = int(options["rounds"]), float(options["seconds"])
        self.margin = float(options["margin"])
        self.others, self.device = others, device
        if self.rounds < 1 or self.margin < 0:
            raise ConfigError(
                "auto cannot time so", why=f"rounds = {self.rounds}, margin = {self.margin}",
                next_step="rounds is at least 1, and margin at least 0.", subject="options.auto",
            )  # fmt: skip

    def compile(self, request: CompileRequest) -> CompileResult:
        """Compile a piece with every candidate and return what the fastest made.

        Raises:
            CompileRejected: all candidates declined.
            CompileFailed: none is left, and one of them failed.
        """
        names = self.named or self.others.names(request.device_type)
        tried = [self._tried(name, request) for name in names]
        why = self._timed(tried, request)
        left = [one for one in tried if not one.problem]
        if not left:
            raise _none_left(tried, request.name)
        winner = fastest(left, self.margin)
        for one in tried:
            close = getattr(one.result and one.result.callable, "close", None)
            if one is not winner and close is not None:
                close()
        result = winner.result
        assert result is not None
        request.pass_runs.extend(result.passes)
        data = None
        if result.artifact is not None:
            data = json.dumps({"compiler": winner.name}).encode() + b"\n" + result.artifact
        note = f"{winner.name}, {why}: {', '.join(map(str, tried))}"
        return evolve(
            result, callable=Chosen(winner.name, result.callable), artifact=data, note=note
        )

    def _tried(self, name: str, request: CompileRequest) -> Candidate:
        try:
            return Candidate(name, self.others.compile(name, request))
        except (PassError, ConfigError):
            raise  # the user's, whoever compiles
        except CompileRejected as error:
            return Candidate(name, problem=f"rejected ({error})")
        except Exception as error:
            return Candidate(name, problem=f"failed ({type(error).__name__}: {error})", error=error)

    def _timed(self, tried: Sequence[Candidate], request: CompileRequest) -> str:
        """Check and time those that compiled; returns why the one that will win does."""
        left = [one for one in tried if one.result is not None]
        if len(tried) == 1:
            return "the only candidate"
        symbols = sizes(request)
        try:
            inputs = random_inputs(request, symbols)
            with torch.no_grad():
                given = copied(inputs, request.signature.mutated)
                expected = list(request.graph(*given))
        except (
            Exception
        ) as error:  # an operator that does not take any values, or a size nobody has
            kind = "" if isinstance(error, CannotMake) else f"{type(error).__name__}: "
            return f"the first that compiles, as eager cannot run random inputs ({kind}{error})"
        ops = self.others.device_ops(request.device_type)
        for one in left:
            _check(
                one, inputs, [*expected, *(given[i] for i in request.signature.mutated)], request
            )
        _time(
            [one for one in left if not one.problem], inputs, request, ops, self.rounds, self.budget
        )
        at = ", ".join(f"{name} = {size}" for name, size in symbols.items())
        return f"the fastest{f' at {at}' if at else ''}"

    def load(
        self, artifact: bytes, signature: PieceSignature, device: int | None
    ) -> Callable[..., Sequence[Any]]:
        """Restore what the chosen compiler made; nothing is timed."""
        head, _, data = artifact.partition(b"\n")
        name = json.loads(head)["compiler"]
        return Chosen(name, self.others.load(name, data, signature, device))

    def bind(self, function: Chosen, weights: Mapping[int, torch.Tensor]) -> Callable[..., Any]:
        """Bind as the chosen compiler does; the chosen callable itself is what is called then."""
        return self.others.bind(function.compiler, function.function, weights)

    def factors(self) -> Mapping[str, str] | None:
        """Return the identities of all candidates; None where one of them is never cached."""
        names = self.named or self.others.names()
        found = {"candidates": " ".join(names)}
        for name in names:
            own = self.others.factors(name)
            if own is None:
                return None
            found.update(own)
        return found

    def supports(self, op: OpView) -> Decision:
        """Take what a candidate takes."""
        answers = [self.others.supports(name, op) for name in self.named or self.others.names()]
        return next((a for a in answers if a), Decision(False, f"no candidate takes {op.name}"))


def fastest(left: Sequence[Candidate], margin: float) -> Candidate:
    """Return the first candidate that none is faster than by more than the margin."""
    if not all(one.seconds for one in left):
        return left[0]
    least = min(one.median for one in left)
    return next(one for one in left if one.median <= least * (1 + margin))


def _check(
    one: Candidate, inputs: Sequence[Any], expected: Sequence[Any], request: CompileRequest
) -> None:
    """Note as a problem what a candidate returns or writes that is not eager's."""
    assert one.result is not None
    given = copied(inputs, request.signature.mutated)
    try:
        with torch.no_grad():
            found = list(one.result.run(given))
    except Exception as error:
        one.problem, one.error = f"failed in a call ({type(error).__name__}: {error})", error
        return
    found += [given[i] for i in request.signature.mutated]
    unfilled = unfilled_results(request.graph.graph)
    if len(found) != len(expected):
        one.problem = "differs from eager (another number of outputs)"
        return
    for number, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        if number in unfilled:
            continue
        far, reason = difference(mine, theirs)
        if far or reason:
            one.problem = f"differs from eager ({reason or f'by {far:.2g} of its largest value'})"
            return


def _time(
    left: Sequence[Candidate], inputs: Sequence[Any], request: CompileRequest, ops: DeviceOps,
    rounds: int, budget: float,
) -> None:  # fmt: skip
    """Time candidates in turns, so that noise meets all alike; at least one round whatever the budget."""
    written = request.signature.mutated
    end = 0.0
    with torch.no_grad():
        for number in range(WARM_UPS + rounds):
            if number == WARM_UPS:
                end = time.perf_counter() + budget
            for one in left:
                assert one.result is not None
                given = copied(inputs, written)
                ops.synchronize()
                start = time.perf_counter()
                one.result.run(given)
                ops.synchronize()
                if number >= WARM_UPS:
                    one.seconds.append(time.perf_counter() - start)
            if number >= WARM_UPS and time.perf_counter() > end:
                return


def _none_left(tried: Sequence[Candidate], name: str) -> Exception:
    told = ", ".join(map(str, tried)) or "there is none"
    cause = next((one.error for one in tried if one.error is not None), None)
    if cause is None:
        return CompileRejected(f"no candidate of auto takes it: {told}")
    error = CompileFailed(
        f"no candidate of auto compiles {name}", why=told,
        next_step="Name others in options.auto.candidates.", subject=name,
    )  # fmt: skip
    error.__cause__ = cause
    return error
