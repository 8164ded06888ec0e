from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from intarsia.cli import main

MODEL = """
import torch

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
        self.register_buffer("seen", torch.zeros(8))

    def forward(self, x, *, scale=1.0):
        self.seen.add_(1)
        return self.last(torch.sigmoid(self.first(x))) * scale + self.seen

def tensor():
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(0))

def pair(): return Model().eval(), (tensor(),)
def triple(): return Model().eval(), (tensor(),), {"scale": 3.0}
def table():
    print("the model talks")
    return {"model": Model().eval(), "args": (tensor(),), "dynamic": {"x": {0: "tokens"}},
            "config": {"split_at": ["torch.sigmoid"], "compilers": ["eager"]}, "name": "toy"}

def writes():
    class Writes(torch.nn.Module):
        def forward(self, x, *, past):
            past.add_(1)
            return {"sum": x + past, "past": past}
    return {"model": Writes(), "args": (tensor(),), "kwargs": {"past": torch.zeros(8)},
            "dynamic": {"x": {0: "tokens"}}}
def branches():
    class Branches(torch.nn.Module):
        def forward(self, x): return x + 1 if x.sum() > 0 else x
    return Branches(), (tensor(),)
def fails(): return 1 / 0, ()
def wrong(): return Model()
def unknown_key(): return {"model": Model(), "argz": ()}
not_a_function = 3
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The path of a file with targets; the working directory has no settings."""
    for name in list(os.environ):
        if name.startswith("INTARSIA_") and name != "INTARSIA_CHECK":
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "cli_model.py").write_text(MODEL)
    return "cli_model.py"


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["compile", "--json", *arguments]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


# ---------------------------------------------------------------------------------- targets


