"""The CUDA plugin's fusions match as often as models have what they fuse; here the CPU form runs."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor

import intarsia
from intarsia.config import load_config
from intarsia.errors import PassError
from intarsia.host import Host
from intarsia.interfaces import PassSpec
from intarsia_cuda import intarsia_passes
from intarsia_cuda.kernels import reference
from tests.benchmarks.static_graph_model import ATTENTION as BENCHMARK_ATTENTION
from tests.benchmarks.static_graph_model import DYNAMIC, Shape, inputs
from tests.benchmarks.static_graph_model import decoder as benchmark_decoder
from tests.models import (
    ATTENTION,
    DECODER_DYNAMIC,
    SwiGLU,
    assert_same,
    decoder,
    decoder_inputs,
    decoder_reference,
)
from tests.pass_toys import Plugin

FUSIONS = [spec.name for spec in intarsia_passes()]


def matches(made: Any) -> dict[str, set[int]]:
    """Return how often each pass matched, at every box; those that did not are left out."""
    found: dict[str, set[int]] = {}
    for total in made.report.passes:
        assert not total.failures, total
        if total.matches:
            found.setdefault(total.name.removeprefix("fuse-"), set()).add(total.matches)
    return found


def settings(**more: Any) -> Any:
    chosen = {"compilers": ["eager"], "passes": {"enable": FUSIONS}, "strict": True, **more}
    return load_config(None, environ={}, cache=False, **chosen)


def test_every_fusion_matches_as_often_as_the_decoder_has_it() -> None:
    model, config = decoder(12), settings(split_at=[ATTENTION])
    made = intarsia.compile(model, kwargs=decoder_inputs(6), dynamic=DECODER_DYNAMIC, config=config)
    # The first norm of the first layer follows no add.
    assert matches(made) == {"add-rms-norm": {24}, "silu-mul": {12}, "rotary": {12}}
    for tokens in (6, 9):
        call = decoder_inputs(tokens)
        assert_same(made(**call), decoder_reference(model, **call).detach(), scale=4)


@pytest.mark.parametrize("compiler", ["eager", "inductor"])
def test_a_decode_step_is_fused_at_one_row_and_many(compiler: str) -> None:
    shape = Shape(2, 64, 128, 4, 2, 32, 97, 8, torch.bfloat16)
    model = benchmark_decoder(shape, "cpu")
    config = settings(
        split_at=[BENCHMARK_ATTENTION], boxes={"rows": [1, 8]}, compilers=[compiler],
        passes={"enable": [name for name in FUSIONS if "fp8" not in name]},
    )  # fmt: skip
    if compiler == "inductor" and find_spec("triton"):
        pytest.skip("Inductor would look into the operators, whose kernels are for a GPU")
    made = intarsia.compile(model, inputs(shape, 2, "cpu"), dynamic=DYNAMIC, config=config)
    assert matches(made) == {"add-rms-norm": {4}, "silu-mul": {2}, "rotary": {2}}
    for n in (1, 5):
        args = inputs(shape, n, "cpu", seed=n)
        result, eager = made(*args).float(), model(*args).float()
        assert (result - eager).norm() <= 2e-2 * eager.norm()


def hugging_face(name: str, layers: int) -> torch.nn.Module:
    """Return a small causal model of Hugging Face's with random weights."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, head_dim=8,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    made: torch.nn.Module = getattr(transformers, f"{name}ForCausalLM")(config)
    return made.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Llama", {"add-rms-norm": {6}, "silu-mul": {3}, "rotary": {3}}),
        ("Qwen3", {"add-rms-norm": {6}, "silu-mul": {3}, "qk-norm-rotary": {3}}),
    ],
)
@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.bfloat16], ids=str
)
def test_every_fusion_matches_as_often_as_a_hugging_face_model_has_it(
    name: str, expected: dict[str, set[int]], dtype: torch.dtype
) -> None:
    model = hugging_face(name, layers=3)
    model.to(dtype)
    made = intarsia.compile(
        model, kwargs={"input_ids": torch.arange(10).reshape(2, 5), "use_cache": False},
        config=settings(), dynamic={"input_ids": {1: "length"}},
    )  # fmt: skip
    assert matches(made) == expected
    ids = torch.arange(14).reshape(2, 7)
    result = made(input_ids=ids, use_cache=False).logits.float()
    eager = model(input_ids=ids, use_cache=False).logits.float()
    assert (result - eager).norm() <= (1e-5 if dtype == torch.float32 else 2e-2) * eager.norm()


