"""Static graphs on a CUDA device, through the core's stage and both front doors."""

from __future__ import annotations

import gc
import threading
from typing import Any

import attrs
import pytest
import torch

import intarsia
from intarsia_cuda.device import available

if not available():
    pytest.skip(available().reason, allow_module_level=True)

from tests.benchmarks.static_graph_model import ATTENTION, DYNAMIC, Shape, decoder, inputs

pytestmark = pytest.mark.cuda

MIB = 1 << 20
SMALL = Shape(12, 256, 512, 4, 2, 128, 997, 16, torch.float32)
SAFE = {ATTENTION: "safe"}


def make(shape: Shape = SMALL, **settings: Any) -> tuple[Any, Any]:
    model = decoder(shape, "cuda")
    chosen = {"split_at": [ATTENTION], "op_safety": SAFE, "cache": False, **settings}
    compiled = intarsia.compile(
        model, inputs(shape, 2, "cuda"), dynamic=DYNAMIC, boxes={"rows": [1, shape.rows]}, **chosen
    )
    return compiled, model


def record(compiled: Any, *sizes: int, shape: Shape = SMALL, **more: Any) -> Any:
    def made(wanted: dict[str, int], key: Any) -> Any:
        return inputs(shape, wanted["rows"], "cuda"), {}

    return compiled.record(made, sizes={"rows": list(sizes)}, **more)


def reserved() -> int:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved()


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({"static_graph": "piecewise"}, 26),
        ({"static_graph": "full"}, 2),
        ({"static_graph": "piecewise", "split_by": "inductor", "artifact": "quick"}, 26),
        ({"static_graph": "piecewise", "compilers": ["eager"]}, 26),
    ],
)
def test_recordings_are_counted_and_change_nothing(settings: Any, count: int) -> None:
    compiled, model = make(**settings)
    table = record(compiled, 1, 2)
    assert table.recordings == compiled.report.recordings == count, str(table)
    assert {row.status for row in table.rows} == {"recorded"}, str(table)
    for rows in (2, 1, 3, 2, 1):
        args = inputs(SMALL, rows, "cuda", seed=rows)
        with intarsia.step(mode="none"):
            plain = compiled(*args)
        replayed = compiled(*args)
        assert torch.equal(plain, replayed)
        torch.testing.assert_close(replayed, model(*args), rtol=1e-3, atol=1e-3)
    assert "replay-general" not in compiled.report.counters


def test_two_models_share_a_pool_and_each_keeps_its_results() -> None:
    one, first = make(static_graph="full")
    two, second = make(static_graph="piecewise")
    record(one, 2)
    record(two, 2, pool=one.static_graph_pool)
    args, other = inputs(SMALL, 2, "cuda", seed=3), inputs(SMALL, 2, "cuda", seed=4)
    results = [one(*args), two(*args), one(*other), two(*other)]
    expected = [first(*args), second(*args), first(*other), second(*other)]
    torch.testing.assert_close(results, expected, rtol=1e-3, atol=1e-3)


class Fault(Exception):
    """An injected fault."""


FAULT: dict[str, Any] = {"left": -1, "how": "raise"}


def faulty(x: torch.Tensor) -> torch.Tensor:
    if torch.cuda.is_current_stream_capturing():
        FAULT["left"] -= 1
        if FAULT["left"] == 0:
            if FAULT["how"] == "raise":
                raise Fault("in a capture")
            if FAULT["how"] == "synchronise":
                torch.cuda.synchronize()
            if FAULT["how"] == "memory":
                torch.empty(1 << 50, device="cuda")
            x.sum().item()
    return x * 2


LIBRARY = torch.library.Library("cuda_stage", "FRAGMENT")
LIBRARY.define("faulty(Tensor x) -> Tensor")
LIBRARY.impl("faulty", faulty, "CUDA")
torch.library.register_fake("cuda_stage::faulty", torch.empty_like, lib=LIBRARY)


