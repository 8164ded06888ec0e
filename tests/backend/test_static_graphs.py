"""Static graphs of compiled models, on the null device: what is recorded, and that results are eager's."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

import intarsia
from intarsia.config import load_config
from intarsia.host import Host
from intarsia.testing.null_device import NullDevice, NullPlugin
from tests.models import ATTENTION, DECODER_DYNAMIC, decoder, decoder_inputs
from tests.null_graphs import (
    Chain,
    check,
    compiled,
    jit,
    make_rows,
    rows,
    same,
    settings,
    twin,
)  # fmt: skip

pytestmark = pytest.mark.timeout(40)

MODES = ["piecewise", "full"]
SIZES = {"n": [1, 8]}
INDUCTOR = pytest.param("inductor", marks=pytest.mark.slow)


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


def replays(device: NullDevice, run: Callable[[], Any]) -> int:
    """Return how many recordings ran."""
    before = device.replays
    run()
    return device.replays - before


# ------------------------------------------------------------------------------------- the decoder


def compiled_decoder(layers: int = 12, **chosen: Any) -> tuple[Any, Any, NullDevice]:
    """Compile the decoder; returns it, the compiled one and the device."""
    model = decoder(layers)
    chosen = {"split_at": [ATTENTION], "boxes": {"tokens": [1, 64]}, **chosen}
    plugin = chosen.pop("plugin", None) or NullPlugin()
    resolved = load_config(None, environ={}, **settings(**chosen))
    call = intarsia.compile(
        model, kwargs=decoder_inputs(4), dynamic=DECODER_DYNAMIC, config=resolved,
        host=Host(resolved, extra_plugins=[plugin]),
    )  # fmt: skip
    return model, call, plugin.device


def make_decoder_inputs(sizes: Any, key: Any) -> Any:
    """Make the decoder's inputs."""
    return (), decoder_inputs(sizes["tokens"], 3)


ONE_AND_TWO = {"tokens": [1, 2]}


@pytest.mark.parametrize(
    ("mode", "count"), [("piecewise", 26), ("full", 2), ("full-and-piecewise", 28)]
)
@pytest.mark.parametrize("compiler", ["eager", INDUCTOR])
def test_twelve_layers_make_26_recordings_by_pieces_and_2_in_full(
    mode: str, count: int, compiler: str
) -> None:
    safe = {} if mode == "piecewise" else {ATTENTION: "safe"}
    model, call, device = compiled_decoder(static_graph=mode, op_safety=safe, compilers=[compiler])
    without = compiled_decoder(static_graph="none", compilers=[compiler])[1]
    table = call.record(make_decoder_inputs, sizes=ONE_AND_TWO)
    assert table.recordings == device.recordings == call.report.recordings == count, str(table)
    assert call.memory()["slots"] == count
    for n in (2, 1, 2, 5):
        inputs = decoder_inputs(n, seed=n)
        with_them = call(**inputs)
        check(with_them, without(**inputs))
        if compiler == "eager":
            check(with_them, model(**inputs))
    assert device.replays == 3 * (13 if mode == "piecewise" else 1)


def test_two_models_in_one_process_and_in_one_pool() -> None:
    plugin = NullPlugin()
    one, first, device = compiled_decoder(3, plugin=plugin)
    two, second, _ = compiled_decoder(2, plugin=plugin)
    three, third, _ = compiled_decoder(
        3, plugin=plugin, static_graph="full", op_safety={ATTENTION: "safe"}
    )
    first.record(make_decoder_inputs, sizes=ONE_AND_TWO)
    alone = sum(pool.taken for pool in device.pools)
    second.record(make_decoder_inputs, sizes=ONE_AND_TWO, pool=first.static_graph_pool)
    assert sum(pool.taken for pool in device.pools) == alone  # the second needs nothing of its own
    third.record(make_decoder_inputs, sizes=ONE_AND_TWO)
    assert len(device.pools) == 2
    for seed in range(3):
        for model, call in ((one, first), (two, second), (three, third)):
            for n in (1, 2):
                same(call, model, **decoder_inputs(n, seed))
    with pytest.raises(intarsia.RecordError, match="another pool"):
        third.record(make_decoder_inputs, sizes=ONE_AND_TWO, pool=first.static_graph_pool)
    first.close()  # the other's recordings go on in its memory
    assert len(device.pools) == 2
    for seed in range(3):
        same(second, two, **decoder_inputs(2, seed))
    second.record(make_decoder_inputs, sizes={"tokens": [4]})
    same(second, two, **decoder_inputs(4))
    second.close()
    third.close()
    assert device.used == 0
    assert not device.pools


