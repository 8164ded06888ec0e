"""Static graphs of the device: recorded launches, each recording on a stream of its own.

The device has few streams, and a recording keeps one as long as it lives: that is the resource that runs out
first, long before memory does.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import define

from intarsia.interfaces import Box, PieceSignature, Stream
from intarsia_toynpu import memory
from intarsia_toynpu.memory import Pool
from intarsia_toynpu.stream import Capture, CaptureError, Command, capture, set_capture

STREAMS = 10
"""How many streams the device has for recordings."""


class Streams:
    """The device's streams.

    Attributes:
        count: how many there are.
        used: how many recordings have one.
        highest: how many had one at most.
        replays: how often one of them was replayed.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.used = self.highest = self.replays = 0
        self._lock = threading.RLock()

    def take(self) -> None:
        """Take a stream.

        Raises:
            CaptureError: every one is used.
        """
        with self._lock:
            if self.used >= self.count:
                raise CaptureError(f"all {self.count} streams of toynpu are used")
            self.used += 1
            self.highest = max(self.highest, self.used)

    def give(self) -> None:
        """Give a stream back."""
        with self._lock:
            self.used -= 1


DEVICE_STREAMS = Streams(STREAMS)
"""Shared by all models of the process: they are the device's, not a backend's."""


@define(eq=False)
class _Unfinished:
    capture: Capture
    reserved: int


@define(eq=False)
class NpuRecording:
    """Recorded launches."""

    pool: Pool
    commands: Sequence[Command]
    bytes: int
    is_released: bool = False

    def replay(self) -> None:
        """Run the launches again, on the recorded addresses.

        Raises:
            RuntimeError: it was released.
        """
        if self.is_released:
            raise RuntimeError("a recording of toynpu was replayed after its release")
        DEVICE_STREAMS.replays += 1
        for command in self.commands:
            command.run()

    def release(self) -> None:
        """Give back the stream, and with a pool's last recording the pool's memory."""
        if not self.is_released:
            self.is_released = True
            self.commands = ()
            self.pool.recordings -= 1
            self.pool.trim()
            DEVICE_STREAMS.give()


class NpuGraphs:
    """The static-graph backend "toynpu"."""

    def __init__(self, options: Mapping[str, Any], device: int | None) -> None:
        self._local = threading.local()

    def new_pool(self, device: int | None) -> Pool:
        """Return a memory pool."""
        return memory.new_pool()

    def release_pool(self, pool: Pool) -> None:
        """Give a pool's memory back."""
        pool.trim()

    def begin(self, pool: Pool, stream: Stream) -> None:
        """Start to record this thread's launches, on a stream that the recording will keep.

        Raises:
            CaptureError: every stream is used, or this thread records already.
        """
        if capture() is not None:
            raise CaptureError("this thread is recording another static graph")
        DEVICE_STREAMS.take()
        made = Capture(pool)
        self._local.unfinished = _Unfinished(made, pool.reserved)
        set_capture(made)

    def end(self) -> NpuRecording:
        """Finish this thread's recording."""
        unfinished: _Unfinished | None = getattr(self._local, "unfinished", None)
        if unfinished is None:
            raise CaptureError("this thread has no recording to finish")
        set_capture(None)
        self._local.unfinished = None
        pool = unfinished.capture.pool
        pool.recordings += 1
        commands = tuple(unfinished.capture.commands)
        return NpuRecording(pool, commands, pool.reserved - unfinished.reserved)

    def abort(self, stream: Stream) -> None:
        """Drop this thread's unfinished recording, and its stream with it."""
        unfinished: _Unfinished | None = getattr(self._local, "unfinished", None)
        if unfinished is not None:
            set_capture(None)
            self._local.unfinished = None
            unfinished.capture.commands.clear()
            unfinished.capture.pool.trim()
            DEVICE_STREAMS.give()

    def budget(self, device: int | None) -> Mapping[str, int]:
        """Return the streams and bytes that are left."""
        return {
            "streams": DEVICE_STREAMS.count - DEVICE_STREAMS.used,
            "bytes": memory.DEVICE_BYTES - memory.reserved_bytes(),
        }

    def estimate(self, signature: PieceSignature, box: Box) -> Mapping[str, int] | None:
        """Return one stream: what a recording takes is known before it is made."""
        return {"streams": 1}

    def measure(self, recording: NpuRecording) -> Mapping[str, int]:
        """Return the stream, and the bytes by which the pool has grown."""
        return {"streams": 1, "bytes": recording.bytes}
