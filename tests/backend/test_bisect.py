"""`intarsia bisect`: planted defects are named within few runs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from intarsia.bisect import Culprit, Subject, bisect
from intarsia.cli import main
from intarsia.config import load_config
from intarsia.host import Host
from intarsia.interfaces import Capabilities, CompileResult, CompilerSpec, PassSpec
from intarsia_eager.adaptor import EagerCompiler

PIECES = 65


class Spoiling(EagerCompiler):
    """Compiles right, but for one piece and box."""

    piece: int | None = None
    box: tuple[int, int] | None = None

    def compile(self, request: Any) -> CompileResult:
        """Compile a piece, and spoil it where the test wants it."""
        made, cls = super().compile(request), type(self)
        mine = cls.piece is not None and request.name.endswith(f"piece_{cls.piece}")
        if not mine or cls.box not in (None, request.box["n"]):
            return made

        def run(*inputs: Any) -> Sequence[Any]:
            return [value * 3 + 1 for value in made.callable(*inputs)]

        return CompileResult(run, None, ())

    def factors(self) -> Mapping[str, str] | None:
        return None


class Scale:
    """A pass that multiplies every `addmm` by a number."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, graph: fx.Graph) -> int:
        """Return how many there are."""
        count = 0
        for node in list(graph.nodes):
            if node.op == "call_function" and node.target is torch.ops.aten.addmm.default:
                count += 1
                if self.factor != 1:
                    with graph.inserting_after(node):
                        made = graph.call_function(torch.ops.aten.mul.Tensor, (node, self.factor))
                    node.replace_all_uses_with(made)
                    made.args = (node, self.factor)
        return count

    def uuid(self) -> float:
        return self.factor


class Plugin:
    intarsia_api_version = (1, 0)
    __name__ = "spoiling"

    def __init__(self, bad_pass: int | None = None) -> None:
        self.bad_pass = bad_pass

    def intarsia_compilers(self) -> list[CompilerSpec]:
        """Bring the compiler."""
        able = Capabilities(dynamic_shapes=True, mutation=True, custom_ops=True, workers=False)
        return [CompilerSpec("spoiling", "1", Spoiling, capabilities=able)]

    def intarsia_passes(self) -> list[PassSpec]:
        """Bring six passes."""
        return [
            PassSpec(f"pass-{n}", "1", "piece-aten",
                     lambda options, n=n: Scale(1.1 if n == self.bad_pass else 1))
            for n in range(6)
        ]  # fmt: skip


class Model(torch.nn.Module):
    def __init__(self, pieces: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(pieces))
        self.register_buffer("total", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        for layer in self.layers:
            x = torch.sigmoid(layer(x)) + x
        self.total.add_(x.sum(0))
        return x + self.total


@pytest.fixture(autouse=True)
def _right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Spoiling, "piece", None)
    monkeypatch.setattr(Spoiling, "box", None)


def found(pieces: int = 5, bad_pass: int | None = None, **settings: Any) -> tuple[Culprit, Model]:
    model = Model(pieces).requires_grad_(False)
    config = load_config(None, environ={}, compilers=["spoiling"], split_at=["torch.sigmoid"],
                         dedupe=False, cache=False, **settings)  # fmt: skip
    subject = Subject(
        model, (torch.randn(3, 8),), {}, {"x": {0: "n"}}, config,
        lambda resolved: Host(resolved, extra_plugins=[Plugin(bad_pass)]),
    )  # fmt: skip
    return bisect(subject), model


@pytest.mark.parametrize("number", [0, 17, 64])
def test_one_piece_of_65_is_named(number: int) -> None:
    Spoiling.piece = 2 * number
    culprit, model = found(PIECES)
    assert culprit.kind == "piece"
    assert culprit.piece.endswith(f"piece_{2 * number}")
    assert culprit.compiler == "spoiling"
    assert culprit.runs <= 2 * math.log2(PIECES) + 4
    assert "sigmoid" not in str(culprit)
    assert not model.total.any()  # what the runs wrote was put back


@pytest.mark.parametrize("box", [(1, 4), (5, 16), (17, 64)])
def test_one_box_of_three_is_named(box: tuple[int, int]) -> None:
    Spoiling.piece, Spoiling.box = 2, box
    culprit, _ = found(boxes={"n": [4, 16, 64]}, uncovered="error")
    assert culprit.kind == "piece"
    assert culprit.piece.endswith("piece_2")
    assert culprit.box == f"{{n: {box[0]}..{box[1]}}}"
    assert culprit.runs <= 2 * math.log2(3 * 5) + 4


@pytest.mark.parametrize("number", range(6))
def test_one_pass_of_six_is_named(number: int) -> None:
    names = [f"pass-{n}" for n in range(6)]
    culprit, _ = found(bad_pass=number, passes={"enable": names})
    assert culprit.kind == "pass"
    assert culprit.passed == f"pass-{number}"
    assert culprit.piece
    assert culprit.runs <= 2 * math.log2(6 * 5) + 4


def test_a_piece_is_not_blamed_on_a_pass() -> None:
    Spoiling.piece = 4
    culprit, _ = found(passes={"enable": ["pass-0", "pass-1"]})
    assert (culprit.kind, culprit.passed) == ("piece", "")


def test_nothing_wrong_is_said() -> None:
    culprit, _ = found()
    assert culprit.kind == "nothing"
    assert "every result equals eager's" in str(culprit)


TARGET = """
import torch
import intarsia_spoils

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def forward(self, x):
        return self.second(torch.sigmoid(self.first(x)))

def make():
    return {"model": Model().requires_grad_(False), "args": (torch.randn(3, 4),),
            "dynamic": {"x": {0: "n"}}}
"""


def test_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.joinpath("model.py").write_text(TARGET.replace("import intarsia_spoils\n", ""))
    monkeypatch.chdir(tmp_path)
    common = ["model.py:make", "--compilers", "eager", "--split-at", "torch.sigmoid"]
    assert main(["bisect", *common, "--set", "cache=false"]) == 0
    assert "every result equals eager's" in capsys.readouterr().out
    assert main(["bisect", *common, "--set", "cache=false", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "nothing"
