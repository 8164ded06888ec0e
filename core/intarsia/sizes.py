"""Sizes and strides as a signature writes them: numbers, or expressions over symbols."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import TypeAlias

from intarsia import torch_compat

__all__ = ["Size", "size_function"]

Size: TypeAlias = Callable[[Mapping[str, int]], int]
"""The value of an expression for the values of its symbols; a missing one is a KeyError."""

_NAME = re.compile(r"[A-Za-z_]\w*")
_FUNCTIONS: Mapping[str, Callable[..., int]] = {
    "FloorDiv": lambda a, b: a // b, "CleanDiv": lambda a, b: a // b, "Mod": lambda a, b: a % b,
    "PythonMod": lambda a, b: a % b, "CeilDiv": lambda a, b: -(-a // b), "Max": max, "Min": min,
    "ModularIndexing": lambda a, b, c: (a // b) % c,
}  # fmt: skip
"""The functions of torch's sympy in the sizes of models; with others sympy reads the expression."""


def size_function(size: int | str, symbols: Collection[str]) -> Size:
    """Return a function of the symbols' values for a size, e.g. for "2*n + 1"."""
    if isinstance(size, int):
        return lambda values: size
    names = set(_NAME.findall(size))
    free = sorted(names & set(symbols))
    if names <= {*symbols, *_FUNCTIONS}:
        code = compile(size, "<size>", "eval", dont_inherit=True)
        return lambda values: int(eval(code, {**_FUNCTIONS, **{n: values[n] for n in free}}))
    return _by_sympy(size, symbols)


def _by_sympy(size: str, symbols: Collection[str]) -> Size:
    import math

    import sympy  # a start that compiles nothing should not import it

    parsed = torch_compat.parse_expression(
        size, {name: sympy.Symbol(name, integer=True) for name in symbols}
    )
    free = sorted(str(s) for s in parsed.free_symbols)
    source = torch_compat.python_source(parsed, {s: str(s) for s in parsed.free_symbols})
    code = compile(source, "<size>", "eval")
    return lambda values: int(eval(code, {"math": math, **{n: values[n] for n in free}}))
