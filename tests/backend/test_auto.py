"""The compiler "auto" keeps the fastest candidate that agrees with eager, and remembers it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import intarsia
from intarsia.config import load_config
from intarsia.errors import CompileRejected
from intarsia.host import Host
from intarsia.interfaces import Capabilities, CompileRequest, CompileResult, CompilerSpec, Decision

COMPILED: list[str] = []
"""The toys that compiled, in order."""

Deed = Callable[[Sequence[Any]], Sequence[Any]]


class Toy:
    """Runs a piece as it is, and then does something with its results."""

    def __init__(self, name: str, deed: Deed) -> None:
        self.name, self.deed = name, deed

    def compile(self, request: CompileRequest) -> CompileResult:
        """Keep the graph; the artifact says nothing."""
        COMPILED.append(self.name)
        forward = request.graph.forward
        if self.name == "forgets":
            return CompileResult(lambda *inputs: forward(*[x.clone() for x in inputs]), b"toy")
        return CompileResult(lambda *inputs: self.deed(forward(*inputs)), b"toy")

    def load(self, artifact: bytes, signature: Any, device: int | None) -> Any:
        """Return a callable that shows where it came from."""
        assert artifact == b"toy"
        return lambda *inputs: (torch.full((3, 4), 7.0),)

    def factors(self) -> Mapping[str, str]:
        """Nothing of its own."""
        return {}

    def supports(self, op: Any) -> Decision:
        """Take all."""
        return Decision(True)


def slow(results: Sequence[Any]) -> Sequence[Any]:
    time.sleep(0.005)
    return results


def wrong(results: Sequence[Any]) -> Sequence[Any]:
    return [r + 1 for r in results]


def refuse(results: Sequence[Any]) -> Sequence[Any]:
    raise CompileRejected("not on a Wednesday")


DEEDS: dict[str, Deed] = {
    "quick": lambda results: results,
    "slow": slow,
    "wrong": wrong,
    "raises": refuse,
    "forgets": lambda results: results,  # it writes to copies of its inputs
}


class Plugin:
    """The toys, as a plugin."""

    intarsia_api_version = (1, 0)
    __name__ = "auto_toys"

    def __init__(self, version: str) -> None:
        self.version = version

    def intarsia_compilers(self) -> list[CompilerSpec]:
        """Bring a compiler for each deed."""
        able = Capabilities(dynamic_shapes=True, mutation=True, concurrent=True, light=True)
        return [
            CompilerSpec(
                name, self.version, lambda *_, n=name, d=deed: Toy(n, d), capabilities=able
            )
            for name, deed in DEEDS.items()
        ]


def made(folder: Path, candidates: Sequence[str], version: str = "1", **options: Any) -> Any:
    COMPILED.clear()
    config = load_config(
        None, compilers=["auto"], cache=str(folder),
        options={"auto": {"candidates": list(candidates), **options}},
    )  # fmt: skip
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    torch.manual_seed(1)
    args = (torch.randn(3, 4),)
    host = Host(config, extra_plugins=[Plugin(version)])
    return model, args, intarsia.compile(model, args, config=config, host=host)


@pytest.mark.parametrize("order", [["slow", "quick"], ["quick", "slow"]])
def test_fastest_wins_whatever_the_order(tmp_path: Path, order: list[str]) -> None:
    model, args, fast = made(tmp_path, order)
    assert "quick, the fastest" in str(fast.explain())
    assert "slow " in str(fast.explain())
    torch.testing.assert_close(fast(*args), model(*args))


def test_one_that_differs_or_fails_never_wins_and_is_told(tmp_path: Path) -> None:
    model, args, fast = made(tmp_path, ["wrong", "raises", "slow"])
    told = str(fast.explain())
    assert "slow, the fastest" in told
    assert "wrong: differs from eager" in told
    assert "raises: failed in a call (CompileRejected: not on a Wednesday" in told
    torch.testing.assert_close(fast(*args), model(*args))


def test_choice_is_remembered(tmp_path: Path) -> None:
    made(tmp_path, ["slow", "quick"])
    assert COMPILED == ["slow", "quick"]
    _, args, warm = made(tmp_path, ["slow", "quick"])
    assert COMPILED == []
    assert warm(*args).eq(7).all()
    assert "quick, the fastest" in str(warm.explain())


@pytest.mark.parametrize("change", [{"version": "2"}, {"margin": 0.1}])
def test_candidates_version_and_option_miss_the_cache(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    made(tmp_path, ["slow", "quick"])
    made(tmp_path, ["slow", "quick"], **change)
    assert COMPILED == ["slow", "quick"]


def test_one_that_does_not_write_what_eager_writes_never_wins(tmp_path: Path) -> None:
    def function(x: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        total.add_(x.sum())
        return x * 2

    config = load_config(
        None, compilers=["auto"], cache=str(tmp_path),
        options={"auto": {"candidates": ["forgets", "slow"]}},
    )  # fmt: skip
    args = (torch.randn(5, 3), torch.zeros(()))
    host = Host(config, extra_plugins=[Plugin("1")])
    told = str(intarsia.compile(function, args, config=config, host=host).explain())
    assert "forgets: differs from eager" in told
    assert "slow, the fastest" in told


def test_mutated_inputs_and_dynamic_sizes(tmp_path: Path) -> None:
    class Writes(nn.Module):
        def forward(self, x: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
            total.add_(x.sum())
            return x * 2

    config = load_config(
        None, compilers=["auto"], cache=str(tmp_path),
        options={"auto": {"candidates": ["slow", "quick"]}},
    )  # fmt: skip
    host = Host(config, extra_plugins=[Plugin("1")])
    args = (torch.randn(5, 3), torch.zeros(()))
    fast = intarsia.compile(Writes(), args, dynamic={"x": {0: "n"}}, config=config, host=host)
    x, total = torch.randn(7, 3), torch.zeros(())
    torch.testing.assert_close(fast(x, total), x * 2)
    torch.testing.assert_close(total, x.sum())
    assert "quick, the fastest at" in str(fast.explain())
