"""Soundness: what a compiler's own trace assumed about sizes must hold over the whole box.

A compiler that traces the piece again (Inductor, `torch.export`) decides on the example's sizes where it
cannot prove an answer, and notes the decision as a guard in the request's ShapeEnv. Nobody evaluates those
guards later, so they are read here: one that a size in the box breaks means that the artifact is wrong there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from attrs import evolve
from torch import fx

from intarsia import torch_compat
from intarsia.boxes_text import describe_box
from intarsia.capture.conditions import holds, only_about_one
from intarsia.capture.fake_values import NodeFailed, values_in
from intarsia.compiling.indexing import counts_of, follows
from intarsia.compiling.signature import fake_inputs, symbols_of
from intarsia.compiling.transport import fake_mode_of
from intarsia.errors import CompileRejected, PassError
from intarsia.interfaces import Compiler, CompileRequest, CompileResult

Counts = Callable[[], Sequence[Any]]


def compile_soundly(compiler: Compiler, request: CompileRequest) -> CompileResult:
    """Compile a piece, and refuse the result if it is not good for every size in the box.

    Raises:
        CompileRejected: the compiler declines the piece, or relied on sizes that the box does not keep.
        PassError: a pass spoilt the piece, and `strict` is on; whatever the compiler made of the error.
    """
    counts = _counts(request)
    try:
        result = compiler.compile(request)
    except Exception as error:
        spoilt = _pass_error(error)
        if spoilt is None or spoilt is error:
            raise
        raise spoilt from spoilt.__cause__
    refuse_assumptions(request, counts)
    return evolve(result, passes=tuple(request.pass_runs))


def _pass_error(error: BaseException | None) -> PassError | None:
    """Return the error of a pass that another error was raised from: passes run inside compilers."""
    while error is not None and not isinstance(error, PassError):
        error = error.__cause__ or error.__context__
    return error


def _counts(request: CompileRequest) -> Counts:
    """Return what counts the elements of a piece's tensors as they are now, if it is asked.

    There is nothing to count where a box bounds every tensor by itself: only products of several sizes are
    bounded together, see `intarsia.compiling.indexing`.
    """
    free = [name for name, (low, high) in request.box.items() if low != high]
    if request.device_type == "cpu" or len(free) < 2 or request.hints:
        return _nothing
    graph = fx.Graph(owning_module=request.graph)  # the compiler may change its own
    graph.output(graph.graph_copy(request.graph.graph, {}))

    @functools.cache
    def counts() -> Sequence[Any]:
        _, fakes = fake_inputs(
            request.signature, request.device
        )  # symbols are equal by their names
        try:
            return counts_of(values_in(graph, fakes).values())
        except NodeFailed:
            return ()  # nothing is known, so nothing may be relied on

    return counts


def _nothing() -> Sequence[Any]:
    return ()


def refuse_assumptions(request: CompileRequest, counts: Counts = _nothing) -> None:
    """Refuse what a compile noted about sizes if the request's box does not keep it.

    With hints the box is not what decides (the front door keeps its own conditions), so that what the
    traced sizes imply is not refused.

    Args:
        counts: returns how many elements tensors of the piece have; none has more than `MOST_ELEMENTS` in a
            call. It is asked where the box alone does not answer.

    Raises:
        CompileRejected: with the condition.
    """
    mode = fake_mode_of(request)
    if mode is None or mode.shape_env is None or request.hints:
        return
    names = symbols_of(mode, request.signature.box)
    ranges = {symbol: request.signature.box[name] for symbol, name in names.items()}
    for guard in torch_compat.shape_guards(mode.shape_env):
        known = guard.expression.free_symbols <= set(ranges)
        if not known or only_about_one(guard.expression):
            continue
        if holds(guard.expression, ranges) is True:
            continue
        if not counts() or not follows(guard.expression, counts(), ranges):
            text = torch_compat.readable(guard.expression, names)
            raise CompileRejected(
                f"it relied on {text}, which does not hold everywhere in "
                f"{describe_box(request.signature.box)}; boxes or dynamic_ranges within it would do"
            )
