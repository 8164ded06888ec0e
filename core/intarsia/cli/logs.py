"""Log lines of the command line: one readable line each, and a traceback only where it is asked for."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from intarsia.errors import ConfigError, nearest

__all__ = ["readable_logs"]


class _OneLine(logging.Formatter):
    def __init__(self, with_traceback: bool) -> None:
        super().__init__("intarsia: %(levelname)s: %(message)s")
        self.with_traceback = with_traceback

    def format(self, record: logging.LogRecord) -> str:
        if self.with_traceback:
            return super().format(record)
        text: str = self._fmt or ""
        return text % {"levelname": record.levelname.lower(), "message": record.getMessage()}


@contextmanager
def readable_logs(with_traceback: bool = False, *, silent: bool = False) -> Iterator[None]:
    """Print intarsia's own log lines to standard error while the block runs, or nowhere if `silent`."""
    handler = logging.NullHandler() if silent else logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine(with_traceback))
    log = logging.getLogger("intarsia")
    before = log.level
    log.setLevel(_level() or before)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


def _level() -> int | None:
    """Return the level that INTARSIA_LOG names, None where it is not set.

    Raises:
        ConfigError: it names no level.
    """
    name = os.environ.get("INTARSIA_LOG", "").strip()
    if not name:
        return None
    levels = {key.lower(): value for key, value in logging.getLevelNamesMapping().items()}
    if name.lower() not in levels:
        raise ConfigError(
            f'INTARSIA_LOG is "{name}", which is no level', next_step=nearest(name.lower(), levels),
            subject="INTARSIA_LOG",
        )  # fmt: skip
    return levels[name.lower()]
