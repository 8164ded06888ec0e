"""Static graphs: a decode step by every way of recording it, and what recording many sizes costs.

    python tests/benchmarks/static_graph.py [--rows 1,64] [--only steps|capture] [--json FILE]
    python tests/benchmarks/static_graph.py --device cpu --tiny

Steps, for each number of rows: the time of a step by device events, its kernels waiting in the queue, and
the host time to issue one with an empty queue. Beside the ways two floors: the attention calls alone,
issued eagerly, and as many bare replays as the model has compiled pieces. Capture: seconds, recordings and
memory for sizes 1, 2, 4 and every multiple of 8 to 512, and memory for the largest size alone; once where
the sizes are new to the process, so that libraries choose and load kernels at each piece's first run, and
once where they are not, beside torch's own capture of the same pieces.

A way that fails is a row with its error. On the CPU there are no graphs: those rows are left out.
"""

from __future__ import annotations

import argparse
import functools
import gc
import itertools
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from attrs import frozen

import intarsia
from intarsia.device_ops import AcceleratorOps
from intarsia.runtime.bound import unboxed
from intarsia.static_graph.forwards import Forwards
from tests.benchmarks.common import table, write_json
from tests.benchmarks.static_graph_model import (
    ATTENTION,
    DYNAMIC,
    TINY,
    Decoder,
    Shape,
    decoder,
    inputs,
)

MIB = 1 << 20
FUSIONS = ["fuse-add-rms-norm", "fuse-silu-mul", "fuse-rotary"]
Step = Callable[[], Any]


