"""Static graphs on `torch.cuda.CUDAGraph`.

`torch.accelerator.Graph` (torch 2.13) has the same pool and capture modes, over the same class of torch's;
2.11 has no such thing, so one path serves every torch.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from attrs import define, field

from intarsia import torch_compat
from intarsia.errors import IntarsiaError
from intarsia.interfaces import Box, PieceSignature, Stream
from intarsia_cuda import driver

__all__ = ["CudaGraphs", "CudaPool", "CudaRecording"]

log = logging.getLogger(__name__)

_ASK_EVERY = 0.02
"""Seconds between two questions to the device how much memory is in use."""


class CudaPool:
    """Memory that recordings of one device share, by the id under which torch's allocator keeps it.

    The allocator keeps a pool as long as a graph uses it, and an id must not be used again after its last
    graph is gone, so the pool then goes on under a new one. (`torch.cuda.MemPool` would keep the memory,
    but ends the process where it is collected while another thread records: its destructor asserts.)
    """

    def __init__(self, device: int) -> None:
        self.device = device
        self.id = torch.cuda.graph_pool_handle()
        self._lock = threading.RLock()  # entered again by a finaliser that drops a recording
        self._graphs = 0
        self._is_recording = False

    def claim(self) -> None:
        """Count a graph in whose capture is about to begin; `close` counts it out."""
        with self._lock:
            if self._is_recording:  # torch would count the graph in and then refuse
                raise IntarsiaError(
                    "a static graph cannot be recorded",
                    why="another thread is recording into the same memory pool",
                    next_step="Use a pool for each thread.",
                )
            self._graphs += 1
            self._is_recording = True

    def finish(self) -> None:
        """Note that the capture is over."""
        self._is_recording = False

    def close(self, graph: torch.cuda.CUDAGraph, *, leaks: bool = False) -> None:
        """Give up a graph; `leaks` says that torch would keep its share of the pool."""
        with self._lock:
            if leaks:
                torch_compat.forget_capture(self.device, self.id)
            graph.reset()
            self._graphs -= 1
            if not self._graphs:
                self.id = torch.cuda.graph_pool_handle()


@define(eq=False)
class _Unfinished:
    """A recording that has begun."""

    graph: torch.cuda.CUDAGraph
    pool: CudaPool
    stream: torch.cuda.Stream
    reserved: int
    dropped: list[CudaRecording] = field(factory=list)
    """Recordings that a finaliser let go of meanwhile: destroying a graph could spoil the capture."""

    def close_dropped(self) -> None:
        """Destroy what was dropped."""
        for recording in self.dropped:
            recording.close()


class CudaRecording:
    """A captured CUDA graph."""

    __slots__ = ("__weakref__", "_backend", "_graph", "grown", "pool", "replay")

    def __init__(
        self, backend: CudaGraphs, graph: torch.cuda.CUDAGraph, pool: CudaPool, grown: int
    ) -> None:
        self._backend = backend
        self._graph: torch.cuda.CUDAGraph | None = graph
        self.pool = pool
        self.grown = grown
        self.replay: Callable[[], None] = graph.replay  # bound once: no call of ours in between

    def release(self) -> None:
        """Destroy the graph. What it allocated goes back to the device with the pool's last one."""
        self.replay = _released
        self._backend.drop(self)

    def close(self) -> None:
        """Destroy the graph now; `release` does it when no capture of this thread is in the way."""
        graph, self._graph = self._graph, None
        if graph is not None:
            self.pool.close(graph)

    def __del__(self) -> None:
        # Without this the graph's own destructor would end the pool's id behind the pool's back.
        if not sys.is_finalizing() and getattr(self, "_graph", None) is not None:
            self.release()


def _released() -> None:
    raise IntarsiaError("a static graph cannot be replayed", why="it was released")


