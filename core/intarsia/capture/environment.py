"""The environment variables that a traced call reads.

Dynamo guards a variable that is there, and says nothing of one that is asked for and is not. Which names
are asked for, computed ones too, is told by the one function that every access to `os.environ` calls with
the name: while tracing, another one stands there, which Dynamo calls instead of tracing into it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch


@contextlib.contextmanager
def variables_read() -> Iterator[dict[str, None]]:
    """Yield the names, in order, of the variables that the code asks for that is traced in the block.

    It is entered with the tracing lock held. What other code asks for meanwhile, tracing itself
    included, is not listed.
    """
    names: dict[str, None] = {}
    tables: list[Any] = [os.environ, *([os.environb] if os.supports_bytes_environ else [])]
    originals = [(table, table.encodekey) for table in tables]
    for table, encode in originals:
        table.encodekey = _recording(encode, names)
    try:
        yield names
    finally:
        for table, encode in originals:
            table.encodekey = encode


def _recording(encode: Callable[[Any], Any], names: dict[str, None]) -> Callable[[Any], Any]:
    def encodekey(name: Any) -> Any:
        encoded = encode(name)
        # Python's own code calls it for whoever really runs; for traced code Dynamo does.
        if sys._getframe(1).f_globals is not vars(os):
            names[os.fsdecode(encoded)] = None
        return encoded

    recorder: Callable[[Any], Any] = torch.compiler.assume_constant_result(encodekey)
    return recorder
