"""The errors that intarsia raises.

Every message answers, in this order: what happened, to which thing, why, and what to do next. The same
four parts are attributes, so that a program does not have to parse the message.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "CacheError",
    "CaptureError",
    "CompileFailed",
    "CompileRejected",
    "ConfigError",
    "ContractError",
    "IntarsiaError",
    "MetadataError",
    "MismatchError",
    "PassError",
    "PluginError",
    "RecordError",
    "ShapeError",
    "SplitError",
    "UnsupportedTorchError",
    "nearest",
]


class IntarsiaError(Exception):
    """The base of every error that intarsia raises on purpose.

    Attributes:
        what: what happened, to which thing; one clause without a full stop.
        why: the reason, or "" where `what` says it all.
        next_step: what the reader can do about it, or "".
        subject: the name of the thing it happened to (a key, a plugin, a piece), or None.
    """

    def __init__(
        self, what: str, *, why: str = "", next_step: str = "", subject: str | None = None
    ) -> None:
        self.what = what
        self.why = why
        self.next_step = next_step
        self.subject = subject
        super().__init__(what, why, next_step)

    def __str__(self) -> str:
        text = f"{self.what}: {self.why}" if self.why else self.what
        # A reason is often another error's text, which may end in a full stop of its own.
        return f"{text.removesuffix('.')}. {self.next_step}" if self.next_step else text

    def __reduce__(self) -> tuple[object, ...]:
        # Errors travel back from compile workers; keyword-only arguments need help to be pickled.
        return _rebuild, (type(self), dict(self.__dict__))


def _rebuild(cls: type[IntarsiaError], state: dict[str, object]) -> IntarsiaError:
    error = cls.__new__(cls)
    error.__dict__.update(state)
    error.args = (state.get("what", ""), state.get("why", ""), state.get("next_step", ""))
    return error


class CacheError(IntarsiaError):
    """An entry of the cache cannot be used, and `strict` is on; or a command of the cache cannot be done."""


class ConfigError(IntarsiaError):
    """A setting is unknown, has the wrong type, or contradicts another one."""


class PluginError(IntarsiaError):
    """A plugin that was asked for cannot be used; its own exception is the `__cause__`."""


class CaptureError(IntarsiaError):
    """The model could not be captured as a graph."""


class PassError(IntarsiaError):
    """A graph pass failed, or left a graph that is another function; only raised in strict mode."""


class RecordError(IntarsiaError):
    """A static graph could not be recorded; what was recorded before is kept, and calls run without it."""


class ShapeError(CaptureError):
    """A requested shape box is not contained in what the captured graph is valid for."""


class SplitError(IntarsiaError):
    """A split rule gave an answer that cannot be made into pieces."""


class CompileRejected(IntarsiaError):
    """A compiler declines a piece; the next compiler in the route is asked.

    Compilers raise it with the reason alone: `raise CompileRejected("writes to its inputs")`.
    """


class CompileFailed(IntarsiaError):
    """No compiler in a piece's route could compile it, or one failed and `strict` is on."""


class ContractError(IntarsiaError):
    """A call does not fit what was captured: another structure, dtype, device, rank or fixed size."""


class MetadataError(IntarsiaError):
    """A piece returned something other than its recorded dtype, shape, stride or device."""


class MismatchError(IntarsiaError):
    """Processes that must have the same plan do not: ranks of a job, or a child with a manifest."""


class UnsupportedTorchError(IntarsiaError):
    """This torch lacks something that intarsia needs; raised before anything is compiled."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a sentence naming the nearest match and everything known: `did you mean "x"? Known: ...`."""
    names = sorted(set(known))
    listed = f"Known: {', '.join(names)}" if names else "None is known"
    match = get_close_matches(name, names, n=1, cutoff=0.5)
    return f'did you mean "{match[0]}"? {listed}' if match else listed
