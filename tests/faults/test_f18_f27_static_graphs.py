"""F18-F27 and F33 on the null device: what a call or a recording meets, and that nothing is left of it.

Each has the four checks: the result is eager's or the error a typed one; a deadline; one line in the log or a
counter says what happened; and the next call or recording works with no clean-up.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import intarsia
from intarsia.testing.null_device import NullDevice, NullDeviceError, NullPlugin
from tests.null_graphs import (
    Chain,
    check,
    compiled,
    jit,
    make_rows,
    rows,
    same,
)  # fmt: skip

pytestmark = pytest.mark.timeout(60)

MODES = ["piecewise", "full"]
SIZES = {"n": [1, 8]}
STEPS = ["begin", "first", "last", "end", "measure", "memory"]


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


def recorded(
    model: Any = None, make: Any = make_rows, sizes: Any = SIZES, example: Any = (), **chosen: Any
) -> tuple[Any, Any, NullDevice]:
    """Compile and record a model; returns it, the compiled one and the device."""
    model = Chain() if model is None else model
    call, device = compiled(model, example or make({"n": 4}, None)[0], **chosen)
    table = call.record(make, sizes=sizes)
    assert {row.status for row in table.rows} == {"recorded"}, str(table)
    return model, call, device


def replays(device: NullDevice, run: Callable[[], Any]) -> int:
    """Return how many recordings ran."""
    before = device.replays
    run()
    return device.replays - before


def whole(mode: str) -> int:
    """Return how many recordings a call of `Chain` replays."""
    return 3 if mode == "piecewise" else 1


# ------------------------------------------------------------------------- F18-F21: other inputs


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "wrong",
    [rows(8).double(), rows(8).to_sparse(), None, torch.randn(8, 9), torch.randn(8), 3.0,
     torch.empty(8, 8, device="meta")],
)  # fmt: skip
def test_f18_another_kind_of_input_is_a_typed_error(mode: str, wrong: Any) -> None:
    model, call, device = recorded(static_graph=mode)
    before = device.replays
    with pytest.raises(intarsia.ContractError, match="x: expected|x must|x:"):
        call(wrong)
    assert device.replays == before
    assert replays(device, lambda: same(call, model, rows(8))) == whole(mode)


@pytest.mark.parametrize("mode", MODES)
def test_f19_sizes_0_and_1(mode: str) -> None:
    model, call, device = recorded(static_graph=mode)
    assert replays(device, lambda: same(call, model, rows(1))) == whole(mode)
    assert replays(device, lambda: same(call, model, rows(0), exact=False)) == 0
    assert call.report.counters["uncovered"] == 1
    with pytest.raises(intarsia.RecordError, match="n = 0"):
        call.record(make_rows, sizes={"n": [0]})
    assert replays(device, lambda: same(call, model, rows(8))) == whole(mode)


def test_f19_inputs_without_elements() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Any:
            return torch.sigmoid(x) + 1, y.sum(-1)

    def make(sizes: Any, key: Any) -> Any:
        return (rows(sizes["n"]), torch.randn(sizes["n"], 0, 0)), {}

    dynamic = {"x": {0: "n"}, "y": {0: "n"}}
    model, call, device = recorded(Model(), make, dynamic=dynamic)
    for n in (1, 8):
        assert replays(device, lambda n=n: same(call, model, *make({"n": n}, None)[0])) == 1


@pytest.mark.parametrize("mode", MODES)
def test_f19_one_row_whose_copy_is_a_view(mode: str) -> None:
    # contiguous() returns its input where there is one row, so that a later copy could overwrite it.
    class Model(torch.nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Any:
            a = x.t().contiguous()
            z = torch.sigmoid(torch.sigmoid(x + 1) * y)
            return z.t() + a + a, a

    def make(sizes: Any, key: Any) -> Any:
        return (rows(sizes["n"]), rows(sizes["n"])), {}

    dynamic = {"x": {0: "n"}, "y": {0: "n"}}
    model, call, device = recorded(Model(), make, dynamic=dynamic, static_graph=mode)
    for n in (8, 1, 1, 8):
        assert (
            replays(device, lambda n=n: same(call, model, *make({"n": n}, None)[0])) > 0 or n == 1
        )


@pytest.mark.parametrize("policy", ["general", "eager", "error"])
def test_f20_sizes_out_of_range_and_between_recordings(policy: str) -> None:
    model, call, device = recorded(uncovered=policy)
    call.freeze()
    made, compiles = device.recordings, call.report.compiler_calls
    for n in (2, 7, 9, 64):  # in the box, and not recorded
        assert replays(device, lambda n=n: same(call, model, rows(n), exact=False)) == 0
    if policy == "error":
        with pytest.raises(intarsia.ContractError, match="n = 65 is outside"):
            call(rows(65))
    else:
        same(call, model, rows(65), exact=False)
    assert call.report.counters.get("uncovered", 0) == (policy != "general")
    assert (device.recordings, call.report.compiler_calls) == (made, compiles)
    assert replays(device, lambda: same(call, model, rows(8))) == 3


def test_f20_two_symbols() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sigmoid(x * x.shape[1] + x.shape[0]).sum(-1)

    model = Model()
    call, device = compiled(model, (torch.randn(3, 5),), dynamic={"x": {0: "n", 1: "m"}},
                            boxes={"n": [1, 64], "m": [1, 64]})  # fmt: skip
    table = call.record(
        lambda s, k: ((torch.randn(s["n"], s["m"]),), {}), sizes={"n": [2, 4], "m": [2, 4]}
    )
    assert [row.sizes for row in table.rows][:1] == [{"n": 4, "m": 4}]
    for n in (2, 3, 4):
        for m in (2, 3, 4):
            expected = 2 * (n % 2 == 0 and m % 2 == 0)
            assert (
                replays(device, lambda n=n, m=m: same(call, model, torch.randn(n, m))) == expected
            )


def layouts() -> list[Tensor]:
    """Return eight rows in other layouts and at other places in memory."""
    flat = torch.randn(8 * 8 + 3)
    misaligned = torch.randn(8 * 8 * 4 + 1).to(torch.int8)[1:257].view(torch.uint8)
    moved = torch.zeros(8 * 8 * 4 + 4, dtype=torch.uint8)[4:].view(torch.float32).view(8, 8)
    moved.copy_(misaligned[:64].view(8, 8))
    return [
        rows(8).t(), torch.randn(8, 16)[:, ::2], torch.randn(8).expand(8, 8), torch.randn(8, 1).expand(8, 8),
        flat[3:].view(8, 8), torch.randn(16, 8)[::2], flat.as_strided((8, 8), (1, 1)), moved,
        torch.randn(8, 8, 2)[..., 1],
    ]  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_f21_inputs_of_any_layout_are_copied_in(mode: str) -> None:
    model, call, device = recorded(static_graph=mode)
    for x in layouts():
        assert replays(device, lambda x=x: same(call, model, x, exact=False)) == whole(mode)


def test_f21_recorded_with_an_expanded_input() -> None:
    def make(sizes: Any, key: Any) -> Any:
        return (torch.randn(8).expand(sizes["n"], 8),), {}

    model, call, _ = recorded(None, make, example=(rows(4),))
    for x in (*layouts(), rows(8)):
        same(call, model, x, exact=False)


# ------------------------------------------------------------------------- F22: memory that is shared


class Pair(torch.nn.Module):
    """Reads one argument early and another late."""

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Run it."""
        y = x * 2 + 1
        return y, torch.sigmoid(y) * h


