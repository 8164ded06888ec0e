"""`intarsia.record`: static graphs of plain eager code, on the null device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import intarsia
from intarsia.config import load_config
from intarsia.host import Host
from intarsia.testing.null_device import NullPlugin


@torch.library.custom_op("record_plain::fresh", mutates_args=())
def fresh(x: torch.Tensor) -> torch.Tensor:
    return x * 3 + 1


@torch.library.custom_op("record_plain::into", mutates_args=("out",))
def into(x: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(x * 2)


BREAKS = {"record_plain::fresh": "break", "record_plain::into": "break"}


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, written: torch.Tensor | None = None) -> Any:
        y = torch.ops.record_plain.fresh(self.first(x).relu())
        z = self.second(y)
        out = torch.empty_like(z)
        torch.ops.record_plain.into(z, out)
        if written is not None:
            written.add_(out.sum(0))
        return {"out": out + 1, "weight": self.first.weight}, z


def recorded(fn: Any, *args: Any, plugin: NullPlugin | None = None, **settings: Any) -> Any:
    chosen = {"static_graph": "full", "static_graph_backend": "null", **settings}
    resolved = load_config(None, environ={}, **chosen)
    host = Host(resolved, extra_plugins=[plugin or NullPlugin()])
    with torch.no_grad():
        return intarsia.record(fn, args, config=resolved, host=host)


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model().requires_grad_(False)


def equal(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_breaks_run_between_recordings_and_on_replay_too(model: Model) -> None:
    plugin = NullPlugin()
    call = recorded(model, torch.randn(4, 8), plugin=plugin, op_safety=BREAKS)
    assert call.recordings == 3
    for round in range(1, 4):
        x = torch.randn(4, 8)
        equal(call(x), model(x))
        assert plugin.device.replays == 3 + 3 * round


def test_results_stay_what_they_are_over_later_calls(model: Model) -> None:
    call = recorded(model, torch.randn(4, 8), op_safety=BREAKS)
    x, y = torch.randn(4, 8), torch.randn(4, 8)
    first, second = call(x), call(y)
    equal(first, model(x))
    equal(second, model(y))


def test_borrowed_results_are_the_recordings_own(model: Model) -> None:
    call = recorded(model, torch.randn(4, 8), op_safety=BREAKS, outputs="borrowed")
    x = torch.randn(4, 8)
    first = call(torch.randn(4, 8))
    second = call(x)
    equal(second, model(x))
    assert first[1].data_ptr() == second[1].data_ptr()


def test_a_written_argument_is_never_copied(model: Model) -> None:
    kept, other, expected = torch.zeros(8), torch.zeros(8), torch.zeros(8)
    call = recorded(model, torch.randn(4, 8), kept, op_safety=BREAKS)
    kept.zero_()
    for target in (kept, kept, other):
        x = torch.randn(4, 8)
        call(x, target)
        model(x, expected)
        if target is kept:
            equal(kept, expected)
    assert call.counters["replay-general"] == 1
    equal(kept + other, expected)


def test_inputs_of_any_layout_are_copied_in(model: Model) -> None:
    plugin = NullPlugin()
    call = recorded(model, torch.randn(4, 8), plugin=plugin, op_safety=BREAKS)
    flat = torch.randn(33)
    for x in (torch.randn(8, 4).t(), torch.randn(4, 16)[:, ::2], torch.randn(8).expand(4, 8),
              flat[1:].view(4, 8)):  # fmt: skip
        before = plugin.device.replays
        torch.testing.assert_close(call(x), model(x))  # another layout may add in another order
        assert plugin.device.replays == before + 3


def test_what_was_not_recorded_runs_as_it_is_and_is_counted(model: Model) -> None:
    plugin = NullPlugin()
    call = recorded(model, torch.randn(4, 8), plugin=plugin, op_safety=BREAKS)
    before = plugin.device.replays
    x = torch.randn(5, 8)
    equal(call(x), model(x))
    assert call.counters["unrecorded"] == 1
    call.record((x,))
    equal(call(x), model(x))
    assert plugin.device.replays == before + 6
    with intarsia.step(mode="none"):
        equal(call(x), model(x))
    with intarsia.step(key="other"):
        equal(call(x), model(x))
    assert plugin.device.replays == before + 6
    call.freeze()
    with pytest.raises(intarsia.RecordError, match="frozen"):
        call.record((torch.randn(7, 8),))


def test_a_replaced_weight_releases_the_recordings(
    model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    plugin = NullPlugin()
    call = recorded(model, torch.randn(4, 8), plugin=plugin, op_safety=BREAKS)
    model.first.weight = torch.nn.Parameter(torch.randn(8, 8), requires_grad=False)
    x = torch.randn(4, 8)
    equal(call(x), model(x))
    assert call.recordings == plugin.device.used == 0
    assert "released" in caplog.text
    call.record((x,))
    model.second.weight.data = torch.randn(8, 8)  # no hook tells, but it is elsewhere
    equal(call(x), model(x))
    assert call.counters["replay-general"] == 1


@pytest.mark.parametrize(
    ("fn", "op"),
    [
        (lambda x: x * x.sum().item(), "_local_scalar_dense"),
        (lambda x: x[x > 0], "has a mask"),
        (lambda x: torch.ops.record_plain.fresh(x), "unknown"),
    ],
)
def test_what_may_not_be_recorded_is_refused(fn: Any, op: str) -> None:
    plugin = NullPlugin()
    with pytest.raises(intarsia.RecordError, match=op):
        recorded(fn, torch.randn(4), plugin=plugin)
    assert plugin.device.recordings == 0


@pytest.mark.parametrize("where", ["begin", "first", "last", "end", "replay", "measure", "memory"])
@pytest.mark.parametrize("after", [0, 1])
def test_a_failed_recording_leaves_nothing(model: Model, where: str, after: int) -> None:
    plugin = NullPlugin()
    plugin.device.fail(where, after=after)
    x = torch.randn(4, 8)
    with pytest.raises(intarsia.RecordError, match="a fault at"):
        recorded(model, x, plugin=plugin, op_safety=BREAKS)
    assert plugin.device.used == 0
    assert not plugin.device.is_recording
    equal(recorded(model, x, plugin=plugin, op_safety=BREAKS)(x), model(x))


def test_the_budget_is_kept(model: Model) -> None:
    plugin = NullPlugin(slots=2)
    with pytest.raises(intarsia.RecordError, match="slots"):
        recorded(model, torch.randn(4, 8), plugin=plugin, op_safety=BREAKS)
    assert plugin.device.highest <= 2
    assert plugin.device.used == 0


def test_two_functions_share_a_pool(model: Model) -> None:
    plugin = NullPlugin()
    x = torch.randn(4, 8)
    one = recorded(model, x, plugin=plugin, op_safety=BREAKS)
    resolved = load_config(None, environ={}, static_graph="full", static_graph_backend="null")
    host = Host(resolved, extra_plugins=[plugin])
    two = intarsia.record(torch.sin, (x,), config=resolved, host=host, pool=one.pool)
    equal(two(x), x.sin())
    equal(one(x), model(x))
    assert len(plugin.device.pools) == 1


def test_closed_it_runs_as_it_is(model: Model) -> None:
    plugin = NullPlugin()
    call = recorded(model, torch.randn(4, 8), plugin=plugin, op_safety=BREAKS)
    call.close()
    assert plugin.device.used == 0
    assert not plugin.device.pools
    x = torch.randn(4, 8)
    equal(call(x), model(x))