@frozen
class Bench:
    """What every measurement needs."""

    shape: Shape
    device: str
    model: Decoder
    cache: str
    """A folder for intarsia's artifacts, so that a second compile of the same pieces is cheap."""
    rounds: int
    calls: int

    @property
    def ops(self) -> AcceleratorOps:
        """The device's operations."""
        return AcceleratorOps(self.device)

    @property
    def has_graphs(self) -> bool:
        """Whether the device can record."""
        return self.device == "cuda"

    def inputs(self, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the arguments of a step."""
        return inputs(self.shape, rows, self.device)


# ---------------------------------------------------------------------------------------------- the ways


def eager(bench: Bench, rows: int) -> Step:
    """Run the model as it is."""
    args = bench.inputs(rows)
    return lambda: bench.model(*args)


def compiled_by_torch(bench: Bench, rows: int, mode: str | None = None) -> Step:
    """Run stock `torch.compile`, one compile for each number of rows."""
    function = torch.compile(bench.model, fullgraph=True, dynamic=False, mode=mode)
    args = bench.inputs(rows)
    return lambda: function(*args)


def reduce_overhead(bench: Bench, rows: int) -> Step:
    """Run stock `torch.compile` with its own CUDA graphs; the output is torch's until the next step."""
    step = compiled_by_torch(bench, rows, "reduce-overhead")

    def marked() -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return step()

    return marked


def hand_made(bench: Bench, rows: int) -> Step:
    """Capture stock `torch.compile`'s callable by hand: inputs copied in, the output cloned."""
    function = torch.compile(bench.model, fullgraph=True, dynamic=False)
    args = bench.inputs(rows)
    static = [a.clone() for a in args]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function(*static)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        output = function(*static)

    def step() -> Any:
        for into, value in zip(static, args, strict=True):
            into.copy_(value)
        graph.replay()
        return output.clone()

    return step


def by_intarsia(bench: Bench, rows: int, mode: str, **settings: Any) -> Step:
    """Run intarsia with static graphs recorded for this number of rows."""
    compiled = compile_by_intarsia(bench, mode, **settings)
    if mode != "none":
        record(bench, compiled, [rows])
    args = bench.inputs(rows)
    return lambda: compiled(*args)


def compile_by_intarsia(bench: Bench, mode: str, **settings: Any) -> Any:
    """Compile the model, cut at attention."""
    if mode != "none":
        settings["op_safety"] = {ATTENTION: "safe"}
    return intarsia.compile(
        bench.model, bench.inputs(2), dynamic=DYNAMIC, split_at=[ATTENTION], static_graph=mode,
        boxes={"rows": [1, bench.shape.rows]}, cache=bench.cache, **settings,
    )  # fmt: skip


def record(bench: Bench, compiled: Any, sizes: Sequence[int]) -> Any:
    """Record some sizes."""

    def make_inputs(wanted: Mapping[str, int], key: Any = None) -> tuple[tuple[Any, ...], dict]:
        return bench.inputs(wanted["rows"]), {}

    return compiled.record(make_inputs, sizes={"rows": list(sizes)})


ON_EVERY_DEVICE: Mapping[str, Callable[[Bench, int], Step]] = {
    "eager": eager,
    "torch.compile": compiled_by_torch,
    "intarsia, no static graphs": lambda bench, rows: by_intarsia(bench, rows, "none"),
}
WITH_GRAPHS: Mapping[str, Callable[[Bench, int], Step]] = {
    "torch.compile reduce-overhead": reduce_overhead,
    "hand-made graph": hand_made,
    "intarsia piecewise": lambda bench, rows: by_intarsia(bench, rows, "piecewise"),
    "intarsia full": lambda bench, rows: by_intarsia(bench, rows, "full"),
    "intarsia full, fusions on": lambda bench, rows: by_intarsia(
        bench, rows, "full", passes={"enable": FUSIONS}
    ),
    "intarsia piecewise, cut by Inductor": lambda bench, rows: by_intarsia(
        bench, rows, "piecewise", split_by="inductor", artifact="quick"
    ),
}


def attention_alone(bench: Bench, rows: int, one_by_one: bool = False) -> Any:
    """Issue the model's attention calls on prepared tensors and nothing else; or return them as a list."""
    shape = bench.shape
    options: dict[str, Any] = {"dtype": shape.dtype, "device": bench.device}
    q, out = (torch.randn(rows, shape.heads, shape.head, **options) for _ in range(2))
    k, v = (torch.randn(rows, shape.kv_heads, shape.head, **options) for _ in range(2))
    position = bench.inputs(rows)[1]
    layers = [layer.attention for layer in bench.model.layers]
    if one_by_one:
        attend = torch.ops.bench.attention
        return [
            functools.partial(attend, q, k, v, one.cache_k, one.cache_v, position, out)
            for one in layers
        ]

    def step() -> None:
        for layer in layers:
            torch.ops.bench.attention(q, k, v, layer.cache_k, layer.cache_v, position, out)

    return step


def bare_replays(bench: Bench, nodes: int = 8) -> Step:
    """Replay as many graphs as there are compiled pieces, each of a few tiny kernels."""
    x = torch.ones(64, device=bench.device)
    graphs = []
    stream = torch.cuda.Stream()
    for _ in range(bench.shape.layers + 1):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(nodes):
                x.add_(0)
        graphs.append(graph)

    def step() -> None:
        for graph in graphs:
            graph.replay()

    return step


def by_hand_piecewise(bench: Bench, rows: int) -> Step:
    """Replay intarsia's own recordings with the attention calls between, and nothing around them."""
    compiled = compile_by_intarsia(bench, "piecewise")
    record(bench, compiled, [rows])
    (plan,) = compiled._engine.static_graphs.recorded[rows].plans.values()
    replays = [call.recording.replay for call in plan.calls]
    attention = attention_alone(bench, rows, one_by_one=True)

    def step() -> None:
        for replay, attend in zip(replays, attention, strict=False):
            replay()
            attend()
        replays[-1]()

    step.owner = compiled  # type: ignore[attr-defined]
    return step


# ----------------------------------------------------------------------------------------- measuring


def steps(bench: Bench, rows: int, wanted: str = "") -> dict[str, dict[str, Any]]:
    """Measure every way at one number of rows, or those whose names hold what is wanted."""
    found: dict[str, dict[str, Any]] = {}
    ways = {**ON_EVERY_DEVICE, **(WITH_GRAPHS if bench.has_graphs else {})}
    ways = {name: make for name, make in ways.items() if wanted in name}
    expected = bench.model(*bench.inputs(rows)).float()
    ready: dict[str, Step] = {}
    for name, make in ways.items():
        found[name] = attempt(lambda make=make, name=name: prepare(bench, rows, make, name, ready))
        if name in ready:
            # what comes out is measured too: a fast wrong step is worth nothing
            found[name]["difference"] = float((ready[name]().float() - expected).abs().max())
    for name, step in ready.items():
        found[name].update(host_us=host_time(bench, step))
    for name, value in step_times(bench, ready).items():
        found[name].update(step_ms=value)
    if wanted:
        return found
    found["attention alone"] = {"host_us": host_time(bench, attention_alone(bench, rows))}
    if bench.has_graphs:
        found["bare replays"] = {"host_us": host_time(bench, bare_replays(bench))}
        by_hand = by_hand_piecewise(bench, rows)
        found["its replays and attention alone"] = {
            "host_us": host_time(bench, by_hand), **step_times(bench, {"": by_hand}, "step_ms")
        }  # fmt: skip
        found["goals"] = goals(bench, found)
    return found


def prepare(
    bench: Bench, rows: int, make: Callable[[Bench, int], Step], name: str, ready: dict[str, Step]
) -> dict[str, Any]:
    """Build a way and run it until it is warm; returns the seconds that took."""
    begin = time.perf_counter()
    step = make(bench, rows)
    for _ in range(4):
        step()
    bench.ops.synchronize()
    ready[name] = step
    return {"ready_s": time.perf_counter() - begin}


def attempt(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what was measured, or the error: one way that fails must not cost the others."""
    try:
        return measure()
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"}


def host_time(bench: Bench, step: Step) -> float:
    """Return the median microseconds until a step is issued; the queue is empty before each."""
    synchronize, times = bench.ops.synchronize, []
    for _ in range(bench.rounds * bench.calls):
        synchronize()
        begin = time.perf_counter()
        step()
        times.append((time.perf_counter() - begin) * 1e6)
    synchronize()
    return statistics.median(times)


def step_times(
    bench: Bench, ready: Mapping[str, Step], named: str | None = None
) -> dict[str, float]:
    """Return the median milliseconds of a step by device events, the ways in turns."""
    times: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(bench.rounds):
        for name, step in ready.items():
            marks = [bench.ops.event() for _ in range(bench.calls + 1)]
            step()  # fills the queue again after the synchronisation
            marks[0].record()
            for mark in marks[1:]:
                step()
                mark.record()
            bench.ops.synchronize()
            pairs = itertools.pairwise(marks)
            times[name].extend(one.elapsed_time(other) for one, other in pairs)
    return {named or name: statistics.median(values) for name, values in times.items()}


def goals(bench: Bench, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the ratios that the project has goals for; those of ways that failed are left out."""
    ratios: dict[str, Any] = {}
    floor_us = found["attention alone"]["host_us"] + found["bare replays"]["host_us"]
    by_hand = found["hand-made graph"].get("step_ms")
    full, piecewise = found["intarsia full"], found["intarsia piecewise"]
    if "step_ms" in full and by_hand:
        ratios["full / hand-made (<= 1.02)"] = full["step_ms"] / by_hand
        ratios["full, host us (<= 20)"] = full["host_us"]
    if "step_ms" in piecewise and by_hand:
        ratios["piecewise / max(hand-made, floor) (<= 1.03)"] = piecewise["step_ms"] / max(
            by_hand, floor_us / 1e3
        )
        pieces = bench.shape.layers + 1
        alone = found["its replays and attention alone"]["host_us"]
        ratios["framework us per piece (<= 1.5)"] = (piecewise["host_us"] - alone) / pieces
    return ratios


def capture(bench: Bench) -> dict[str, dict[str, Any]]:
    """Measure recording all sizes, piecewise, and the largest alone."""
    largest = bench.shape.rows
    sizes = [s for s in (1, 2, 4) if s < largest] + list(range(8, largest + 1, 8))
    many = f"{len(sizes)} sizes"
    found = {
        "largest size alone": attempt(lambda: captured(bench, [largest])),
        f"{many}, new to the process": attempt(lambda: captured(bench, sizes)),
        "largest, torch alone": attempt(lambda: captured(bench, [largest], record_by_torch)),
        f"{many}, torch alone": attempt(lambda: captured(bench, sizes, record_by_torch)),
        many: attempt(lambda: captured(bench, sizes)),
    }
    if all("error" not in row for row in found.values()):
        largest_alone, new, bare_largest, bare, again = found.values()
        found["goals"] = {
            "pool / largest alone (<= 1.05)": again["pool_mib"] / largest_alone["pool_mib"],
            "the same, torch alone": bare["pool_mib"] / bare_largest["pool_mib"],
            "ms per recording (<= 0.6)": again["ms_per_recording"],
            "the same, sizes new to the process": new["ms_per_recording"],
            "ms per recording / torch alone": again["seconds"] / bare["seconds"],
        }
    return found


def record_by_torch(bench: Bench, compiled: Any, sizes: Sequence[int]) -> Any:
    """Capture the same pieces with `torch.cuda.CUDAGraph` alone: each runs once, then is captured.

    Nothing is checked, measured or kept but the graphs: it is the floor of what recording can take.
    """
    stage = compiled._engine.static_graphs
    dispatcher, graphs = stage.plans.dispatcher, []
    pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    def capturing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*inputs: Any) -> Any:
            function(*inputs)
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            outputs = function(*inputs)
            graph.capture_end()
            graphs.append(graph)
            return outputs

        return call

    gc.disable()
    try:
        for size in sorted(sizes, reverse=True):
            box = dispatcher.box_for({"rows": size})
            pieces = {i: capturing(unboxed(f)) for i, f in box.bound.items()}
            forward = Forwards.of(box).recording(pieces, lambda values: values)
            dispatcher.override[size] = forward
            dispatcher.forget()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                compiled(*bench.inputs(size))
            torch.cuda.current_stream().wait_stream(stream)
            del dispatcher.override[size]
            dispatcher.forget()
    finally:
        gc.enable()
    return graphs


def captured(
    bench: Bench, sizes: Sequence[int], recorder: Callable[..., Any] | None = None
) -> dict[str, Any]:
    """Record sizes with a new compiled model, and count what that took."""
    compiled, made = compile_by_intarsia(bench, "piecewise"), None
    try:
        for size in (min(sizes), max(sizes)):  # kernels are loaded before the clock starts
            compiled(*bench.inputs(size))
        before = settled_memory(bench)
        begin = time.perf_counter()
        made = (recorder or record)(bench, compiled, sizes)
        bench.ops.synchronize()
        seconds = time.perf_counter() - begin
        after = settled_memory(bench)
        recordings = len(made) if recorder else made.recordings
        return {
            "seconds": seconds, "recordings": recordings,
            "ms_per_recording": seconds / max(recordings, 1) * 1e3,
            "pool_mib": (after["reserved"] - before["reserved"]) / MIB,
            "device_mib": (before["free"] - after["free"]) / MIB,
        }  # fmt: skip
    finally:
        compiled.close()
        del compiled, made
        settled_memory(bench)


def settled_memory(bench: Bench) -> Mapping[str, int]:
    """Return the device's memory after everything unused has gone back to it."""
    gc.collect()
    bench.ops.synchronize()
    bench.ops.empty_cache()
    return bench.ops.memory()


# ---------------------------------------------------------------------------------------- the report


def show(title: str, rows: Mapping[str, Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Print one table, and the goals under it."""
    print(f"\n{title}")
    print(table(["way", *columns], [
        [name, *(_shown(row, column) for column in columns)]
        for name, row in rows.items() if name != "goals"
    ]))  # fmt: skip
    for name, row in rows.items():
        if "error" in row:
            print(f"{name} failed: {row['error']}")
    for name, value in rows.get("goals", {}).items():
        print(f"{name}: {value:.3f}")


def _shown(row: Mapping[str, Any], column: str) -> Any:
    value = row.get(column, "failed" if "error" in row else "-")
    return f"{value:.4g}" if isinstance(value, float) and column == "difference" else value


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="1,64")
    parser.add_argument("--ways", default="", help="only ways whose names hold this")
    parser.add_argument("--only", choices=["steps", "capture"])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="a model for trying the script")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--json")
    options = parser.parse_args()
    shape = TINY if options.tiny else Shape()
    # cuDNN's attention builds a plan for every new size, which would be measured as recording.
    torch.backends.cuda.enable_cudnn_sdp(False)
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "torch": torch.__version__,
    }
    print(f"{found['device']}, torch {found['torch']}, {shape}")
    with torch.no_grad(), tempfile.TemporaryDirectory(prefix="intarsia-bench-") as cache:
        bench = Bench(shape, options.device, decoder(shape, options.device), cache,
                      options.rounds, options.calls)  # fmt: skip
        if options.only != "capture":
            for rows in (min(int(r), shape.rows) for r in options.rows.split(",")):
                found[f"{rows} rows"] = steps(bench, rows, options.ways)
                show(f"decode of {rows} rows", found[f"{rows} rows"],
                     ["step_ms", "host_us", "ready_s", "difference"])  # fmt: skip
                torch._dynamo.reset()
        if options.only != "steps" and bench.has_graphs:
            found["capture"] = capture(bench)
            show("recording, piecewise", found["capture"],
                 ["seconds", "recordings", "ms_per_recording", "pool_mib", "device_mib"])  # fmt: skip
    write_json(options.json, found)


if __name__ == "__main__":
    main()