def make_pair(sizes: Any, key: Any) -> Any:
    """Return two arguments of one size."""
    return (rows(sizes["n"]), rows(sizes["n"])), {}


PAIR = {"x": {0: "n"}, "h": {0: "n"}}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("alike", [True, False])
def test_f22_aliased_inputs(mode: str, alike: bool) -> None:
    def make(sizes: Any, key: Any) -> Any:
        x = rows(sizes["n"])
        return (x, x if alike else rows(sizes["n"])), {}

    example = rows(4), rows(4)  # compiled with one tensor twice, another call is refused
    model, call, device = recorded(Pair(), make, example=example, dynamic=PAIR, static_graph=mode)
    both, x = rows(9), rows(8)
    for pair in ((both[:8], both[1:]), (x, x), (x, x.t()), (x, rows(8)), (rows(8), x)):
        assert replays(device, lambda pair=pair: same(call, model, *pair)) == (
            2 if mode == "piecewise" else 1
        )


@pytest.mark.parametrize("mode", MODES)
def test_f22_an_input_that_overlaps_one_that_is_written(mode: str) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Tensor, kept: Tensor, y: Tensor) -> Tensor:
            kept.add_(x.sum(0))
            return torch.sigmoid(x + y) * y.sum() + kept.sum()

    kept = torch.randn(8)
    model, call, _ = recorded(
        Model(), lambda s, k: ((rows(s["n"]), kept, torch.randn(8)), {}), static_graph=mode
    )
    same(call, model, rows(8), kept, torch.randn(8))
    before = kept.clone()
    for y in (kept, kept[:], kept.view(2, 4).view(8)):
        with pytest.raises(intarsia.ContractError, match="overlap"):
            call(rows(8), kept, y)
    check(kept, before)
    same(call, model, rows(8), kept, torch.randn(8))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("outputs", ["owned", "borrowed"])
