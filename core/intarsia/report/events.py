"""One stream of events for each compiled model: progress, counters, logs and supervisors all read it."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from attrs import define, field

from intarsia.interfaces import Event

log = logging.getLogger("intarsia")

Listener = Callable[[Event], None]
_HEARTBEAT = 5.0
"""Seconds: while a phase is busy, an event comes at least this often."""


@define
class EventStream:
    """Sends a model's events to everybody who listens, and keeps the seconds of each phase.

    Attributes:
        model: the model's name, which prefixes its log lines.
        listeners: called in order; an exception in one is logged and stops nothing.
        seconds: phase -> seconds spent in it.
        counters: event counters: "fallback", "uncovered"...
    """

    model: str
    listeners: tuple[Listener, ...] = ()
    seconds: dict[str, float] = field(factory=dict)
    counters: dict[str, int] = field(factory=dict)
    reasons: dict[str, int] = field(factory=dict)
    _started: float = field(factory=time.monotonic, alias="_started")
    _lock: threading.Lock = field(factory=threading.Lock, alias="_lock", repr=False)

    def send(
        self, kind: str, *, phase: str = "", done: int = 0, total: int = 0, message: str = "",
        data: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Send one event to every listener."""
        event = Event(
            kind, self.model, phase, done, total, time.monotonic() - self._started, message,
            dict(data or {}),
        )  # fmt: skip
        for listener in self.listeners:
            try:
                listener(event)
            except Exception:
                log.exception("%s: a listener failed on the event %s", self.model, kind)

    def count(self, name: str, reason: str = "") -> int:
        """Count something that happened on a call; returns how often it has by now."""
        with self._lock:
            self.counters[name] = self.counters.get(name, 0) + 1
            if reason:
                key = f"{name}: {reason}"
                self.reasons[key] = self.reasons.get(key, 0) + 1
            return self.counters[name]

    def gauge(self, name: str, value: int) -> None:
        """Set a counter to what it is now."""
        with self._lock:
            self.counters[name] = value

    def warn(self, message: str, kind: str = "warning", **data: Any) -> None:
        """Log a warning and send it as an event."""
        log.warning("%s: %s", self.model, message)
        self.send(kind, message=message, data=data)

    def miss(self, kind: str, name: str, explain: Callable[[], str]) -> None:
        """Count a cache miss, and say in one line which factor differs from the nearest entry."""
        self.count("miss", kind)
        line = f"cache miss for the {kind} {name}: {explain()}"
        log.info("%s: %s", self.model, line)
        self.send("miss", message=line, data={"kind": kind, "name": name})

    def spent(self, phase: str, seconds: float) -> None:
        """Add seconds to a phase that no block can be put around."""
        with self._lock:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    @contextlib.contextmanager
    def phase(self, name: str, total: int = 0) -> Iterator[Callable[[str], None]]:
        """Time a phase; the block gets a function that counts one step as done.

        While the block runs, a heartbeat tells the listeners at least every 5 s that it is alive.
        """
        progress = _Progress(self, name, total)
        self.send("phase-start", phase=name, total=total)
        begun = time.monotonic()
        try:
            with progress.beating():
                yield progress.step
        finally:
            spent = time.monotonic() - begun
            self.spent(name, spent)
        self.send("phase-end", phase=name, done=progress.done, total=total,
                  data={"seconds": spent})  # fmt: skip


@define
class _Progress:
    stream: EventStream
    phase: str
    total: int
    done: int = 0
    message: str = ""
    stop: threading.Event = field(factory=threading.Event)

    def step(self, message: str) -> None:
        self.done += 1
        self.message = message
        self._tell()

    def _tell(self) -> None:
        self.stream.send(
            "progress", phase=self.phase, done=self.done, total=self.total, message=self.message
        )

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        if not self.stream.listeners:
            yield
            return
        thread = threading.Thread(target=self._beat, name="intarsia-progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.stop.set()
            thread.join()

    def _beat(self) -> None:
        while not self.stop.wait(_HEARTBEAT * 0.8):
            self._tell()