# ------------------------------------------------------------------------------------- what is written


class Cached(torch.nn.Module):
    """Writes rows of an argument, and attends over it."""

    def __init__(self) -> None:
        super().__init__()
        self.keys = torch.nn.Linear(8, 8)
        self.requires_grad_(False)

    def forward(self, x: Tensor, positions: Tensor, cache: Tensor) -> Tensor:
        """Run it."""
        keys = self.keys(x)
        cache[positions] = keys
        z = torch.sigmoid(keys)
        return (z @ cache.t()) @ cache


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("policy", ["copy", "same-address", "general"])
def test_a_written_argument_at_a_new_address_keeps_the_callers_write(
    mode: str, policy: str
) -> None:
    model, cache = Cached(), torch.randn(16, 8)
    call, device = compiled(
        model, (rows(4), torch.arange(4), cache), dynamic={"x": {0: "n"}, "positions": {0: "n"}},
        static_graph=mode, static_inputs={"cache": policy},
    )  # fmt: skip
    call.record(lambda s, k: ((rows(s["n"]), torch.arange(s["n"]), cache), {}), sizes=SIZES)
    all_of_them = 2 if mode == "piecewise" else 1
    for target in (cache, torch.randn(16, 8), cache, torch.randn(17, 8)[1:], cache[:]):
        at = torch.randperm(16)[:8]
        found = replays(device, lambda target=target, at=at: same(call, model, rows(8), at, target))
        assert found == all_of_them or target.data_ptr() != cache.data_ptr()
    assert call.report.counters["replay-general"] >= 2