def test_f22_previous_outputs_fed_back(mode: str, outputs: str) -> None:
    model, call, device = recorded(
        Pair(), make_pair, dynamic=PAIR, static_graph=mode, outputs=outputs
    )
    h = expected = rows(8)
    for round in range(4):
        x = rows(8)
        found, wanted = call(x, h), model(x, expected)
        check(found, wanted)
        which = round % 2
        h, expected = found[which], wanted[which]
    x, expected = found[0], wanted[0]
    for _ in range(3):  # y = f(f(x)), and the argument twice
        x, expected = call(x, x)[1], model(expected, expected)[1]
        check(x, expected)
    assert device.replays > 0


@pytest.mark.parametrize("mode", MODES)
def test_f22_an_input_that_changes_between_calls(mode: str) -> None:
    model, call, _ = recorded(static_graph=mode)
    x = rows(8)
    held = []
    for _ in range(3):
        held.append((call(x), model(x)))
        x.mul_(1.5).add_(1)
    check([one for one, _ in held], [one for _, one in held])


# ------------------------------------------------------------------------- F23: grad modes


@pytest.mark.parametrize("recorded_in", ["grad", "no_grad", "inference"])
def test_f23_recorded_in_one_mode_and_called_in_another(recorded_in: str) -> None:
    scopes = {
        "grad": torch.enable_grad,
        "no_grad": torch.no_grad,
        "inference": torch.inference_mode,
    }
    model = Chain()
    call, device = compiled(model)
    with scopes[recorded_in]():
        call.record(make_rows, sizes=SIZES)
    with torch.inference_mode():
        made = rows(8)
    for name, scope in scopes.items():
        with scope():
            for x in (rows(8), made, rows(1)):
                assert replays(device, lambda x=x: same(call, model, x)) == 3, name
    with torch.enable_grad():
        x = rows(8).requires_grad_()
        with pytest.raises(intarsia.ContractError, match="requires_grad"):
            call(x)
    assert replays(device, lambda: same(call, model, x.detach())) == 3
    result = same(call, model, x)  # no_grad: as eager
    assert not any(one.requires_grad for one in result)


# ------------------------------------------------------------------------- F24, F25: failed recordings


def size_failed(table: Any, n: int) -> Any:
    """Return the row of a size."""
    return next(row for row in table.rows if row.sizes == {"n": n})


