"""The static-graph backend on `torch.cuda.CUDAGraph`, without the core's stage."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from intarsia.device_ops import AcceleratorOps
from intarsia.errors import IntarsiaError
from intarsia_cuda.device import available

if not available():
    pytest.skip(available().reason, allow_module_level=True)

from intarsia_cuda.graphs import CudaGraphs, CudaPool, CudaRecording

pytestmark = pytest.mark.cuda

MIB = 1 << 20
OPS = AcceleratorOps("cuda", 0)


@pytest.fixture
def backend() -> CudaGraphs:
    return CudaGraphs({}, 0)


@pytest.fixture
def stream() -> Any:
    return OPS.stream()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.ones(MIB, device="cuda:0")


def record(
    backend: CudaGraphs, pool: CudaPool, stream: Any, work: Callable[[], Any], *, warm: bool = True
) -> tuple[CudaRecording, Any]:
    """Record as the core does: warm on the same stream, roll back on any error."""
    OPS.synchronize()
    with stream:
        if warm:
            work()
            stream.synchronize()
        backend.begin(pool, stream)
        try:
            result = work()
            return backend.end(), result
        except BaseException:
            backend.abort(stream)
            raise


def reserved() -> int:
    """Return the bytes that torch holds after everything unused went back to the device."""
    gc.collect()
    OPS.synchronize()
    OPS.empty_cache()
    return OPS.memory()["reserved"]


def test_replay_uses_what_is_at_the_recorded_addresses(
    backend: CudaGraphs, stream: Any, x: torch.Tensor
) -> None:
    recording, y = record(backend, backend.new_pool(0), stream, lambda: x * 2 + 1)
    for value in (3.0, -5.0):
        x.fill_(value)
        recording.replay()
        OPS.synchronize()
        assert torch.equal(y, torch.full_like(y, value * 2 + 1))


def test_recordings_share_a_pool_and_its_memory(
    backend: CudaGraphs, stream: Any, x: torch.Tensor
) -> None:
    before, pool = reserved(), backend.new_pool(0)
    # Each result is dropped before the next is recorded, so that its memory is used again.
    recordings = [record(backend, pool, stream, lambda: (x * 2).sum())[0] for _ in range(8)]
    assert reserved() - before <= 24 * MIB
    kept, y = record(backend, pool, stream, lambda: x + 1)
    for recording in recordings:
        recording.replay()
        recording.release()
    kept.replay()
    OPS.synchronize()
    assert torch.equal(y, x + 1)


def test_memory_is_back_after_the_last_release_and_the_pool_goes_on(
    backend: CudaGraphs, stream: Any, x: torch.Tensor
) -> None:
    pool = backend.new_pool(0)
    record(backend, pool, stream, lambda: x * 3)[0].release()
    baseline = reserved()
    for _ in range(3):
        recording, y = record(backend, pool, stream, lambda: x * 3)
        recording.replay()
        OPS.synchronize()
        assert torch.equal(y, x * 3)
        recording.release()
        del y
        assert abs(reserved() - baseline) <= MIB
    backend.release_pool(pool)


def test_released_recording_cannot_be_replayed(
    backend: CudaGraphs, stream: Any, x: torch.Tensor
) -> None:
    recording, _ = record(backend, backend.new_pool(0), stream, lambda: x * 3)
    recording.release()
    recording.release()
    with pytest.raises(IntarsiaError, match="it was released"):
        recording.replay()


# --------------------------------------------------------------------------------- captures that fail


class Fault:
    """Work that goes wrong in a capture, and only there."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x
        self.kept: list[Any] = []

    def __call__(self, where: str) -> Callable[[], Any]:
        return lambda: self._run(getattr(self, where))

    def _run(self, fail: Callable[[], Any]) -> torch.Tensor:
        y = torch.empty(8 * MIB, device="cuda:0")
        y.fill_(1)
        z = self.x * (torch.rand(MIB, device="cuda:0") + y[:MIB])
        if torch.cuda.is_current_stream_capturing():
            fail()  # the last thing that happens: where it raises nothing, `end` has to
        return z

    def op(self) -> None:
        raise ValueError("the op failed")

    def sync(self) -> None:
        self.x.sum().item()

    def memory(self) -> None:
        torch.empty(1 << 50, dtype=torch.uint8, device="cuda:0")

    def swallowed(self) -> None:
        with contextlib.suppress(RuntimeError):
            self.x.sum().item()

    def unjoined(self) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self.x.add_(0)
        self.kept.append(side)