class Effects(torch.nn.Module):
    """Writes to a buffer, to a dict, to an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(8))
        self.last: Tensor | None = None

    def forward(self, x: Tensor, found: dict[str, Tensor]) -> Tensor:
        """Run it."""
        z = torch.sigmoid(x * 2)
        self.total.add_(z.sum(0))
        self.last = z * 3
        found["out"] = z + 1
        return x + self.total


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("outputs", ["owned", "borrowed"])
def test_effects_are_kept(mode: str, outputs: str) -> None:
    model = Effects()
    call, device = compiled(model, (rows(4), {}), static_graph=mode, outputs=outputs)
    call.record(lambda s, k: ((rows(s["n"]), {}), {}), sizes=SIZES)
    reference, held = twin(model), []
    for n in (8, 8, 1, 8, 5):
        x, mine, other = rows(n), {}, {}
        found, expected = call(x, mine), reference(x, other)
        check(
            (found, mine, model.last, model.total),
            (expected, other, reference.last, reference.total),
        )
        held.append(((found, mine, model.last), (expected, other, reference.last)))
    assert device.replays
    if outputs == "owned":
        check([one for one, _ in held], [one for _, one in held])


@pytest.mark.parametrize("mode", MODES)
def test_recording_writes_what_one_run_writes(mode: str) -> None:
    model = Effects()
    call, _ = compiled(model, (rows(4), {}), static_graph=mode)
    x, reference = rows(8), twin(model)
    call.record(lambda s, k: ((x, {}), {}), sizes={"n": [8]})
    reference(x, {})
    assert torch.equal(reference.total, model.total)


@torch.library.custom_op("static_graphs::into", mutates_args=("out",))
def into(x: Tensor, out: Tensor) -> None:
    out.copy_(x * 2)


@torch.library.custom_op("static_graphs::fresh", mutates_args=())
def fresh(x: Tensor) -> Tensor:
    return x * 3 + 1


@fresh.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class CustomOps(torch.nn.Module):
    """Calls an operator that writes to what a piece has made, and one that returns a fresh tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Linear(8, 8)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Run it."""
        y = self.a(x)
        out, view = torch.empty_like(y), y.view(-1)
        torch.ops.static_graphs.into(y, out)
        z = torch.ops.static_graphs.fresh(out + y)
        torch.ops.static_graphs.into(z, y)
        return z + out + y, view + 1


OPS = ["static_graphs::into", "static_graphs::fresh"]


@pytest.mark.parametrize("compiler", ["eager", "inductor"])
def test_custom_operators_between_recordings(compiler: str) -> None:
    model = CustomOps()
    call, device = compiled(model, split_at=OPS, compilers=[compiler])
    table = call.record(make_rows, sizes={"n": [2, 8]})
    assert {row.status for row in table.rows} == {"recorded"}, str(table)
    for n in (8, 2, 8):
        assert (
            replays(device, lambda n=n: same(call, model, rows(n), exact=False))
            == table.recordings // 2
        )


@pytest.mark.parametrize("compiler", ["eager", INDUCTOR])
def test_custom_operators_inside_a_recording_need_a_word(compiler: str) -> None:
    model = CustomOps()
    call, device = compiled(model, split_at=OPS, static_graph="full", compilers=[compiler])
    with pytest.raises(intarsia.RecordError, match="static_graphs::into.* is unknown"):
        call.record(make_rows, sizes={"n": [2, 8]})
    assert device.recordings == 0
    same(call, model, rows(8), exact=False)
    chosen: list[dict[str, Any]] = [
        {"unknown_ops": "allow"},
        {"op_safety": dict.fromkeys(OPS, "safe")},
    ]
    for more in chosen:
        call, device = compiled(
            model, split_at=OPS, static_graph="full", compilers=[compiler], **more
        )
        assert call.record(make_rows, sizes={"n": [2, 8]}).recordings == 2
        assert replays(device, lambda call=call: same(call, model, rows(8), exact=False)) == 1
    call, _ = compiled(
        model, split_at=OPS, static_graph="full", unknown_ops="allow", op_safety={OPS[0]: "break"}
    )
    with pytest.raises(intarsia.RecordError, match="into.* is break .*config says so"):
        call.record(make_rows, sizes={"n": [2, 8]})


LOOKS: list[Callable[[], None]] = []


@torch.library.custom_op("static_graphs::look", mutates_args=())
def look(x: Tensor) -> Tensor:
    for one in LOOKS:
        one()
    return x.clone()


@look.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.usefixtures("saboteur")
def test_a_first_call_that_is_recorded_is_noted_in_the_crash_journal(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[list[str]] = []
    running = tmp_path / "running"
    monkeypatch.setattr(
        f"{__name__}.LOOKS", [lambda: notes.append([f.read_text() for f in running.iterdir()])]
    )
    call, device = compiled(
        lambda x: torch.ops.static_graphs.look(x + 1) * 2, static_graph=mode, unknown_ops="allow",
        compilers=["saboteur"], cache=str(tmp_path), workers=0,
    )  # fmt: skip
    notes.clear()
    call.record(make_rows, sizes={"n": [8]})
    assert device.recordings == 1
    first, *later = notes
    assert len(first) == 1
    assert "by saboteur, called" in first[0]
    assert not any(later)


class Results(torch.nn.Module):
    """Returns an argument, a weight, views of both and of each other, nested."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.randn(8, 8), requires_grad=False)

    def forward(self, x: Tensor, y: Tensor) -> Any:
        """Run it."""
        z = torch.sigmoid(x + 1)
        a = z @ self.w
        return (
            a,
            x,
            y[1:],
            self.w,
            self.w.t(),
            [a.view(-1), {"a": a, "z": z, "none": None}],
            3,
            x.shape[0] + 1,
        )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("outputs", ["owned", "borrowed"])
