"""What Inductor makes has eager's strides, which the pieces after it were compiled for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import intarsia
from tests.backend.test_architectures import of


def cached(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The first step of a key-value cache: the keys come after nothing."""
    kept = torch.cat([torch.tensor([]), keys * 2], dim=-2)
    return kept, torch.sigmoid(kept).transpose(1, 2) + 1


def keys(n: int) -> Tensor:
    return torch.randn(2, n, 3, 8).transpose(1, 2)


@pytest.mark.parametrize("dynamic", [{}, {"keys": {2: "n"}}])
@pytest.mark.parametrize("artifact", ["quick", pytest.param("package", marks=pytest.mark.slow)])
def test_a_cache_that_begins_is_contiguous(dynamic: Any, artifact: str, tmp_path: Any) -> None:
    compiled = intarsia.compile(
        cached, (keys(5),), dynamic=dynamic, compilers=["inductor"], split_at=["torch.sigmoid"],
        cache=str(tmp_path), artifact=artifact,
    )  # fmt: skip
    for n in (5, 1, 7) if dynamic else (5,):
        x = keys(n)
        for made, wanted in zip(compiled(x), cached(x), strict=True):
            torch.testing.assert_close(made, wanted)
            assert n == 1 or made.stride() == wanted.stride()


def test_what_torch_cached_of_other_adjustments_is_not_taken(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an intarsia that adjusted nothing left it."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    with monkeypatch.context() as earlier:
        earlier.setattr("intarsia.torch_compat._ADJUSTED", "0")
        earlier.setattr("intarsia_inductor.adaptor.keep_strides", lambda graph, wanted: None)
        intarsia.compile(cached, (keys(5),), compilers=["inductor"], cache=str(tmp_path / "0"))
    compiled = intarsia.compile(
        cached, (keys(5),), compilers=["inductor"], cache=str(tmp_path / "1")
    )
    x = keys(5)
    assert [y.stride() for y in compiled(x)] == [y.stride() for y in cached(x)]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_generate_runs_through_torch_compile(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model = of(name).build()
    ids = of(name).inputs({"batch": 2, "length": 7}, 3)["input_ids"]
    wanted = model.generate(ids, max_new_tokens=12, do_sample=False)
    model.forward = torch.compile(model.forward, backend="intarsia", options={"cache": False})  # type: ignore[method-assign]
    made = model.generate(ids, max_new_tokens=12, do_sample=False)
    assert made.tolist() == wanted.tolist()
    assert [r.getMessage() for r in caplog.records if r.name == "intarsia"] == []
