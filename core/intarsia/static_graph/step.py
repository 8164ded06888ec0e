"""The step that a call belongs to: its dispatch key, and the mode of static graphs to run it in."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator
from contextvars import ContextVar
from typing import Literal

from attrs import frozen

from intarsia.errors import ConfigError

Mode = Literal["none", "piecewise", "full"]
MODES: tuple[Mode, ...] = ("none", "piecewise", "full")


@frozen
class Step:
    """What the caller says of the calls inside a `with intarsia.step(...)` block.

    Attributes:
        key: tells apart what the sizes of a call do not: None where nothing does.
        mode: the mode to run in; None: the best that was recorded.
    """

    key: Hashable = None
    mode: Mode | None = None


_NO_STEP = Step()
_STEP: ContextVar[Step] = ContextVar("intarsia_step", default=_NO_STEP)

current_step = _STEP.get
"""Return the step of the present call."""


@contextlib.contextmanager
def step(key: Hashable = None, mode: Mode | None = None) -> Iterator[None]:
    """Run the calls inside the block under a dispatch key and in a mode.

    A recording is replayed only under the key that it was made under: the key tells apart calls of equal
    sizes that do different work, as those of an attention operator whose Python side has read other
    metadata.

    Args:
        key: anything hashable; None is a key as any other.
        mode: "none", "piecewise" or "full"; None: the best that was recorded for the call.

    Raises:
        ConfigError: the mode is none of these, or the key cannot be hashed.
    """
    if mode is not None and mode not in MODES:
        raise ConfigError(
            f"the mode of a step cannot be {mode!r}", next_step=f"Choose one of {', '.join(MODES)}.",
            subject="mode",
        )  # fmt: skip
    try:
        hash(key)
    except TypeError as error:
        raise ConfigError(f"the key of a step cannot be hashed: {error}", subject="key") from error
    token = _STEP.set(Step(key, mode))
    try:
        yield
    finally:
        _STEP.reset(token)