def test_nested_results_arguments_and_weights(mode: str, outputs: str) -> None:
    model = Results()
    call, _ = compiled(model, (rows(4), rows(4)), dynamic={"x": {0: "n"}, "y": {0: "n"}},
                       static_graph=mode, outputs=outputs)  # fmt: skip
    call.record(lambda s, k: ((rows(s["n"]), rows(s["n"])), {}), sizes={"n": [2, 8]})
    for n in (8, 2, 8, 3):
        x, y = rows(n), rows(n)
        result = same(call, model, x, y)
        assert result[1].data_ptr() == x.data_ptr()
        assert result[2].data_ptr() == y[1:].data_ptr()
        assert result[3].data_ptr() == model.w.data_ptr()


# ------------------------------------------------------------------------------------- whose results are


@pytest.mark.parametrize("mode", MODES)
def test_results_held_across_calls_stay_intact(mode: str) -> None:
    model = Chain()
    call, _ = compiled(model, static_graph=mode)
    call.record(make_rows, sizes={"n": [1, 2, 8]})
    held = [(call(x), model(x)) for x in map(rows, (8, 8, 2, 8, 1, 2, 8))]
    check([one for one, _ in held], [one for _, one in held])
    for result, _ in held:
        result[0].fill_(7)  # and they are the caller's own
    same(call, model, rows(8))


@pytest.mark.parametrize("mode", MODES)
def test_borrowed_results_lie_in_the_recording(mode: str) -> None:
    model = Chain()
    call, _ = compiled(model, static_graph=mode, outputs="borrowed")
    call.record(make_rows, sizes=SIZES)
    first = same(call, model, rows(8))
    second = same(call, model, rows(8))
    assert first[0].data_ptr() == second[0].data_ptr()
    for _ in range(20):
        same(call, model, rows(random.choice((1, 8))))


# ------------------------------------------------------------------------------------- budgets


