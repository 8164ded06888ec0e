"""Compile as a user would, call, and compare with eager."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

import intarsia
from intarsia.runtime.memory import copied
from intarsia.testing.conformance.graphs import GraphCase
from intarsia.testing.conformance.subject import Subject

__all__ = ["agree", "compile_case", "compiled_by", "follow", "results"]


def compile_case(subject: Subject, case: GraphCase, **settings: Any) -> tuple[Any, Any]:
    """Compile a case by the compiler under test alone; returns the compiled function and the plain one."""
    torch.manual_seed(0)
    function = case.make()
    if isinstance(function, torch.nn.Module):
        function = function.to(subject.device)
    args = case.inputs(subject.device, 4)
    return compiled_by(subject, function, args, case.dynamic, **case.settings, **settings), function


def compiled_by(
    subject: Subject, function: Any, args: Sequence[Any],
    dynamic: Mapping[str, Mapping[int, str]] | None = None, **settings: Any,
) -> Any:  # fmt: skip
    """Compile a function by the compiler under test alone, and see that nobody else did.

    Raises:
        IntarsiaError: it refuses, or fails.
        AssertionError: another compiler was used in its place.
    """
    resolved, host = subject.host(
        **{"compilers": [subject.name], "strict": True, "check": "always", **settings}
    )
    made = intarsia.compile(
        function, tuple(args), dynamic=dynamic or None, config=resolved, host=host
    )
    others = [
        f"{box.compiler} for {box.box}" for piece in made.report.piece_reports
        if piece.kind == "compiled" for box in piece.boxes[:1] if box.compiler != subject.name
    ]  # fmt: skip
    assert not others, f"{others[0]} was used in the place of {subject.name}"
    return made


def agree(
    subject: Subject, compiled: Any, function: Callable[..., Any], args: Sequence[Any]
) -> None:
    """Call both on equal inputs, and compare results and what was written to the inputs.

    Raises:
        AssertionError: they differ.
    """
    every = range(len(args))
    mine, theirs = copied(args, every), copied(args, every)
    with torch.no_grad():
        made, expected = compiled(*mine), function(*theirs)
    _same(subject, made, expected, "result")
    _same(subject, mine, theirs, "input after the call")


def follow(subject: Subject, compiled: Any, function: Any, case: GraphCase) -> None:
    """Call a compiled case at all its sizes, and compare."""
    for seed, n in enumerate(case.sizes):
        torch.manual_seed(seed + 1)
        agree(subject, compiled, function, case.inputs(subject.device, n))


def results(compiled: Any, args: Sequence[Any]) -> list[torch.Tensor]:
    """Return the tensors that a call returns."""
    with torch.no_grad():
        return [x for x in pytree.tree_leaves(compiled(*args)) if isinstance(x, torch.Tensor)]


def _same(subject: Subject, made: Any, expected: Any, what: str) -> None:
    one, other = pytree.tree_leaves(made), pytree.tree_leaves(expected)
    assert len(one) == len(other), f"there are {len(one)} values and not {len(other)}"
    for number, (mine, theirs) in enumerate(zip(one, other, strict=True)):
        if not isinstance(theirs, torch.Tensor):
            assert mine == theirs, f"{what} {number} is {mine} and not {theirs}"
            continue
        for fact in ("dtype", "shape", "device"):
            left, right = getattr(mine, fact), getattr(theirs, fact)
            assert left == right, f"{what} {number} has the {fact} {left} and not {right}"
        error = subject.tolerance(str(theirs.dtype).removeprefix("torch."))
        title = f"{what} {number}: "
        torch.testing.assert_close(mine, theirs, rtol=error, atol=error, msg=title.__add__)