@pytest.mark.parametrize("where", STEPS)
@pytest.mark.parametrize("piece", [0, 1, 2])
def test_f24_a_fault_in_one_piece(where: str, piece: int, caplog: pytest.LogCaptureFixture) -> None:
    model = Chain()
    call, device = compiled(model)
    call.record(make_rows, sizes={"n": [8]})
    used, taken = device.used, [pool.taken for pool in device.pools]
    device.fail(where, after=piece)
    table = call.record(make_rows, sizes={"n": [4]})
    row = size_failed(table, 4)
    assert (row.status, row.recordings) == ("partly", 2)
    assert "a fault at" in row.reason
    assert f"piece_{2 * piece}" in row.reason
    assert [r.message for r in caplog.records if "n = 4" in r.message and "a fault" in r.message]
    assert not device.is_recording
    assert device.used == used + 2
    assert [pool.taken for pool in device.pools] == taken  # as large as for the size before
    assert replays(device, lambda: same(call, model, rows(4))) == 2  # siblings keep theirs
    assert replays(device, lambda: same(call, model, rows(8))) == 3
    assert call.record(make_rows, sizes={"n": [4]}).recordings == 3
    assert replays(device, lambda: same(call, model, rows(4))) == 3
    assert device.used == used + 3


@pytest.mark.parametrize("where", STEPS)
@pytest.mark.parametrize("error", [NullDeviceError("a fault"), KeyboardInterrupt("a fault")])
def test_f24_nothing_is_left_of_a_recording_that_failed_as_a_whole(
    where: str, error: BaseException
) -> None:
    model = Chain()
    call, device = compiled(model, static_graph="full")
    device.fail(where, error)
    if isinstance(error, Exception):
        assert size_failed(call.record(make_rows, sizes={"n": [8]}), 8).status == "failed"
    else:
        with pytest.raises(KeyboardInterrupt):
            call.record(make_rows, sizes={"n": [8]})
    assert not device.is_recording
    assert device.used == 0
    assert [pool.taken for pool in device.pools] == [0]
    assert replays(device, lambda: same(call, model, rows(8))) == 0
    assert call.record(make_rows, sizes={"n": [8]}).recordings == 1
    assert replays(device, lambda: same(call, model, rows(8))) == 1


@pytest.mark.parametrize("where", STEPS)
def test_f24_an_interrupt_in_a_later_piece_releases_the_earlier_ones(where: str) -> None:
    model = Chain()
    call, device = compiled(model)
    device.fail(where, KeyboardInterrupt(), after=2)
    with pytest.raises(KeyboardInterrupt):
        call.record(make_rows, sizes={"n": [8]})
    assert (device.used, device.is_recording) == (0, False)
    assert call.memory()["slots"] == 0
    same(call, model, rows(8))
    assert call.record(make_rows, sizes={"n": [8]}).recordings == 3


@pytest.mark.parametrize("mode", MODES)
def test_f24_strict_says_why(mode: str) -> None:
    model = Chain()
    call, device = compiled(model, strict=True, static_graph=mode)
    device.fail("last", after=whole(mode) - 1)
    with pytest.raises(intarsia.RecordError, match="NullDeviceError: a fault at last"):
        call.record(make_rows, sizes={"n": [8]})
    assert (device.used, device.is_recording) == (0, False)
    same(call, model, rows(8))
    assert call.record(make_rows, sizes={"n": [8]}).recordings == whole(mode)


@pytest.mark.parametrize("where", STEPS)
def test_f24_a_fault_in_a_recording_of_torch_compile(where: str) -> None:
    model = Chain()
    call, device = jit(model)
    device.fail(where, after=1)
    same(call, model, rows(8))  # this call, which recorded
    assert device.used == 2
    assert replays(device, lambda: same(call, model, rows(8))) == 2
    assert replays(device, lambda: [same(call, model, rows(2)) for _ in range(2)]) == 3
    assert device.used == 5