@pytest.mark.parametrize("estimates", [True, False])
def test_ten_slots_never_see_an_eleventh_recording(
    estimates: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = Chain()
    call, device = compiled(model, plugin=NullPlugin(slots=10, estimates=estimates))
    table = call.record(make_rows, sizes={"n": [1, 2, 3, 4, 5, 6]})
    assert device.highest <= 10
    if estimates:
        assert device.recordings == 9  # nothing was begun in vain
    assert [row.sizes["n"] for row in table.rows if row.status == "recorded"] == [6, 5, 4]
    assert [row.sizes["n"] for row in table.dropped] == [3, 2, 1]
    assert all("slots" in row.reason for row in table.dropped)
    assert "no static graphs for n = 3, n = 2, n = 1" in caplog.text
    assert "dropped" in str(table)
    assert "slots 9 of 10" in str(table)
    assert table.to_dict()["rows"][-1]["status"] == "dropped"
    for n in range(1, 8):
        assert replays(device, lambda n=n: same(call, model, rows(n), exact=False)) == 3 * (
            n in (4, 5, 6)
        )
    assert call.record(make_rows, sizes={"n": [4, 5, 6]}).recordings == 9  # anew, in a full budget
    assert device.highest <= 10
    assert device.used == 9


def test_a_budget_of_the_caller_and_of_config(caplog: pytest.LogCaptureFixture) -> None:
    model = Chain()
    call, device = compiled(model, static_graph_budget={"slots": 4})
    assert call.record(make_rows, sizes={"n": [1, 8]}).recordings == 3
    table = call.record(make_rows, sizes={"n": [2, 4]}, budget={"slots": 7})
    assert table.recordings == 3
    assert table.budget["slots"] == 7
    assert device.used == 6
    table = call.record(make_rows, sizes={"n": [1]}, budget={"bytes": 0})
    assert "bytes" in str(table)
    for n in (1, 2, 4, 8):
        same(call, model, rows(n))
    full, device = compiled(model, static_graph="full", plugin=NullPlugin(slots=2))
    table = full.record(make_rows, sizes={"n": [1, 2, 8]})
    assert [row.status for row in table.rows] == ["recorded", "recorded", "dropped"]
    assert device.highest == 2


# ------------------------------------------------------------------------------------- frozen


@pytest.mark.parametrize("door", ["compile", pytest.param("torch.compile", marks=pytest.mark.slow)])
def test_frozen_nothing_compiles_or_is_recorded_in_a_thousand_calls(door: str) -> None:
    model = Chain()
    if door == "compile":
        call, device = compiled(model)
        call.record(make_rows, sizes={"n": [1, 2, 8]})
        call.freeze()
        with pytest.raises(intarsia.RecordError, match="frozen"):
            call.record(make_rows, sizes={"n": [3]})
        report = call.report
    else:
        call, device = jit(model)
        for n in (8, 2, 8, 2, 5):
            call(rows(n))
        report = intarsia.reports()[-1]
    compiles, recordings, captures = report.compiler_calls, device.recordings, report.captures
    chosen = random.Random(0)
    recorded, expected = (1, 2, 8) if door == "compile" else (2, 8), device.replays
    for _ in range(1000):
        n = chosen.choice((*recorded, chosen.randrange(2, 60)))
        expected += 3 * (n in recorded)
        same(call, model, rows(n), exact=False)
    report = call.report if door == "compile" else intarsia.reports()[-1]
    assert (report.compiler_calls, device.recordings, report.captures) == (
        compiles,
        recordings,
        captures,
    )
    assert device.replays == expected
    with intarsia.step(key="other"):
        same(call, model, rows(8))
    assert device.replays == expected
    if door == "compile":
        assert call.report.counters["unrecorded"] == 1
        same(call, model, rows(0), exact=False)
        assert call.report.counters["uncovered"] == 1


# ------------------------------------------------------------------------------------- padding, steps


@pytest.mark.parametrize("mode", MODES)
def test_calls_are_padded_to_the_nearest_recorded_size(mode: str) -> None:
    model = Chain()
    call, device = compiled(model, static_graph=mode, uncovered="pad", rows_independent=["n"])
    call.record(make_rows, sizes={"n": [2, 8]})
    count = 3 if mode == "piecewise" else 1
    for n in (1, 2, 3, 7, 8):
        assert replays(device, lambda n=n: same(call, model, rows(n), exact=False)) == count
    assert call.report.counters["padded"] == 3
    assert replays(device, lambda: same(call, model, rows(9), exact=False)) == 0
    with pytest.raises(intarsia.ContractError, match="outside every"):
        call(rows(65))
    held = [(call(x), model(x)) for x in map(rows, (3, 7, 5))]
    for found, expected in held:
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)


def test_a_step_chooses_the_mode_and_the_key() -> None:
    model = Chain()
    call, device = compiled(model, static_graph="full-and-piecewise")
    table = call.record(make_rows, sizes={"n": [8]}, keys=["prefill", "decode"])
    assert [(row.key, row.mode, row.recordings) for row in table.rows] == [
        (key, mode, count) for key in ("prefill", "decode") for mode, count in (("piecewise", 3), ("full", 1))
    ]  # fmt: skip

    def count(**step: Any) -> int:
        with intarsia.step(**step):
            return replays(device, lambda: same(call, model, rows(8)))

    for key in ("prefill", "decode"):
        assert count(key=key) == 1
        assert count(key=key, mode="full") == 1
        assert count(key=key, mode="piecewise") == 3
        assert count(key=key, mode="none") == 0
    assert count(key="other") == 0
    assert count() == 0
    assert call.report.counters["unrecorded"] == 2
    for wrong in ({"mode": "fast"}, {"key": []}):
        with pytest.raises(intarsia.ConfigError), intarsia.step(**wrong):
            pass


