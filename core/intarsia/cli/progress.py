"""Progress on standard error: a bar on a terminal, plain lines elsewhere; nothing for what is quick."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from intarsia.interfaces import Event

__all__ = ["Progress", "progress"]

QUIET_FOR = 1.0
"""Seconds that pass before anything is shown."""

LINE_EVERY = 4.0
"""Seconds between plain lines, so that no log stays silent for more than 5 s."""


class _Display(Protocol):
    def show(self, text: str, done: int, total: int) -> None: ...

    def close(self) -> None: ...


class Progress:
    """Shows what is going on, once it has taken a second.

    It is called with the events of `intarsia.compile(..., on_event=progress)`, and `step` tells it of
    anything else. A thread repeats the last line, so a step may take as long as it likes.
    """

    def __init__(self, display: _Display | None = None) -> None:
        self._display = display or (_Bar() if sys.stderr.isatty() else _Lines())
        self._started = time.monotonic()
        self._state = ("", 0, 0)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="intarsia-cli", daemon=True)
        self._thread.start()

    def __call__(self, event: Event) -> None:
        """Show an event of a compile."""
        if event.kind not in ("phase-start", "progress", "phase-end"):
            return
        phase = f"{event.model}: {event.phase}"
        self.step(f"{phase} {event.message}".strip(), event.done, event.total)

    def step(self, text: str, done: int = 0, total: int = 0) -> None:
        """Say what is going on; total 0 means that nobody knows how long it will take."""
        with self._lock:
            self._state = (text, done, total)
            self._show()

    def close(self) -> None:
        """Take the bar away."""
        self._stop.set()
        self._thread.join()
        self._display.close()

    def _tick(self) -> None:
        while not self._stop.wait(0.5):
            with self._lock:
                self._show()

    def _show(self) -> None:
        if self._state[0] and time.monotonic() - self._started >= QUIET_FOR:
            self._display.show(*self._state)


class _Lines:
    """A line when the work has changed, but not more often than necessary."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._last = 0.0

    def show(self, text: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last < LINE_EVERY:
            return
        self._last = now
        count = f" ({done} of {total})" if total else ""
        print(f"[{now - self._started:6.1f} s] {text}{count}", file=sys.stderr, flush=True)

    def close(self) -> None:
        pass


class _Bar:
    """A rich progress bar that goes away when the work is done."""

    def __init__(self) -> None:
        from rich.console import Console  # 50 ms that only terminals need
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task("", total=None)
        self._open = False

    def show(self, text: str, done: int, total: int) -> None:
        if not self._open:
            self._bar.start()
            self._open = True
        self._bar.update(self._task, description=text, completed=done, total=total or None)

    def close(self) -> None:
        if self._open:
            self._bar.stop()


@contextmanager
def progress() -> Iterator[Progress]:
    """Show progress while the block runs."""
    shown = Progress()
    try:
        yield shown
    finally:
        shown.close()
