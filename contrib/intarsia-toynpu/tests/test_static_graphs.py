"""Recordings on the device: ten streams and no eleventh, and no number that was read from a stale address."""

from __future__ import annotations

import contextlib
import copy
import logging
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from intarsia_toynpu import graphs

import intarsia

sys.path.insert(0, str(Path(__file__).parent))

from npu_models import decoder

pytestmark = pytest.mark.contrib

TOKENS = {"ids": {0: "n"}}
FULL = {"static_graph": "full", "op_safety": {"npu_tests::attention": "safe"}}


def ids(count: int) -> torch.Tensor:
    return torch.randint(0, 64, (count,))


def make_ids(sizes: Mapping[str, int], key: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (ids(sizes["n"]).to("toynpu"),), {}


@contextlib.contextmanager
def compiled(model: torch.nn.Module, **settings: Any) -> Iterator[Any]:
    """Compile a decoder that is on the device, and close it at the end."""
    made = intarsia.compile(
        model, (ids(5).to("toynpu"),), dynamic=TOKENS, boxes={"n": [1, 32]}, cache=False, **settings
    )
    try:
        yield made
    finally:
        made.close()


def check(made: Any, reference: torch.nn.Module, *counts: int) -> None:
    for count in counts:
        given = ids(count)
        found = made(given.to("toynpu"))
        assert found.device.type == "toynpu"
        torch.testing.assert_close(found.cpu(), reference(given), rtol=2e-5, atol=2e-5)


@pytest.fixture
def models() -> tuple[torch.nn.Module, torch.nn.Module]:
    """A 12-layer decoder on the device, and the same one on the host."""
    reference = decoder(layers=12)
    return copy.deepcopy(reference).to("toynpu"), reference


def test_a_decoder_of_12_layers_gets_ten_recordings_and_never_an_eleventh(
    models: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model, reference = models
    streams = graphs.DEVICE_STREAMS
    streams.highest = 0
    with compiled(model, **FULL) as made, caplog.at_level(logging.WARNING, "intarsia"):
        table = made.record(make_ids, sizes={"n": list(range(1, 13))})
        assert (table.recordings, streams.used, streams.highest) == (10, 10, 10)
        assert [row.sizes["n"] for row in table.dropped] == [2, 1]
        assert (
            "no static graphs for n = 2, n = 1: it would take streams 1, and 0 of 10" in caplog.text
        )
        check(made, reference, *range(1, 14))
        assert made.memory()["streams"] == 10
    assert streams.used == 0


def test_a_size_whose_13_pieces_do_not_fit_is_dropped_before_anything_is_recorded(
    models: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model, reference = models
    streams = graphs.DEVICE_STREAMS
    streams.highest = 0
    with compiled(model) as made, caplog.at_level(logging.WARNING, "intarsia"):
        assert made.report.compiled_pieces == 13
        table = made.record(make_ids, sizes={"n": [1, 2]})
        assert [row.status for row in table.rows] == ["dropped", "dropped"]
        assert streams.highest == 0
        assert "it would take streams 13, and 10 of 10 are left" in caplog.text
        check(made, reference, 1, 2, 3)


def test_two_models_share_the_ten_streams_and_give_them_back() -> None:
    first, second = decoder(layers=1), decoder(layers=2)
    with (
        compiled(copy.deepcopy(first).to("toynpu")) as one,
        compiled(copy.deepcopy(second).to("toynpu")) as other,
    ):
        assert one.record(make_ids, sizes={"n": [1, 2, 3]}).recordings == 6
        table = other.record(make_ids, sizes={"n": [1, 2]})
        assert [(row.sizes["n"], row.status) for row in table.rows] == [
            (2, "recorded"),
            (1, "dropped"),
        ]
        check(one, first, 1, 2, 3, 4)
        check(other, second, 1, 2, 3)
        one.close()
        assert graphs.DEVICE_STREAMS.used == 3
        assert other.record(make_ids, sizes={"n": [1]}).rows[0].status == "recorded"
        check(other, second, 1, 2, 3)


def test_recorded_sizes_are_replayed_and_others_are_not() -> None:
    reference, streams = decoder(layers=1), graphs.DEVICE_STREAMS
    with compiled(copy.deepcopy(reference).to("toynpu")) as made:
        assert made.record(make_ids, sizes={"n": [2]}).recordings == 2
        before = streams.replays
        check(made, reference, 2)
        assert streams.replays == before + 2
        check(made, reference, 3)
        assert streams.replays == before + 2


def test_what_reads_values_cannot_be_recorded_and_leaves_the_device_usable() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return x + x.sum().item()

    backend = graphs.NpuGraphs({}, 0)
    pool = backend.new_pool(0)
    x = torch.randn(3).to("toynpu")
    backend.begin(pool, None)
    with pytest.raises(RuntimeError, match="cannot be recorded: it would wait for the device"):
        function(x)
    backend.abort(None)
    assert graphs.DEVICE_STREAMS.used == 0
    torch.testing.assert_close(function(x).cpu(), function(x.cpu()))


def test_memory_of_a_pool_is_used_again_and_goes_back_with_its_last_recording() -> None:
    from intarsia_toynpu.memory import MEMORY, reserved_bytes

    backend = graphs.NpuGraphs({}, 0)
    x = torch.randn(1000).to("toynpu")
    MEMORY.trim()
    before = reserved_bytes()
    pool = backend.new_pool(0)
    backend.begin(pool, None)
    y = x
    for _ in range(5):
        y = y + 1  # the one before is free as soon as the next is made
    recording = backend.end()
    assert backend.measure(recording) == {"streams": 1, "bytes": 2 * 4032}
    assert y.isnan().all(), "a recording ran what it recorded"
    x.fill_(1.0)
    recording.replay()
    torch.testing.assert_close(y.cpu(), torch.full((1000,), 6.0))
    recording.release()
    del y
    backend.release_pool(pool)
    MEMORY.trim()
    assert reserved_bytes() == before
    with pytest.raises(RuntimeError, match="after its release"):
        recording.replay()