def test_f24_a_model_that_raises_and_inputs_that_cannot_be_made() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Tensor, index: Tensor) -> Tensor:
            return torch.sigmoid(x + 1)[index] * 2

    model = Model()
    call, device = compiled(model, (rows(4), torch.tensor([1, 0])), dynamic={"x": {0: "n"}})
    bad: list[Any] = [lambda s, k: 1 / 0, lambda s, k: ((rows(s["n"]), torch.tensor([99, 0])), {}),
                      lambda s, k: ((rows(s["n"]).double(), torch.tensor([0, 0])), {})]  # fmt: skip
    for make in bad:
        row = call.record(make, sizes={"n": [8]}).rows[0]
        assert row.status == "failed"
        assert "Error" in row.reason
        assert (device.used, device.is_recording) == (0, False)
    call.record(lambda s, k: ((rows(s["n"]), torch.tensor([3, 0])), {}), sizes={"n": [8]})
    assert replays(device, lambda: same(call, model, rows(8), torch.tensor([2, 5]))) == 2
    with pytest.raises(IndexError):  # eager's own error, and the next call is right
        call(rows(8), torch.tensor([99, 0]))
    same(call, model, rows(8), torch.tensor([2, 5]))


def test_f24_an_expanded_result_and_one_that_cannot_be_recorded() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Tensor) -> Any:
            a = x.sum(0).expand(x.shape[0], 8)
            return torch.sigmoid(x) + a, a

    model, call, device = recorded(Model())
    assert device.used == 4
    for n in (8, 1):
        assert replays(device, lambda n=n: same(call, model, rows(n))) == 2


@pytest.mark.parametrize("limit", [0, 32, 128, 256, 300, 512, 600, 800])
def test_f25_a_pool_without_memory(limit: int) -> None:
    model = Chain()
    call, device = compiled(model, plugin=NullPlugin(bytes=limit))
    table = call.record(make_rows, sizes={"n": [1, 8, 16]})
    assert [row.sizes["n"] for row in table.rows] == [16, 8, 1]
    for row in table.rows:
        assert row.status in ("recorded", "partly", "failed", "dropped")
        if row.status in ("partly", "failed"):
            assert "OutOfMemoryError: the null device is out of memory" in row.reason
    assert sum(pool.taken for pool in device.pools) <= limit
    assert device.used == table.recordings
    for n in (16, 8, 1, 5):
        same(call, model, rows(n), exact=False)
    device.pools[0].limit = 1 << 20
    device.bytes = 1 << 20
    call.record(make_rows, sizes={"n": [16]}, budget={})
    assert replays(device, lambda: same(call, model, rows(16), exact=False)) == 3


def test_f25_out_of_memory_at_every_point_keeps_what_is_recorded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for after in range(6):
        model = Chain()
        call, device = compiled(model)
        device.fail("memory", torch.OutOfMemoryError("no memory"), after=after)
        table = call.record(make_rows, sizes={"n": [1, 8]})
        assert [row.status for row in table.rows].count("partly") == 1
        assert table.recordings == device.used == 5
        assert "OutOfMemoryError: no memory" in caplog.text
        for n in (8, 1):
            same(call, model, rows(n))


# ------------------------------------------------------------------------- F26: addresses


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("policy", ["copy", "same-address", "general"])
def test_f26_a_moved_input(mode: str, policy: str, caplog: pytest.LogCaptureFixture) -> None:
    x = rows(8)
    model = Chain()
    call, device = compiled(model, static_graph=mode, static_inputs={"x": policy})
    call.record(lambda s, k: ((x,), {}), sizes={"n": [8]})
    moved = 0 if mode == "full" else 2  # the pieces that follow read what the first has made
    for given, expected in (
        (x, whole(mode)),
        (rows(8), whole(mode) if policy == "copy" else moved),
        (x, whole(mode)),
    ):
        assert replays(device, lambda given=given: same(call, model, given)) == expected
    assert call.report.counters.get("replay-general", 0) == (policy != "copy")
    assert ("same-address" in caplog.text) == (policy == "same-address")


