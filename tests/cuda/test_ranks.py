"""A decoder over two GPUs with NCCL: ranks agree on their plan, or all raise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

if torch.cuda.device_count() < 2:
    pytest.skip("needs two CUDA devices", allow_module_level=True)

from tests.faults.test_f17_ranks import agreed, refused
from tests.rank_cases import start

pytestmark = [pytest.mark.cuda, pytest.mark.timeout(240)]

CASES = [
    "cold", "warm", "inside", "inductor", "inductor_inside", "cold_on_one", "plugin_missing_on_one",
    "falls_back_on_one", "jit", "jit_falls_back_on_one",
]  # fmt: skip


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    folder: Path = tmp_path_factory.mktemp("job")
    return start(folder, "cuda", CASES)


def test_a_decoder_over_two_gpus(job: Any) -> None:
    assert [rank["splitting"] for rank in agreed(job["cold"])] == [6, 6]
    assert [rank["captures"] for rank in agreed(job["warm"])] == [0, 0]
    assert [rank["captures"] for rank in agreed(job["cold_on_one"])] == [0, 1]
    for name in ("inside", "inductor", "inductor_inside"):
        agreed(job[name])
    assert all("ok" in rank for rank in job["jit"]), job["jit"]


def test_what_one_rank_lacks_is_an_error_on_both(job: Any) -> None:
    assert 'unknown compiler "acme"' in refused(job["plugin_missing_on_one"], "ConfigError")
    assert "acme has no licence here" in refused(job["falls_back_on_one"])
    for rank in job["jit_falls_back_on_one"]:
        assert "acme has no licence here" in rank["text"]
        assert rank["sum"] == 3