class Faulty(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(64, 64) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.sigmoid(torch.ops.cuda_stage.faulty(layer(x)) + 1)
        return x


@pytest.mark.parametrize("how", ["raise", "synchronise", "item", "memory"])
@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("mode", ["piecewise", "full"])
def test_a_failed_recording_leaves_the_process_as_it_was(how: str, at: int, mode: str) -> None:
    torch.manual_seed(0)
    model = Faulty().cuda().requires_grad_(False)
    compiled = intarsia.compile(
        model, (torch.randn(4, 64, device="cuda"),), dynamic={"x": {0: "n"}}, cache=False,
        compilers=["eager"], split_at=["torch.sigmoid"], static_graph=mode, boxes={"n": [1, 64]},
        op_safety={"cuda_stage::faulty": "safe"},
    )  # fmt: skip

    def made(wanted: dict[str, int], key: Any) -> Any:
        return (torch.randn(wanted["n"], 64, device="cuda"),), {}

    compiled(*made({"n": 8}, None)[0])
    compiled.record(made, sizes={"n": [2]})  # workspaces are there from now on
    before = reserved()
    FAULT.update(left=at, how=how)
    table = compiled.record(made, sizes={"n": [8]})
    FAULT.update(left=-1)
    (row,) = table.rows
    assert row.status == ("partly" if mode == "piecewise" else "failed"), str(table)
    assert row.recordings == (2 if mode == "piecewise" else 0)
    if how == "memory":
        assert "out of memory" in row.reason
    if mode == "full":
        assert abs(reserved() - before) <= MIB
    x = torch.randn(8, 64, device="cuda")
    torch.testing.assert_close(compiled(x), model(x))
    assert not torch.cuda.is_current_stream_capturing()
    table = compiled.record(made, sizes={"n": [8, 4]})
    assert {row.status for row in table.rows} == {"recorded"}, str(table)
    for n in (8, 4, 2):
        x = torch.randn(n, 64, device="cuda")
        torch.testing.assert_close(compiled(x), model(x))
    compiled.close()
    assert reserved() <= before + MIB


def test_threads_may_copy_while_another_records() -> None:
    compiled, model = make(compilers=["eager"], static_graph="piecewise")
    stop, errors = threading.Event(), []

    def copy() -> None:
        stream = torch.cuda.Stream()
        try:
            with torch.cuda.stream(stream):
                here = torch.randn(1 << 16).pin_memory()
                while not stop.is_set():
                    here.to("cuda", non_blocking=True).sum().item()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=copy)
    thread.start()
    try:
        table = record(compiled, 1, 2, 4)
    finally:
        stop.set()
        thread.join()
    assert not errors
    assert {row.status for row in table.rows} == {"recorded"}, str(table)
    args = inputs(SMALL, 4, "cuda", seed=9)
    torch.testing.assert_close(compiled(*args), model(*args), rtol=1e-3, atol=1e-3)


def test_plain_code_is_recorded_without_a_compiler() -> None:
    model = decoder(attrs.evolve(SMALL, layers=3), "cuda")
    args = inputs(SMALL, 2, "cuda")
    with torch.no_grad():
        call = intarsia.record(model, args, op_safety={ATTENTION: "break"})
        assert call.recordings == 4
        for seed in range(3):
            args = inputs(SMALL, 2, "cuda", seed=seed)
            torch.testing.assert_close(call(*args), model(*args), rtol=1e-4, atol=1e-4)
        assert "replay-general" not in call.counters
        whole = intarsia.record(model, args, op_safety=SAFE)
        assert whole.recordings == 1
        torch.testing.assert_close(whole(*args), model(*args), rtol=1e-4, atol=1e-4)


SDPA = "torch.nn.functional.scaled_dot_product_attention"


