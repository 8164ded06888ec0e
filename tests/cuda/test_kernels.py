"""The fused operators on a GPU: against their plain form, and through passes and Inductor."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import intarsia
from intarsia_cuda.device import available

if not available():
    pytest.skip(available().reason, allow_module_level=True)

from intarsia_cuda.kernels import ops, reference
from tests.benchmarks.static_graph_model import ATTENTION, DYNAMIC, Shape, decoder, inputs
from tests.kernel_cases import CASES, Case

pytestmark = pytest.mark.cuda

FUSIONS = ["fuse-add-rms-norm", "fuse-silu-mul", "fuse-rotary"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_a_kernel_computes_what_its_plain_form_does(case: Case, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for rows in (0, 1, 5, 33, 1000):
        for size in (48, 4096, 8192, 14336):
            case(rows, size, dtype, "cuda")


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_inductor_sees_the_kernels(rows: int) -> None:
    assert ops.OPS

    def function(x: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> Any:
        out, total = torch.ops.intarsia_cuda.add_rms_norm(x + 1, y, w, 1e-6)
        return out * 2, total

    x, y = (torch.randn(rows, 256, device="cuda") for _ in range(2))
    w = torch.randn(256, device="cuda")
    compiled = torch.compile(function, fullgraph=True)
    made, code = torch._inductor.utils.run_and_get_code(compiled, x, y, w)
    assert "add_rms_norm" in code[0]
    assert "torch.ops.intarsia_cuda" not in code[0]  # it is no call that Inductor cannot look into
    expected = reference.add_rms_norm(x + 1, y, w, 1e-6)
    torch.testing.assert_close(made, (expected[0] * 2, expected[1]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("compiler", ["inductor", "eager"])
@pytest.mark.parametrize("mode", ["none", "piecewise"])
def test_a_decoder_is_fused_as_often_as_it_has_them(compiler: str, mode: str) -> None:
    shape = Shape(3, 256, 512, 4, 2, 128, 997, 16, torch.bfloat16)
    model = decoder(shape, "cuda")
    compiled = intarsia.compile(
        model, inputs(shape, 2, "cuda"), dynamic=DYNAMIC, boxes={"rows": [1, 16]}, cache=False,
        split_at=[ATTENTION], op_safety={ATTENTION: "safe"}, static_graph=mode, strict=True,
        compilers=[compiler], passes={"enable": FUSIONS},
    )  # fmt: skip
    if mode != "none":
        table = compiled.record(
            lambda wanted, key: (inputs(shape, wanted["rows"], "cuda"), {}), sizes={"rows": [4, 1]}
        )
        assert {row.status for row in table.rows} == {"recorded"}, str(table)
    found = {total.name: total.matches for total in compiled.report.passes if "2.." in total.box}
    assert [found[name] for name in FUSIONS] == [6, 3, 3], found
    for rows in (4, 1, 9):
        args = inputs(shape, rows, "cuda", seed=rows)
        made, expected = compiled(*args).float(), model(*args).float()
        assert (made - expected).norm() <= 0.02 * expected.norm()
