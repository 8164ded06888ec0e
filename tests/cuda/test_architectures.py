"""Hugging Face architectures on a CUDA device through Inductor, with no range for batch or length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

import intarsia
from intarsia_cuda.device import available

if not available():
    pytest.skip(available().reason, allow_module_level=True)

from tests.backend.test_architectures import ARCHITECTURES, SDPA, SIZES, TEXT, Architecture, of
from tests.checks import no_fallbacks, same_as_eager
from tests.models import Inputs, Sizes

pytestmark = [pytest.mark.cuda, pytest.mark.timeout(280)]


def there(value: Any) -> Any:
    return pytree.tree_map(
        lambda leaf: leaf.cuda() if isinstance(leaf, torch.Tensor) else leaf, value
    )


def compiled_like_eager(one: Architecture, **settings: Any) -> Any:
    """Compile an architecture, compare it with eager and return it."""

    def inputs(s: Sizes, seed: int) -> Inputs:
        return (), there(one.inputs(s, seed))

    ranges = {"dynamic_ranges": {"length": (1, 512)}} if one.name == "roberta" else {}
    compiled = same_as_eager(
        one.build().cuda(), inputs, SIZES, one.dynamic or TEXT, scale=50.0, cache=False, **ranges,
        **settings,
    )  # fmt: skip
    assert no_fallbacks(compiled.report), compiled.explain()
    assert {p.compiler for p in compiled.report.piece_reports if p.kind == "compiled"} == {
        "inductor"
    }
    return compiled


@pytest.mark.parametrize("one", ARCHITECTURES, ids=[one.name for one in ARCHITECTURES])
def test_an_architecture_is_compiled_in_pieces(one: Architecture) -> None:
    split = [SDPA] if one.attention else []
    assert compiled_like_eager(one, split_at=split).report.pieces == 2 * one.attention + 1


@pytest.mark.parametrize("name", ["bert-mask", "llama", "gpt2", "t5", "mixtral"])
def test_an_architecture_is_compiled_as_a_whole(name: str) -> None:
    compiled_like_eager(of(name))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_generate_runs_through_torch_compile(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model = of(name).build().cuda()
    ids = there(of(name).inputs({"batch": 2, "length": 7}, 3)["input_ids"])
    wanted = model.generate(ids, max_new_tokens=24, do_sample=False)
    model.forward = torch.compile(model.forward, backend="intarsia", options={"cache": False})
    made = model.generate(ids, max_new_tokens=24, do_sample=False)
    assert made.tolist() == wanted.tolist()
    assert [r.getMessage() for r in caplog.records if r.name == "intarsia"] == []


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_a_second_start_compiles_nothing(name: str, tmp_path: Any) -> None:
    one = of(name)
    call = there(one.inputs(SIZES[0], 0))
    for compiles in (True, False):
        model = one.build().cuda()
        compiled = intarsia.compile(
            model, kwargs=call, dynamic=TEXT, split_at=[SDPA], cache=str(tmp_path), artifact="quick"
        )
        calls = compiled.report.captures, compiled.report.compiler_calls
        assert tuple(map(bool, calls)) == (compiles, compiles)
        with torch.no_grad():
            torch.testing.assert_close(compiled(**call)[0], model(**call)[0], rtol=1e-4, atol=1e-4)