FAULTS = {
    "op": (ValueError, "the op failed"),
    "sync": (RuntimeError, "(?i)captur"),
    "memory": (torch.OutOfMemoryError, "out of memory"),
    "swallowed": (RuntimeError, "(?i)captur"),
    "unjoined": (RuntimeError, "(?i)captur"),
}


@pytest.mark.parametrize("shared", [False, True], ids=["pool alone", "pool shared"])
@pytest.mark.parametrize("where", FAULTS)
def test_failed_capture_leaves_nothing_behind(
    backend: CudaGraphs, stream: Any, x: torch.Tensor, where: str, shared: bool
) -> None:
    pool = backend.new_pool(0)
    # The sibling is the largest recording of the pool, as the first one is.
    sibling = record(backend, pool, stream, lambda: torch.ones(32 * MIB, device="cuda:0").sum())
    if not shared:
        sibling[0].release()
    baseline = reserved()
    error, text = FAULTS[where]
    with pytest.raises(error, match=text):
        record(backend, pool, stream, Fault(x)(where), warm=False)
    assert abs(reserved() - baseline) <= MIB

    with stream:  # usable, with memory of its own
        y = x * 2
    stream.synchronize()
    assert torch.equal(y, x * 2)
    big = torch.empty(64 * MIB, dtype=torch.uint8, device="cuda:0")
    torch.rand(8, device="cuda:0")  # the generator is no longer part of a capture
    del big, y
    assert abs(reserved() - baseline) <= MIB

    if shared:
        sibling[0].replay()
        OPS.synchronize()
        assert sibling[1].item() == 32 * MIB
    recording, z = record(backend, pool, stream, lambda: x + 41)
    recording.replay()
    OPS.synchronize()
    assert torch.equal(z, x + 41)
    recording.release()
    del z
    assert abs(reserved() - baseline) <= MIB


def test_failure_before_any_work_can_be_aborted(
    backend: CudaGraphs, stream: Any, x: torch.Tensor, recwarn: pytest.WarningsRecorder
) -> None:
    pool = backend.new_pool(0)
    with stream:
        backend.begin(pool, stream)
        backend.abort(stream)
        backend.abort(stream)  # nothing is unfinished any more
    assert not [w for w in recwarn if "empty" in str(w.message)]
    assert record(backend, pool, stream, lambda: x + 1)[0] is not None


def test_abort_works_outside_the_stream(backend: CudaGraphs, stream: Any, x: torch.Tensor) -> None:
    pool = backend.new_pool(0)
    with stream:
        backend.begin(pool, stream)
        x.add_(0)
    backend.abort(stream)
    assert record(backend, pool, stream, lambda: x + 1)[0] is not None


def test_one_thread_records_one_thing_at_a_time(
    backend: CudaGraphs, stream: Any, x: torch.Tensor
) -> None:
    pool = backend.new_pool(0)
    with stream:
        backend.begin(pool, stream)
        with pytest.raises(IntarsiaError, match="recording another one"):
            backend.begin(backend.new_pool(0), stream)
        y = x + 2
        recording = backend.end()
    recording.replay()
    OPS.synchronize()
    assert torch.equal(y, x + 2)
    with pytest.raises(IntarsiaError, match="none was begun"):
        backend.end()


def test_default_stream_is_refused_before_anything_is_touched(
    backend: CudaGraphs, stream: Any, x: torch.Tensor
) -> None:
    pool = backend.new_pool(0)
    with pytest.raises(IntarsiaError, match="default stream"):
        backend.begin(pool, stream)
    torch.rand(8, device="cuda:0")
    assert record(backend, pool, stream, lambda: x + 1)[0] is not None


def test_capture_of_somebody_else_is_left_alone(backend: CudaGraphs, x: torch.Tensor) -> None:
    pool, graph = backend.new_pool(0), torch.cuda.CUDAGraph()
    (x * 2).sum()
    with torch.cuda.graph(graph):
        y = x * 2
        with pytest.raises(IntarsiaError, match="captured already"):
            backend.begin(pool, OPS.stream())
    graph.replay()
    OPS.synchronize()
    assert torch.equal(y, x * 2)