def test_f26_a_predecessor_that_runs_in_general_leaves_no_stale_input() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
            self.requires_grad_(False)

        def forward(self, x: Tensor, kept: Tensor) -> Any:
            kept.add_(1)
            y = self.a(x) + kept
            z = torch.sigmoid(y)
            w = torch.sigmoid(self.b(z) + y)
            return w + y, z

    kept = torch.randn(8)
    model, call, device = recorded(Model(), lambda s, k: ((rows(s["n"]), kept), {}))
    for target in (kept, torch.randn(8), torch.randn(8), kept, torch.randn(9)[1:]):
        expected = 3 if target is kept else 2
        assert replays(device, lambda target=target: same(call, model, rows(8), target)) == expected


def test_f26_an_argument_at_the_same_address_in_another_storage() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Tensor, kept: Tensor) -> Any:
            kept.add_(1)
            return torch.sigmoid(x) + 1, kept.view(-1)

    memory = torch.zeros(100)
    inside = memory[8:16].view(2, 4)
    alone = torch.from_numpy(memory.numpy()[8:16]).view(2, 4)
    for mode in MODES:
        _, call, _ = recorded(Model(), lambda s, k: ((rows(s["n"]), inside), {}), static_graph=mode)
        result = call(rows(8), alone)[1]
        assert result.data_ptr() == alone.data_ptr()
        check(result, alone.view(-1))


# ------------------------------------------------------------------------- F27: threads


def in_thread(run: Callable[[], Any]) -> tuple[threading.Thread, list[BaseException]]:
    """Start a thread, which notes what it raises."""
    errors: list[BaseException] = []

    def body() -> None:
        try:
            with torch.no_grad():
                run()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    return thread, errors


def finished(*threads: tuple[threading.Thread, list[BaseException]]) -> None:
    """Wait for threads; raise what one has raised, or that one hangs."""
    for thread, errors in threads:
        thread.join(20)
        assert not thread.is_alive(), "hangs"
        if errors:
            raise errors[0]


@pytest.mark.parametrize("mode", MODES)
def test_f27_calls_of_other_threads_while_sizes_are_recorded(mode: str) -> None:
    model = Chain()
    call, device = compiled(model, static_graph=mode)
    stop = threading.Event()

    def calling() -> None:
        while not stop.is_set():
            for n in (8, 3, 1):
                same(call, model, rows(n), exact=False)

    threads = [in_thread(calling) for _ in range(2)]
    for _ in range(3):
        table = call.record(make_rows, sizes={"n": [1, 2, 3, 5, 8]})
        assert {row.status for row in table.rows} == {"recorded"}
    stop.set()
    finished(*threads)
    assert device.used == 5 * whole(mode)
    assert not device.is_recording


def test_f27_two_models_record_at_once_also_in_one_pool() -> None:
    plugin = NullPlugin()
    first = Chain()
    one, device = compiled(first, plugin=plugin)
    one.record(make_rows, sizes={"n": [8]})
    others = [(model, compiled(model, plugin=plugin)[0]) for model in (Chain(), Chain())]
    pools = (one.static_graph_pool, None)
    finished(*(
        in_thread(lambda call=call, pool=pool: call.record(make_rows, sizes={"n": [1, 2, 4, 8]}, pool=pool))
        for (_, call), pool in zip(others, pools, strict=True)
    ))  # fmt: skip
    assert device.used == 3 + 2 * 12
    for _ in range(2):
        for model, call in ((first, one), *others):
            assert replays(device, lambda model=model, call=call: same(call, model, rows(8))) == 3


def test_f27_a_call_that_waits_while_its_recording_is_replaced() -> None:
    model, call, device = recorded()
    waiting: list[Any] = []

    def make(sizes: Any, key: Any) -> Any:
        waiting.append(in_thread(lambda: same(call, model, rows(sizes["n"]))))
        waiting[-1][0].join(0.1)  # it has what it will replay, and waits for the pool
        return make_rows(sizes)

    call.record(make, sizes=SIZES)
    finished(*waiting)
    assert device.used == 6


