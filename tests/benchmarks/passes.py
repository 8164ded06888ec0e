"""The fused operators: each beside eager, Inductor's own code for the same, and the rate of a plain copy.

    python tests/benchmarks/passes.py [--rows 1,128,1024,8192] [--hidden 4096,8192] [--json FILE]

A call is timed as one of a CUDA graph of many calls over different inputs, more than the L2 cache holds, so
neither launches nor a warm cache count. "of copy" is the bytes that must move (each input read once, each
output written once) by this time, over the rate of a large device-to-device copy in
the same run, bytes read and written. Inductor compiles the plain form for exactly these sizes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from attrs import frozen
from torch import Tensor

from intarsia_cuda.kernels import ops, reference
from tests.benchmarks.common import table, write_json

HEAD = 128
BF16 = torch.bfloat16
L2_TIMES_FOUR = 200 << 20
Inputs = tuple[Any, ...]


@frozen
class Kernel:
    """One operator at the sizes that models have.

    Attributes:
        inputs: `(rows, hidden) -> arguments`.
        bytes: `(rows, hidden) -> bytes that must move`.
    """

    name: str
    inputs: Callable[[int, int], Inputs]
    bytes: Callable[[int, int], int]

    @property
    def fused(self) -> Callable[..., Any]:
        """The operator."""
        assert ops.OPS
        found: Callable[..., Any] = getattr(torch.ops.intarsia_cuda, self.name)
        return found

    @property
    def plain(self) -> Callable[..., Any]:
        """What it computes, in plain PyTorch."""
        found: Callable[..., Any] = getattr(reference, self.name)
        return found


def random(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    """Return random numbers on the device."""
    return torch.randn(shape, dtype=dtype, device="cuda")


def halves(rows: int, hidden: int) -> Inputs:
    """Return the two parts of one projection."""
    return random(rows, 2 * hidden).chunk(2, -1)


def heads(rows: int, hidden: int) -> Inputs:
    """Return q and k of one projection, a quarter as many key heads, and cos and sin."""
    count, key = hidden // HEAD, hidden // HEAD // 4
    qkv = random(1, rows, count + 2 * key, HEAD)
    q, k = qkv[:, :, :count].transpose(1, 2), qkv[:, :, count : count + key].transpose(1, 2)
    return q, k, random(1, rows, HEAD), random(1, rows, HEAD)


def normed_heads(rows: int, hidden: int) -> Inputs:
    """Return the same with weights of norms."""
    q, k, cos, sin = heads(rows, hidden)
    return q, k, random(HEAD), random(HEAD), cos, sin, 1e-6, 1e-6


def scale() -> Tensor:
    """Return a scale for FP8."""
    return torch.tensor([0.02], device="cuda")


def rotated_bytes(rows: int, hidden: int) -> int:
    """Return the bytes of q and k, read and written, and of cos and sin."""
    return rows * (2 * 2 * (hidden + hidden // 4) + 2 * 2 * HEAD)


KERNELS = (
    Kernel("add_rms_norm", lambda r, h: (random(r, h), random(r, h), random(h), 1e-6),
           lambda r, h: 8 * r * h + 2 * h),
    Kernel("rms_norm_fp8", lambda r, h: (random(r, h), random(h), scale(), 1e-6),
           lambda r, h: 3 * r * h + 2 * h),
    Kernel("rms_norm_fp8_per_row", lambda r, h: (random(r, h), random(h), 1e-6),
           lambda r, h: 3 * r * h + 2 * h + 4 * r),
    Kernel("silu_mul", halves, lambda r, h: 6 * r * h),
    Kernel("silu_mul_fp8", lambda r, h: (*halves(r, h), scale()), lambda r, h: 5 * r * h),
    Kernel("silu_mul_fp8_per_row", halves, lambda r, h: 5 * r * h + 4 * r),
    Kernel("rotary", heads, rotated_bytes),
    Kernel("qk_norm_rotary", normed_heads, rotated_bytes),
)  # fmt: skip


def microseconds(calls: Sequence[Callable[[], Any]], repeat: int = 7) -> float:
    """Return the median time of one of some calls, replayed as one graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls[:2]:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for call in calls:
            call()
    graph.replay()
    times = []
    for _ in range(repeat):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / len(calls))
    return statistics.median(times)


def copy_rate() -> float:
    """Return the bytes per microsecond of a large copy, read and written."""
    source, target = (torch.randn(1 << 28, device="cuda") for _ in range(2))
    time = microseconds([lambda: target.copy_(source)] * 4)
    return 2 * source.nbytes / time


def difference(made: Any, expected: Any) -> float:
    """Return the relative error, by norms, of the first result."""
    one, other = (x[0] if isinstance(x, tuple) else x for x in (made, expected))
    one, other = one.float().double(), other.float().double()
    return float((one - other).norm() / other.norm())


def measure(kernel: Kernel, rows: int, hidden: int, rate: float) -> dict[str, Any]:
    """Measure one kernel at one size."""
    moved = kernel.bytes(rows, hidden)
    sets = [kernel.inputs(rows, hidden) for _ in range(min(max(L2_TIMES_FOUR // moved, 4), 48))]
    torch._dynamo.reset()
    by_inductor = torch.compile(kernel.plain, fullgraph=True, dynamic=False)
    times = {
        name: microseconds([lambda a=args, f=function: f(*a) for args in sets])
        for name, function in (
            ("fused", kernel.fused), ("inductor", by_inductor), ("eager", kernel.plain),
        )
    }  # fmt: skip
    return {
        "kernel": kernel.name, "hidden": hidden, "rows": rows,
        **{f"{name} us": time for name, time in times.items()},
        "of copy": moved / times["fused"] / rate,
        "inductor of copy": moved / times["inductor"] / rate,
        "fused / inductor": times["fused"] / times["inductor"],
        "error": difference(kernel.fused(*sets[0]), kernel.plain(*sets[0])),
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="1,128,1024,8192")
    parser.add_argument("--hidden", default="4096,8192")
    parser.add_argument("--only", default="")
    parser.add_argument("--json")
    options = parser.parse_args()
    rate = copy_rate()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, copy {rate / 1e6:.2f} TB/s")
    found = [
        measure(kernel, int(rows), int(hidden), rate)
        for kernel in KERNELS if options.only in kernel.name
        for hidden in options.hidden.split(",") for rows in options.rows.split(",")
    ]  # fmt: skip
    columns = list(found[0])
    print(
        table(
            columns,
            [[row[c] if c != "error" else f"{row[c]:.1e}" for c in columns] for row in found],
        )
    )
    write_json(options.json, {"device": torch.cuda.get_device_name(), "torch": torch.__version__,
                              "copy_bytes_per_us": rate, "rows": found})  # fmt: skip


if __name__ == "__main__":
    main()