@pytest.mark.parametrize("function", ["pair", "triple"])
def test_target_may_be_a_tuple(
    model: str, function: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = report(capsys, f"{model}:{function}", "--compilers", "eager")
    assert (told["pieces"], told["distinct"]) == (1, 1)


def test_target_may_be_a_dict(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = report(capsys, f"{model}:table")
    assert told["name"] == "toy"
    assert (told["pieces"], told["compiled_pieces"]) == (3, 2)
    assert {symbol for box in told["boxes"] for symbol in box} == {"tokens"}


def test_flags_win_over_the_settings_of_the_target(
    model: str, toys: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    told = report(capsys, f"{model}:table", "--compilers", "recorder", "--boxes", "tokens=4,8")
    assert {piece["compiler"] for piece in told["piece_reports"]} == {"recorder", "as it is"}
    ends = [tuple(box["tokens"]) for box in told["boxes"]]
    assert (5, 8) in ends
    assert (5, 8) in {ends for request in toys.REQUESTS for ends in request.box.values()}


@pytest.mark.parametrize(
    ("function", "code", "message"),
    [
        ("", 2, "it needs a file and a function"),
        (":pairs", 2, 'did you mean "pair"?'),
        (":not_a_function", 2, 'no function "not_a_function"'),
        (":wrong", 2, "returned Model; "),
        (":wrong", 2, "expected (model, args)"),
        (":unknown_key", 2, 'unknown key "argz"; did you mean "args"?'),
        (":fails", 1, "raised ZeroDivisionError: division by zero"),
        (":branches", 1, "if x.sum() > 0"),
    ],
)
def test_wrong_target_is_one_readable_message(
    model: str, function: str, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compile", f"{model}{function}"]) == code
    text = capsys.readouterr().err
    assert message.rstrip("; ") in text
    assert "Traceback" not in text


def test_absent_file_is_a_usage_error(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", "absent.py:make"]) == 2
    assert "no file absent.py" in capsys.readouterr().err


def test_file_that_cannot_be_imported_fails(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.py").write_text("import no_such_module\n")
    assert main(["compile", "broken.py:make"]) == 1
    assert "raised ModuleNotFoundError" in capsys.readouterr().err


# ---------------------------------------------------------------------- compile and explain


def test_only_json_is_on_standard_output(model: str) -> None:
    command = [sys.executable, "-m", "intarsia.cli", "compile", "--json", f"{model}:table"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pieces"] == 3
    assert "the model talks" in done.stderr


def test_table_has_a_row_for_each_piece(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", f"{model}:table"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("toy: 3 pieces, 2 compiled, ")
    header, *rows = text.partition("\n\n")[2].splitlines()
    assert header.split()[:4] == ["piece", "kind", "nodes", "compiler"]
    assert [row.split()[1] for row in rows] == ["compiled", "splitting", "compiled"]
    assert "tokens=" in rows[0]


def test_table_names_the_compiler_that_declined(
    model: str, toys: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compile", f"{model}:table", "--compilers", "raiser,eager"]) == 0
    text = capsys.readouterr().out
    assert "2 fallbacks" in text
    assert "raiser failed: " in text


def test_compiler_that_fails_is_exit_code_3(
    model: str, toys: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compile", f"{model}:table", "--compilers", "raiser,eager", "--strict"]) == 3
    assert "raiser" in capsys.readouterr().err


def test_unknown_compiler_is_exit_code_2(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", f"{model}:table", "--compilers", "inductr"]) == 2
    assert 'did you mean "inductor"?' in capsys.readouterr().err


def test_dump_writes_a_folder(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compile", f"{model}:table", "--dump", str(tmp_path / "dump")]) == 0
    assert list((tmp_path / "dump").rglob("*.py"))


def test_explain_shows_the_code_on_request(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", f"{model}:table"]) == 0
    without = capsys.readouterr().out
    assert main(["explain", f"{model}:table", "--code"]) == 0
    assert "def forward(" not in without
    assert "def forward(" in capsys.readouterr().out


def test_explain_as_json(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", f"{model}:table", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["report"]["name"] == "toy"
    assert "toy" in told["explanation"]


# ------------------------------------------------------------------------------------ bench


def bench(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    quick = ("--rounds", "3", "--seconds", "0.2", "--json")
    assert main(["bench", *arguments, *quick]) == code
    return {row["way"]: row for row in json.loads(capsys.readouterr().out)}


def test_bench_has_a_row_for_each_way(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = bench(capsys, f"{model}:table", "--compilers", "eager", "--compilers", "inductor,eager")
    assert list(rows) == [
        "eager",
        "torch.compile",
        "intarsia: eager",
        "intarsia: inductor, eager",
    ]
    assert rows["eager"]["ratio"] == 1
    for name in list(rows)[1:]:
        assert rows[name]["difference"] < 1e-5, name
        assert rows[name]["compile_wall_s"] > 0
        assert rows[name]["call_wall_ms"] > 0
        assert rows[name]["error"] == ""


def test_model_that_writes_to_its_input_is_compared_on_equal_inputs(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = bench(capsys, f"{model}:writes", "--compilers", "eager")
    assert [row["difference"] for row in rows.values()] == [None, 0, 0]


def test_bench_in_words_without_stock(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", f"{model}:pair", "--no-stock", "--compilers", "eager"]
    assert main([*arguments, "--rounds", "3", "--seconds", "0.2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[:3]] == ["way", "eager", "intarsia: eager"]


def test_way_that_fails_leaves_the_others_measured(
    model: str, toys: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--no-stock", "--strict", "--compilers", "raiser", "--compilers", "eager")
    rows = bench(capsys, f"{model}:table", *arguments, code=1)
    assert "raiser" in rows["intarsia: raiser"]["error"]
    assert rows["intarsia: raiser"]["call_wall_ms"] is None
    assert rows["intarsia: eager"]["difference"] == 0


WRONG = """
from intarsia.interfaces import Capabilities, CompileResult, CompilerSpec, Decision
intarsia_api_version = (1, 0)
class Wrong:
    def compile(self, request):
        forward = request.graph.forward
        return CompileResult(lambda *inputs: [value + 0.5 for value in forward(*inputs)])
    def factors(self): return None
    def supports(self, op): return Decision(True)
def intarsia_compilers():
    can = Capabilities(dynamic_shapes=True, mutation=True, custom_ops=True)
    return [CompilerSpec(name="wrong", version="1", factory=lambda options, device: Wrong(),
                         capabilities=can)]
"""


def test_difference_of_a_wrong_compiler_is_shown(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.toys import write_distribution

    site = tmp_path / "site"
    site.mkdir()
    write_distribution(site, "intarsia-wrong", {"wrong": "wrong_x"}, {"wrong_x": WRONG})
    monkeypatch.syspath_prepend(str(site))
    rows = bench(capsys, f"{model}:pair", "--no-stock", "--compilers", "wrong")
    assert rows["intarsia: wrong"]["difference"] == pytest.approx(0.5, abs=1e-4)