def test_f27_weights_replaced_while_another_thread_records() -> None:
    model, call, device = recorded()
    waiting: list[Any] = []

    def replace() -> None:
        model.a.weight = torch.nn.Parameter(torch.randn(8, 8), requires_grad=False)

    def make(sizes: Any, key: Any) -> Any:
        replace()
        waiting.append(in_thread(call.rebind))
        waiting[-1][0].join(0.1)
        replace()
        return make_rows(sizes)

    recording = in_thread(lambda: call.record(make, sizes={"n": [8]}))
    finished(recording)
    finished(*waiting)
    for n in (8, 1):
        same(call, model, rows(n))
    assert device.used == call.report.recordings


@pytest.mark.parametrize("threads", [4])
def test_f27_threads_call_through_torch_compile(threads: int) -> None:
    model = Chain()
    call, _ = jit(model)
    same(call, model, rows(8))

    def calling() -> None:
        for n in (8, 2, 2, 8, 5, 2, 8):
            same(call, model, rows(n), exact=False)

    finished(*(in_thread(calling) for _ in range(threads)))


# ------------------------------------------------------------------------- F33: finalisers


@pytest.fixture
def _little_garbage() -> Iterator[None]:
    """Leave what other tests made out of the many collections of one test."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("_little_garbage")
def test_f33_garbage_collection_in_a_recording() -> None:
    log: list[str] = []

    class Garbage:
        def __init__(self, held: Any) -> None:
            self.held, self.itself = held, self

        def __del__(self) -> None:
            log.append("gone")
            torch.randn(100).sum()  # a finaliser that uses the device

    class Model(torch.nn.Module):
        def forward(self, x: Tensor) -> Any:
            y = torch.ops.static_graph_faults.collecting(x * 2)
            return torch.sigmoid(y) + y, y

    plugin = NullPlugin()
    model = Model()
    call, device = compiled(
        model, plugin=plugin, op_safety={"static_graph_faults::collecting": "safe"}
    )
    collected.clear()

    def make(sizes: Any, key: Any) -> Any:
        other, _ = compiled(Chain(), plugin=plugin)
        other.record(make_rows, sizes={"n": [2]})
        Garbage(other)  # a model with recordings of its own, which is gone while this one records
        return make_rows(sizes)

    was = gc.isenabled()
    table = call.record(make, sizes=SIZES)
    assert gc.isenabled() == was
    assert {row.status for row in table.rows} == {"recorded"}
    assert collected
    assert len(log) == 2
    for n in (8, 1):
        assert replays(device, lambda n=n: same(call, model, rows(n))) == 2
    gc.collect()
    assert device.used == 4


@torch.library.custom_op("static_graph_faults::collecting", mutates_args=())
def collecting(x: Tensor) -> Tensor:
    gc.collect()
    collected.append(1)
    return x + 1


@collecting.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


collected: list[int] = []


def test_f33_the_collector_is_off_in_a_recording_and_then_as_before() -> None:
    states: list[bool] = []
    model = Chain()
    call, device = compiled(model)
    real = device.run

    def run(*arguments: Any) -> Any:
        states.append(gc.isenabled())
        return real(*arguments)

    device.run = run  # type: ignore[method-assign]
    for before in (True, False):
        (gc.enable if before else gc.disable)()
        try:
            call.record(make_rows, sizes=SIZES)
            device.fail("first", KeyboardInterrupt())
            with pytest.raises(KeyboardInterrupt):
                call.record(make_rows, sizes=SIZES)
            assert gc.isenabled() == before
        finally:
            gc.enable()
    assert states
    assert not any(states)


@pytest.mark.parametrize("mode", MODES)
def test_f33_a_model_that_is_dropped_gives_its_recordings_back(mode: str) -> None:
    plugin = NullPlugin()
    _, call, device = recorded(static_graph=mode, plugin=plugin)
    assert device.used
    del call
    gc.collect()
    assert device.used == 0
    assert not device.pools
    model, call, _ = recorded(static_graph=mode, plugin=plugin)
    same(call, model, rows(8))