def test_make_inputs_gets_the_sizes_and_the_key_within_the_step() -> None:
    seen: list[Any] = []
    model = Chain()
    call, _ = compiled(model)

    def make(sizes: Any, key: Any) -> Any:
        seen.append((dict(sizes), key))
        sizes.clear()  # it is the callee's own
        return (rows(seen[-1][0]["n"]),), {}

    done: list[Any] = []
    call.record(
        make, sizes={"n": [2, 8]}, keys=(None, 1), progress=lambda *told: done.append(told[:2])
    )
    assert seen == [({"n": n}, key) for n in (8, 2) for key in (None, 1)]
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_recording_is_made_under_its_key_where_python_reads_other_metadata() -> None:
    model = Reading()
    call, _ = compiled(model, split_at=[], static_graph="full", unknown_ops="allow")

    def make(sizes: Any, key: Any) -> Any:
        FACTOR[0] = key
        return make_rows(sizes)

    call.record(make, sizes={"n": [8]}, keys=[2.0, 3.0])
    for key in (3.0, 2.0, 3.0):
        FACTOR[0] = key
        with intarsia.step(key=key):
            same(call, model, rows(8))


FACTOR = [1.0]


@torch.library.custom_op("static_graphs::reading", mutates_args=())
def reading(x: Tensor) -> Tensor:
    return x * FACTOR[0]


@reading.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Reading(torch.nn.Module):
    """Has an operator whose Python side reads what the sizes do not say."""

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        return torch.ops.static_graphs.reading(x + 1) - 1


# ------------------------------------------------------------------------------------- errors


def test_errors_of_record_name_what_is_wrong() -> None:
    model = Chain()
    plain, _ = compiled(model, static_graph="none")
    with pytest.raises(intarsia.ConfigError, match="no static graphs"):
        plain.record(make_rows, sizes=SIZES)
    call, device = compiled(model, uncovered="error")
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("no box holds", {"sizes": {"n": [65]}}), ("no symbol 'm'", {"sizes": {"n": [1], "m": [2]}}),
        ("no sizes for 'n'", {}), ("no sizes for 'n'", {"sizes": {"n": []}}),
    ]  # fmt: skip
    for text, given_ in wrong:
        with pytest.raises(intarsia.RecordError, match=text):
            call.record(make_rows, **given_)
    with pytest.raises(intarsia.RecordError, match="make_inputs made no inputs with n = 8"):
        call.record(lambda s, k: ((rows(3),), {}), sizes=SIZES)
    with pytest.raises(intarsia.ConfigError, match='static-inputs names "y"'):
        compiled(model, static_inputs={"y": "copy"})
    assert device.recordings == 0
    same(call, model, rows(8))
    assert call.record(make_rows, sizes=SIZES).recordings == 6
    assert replays(device, lambda: same(call, model, rows(8))) == 3


def test_operators_that_read_values_are_refused_where_they_would_be_recorded() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.intarsia_tests.tagged(x + 1) * 2

    model = Model()
    call, device = compiled(model, split_at=[])
    with pytest.raises(
        intarsia.RecordError, match="intarsia_tests::tagged.* is break .*cudagraph_unsafe"
    ):
        call.record(make_rows, sizes=SIZES)
    assert device.recordings == 0
    call, device = compiled(model, split_at=["intarsia_tests::tagged"])
    assert call.record(make_rows, sizes=SIZES).recordings == 4
    same(call, model, rows(8))


# ------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("mode", MODES)
def test_replaced_weights_release_recordings(mode: str, caplog: pytest.LogCaptureFixture) -> None:
    model = Chain()
    call, device = compiled(model, static_graph=mode)
    call.record(make_rows, sizes=SIZES)
    model.a.weight.mul_(2)  # in place: the recordings read it
    assert replays(device, lambda: same(call, model, rows(8))) > 0
    model.a.weight = torch.nn.Parameter(torch.randn(8, 8), requires_grad=False)
    assert replays(device, lambda: same(call, model, rows(8))) == 0
    assert (device.used, call.report.recordings, call.memory()["slots"]) == (0, 0, 0)
    assert "were released" in caplog.text
    same(call, model, rows(1))
    call.record(make_rows, sizes=SIZES)
    assert replays(device, lambda: same(call, model, rows(8))) > 0
    model._parameters["_"] = None
    model.b._parameters["weight"] = torch.nn.Parameter(torch.randn(8, 8), requires_grad=False)
    call.rebind()  # no hook tells of this one
    assert device.used == 0
    same(call, model, rows(8))
    call.record(make_rows, sizes=SIZES)
    model.double()
    with pytest.raises(intarsia.ContractError):
        call(rows(8))
    model.float()
    same(call, model, rows(8))


