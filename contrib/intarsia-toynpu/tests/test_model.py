"""A model that was moved to the device compiles, records and runs, and nothing names the device."""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import intarsia

sys.path.insert(0, str(Path(__file__).parent))

from npu_models import decoder

pytestmark = pytest.mark.contrib

TOKENS = {"ids": {0: "n"}}


def ids(count: int) -> torch.Tensor:
    return torch.randint(0, 64, (count,))


def make_ids(sizes: Mapping[str, int], key: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (ids(sizes["n"]).to("toynpu"),), {}


def test_a_model_on_the_device_compiles_records_and_runs() -> None:
    model = decoder(layers=3)
    reference = copy.deepcopy(model)
    model.to("toynpu")
    compiled = intarsia.compile(
        model, (ids(5).to("toynpu"),), dynamic=TOKENS, boxes={"n": [1, 32]}, sizes={"n": [2, 4]},
        cache=False,
    )  # fmt: skip
    with contextlib.closing(compiled):
        table = compiled.record(make_ids)
        assert [row.status for row in table.rows] == ["recorded", "recorded"]
        assert table.recordings == 2 * 4
        for count in (1, 2, 4, 7):
            given = ids(count)
            found = compiled(given.to("toynpu"))
            assert found.device.type == "toynpu"
            torch.testing.assert_close(found.cpu(), reference(given), rtol=2e-5, atol=2e-5)
        pieces = [piece for piece in compiled.report.piece_reports if piece.requested]
        assert [piece.compiler for piece in pieces] == ["toynpu"] * 4