class CudaGraphs:
    """The backend "cuda". Nothing here synchronises, collects garbage or empties a cache."""

    def __init__(self, options: Mapping[str, Any], device: int | None) -> None:
        self._local = threading.local()
        self._outside: dict[int, int] = {}
        self._asked: dict[int, float] = {}

    def new_pool(self, device: int | None) -> CudaPool:
        """Return a memory pool; it holds nothing before its first recording."""
        index = _index(device)
        self._outside[index] = _outside(index)
        return CudaPool(index)

    def release_pool(self, pool: CudaPool) -> None:
        """Do nothing: torch frees a pool whose graphs are gone at the next `DeviceOps.empty_cache`.

        Or when the device is out of memory, whichever comes first.
        """

    def begin(self, pool: CudaPool, stream: Stream) -> None:
        """Start to capture this thread's work on the current stream, which the core has entered."""
        if self._unfinished is not None:
            raise IntarsiaError(
                "a static graph cannot be recorded", why="this thread is recording another one"
            )
        if torch.cuda.is_current_stream_capturing():  # somebody else's: it must not be ended here
            raise IntarsiaError(
                "a static graph cannot be recorded", why="the stream is being captured already"
            )
        current = torch.cuda.current_stream()
        if current == torch.cuda.default_stream():  # torch 2.11 prepares half a capture and refuses
            raise IntarsiaError(
                "a static graph cannot be recorded", why="the default stream cannot be captured"
            )
        found = _Unfinished(torch.cuda.CUDAGraph(), pool, current, _reserved(pool.device))
        pool.claim()
        self._local.unfinished = found
        try:
            # Other threads go on allocating and copying while this one records.
            found.graph.capture_begin(pool=pool.id, capture_error_mode="thread_local")
        except BaseException:
            self.abort(stream)
            raise

    def end(self) -> CudaRecording:
        """Finish this thread's recording; where it cannot be, torch's own error is raised."""
        found = self._unfinished
        if found is None:
            raise IntarsiaError("no static graph can be finished", why="none was begun")
        found.graph.capture_end()
        self._local.unfinished = None
        found.pool.finish()
        grown = _reserved(found.pool.device) - found.reserved
        recording = CudaRecording(self, found.graph, found.pool, max(grown, 0))
        found.close_dropped()
        return recording

    def abort(self, stream: Stream) -> None:
        """Drop this thread's unfinished recording, if there is one; raises nothing.

        The pool keeps what the capture allocated only where other recordings share it, and then the
        next recording uses it.
        """
        found = self._unfinished
        if found is None:
            return
        self._local.unfinished = None
        with torch.cuda.stream(found.stream):
            ended = has_ended(found.graph) or _end_anyway(found.graph, found.stream)
        found.pool.finish()
        leaks = not ended and torch_compat.leaves_failed_captures()
        found.pool.close(found.graph, leaks=leaks)
        if leaks:
            _LEFT_OVER.append(found.graph)
            _record_nothing(found.stream)
        found.close_dropped()

    def drop(self, recording: CudaRecording) -> None:
        """Destroy a recording's graph, now or when this thread's unfinished recording is done."""
        found = self._unfinished
        if found is None:
            recording.close()
        else:
            found.dropped.append(recording)

    def budget(self, device: int | None) -> Mapping[str, int]:
        """Return the bytes that are free on the device or kept unused by torch's allocator."""
        index = _index(device)
        free, _ = torch.cuda.mem_get_info(index)
        stats = torch.cuda.memory_stats_as_nested_dict(index)
        unused = _current(stats, "reserved_bytes") - _current(stats, "active_bytes")
        return {"bytes": free + unused}

    def estimate(self, signature: PieceSignature, box: Box) -> Mapping[str, int] | None:
        """Return None: what a recording allocates depends on what runs inside it."""
        return None

    def measure(self, recording: CudaRecording) -> Mapping[str, int]:
        """Return the bytes by which torch's memory grew while a recording was made, and other memory.

        Torch's own counter is read around every recording (about 10 us). Memory that torch does not know
        of (the driver's copy of a graph, loaded kernels) can only be asked of the device, which takes longer
        than a replay; it is asked every 20 ms, and what came since then counts to this recording.
        """
        now, device = time.monotonic(), recording.pool.device
        if now - self._asked.get(device, 0.0) < _ASK_EVERY:
            return {"bytes": recording.grown}
        self._asked[device] = now
        outside = _outside(device)
        grown = max(outside - self._outside.get(device, outside), 0)
        self._outside[device] = outside
        return {"bytes": recording.grown + grown}

    @property
    def _unfinished(self) -> _Unfinished | None:
        return getattr(self._local, "unfinished", None)


_LEFT_OVER: list[torch.cuda.CUDAGraph] = []
"""Graphs whose capture torch 2.11 could not be made to end. Its allocator of pinned memory goes on asking
them whether an allocation is theirs, so they must live."""


def has_ended(graph: torch.cuda.CUDAGraph) -> bool:
    """Say whether torch has done all that follows a capture, so that `reset` undoes all of it."""
    try:
        graph.pool()
    except RuntimeError:
        return False
    return True


def _end_anyway(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream) -> bool:
    """End a capture in whatever state it is; say whether torch closed its books.

    Up to torch 2.13 a capture that cannot be ended leaves them open: allocations still go to its pool,
    `empty_cache` does nothing any more, and random numbers raise "Offset increment outside graph capture"
    (pytorch #180395, #190348). Torch must see a capture that ends well, so another one is put in its place.
    What fails here is not raised: the reader needs the error that broke the recording.
    """
    with contextlib.suppress(Exception):
        if torch_compat.leaves_failed_captures() and driver.restart_capture(stream.cuda_stream):
            # One node, for torch warns of an empty graph; this allocation is outside the pool.
            torch.zeros(1, dtype=torch.uint8, device=stream.device)
    with contextlib.suppress(Exception):
        graph.capture_end()
    if torch.cuda.is_current_stream_capturing():
        log.warning("a CUDA stream is still being captured after its recording was dropped")
    return has_ended(graph)


def _record_nothing(stream: torch.cuda.Stream) -> None:
    """Make one good capture, which puts the random number generator right (torch 2.11, 2.12)."""
    with contextlib.suppress(Exception), torch.cuda.stream(stream):
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(capture_error_mode="thread_local")
        torch.zeros(1, dtype=torch.uint8, device=stream.device)  # not empty, as above
        graph.capture_end()
        graph.reset()


def _index(device: int | None) -> int:
    return torch.cuda.current_device() if device is None else device


def _reserved(device: int) -> int:
    """Return the bytes that torch's allocator holds; `memory_reserved` takes ten times as long."""
    return _current(torch.cuda.memory_stats_as_nested_dict(device), "reserved_bytes")


def _current(stats: Mapping[str, Any], name: str) -> int:
    """Return a counter's value; a process without CUDA memory yet has no counters."""
    return int(stats[name]["all"]["current"]) if stats else 0


def _outside(device: int) -> int:
    """Return the device's bytes in use that torch's allocator does not hold."""
    free, total = torch.cuda.mem_get_info(device)
    return total - free - _reserved(device)