def test_closed_it_releases_everything() -> None:
    call, device = compiled(Chain())
    call.record(make_rows, sizes=SIZES)
    call.close()
    assert (device.used, device.pools, call.memory()) == (0, [], {})
    with pytest.raises(intarsia.ContractError, match="closed"):
        call(rows(8))


# ------------------------------------------------------------------------------------- from the cache


@pytest.mark.parametrize("mode", MODES)
def test_a_warm_start_is_recorded_as_a_cold_one(mode: str, tmp_path: Path) -> None:
    for warm in (False, True):
        model = Chain()
        call, device = compiled(model, static_graph=mode, cache=str(tmp_path))
        assert (call.report.captures == 0) == warm
        call.record(make_rows, sizes=SIZES)
        for n in (8, 1):
            assert (
                replays(device, lambda n=n, call=call, model=model: same(call, model, rows(n))) > 0
            )


def test_a_loaded_model_is_recorded(tmp_path: Path) -> None:
    model = Chain()
    call, _ = compiled(model, split_at=["torch.sigmoid"])
    call.save(tmp_path / "saved")
    other, plugin = Chain(), NullPlugin()
    resolved = load_config(None, environ={}, **settings(boxes={"n": [1, 64]}))
    loaded = intarsia.load(
        tmp_path / "saved", other, config=resolved, host=Host(resolved, extra_plugins=[plugin])
    )
    assert loaded.record(make_rows, sizes=SIZES).recordings == 6
    for n in (8, 1, 5):
        same(loaded, other, rows(n), exact=False)
    assert plugin.device.replays == 6


# ------------------------------------------------------------------------------------- torch.compile


@pytest.mark.parametrize("compiler", ["eager", "inductor"])
def test_torch_compile_records_the_listed_sizes_as_they_come(compiler: str) -> None:
    model = Chain()
    call, device = jit(model, compilers=[compiler])
    same(call, model, rows(5), exact=False)  # 8 rows of 8 would be one symbol
    for n in (8, 2, 8, 2, 8, 5, 2, 8):
        same(call, model, rows(n), exact=False)
    assert (device.recordings, device.used) == (6, 6)
    assert device.replays == 15
    assert intarsia.reports()[-1].counters["recorded"] == 2


def test_torch_compile_in_full_mode_and_with_keys() -> None:
    model = Chain()
    call, device = jit(model, static_graph="full-and-piecewise")
    same(call, model, rows(5), exact=False)  # 8 rows of 8 would be one symbol
    for _ in range(3):
        with intarsia.step(mode="none"):
            same(call, model, rows(8))
    assert device.recordings == 0
    same(call, model, rows(8))
    same(call, model, rows(8))
    assert device.recordings == 4
    with intarsia.step(key="other"):
        assert replays(device, lambda: [same(call, model, rows(8)) for _ in range(3)]) == 1
    assert device.recordings == 8
    assert replays(device, lambda: same(call, model, rows(8))) == 1


def test_torch_compile_of_a_model_that_writes() -> None:
    model, cache = Cached(), torch.randn(16, 8)
    call, device = jit(model, dynamic={"x": {0: "n"}, "positions": {0: "n"}}, every_size=None)
    for n in (5, 6):
        same(call, model, rows(n), torch.randperm(16)[:n], cache)
    for target in (cache, cache, torch.randn(16, 8), cache, cache):
        same(call, model, rows(8), torch.randperm(16)[:8], target)
    assert device.replays


def test_torch_compile_stops_at_the_budget(caplog: pytest.LogCaptureFixture) -> None:
    model = Chain()
    call, device = jit(model, plugin=NullPlugin(slots=4), sizes={"n": [2, 4, 8]})
    for n in (8, 2, 4, 8, 2, 4, 8):
        same(call, model, rows(n), exact=False)
    assert device.highest <= 4
    assert device.used == 3
    assert caplog.text.count("no more static graphs") == 1


