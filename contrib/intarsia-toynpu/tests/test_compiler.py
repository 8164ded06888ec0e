"""The compiler: programs, their options, what it rejects, and artifacts that another process loads."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from intarsia_toynpu.adaptor import assemble
from intarsia_toynpu.program import Program

import intarsia

sys.path.insert(0, str(Path(__file__).parent))

from children import output_of
from npu_models import decoder

pytestmark = pytest.mark.contrib

ROWS = {"x": {0: "n"}}


def on_device(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).to("toynpu")


def compiled(function: Any, x: torch.Tensor, **settings: Any) -> Any:
    """Compile a function of rows for the device, without static graphs or cache."""
    settings = {"cache": False, "static_graph": "none", **settings}
    return intarsia.compile(function, (x,), dynamic=ROWS, **settings)


def test_gate_and_up_become_one_instruction() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        gate, up = x.chunk(2, -1)
        return F.silu(gate) * up

    made = compiled(function, on_device(3, 8))
    assert "1 matches in 1 graphs" in made.explain()
    for rows in (1, 3, 6):
        x = on_device(rows, 8)
        torch.testing.assert_close(made(x).cpu(), function(x.cpu()))
    off = compiled(function, on_device(3, 8), passes={"disable": ["toynpu-swiglu"]})
    assert "toynpu-swiglu (piece-aten)" not in off.explain()
    x = on_device(4, 8)
    torch.testing.assert_close(off(x).cpu(), function(x.cpu()))


def test_a_program_that_is_kept_is_the_same_program() -> None:
    def function(x: torch.Tensor, n: int) -> tuple[Any, ...]:
        return torch.ops.aten.addmm(x[0], x, x.t(), beta=0.5), x.new_zeros((n,)), x[:, 1:]

    graph = torch.fx.experimental.proxy_tensor.make_fx(function)(torch.randn(4, 4), 3)
    graph.graph.output_node().args = (tuple(graph.graph.output_node().args[0]),)
    program = assemble(graph)
    again = Program.from_bytes(program.to_bytes())
    assert again == program
    x = torch.randn(4, 4)
    for found, expected in zip(again.run([x, 3]), function(x, 3), strict=True):
        torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="instruction set"):
        Program.from_bytes(
            program.to_bytes().replace(b'"instruction-set": "1"', b'"instruction-set": "0"')
        )


def test_an_option_changes_the_numbers_and_the_key(tmp_path: Path) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return x @ x.t()

    x = on_device(5, 64)
    low = {"options": {"toynpu": {"matmul_precision": "bfloat16"}}, "cache": str(tmp_path)}
    exact, rough = compiled(function, x, cache=str(tmp_path)), compiled(function, x, **low)
    assert compiled(function, x, **low).report.compiler_calls == 0
    rounded = x.cpu().bfloat16().float()
    torch.testing.assert_close(exact(x).cpu(), function(x.cpu()))
    torch.testing.assert_close(rough(x).cpu(), rounded @ rounded.t())


def test_an_option_that_does_not_exist_or_fit_is_an_error_that_names_it() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return x.sin()

    x = on_device(2, 4)
    with pytest.raises(intarsia.IntarsiaError, match="matmul_precision"):
        compiled(function, x, options={"toynpu": {"matmul_precisoin": "bfloat16"}})
    with pytest.raises(Exception, match="float64"):
        compiled(function, x, options={"toynpu": {"matmul_precision": "float64"}}, strict=True)


@pytest.mark.parametrize(
    ("function", "options", "reason"),
    [
        (lambda x: torch.fft.rfft(x).abs(), {}, "no instruction for aten::_fft_r2c"),
        (
            lambda x: (x * 2 + 1).sin(),
            {"program_memory": 2},
            "3 instructions, and program_memory is 2",
        ),
    ],
)
def test_what_it_rejects_runs_on_the_device_and_says_why(
    function: Any, options: dict[str, Any], reason: str
) -> None:
    made = compiled(function, on_device(3, 8), options={"toynpu": options})
    assert made.report.piece_reports[0].compiler == "eager"
    assert reason in made.explain()
    x = on_device(5, 8)
    found = made(x)
    assert found.device.type == "toynpu"
    torch.testing.assert_close(found.cpu(), function(x.cpu()))
    with pytest.raises(intarsia.IntarsiaError, match="toynpu"):
        compiled(function, x, options={"toynpu": options}, compilers=["toynpu"], strict=True)


def test_a_piece_that_writes_to_its_input_is_left_to_eager() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return x.add_(1).sin()

    made = compiled(function, on_device(3, 8))
    x = on_device(4, 8)
    given, expected = x.cpu(), function(x.cpu())
    torch.testing.assert_close(made(x).cpu(), expected)
    torch.testing.assert_close(x.cpu(), given + 1)


def test_a_replaced_weight_is_read_and_views_stay_views() -> None:
    model = torch.nn.Linear(8, 8).requires_grad_(False).to("toynpu")
    made = intarsia.compile(model, (on_device(3, 8),), dynamic={"input": {0: "n"}}, cache=False)
    x = on_device(4, 8)
    for _ in range(2):
        expected = F.linear(x.cpu(), model.weight.cpu(), model.bias.cpu())
        torch.testing.assert_close(made(x).cpu(), expected, rtol=2e-5, atol=2e-5)
        model.weight = torch.nn.Parameter(on_device(8, 8), requires_grad=False)

    views = compiled(lambda x: (x.t(), x[1:]), on_device(3, 8))
    first, second = views(x)
    assert first.data_ptr() == x.data_ptr()
    assert second.data_ptr() == x.data_ptr() + 8 * 4


def test_through_torch_compile_too() -> None:
    model = decoder(layers=1)
    reference = copy.deepcopy(model)
    model.to("toynpu")
    call = torch.compile(model, backend="intarsia", options={"cache": False})
    for count in (5, 9, 2):
        ids = torch.randint(0, 64, (count,))
        found = call(ids.to("toynpu"))
        assert found.device.type == "toynpu"
        torch.testing.assert_close(found.cpu(), reference(ids), rtol=2e-5, atol=2e-5)
    report = intarsia.reports()[-1]
    assert {p.compiler for p in report.piece_reports if p.requested} == {"toynpu"}
    torch.compiler.reset()  # what it recorded goes with it


WARM = """
    import sys
    import torch, intarsia
    from npu_models import decoder

    model = decoder(layers=2).to("toynpu")
    ids = torch.arange(5).to("toynpu")
    made = intarsia.compile(model, (ids,), dynamic={"ids": {0: "n"}}, boxes={"n": [1, 32]},
                            sizes={"n": [2]}, cache=CACHE)
    table = made.record(lambda sizes, key: ((torch.arange(sizes["n"]).to("toynpu"),), {}))
    print(made.report.compiler_calls, made.report.captures, table.recordings, made(ids).sum().item())
    made.close()
"""


def test_another_process_starts_without_compiling(tmp_path: Path) -> None:
    source = WARM.replace("CACHE", repr(str(tmp_path / "cache")))
    cold, warm = (output_of(source).split() for _ in range(2))
    assert int(cold[0]) > 0
    assert cold[2] == "3"
    assert warm[:2] == ["0", "0"]
    assert warm[2:] == cold[2:]


def test_a_wrong_piece_is_found_on_the_device(tmp_path: Path) -> None:
    """What follows what a call does works there too: verification, and the search for a wrong piece."""
    model = decoder(layers=1).to("toynpu")
    ids = torch.arange(5).to("toynpu")
    made = intarsia.compile(model, (ids,), cache=False, static_graph="none", verify=2)
    for _ in range(3):
        torch.testing.assert_close(
            made(ids).cpu(), decoder(layers=1)(ids.cpu()), rtol=2e-5, atol=2e-5
        )