@pytest.mark.parametrize(
    ("door", "mode", "compiler"),
    [
        ("intarsia.compile", "piecewise", "inductor"),
        ("intarsia.compile", "full", "eager"),
        ("torch.compile", "piecewise", "eager"),
        ("torch.compile", "full", "inductor"),
    ],
)
def test_llama_continues_with_eagers_tokens(door: str, mode: str, compiler: str) -> None:
    from tests.static_cache import Step, example, greedy, llama

    model = llama(4).cuda()
    with torch.no_grad():
        expected = greedy(Step(model, 1, 80), 64, "cuda")
        step, start = Step(model, 1, 80), example("cuda")
        settings: dict[str, Any] = {
            "split_at": [SDPA], "static_graph": mode, "compilers": [compiler], "cache": False,
        }  # fmt: skip
        if door == "intarsia.compile":
            call = intarsia.compile(step, start, **settings)
            table = call.record(lambda sizes, key: (start, {}))
            assert {row.status for row in table.rows} == {"recorded"}, str(table)
            step.reset()
        else:
            gc.collect()
            torch._dynamo.reset()
            call = torch.compile(step, backend="intarsia", fullgraph=True, options=settings)
        assert greedy(call, 64, "cuda") == expected
    counters = (call.report if door == "intarsia.compile" else intarsia.reports()[-1]).counters
    assert "replay-general" not in counters, counters
    assert counters["recordings"] == (5 if mode == "piecewise" else 1)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_compiled_for_one_device_it_runs_on_another(tmp_path: Any) -> None:
    for index in (0, 1):
        compile_and_call(index, str(tmp_path))


def compile_and_call(index: int, cache: str) -> None:
    """Compile for one device, and see that the other is left alone."""
    gc.collect()
    before = torch.cuda.memory_allocated(1 - index)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.SiLU()).to(f"cuda:{index}")
    model.requires_grad_(False)
    x = torch.randn(4, 8, device=f"cuda:{index}")
    compiled = intarsia.compile(model, (x,), cache=cache, static_graph="full")
    table = compiled.record(lambda sizes, key, x=x: ((x,), {}))
    assert table.recordings == 1, str(table)
    y = torch.randn(4, 8, device=f"cuda:{index}")
    torch.testing.assert_close(compiled(y), model(y), rtol=1e-4, atol=1e-4)
    assert torch.cuda.memory_allocated(1 - index) == before


def scaled(x: torch.Tensor) -> torch.Tensor:
    """Bytes in, a byte for each row out."""
    return (x * 3 + 1).amax(-1)


@pytest.mark.parametrize("names", [{0: "rows"}, {0: "rows", 1: "columns"}])
@pytest.mark.parametrize("artifact", ["quick", "package"])
def test_without_boxes_inductor_serves_what_32_bits_index(
    names: Any, artifact: str, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    x = torch.randint(0, 40, (30, 64), dtype=torch.uint8, device="cuda")
    compiled = intarsia.compile(
        scaled, (x,), dynamic={"x": names}, cache=str(tmp_path), compilers=["inductor"],
        artifact=artifact,
    )  # fmt: skip
    assert [p.compiler for p in compiled.report.piece_reports] == ["inductor"]
    for rows in (1, 7, 1000):
        x = torch.randint(0, 40, (rows, 64), dtype=torch.uint8, device="cuda")
        torch.testing.assert_close(compiled(x), scaled(x))
    assert [r for r in caplog.records if r.name == "intarsia"] == []
    large = x.new_full((1, 64), 5).expand(3 << 24, 64)
    assert (compiled(large) == 16).all()
    assert "outside every box and runs eagerly" in caplog.text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_of_odd_widths_are_compiled(dtype: torch.dtype) -> None:
    """Inductor of torch 2.11 asks at which sizes padding pays."""
    model = torch.nn.Linear(64, 97, device="cuda", dtype=dtype).requires_grad_(False)
    x = torch.randn(7, 64, device="cuda", dtype=dtype)
    compiled = intarsia.compile(
        model, (x,), dynamic={"input": {0: "rows"}}, cache=False, compilers=["inductor"]
    )
    for rows in (7, 1, 3000):
        x = torch.randn(rows, 64, device="cuda", dtype=dtype)
        torch.testing.assert_close(compiled(x), model(x), rtol=2e-2, atol=2e-2)


def test_without_boxes_torch_compile_serves_them_too(caplog: pytest.LogCaptureFixture) -> None:
    options = {"cache": False, "compilers": ["inductor"]}
    compiled = torch.compile(scaled, backend="intarsia", dynamic=True, options=options)
    for rows in (30, 7, 1000):
        x = torch.randint(0, 40, (rows, 64), dtype=torch.uint8, device="cuda")
        torch.testing.assert_close(compiled(x), scaled(x))
    assert [r for r in caplog.records if r.name == "intarsia"] == []