@pytest.mark.parametrize(
    ("name", "last"),
    [pytest.param("Llama", "rotary", marks=pytest.mark.slow), ("Qwen3", "qk-norm-rotary")],
)
def test_pieces_between_attention_are_fused_at_every_batch_and_length(name: str, last: str) -> None:
    """Also at one row and one token, where other strides than eager's mean nothing."""
    model = hugging_face(name, layers=1)
    made = intarsia.compile(
        model, kwargs={"input_ids": torch.arange(10).reshape(2, 5), "use_cache": False},
        config=settings(split_at=["torch.nn.functional.scaled_dot_product_attention"]),
        dynamic={"input_ids": {0: "batch", 1: "length"}},
    )  # fmt: skip
    assert len(made.report.boxes) == 4
    assert matches(made) == {"add-rms-norm": {2}, "silu-mul": {1}, last: {1}}
    for batch, length in ((2, 7), (1, 3), (3, 1), (1, 1)):
        ids = torch.randint(64, (batch, length))
        result, eager = (f(input_ids=ids, use_cache=False).logits for f in (made, model))
        assert (result - eager).norm() <= 1e-5 * eager.norm()


def rows(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer over three dimensions, and a write to a tensor of its own."""
    y = torch.nn.functional.linear(x, weight, bias)
    y[:, 0] = 0
    return y.relu()


def test_the_functional_form_of_a_linear_layer_keeps_its_rows() -> None:
    x, weight, bias = torch.randn(5, 3, 8), torch.randn(8, 8), torch.randn(8)
    made = intarsia.compile(rows, (x, weight, bias), config=settings(), dynamic={"x": {0: "n"}})
    assert [b.compiler for p in made.report.piece_reports for b in p.boxes] == ["eager"]
    for n in (5, 1, 9):
        x = torch.randn(n, 3, 8)
        torch.testing.assert_close(made(x, weight, bias), rows(x, weight, bias))


def normed(x: Tensor, weight: Tensor, scale: Tensor) -> Any:
    one = reference.rms_norm_fp8(x, weight, scale, 1e-5)
    return one, reference.rms_norm_fp8_per_row(x * 2, weight, 1e-5)


def activated(gate_up: Tensor, scale: Tensor) -> Any:
    gate, up = gate_up.chunk(2, -1)
    return reference.silu_mul_fp8(gate, up, scale), reference.silu_mul_fp8_per_row(gate + 1, up)


SCALE = torch.tensor([0.25])


@pytest.mark.parametrize(
    ("function", "inputs", "expected"),
    [
        (normed, lambda n: (torch.randn(n, 16), torch.randn(16), SCALE),
         {"rms-norm-fp8": {1}, "rms-norm-fp8-per-row": {1}}),
        (activated, lambda n: (torch.randn(n, 32), SCALE),
         {"silu-mul-fp8": {1}, "silu-mul-fp8-per-row": {1}}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_what_ends_in_fp8_is_fused_whole(
    function: Callable[..., Any], inputs: Any, expected: Any, dtype: torch.dtype
) -> None:
    def given(rows: int) -> list[Tensor]:
        return [x if x is SCALE else x.to(dtype) for x in inputs(rows)]

    first = function.__code__.co_varnames[0]
    made = intarsia.compile(
        function, tuple(given(3)), config=settings(), dynamic={first: {0: "rows"}}
    )
    assert matches(made) == expected
    for rows in (5, 1):
        args = given(rows)
        found, eager = made(*args), function(*args)
        for one, other in zip(
            torch.utils._pytree.tree_leaves(found), torch.utils._pytree.tree_leaves(eager),
            strict=True,
        ):  # fmt: skip
            assert one.dtype == other.dtype
            torch.testing.assert_close(one.float(), other.float())


def wide(rows: int) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 8), torch.randn(1, 8)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: torch.nn.functional.silu(x) * y,  # y is broadcast
        lambda x, y: torch.nn.functional.silu(x) * x.double(),
        lambda x, y: reference.rms_norm(x + y, y[0], 1e-6),
    ],
)
def test_what_the_kernels_do_not_compute_is_left_alone(function: Any) -> None:
    made = intarsia.compile(function, wide(3), config=settings(), dynamic={"x": {0: "rows"}})
    assert matches(made) == {}
    args = wide(4)
    torch.testing.assert_close(made(*args), function(*args))


def test_a_change_of_the_model_that_ends_a_fusion_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = PassSpec("mine", "1", "piece-aten", "intarsia_cuda.fusions:silu_mul", min_matches=3)
    config = settings(split_at=[ATTENTION], passes={"enable": ["mine"]})

    def compile_it() -> Any:
        return intarsia.compile(
            decoder(3), kwargs=decoder_inputs(6), dynamic=DECODER_DYNAMIC, config=config,
            host=Host(config, extra_plugins=[Plugin(spec)]),
        )  # fmt: skip

    assert matches(compile_it()) == {"mine": {3}}

    def changed(self: Any, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(gate * torch.sigmoid(gate) * up)

    monkeypatch.setattr(SwiGLU, "forward", changed)
    with pytest.raises(PassError, match="mine.* matched 0 times"):
        compile_it()