# ------------------------------------------------------------------------------------- a property


STEPS: list[Callable[[Tensor, Tensor, Tensor], Tensor]] = [
    lambda v, x, y: v * 2 + y,
    lambda v, x, y: v.t().contiguous().t(),
    lambda v, x, y: v.clone().add_(x),
    lambda v, x, y: torch.sigmoid(v),
    lambda v, x, y: torch.sigmoid(v) + x,
    lambda v, x, y: (v + 1).reshape(-1).view(v.shape),
    lambda v, x, y: v[:, ::2].repeat(1, 2),
    lambda v, x, y: v.sum(0).expand(v.shape[0], 8) * 0.5,
    lambda v, x, y: y,
    lambda v, x, y: x.flip(0) - v,
    lambda v, x, y: (v * 1)[:, :4].fill_(0.5).sum(1, keepdim=True) + v,
]


class Random(torch.nn.Module):
    """A chain of steps; what the steps in `kept` make is returned too."""

    def __init__(self, steps: list[int], kept: list[bool]) -> None:
        super().__init__()
        self.steps, self.kept = steps, kept

    def forward(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """Run it."""
        v, found = x, []
        for step, keep in zip(self.steps, self.kept, strict=True):
            v = STEPS[step](v, x, y)
            if keep:
                found.append(v)
        return [*found, v + 1]


def some_rows(n: int, how: str, before: Tensor | None) -> Tensor:
    """Return rows at some place in memory and in some layout."""
    if how == "result" and before is not None and before.shape == (n, 8):
        return before
    return {
        "strided": lambda: torch.randn(n, 16)[:, ::2], "turned": lambda: torch.randn(8, n).t(),
        "expanded": lambda: torch.randn(8).expand(n, 8),
        "offset": lambda: torch.randn(n * 8 + 3)[3:].view(n, 8),
    }.get(how, lambda: rows(n))()  # fmt: skip


CALLS = st.tuples(
    st.sampled_from([1, 2, 4, 5]),
    st.sampled_from(["new", "strided", "turned", "expanded", "offset", "result"]),
    st.sampled_from(["new", "same", "overlapping", "result"]),
)  # fmt: skip


@hypothesis_settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)
@given(
    st.lists(st.tuples(st.integers(0, len(STEPS) - 1), st.booleans()), min_size=2, max_size=7),
    st.lists(CALLS, min_size=4, max_size=10), st.sampled_from(MODES), st.sampled_from(["owned", "borrowed"]),
)  # fmt: skip
def test_random_chains_and_calls_equal_eager(
    steps: Any, calls: Any, mode: str, outputs: str
) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Random([s for s, _ in steps], [k for _, k in steps])
    with torch.no_grad():
        call, _ = compiled(model, (rows(3), rows(3)), dynamic={"x": {0: "n"}, "y": {0: "n"}},
                           static_graph=mode, outputs=outputs)  # fmt: skip
        call.record(lambda s, k: ((rows(s["n"]), rows(s["n"])), {}), sizes={"n": [1, 2, 4]})
        before, held = None, []
        for n, how, other in calls:
            x = some_rows(n, how, before)
            y = rows(n)
            if other == "same":
                y = x
            elif other == "overlapping":
                memory = rows(n + 1)
                x, y = memory[:n], memory[1:]
            elif other == "result":
                y = some_rows(n, "result", before)
            expected = model(x.clone(), y.clone())
            result = call(x, y)
            for one, wanted in zip(result, expected, strict=True):
                torch.testing.assert_close(one, wanted)
            held.append((result, expected))
            # Step 8 returns its argument, and a borrowed one is not valid after the call.
            before = None if outputs == "borrowed" and 8 in model.steps else result[-1]
        for result, expected in held if outputs == "owned" else ():
            for one, wanted in zip(result, expected, strict=True):
                torch.testing.assert_close(one, wanted)