# ---------------------------------------------------------------------------- what goes on meanwhile


@contextlib.contextmanager
def in_background(work: Callable[[], None]) -> Iterator[list[BaseException]]:
    """Repeat work in a thread; what it raised is in the list."""
    stop, errors = threading.Event(), []

    def loop() -> None:
        try:
            while not stop.is_set():
                work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield errors
    finally:
        stop.set()
        thread.join()


def test_another_thread_copies_and_allocates_during_captures(
    backend: CudaGraphs, stream: Any, x: torch.Tensor
) -> None:
    side = torch.cuda.Stream()
    source = torch.ones(MIB).pin_memory()

    def copy() -> None:
        with torch.cuda.stream(side):
            copied = source.to("cuda:0", non_blocking=True)
            fresh = torch.empty(4 * MIB, device="cuda:0").fill_(2)
            side.synchronize()
            assert copied[-1].item() == 1
            assert fresh[-1].item() == 2
            del copied, fresh
            torch.empty(MIB, pin_memory=True)

    pool = backend.new_pool(0)
    with in_background(copy) as errors:
        made = [record(backend, pool, stream, lambda: x * 2) for _ in range(20)]
    assert not errors
    for recording, y in made:
        y.zero_()
        recording.replay()
        OPS.synchronize()
        assert torch.equal(y, x * 2)


def test_two_threads_record_at_a_time(backend: CudaGraphs, x: torch.Tensor) -> None:
    errors: list[BaseException] = []

    def work(factor: int) -> None:
        try:
            stream, pool = OPS.stream(), backend.new_pool(0)
            for _ in range(10):
                # No device-wide synchronisation: the other thread may be recording.
                with stream:
                    backend.begin(pool, stream)
                    y = x * factor
                    recording = backend.end()
                    recording.replay()
                stream.synchronize()
                assert y[0].item() == factor
        except BaseException as error:
            errors.append(error)

    OPS.synchronize()
    threads = [threading.Thread(target=work, args=(factor,)) for factor in (2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_one_pool_serves_one_thread_at_a_time(
    backend: CudaGraphs, stream: Any, x: torch.Tensor
) -> None:
    pool, seen = backend.new_pool(0), []

    def intrude() -> None:
        other = OPS.stream()
        with other:
            try:
                backend.begin(pool, other)
            except IntarsiaError as error:
                seen.append(str(error))

    with stream:
        backend.begin(pool, stream)
        y = x + 3
        thread = threading.Thread(target=intrude)
        thread.start()
        thread.join()
        recording = backend.end()
    assert len(seen) == 1
    assert "another thread" in seen[0]
    recording.replay()
    OPS.synchronize()
    assert torch.equal(y, x + 3)


class Cycle:
    """Garbage that only the collector finds, with a finaliser."""

    def __init__(self, **held: Any) -> None:
        self.held, self.me = held, self

    def __del__(self) -> None:
        self.held.clear()


def test_collector_frees_tensors_and_recordings_during_a_capture(
    backend: CudaGraphs, stream: Any, x: torch.Tensor
) -> None:
    pool = backend.new_pool(0)
    old, _ = record(backend, pool, stream, lambda: x - 1)
    gc.disable()
    try:
        Cycle(tensor=torch.ones(4 * MIB, device="cuda:0"), recording=old)
        del old

        def work() -> torch.Tensor:
            y = x * 5
            if torch.cuda.is_current_stream_capturing():
                assert gc.collect() > 0
            return y + 1

        recording, z = record(backend, pool, stream, work)
    finally:
        gc.enable()
    recording.replay()
    OPS.synchronize()
    assert torch.equal(z, x * 5 + 1)


def test_cost_is_measured(backend: CudaGraphs, stream: Any, x: torch.Tensor) -> None:
    pool = backend.new_pool(0)
    before = backend.budget(0)["bytes"]
    recording, y = record(
        backend, pool, stream, lambda: torch.ones(128 * MIB, dtype=torch.uint8, device="cuda:0")
    )
    cost = backend.measure(recording)["bytes"]
    assert 128 * MIB <= cost <= 256 * MIB
    assert before - backend.budget(0)["bytes"] >= 127 * MIB
    again, _ = record(backend, pool, stream, lambda: x.add_(0))
    assert backend.measure(again)["bytes"] <= 32 * MIB
    assert y.numel() == 128 * MIB
