"""F17: two ranks of which one has another plan: all agree, or all raise before the first collective."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.rank_cases import DEADLINE, prepare, results, start

pytestmark = pytest.mark.timeout(300)

QUICK = [
    "cold", "warm", "cold_on_one", "corrupt_on_one", "read_only_on_one", "plugin_missing_on_one",
    "falls_back_on_one", "setting_on_one", "asks_for_rank", "jit",
]  # fmt: skip
LONG = [
    "inside", "inductor", "inductor_inside", "late_on_one", "jit_falls_back_on_one",
    "jit_gradients_on_one",
]  # fmt: skip


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    return start(tmp_path_factory.mktemp("job"), "cpu", QUICK)


@pytest.fixture(scope="module")
def long_job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    return start(tmp_path_factory.mktemp("job"), "cpu", LONG)


def agreed(found: list[Any]) -> list[Any]:
    """Every rank has gone on, with the right numbers, and with the plan of the others."""
    assert all("ok" in rank and rank["sum"] == 3 for rank in found), found
    plans = [rank["ok"]["plan"] for rank in found]
    assert plans[0] == plans[1]
    return [rank["ok"] for rank in found]


def refused(found: list[Any], own: str = "MismatchError") -> str:
    """Every rank has raised, long before the deadline; returns what rank 0 was told."""
    assert [rank.get("error") for rank in found] == ["MismatchError", own], found
    assert all(rank["seconds"] < DEADLINE / 3 and rank["sum"] == 3 for rank in found)
    return str(found[0]["text"])


def test_a_decoder_over_two_ranks_is_cut_at_its_collectives_and_starts_warm(job: Any) -> None:
    made = agreed(job["cold"])
    for rank in made:
        assert (rank["pieces"], rank["splitting"], rank["distinct"]) == (13, 6, 4)
    assert sorted(rank["captures"] for rank in made) == [0, 1]  # one waits for the other's plan
    assert [rank["captures"] for rank in agreed(job["warm"])] == [0, 0]


def test_one_loads_its_plan_and_the_other_compiles_it(job: Any) -> None:
    assert [rank["captures"] for rank in agreed(job["cold_on_one"])] == [0, 1]


def test_a_corrupt_bundle_on_one(job: Any) -> None:
    assert [rank["captures"] for rank in agreed(job["corrupt_on_one"])] == [0, 1]


def test_nowhere_to_write_on_one(job: Any) -> None:
    assert [rank["captures"] for rank in agreed(job["read_only_on_one"])] == [0, 1]


def test_a_plugin_missing_on_one_is_told_to_the_other_at_once(job: Any) -> None:
    told = refused(job["plugin_missing_on_one"], "ConfigError")
    assert 'rank 1 failed: ConfigError: unknown compiler "acme"' in told


def test_a_compiler_that_fails_on_one_is_noticed_before_anything_runs(job: Any) -> None:
    told = refused(job["falls_back_on_one"])
    assert "compiler of piece 0: acme on rank 0 and eager (acme: " in told
    assert "acme has no licence here" in told
    assert job["falls_back_on_one"][1]["text"] == told


def test_another_setting_on_one_is_named_before_anything_is_compiled(job: Any) -> None:
    told = refused(job["setting_on_one"])
    assert 'setting uncovered: "general" on rank 0 and "error" on rank 1' in told


def test_a_plan_with_the_rank_in_it_is_not_the_other_ranks(job: Any) -> None:
    found = [rank["ok"]["captures"] for rank in job["asks_for_rank"]]
    assert found == [[1, 0], [1, 0]]


def test_ranks_agree_through_torch_compile(job: Any) -> None:
    assert all("ok" in rank for rank in job["jit"]), job["jit"]


@pytest.mark.slow
def test_another_number_of_ranks_is_a_miss(tmp_path: Path) -> None:
    for name in ("alone", "both"):
        (tmp_path / name).mkdir()
    alone = start(tmp_path / "alone", "cpu", ["asks_for_rank"], size=1)
    assert alone["asks_for_rank"][0]["ok"]["captures"] == [1, 0]
    shutil.copytree(tmp_path / "alone" / "asks", tmp_path / "both" / "asks")
    both = start(tmp_path / "both", "cpu", ["asks_for_rank"])
    assert [rank["ok"]["captures"] for rank in both["asks_for_rank"]] == [[1, 0], [1, 0]]


@pytest.mark.slow
def test_collectives_inside_of_pieces_and_with_inductor(long_job: Any) -> None:
    assert [rank["splitting"] for rank in agreed(long_job["inside"])] == [3, 3]
    for name in ("inductor", "inductor_inside"):
        for rank in agreed(long_job[name]):
            who = {v for k, v in rank["plan"].items() if k.startswith("compiler of")}
            assert who == {"inductor", "as it is"}, who


@pytest.mark.slow
def test_a_late_rank_costs_the_deadline_and_then_raises_as_well(long_job: Any) -> None:
    found = long_job["late_on_one"]
    assert [rank["error"] for rank in found] == ["MismatchError"] * 2
    assert {rank["text"].count("rank 1 did not come within 1.5 s") for rank in found} == {1}
    assert 1.5 <= found[0]["seconds"] < 4 <= found[1]["seconds"] < 10


@pytest.mark.slow
def test_torch_compile_on_ranks_that_differ(long_job: Any) -> None:
    for name, text in (
        ("jit_falls_back_on_one", "acme has no licence here"),
        ("jit_gradients_on_one", "the graph runs: compiled on rank 0 and eagerly"),
    ):
        assert all(text in rank["text"] and rank["sum"] == 3 for rank in long_job[name]), long_job


@pytest.mark.slow
def test_under_torchrun(tmp_path: Path) -> None:
    prepare(tmp_path)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    names = ["cold", "plugin_missing_on_one", "warm"]
    command = [sys.executable, *launcher, "-m", "tests.rank_cases", str(tmp_path), "cpu", *names]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-4000:]
    found = results(tmp_path)
    agreed(found["cold"])
    refused(found["plugin_missing_on_one"], "ConfigError")
    assert [rank["captures"] for rank in agreed(found["warm"])] == [0, 0]
