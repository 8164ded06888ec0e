"""Quick artifacts of Inductor: complete in themselves, called directly, and keyed by what made them."""

from __future__ import annotations

import ast
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from torch import Tensor, nn

from intarsia import torch_compat
from intarsia.errors import CompileRejected, ConfigError
from intarsia.interfaces import CompileRequest
from intarsia_inductor.adaptor import InductorCompiler
from intarsia_inductor.generated import without_compiler
from intarsia_inductor.identity import described
from intarsia_inductor.quick import QuickArtifact
from tests.backend.test_packages import compare, in_another_home, run
from tests.recorded import again, recorded

ROWS = {"x": {0: "n"}}


def fused(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Two outputs, a library call and a generated kernel."""
    return torch.relu(x @ w) + x, x.sum(1)


def shared(x: Tensor) -> tuple[Tensor, Tensor]:
    """An output that is a view of an input, which AOTAutograd's wrapper makes."""
    return x.t(), torch.sigmoid(x) * 2


class Constants(nn.Module):
    """A piece with a tensor in it."""

    def forward(self, x: Tensor) -> Tensor:
        """Add a constant that is no weight."""
        return torch.sigmoid(x) @ torch.tensor(
            [[float(i * j % 7) for i in range(8)] for j in range(8)]
        )


CASES: Mapping[str, tuple[Any, tuple[Any, ...], str, bool]] = {
    "module": (fused, (torch.randn(5, 8), torch.randn(8, 8)), "module", True),
    "entry": (shared, (torch.randn(5, 8),), "entry", False),
    "constants": (Constants(), (torch.randn(5, 8),), "module", True),
}


@pytest.fixture(scope="module", params=CASES)
def made(request: pytest.FixtureRequest) -> tuple[CompileRequest, bytes, str, bool]:
    """A piece with its quick artifact, the form to expect, and whether its call is direct."""
    model, args, form, direct = CASES[request.param]
    (piece,) = recorded(model, args, ROWS)
    result = InductorCompiler({}, None).compile(again(piece))
    assert result.artifact is not None
    return piece, result.artifact, form, direct


def test_an_artifact_holds_its_kernels_and_says_how_it_is_called(
    made: tuple[CompileRequest, bytes, str, bool],
) -> None:
    _, data, form, direct = made
    artifact = QuickArtifact.from_bytes(data)
    assert (artifact.form, artifact.direct) == (form, direct)
    assert artifact.libraries
    assert b"cpp_pybinding" not in bytes(artifact.body)


def test_an_artifact_equals_eager_and_keeps_the_direct_call(
    made: tuple[CompileRequest, bytes, str, bool],
) -> None:
    piece, data, _, direct = made
    function = InductorCompiler({}, None).load(data, piece.signature, None)
    assert bool(getattr(function, "boxed_call", False)) is direct
    for n in (1, 2, 7):
        compare(function, piece, dict.fromkeys(piece.box, n))


def test_an_artifact_runs_without_a_compiler_a_cache_and_its_makers_home(
    made: tuple[CompileRequest, bytes, str, bool], tmp_path: Path
) -> None:
    from intarsia_inductor.proof import random_inputs

    piece, data, form, _ = made
    inputs = random_inputs(piece.signature, "cpu", None, dict.fromkeys(piece.box, 7))
    with torch.no_grad():
        expected = list(piece.graph.forward(*inputs))
    done = in_another_home(tmp_path, data, piece.signature, inputs, [])
    assert done.returncode == 0, done.stderr[-2000:]
    heavy = json.loads(done.stdout)
    assert bool(heavy) is (form == "entry"), "a module needs nothing of Inductor"
    _, outputs = torch.load(tmp_path / "outputs")
    for value, wanted in zip(outputs, expected, strict=True):
        torch.testing.assert_close(value, wanted)


def test_a_second_compile_out_of_inductors_own_cache_is_as_direct_as_the_first() -> None:
    (piece,) = recorded(fused, (torch.randn(6, 8), torch.randn(8, 8)), ROWS)
    compiler = InductorCompiler({}, None)
    notes = {compiler.compile(again(piece)).note for _ in range(2)}
    assert notes == {"direct call"}


def test_an_artifact_costs_no_direct_call() -> None:
    (piece,) = recorded(fused, (torch.randn(6, 8), torch.randn(8, 8)), ROWS)
    compiler = InductorCompiler({}, None)
    for wants in (False, True):
        result = compiler.compile(again(piece, wants_artifact=wants))
        assert (result.artifact is not None) is wants
        assert getattr(result.callable, "boxed_call", False)


def test_loading_leaves_the_environment_and_inductors_folder_as_they_were(
    made: tuple[CompileRequest, bytes, str, bool],
) -> None:
    piece, data, _, _ = made
    before = dict(os.environ)
    InductorCompiler({}, None).load(data, piece.signature, None)
    assert dict(os.environ) == before


def test_a_rewritten_module_never_takes_the_place_of_inductors_own() -> None:
    (piece,) = recorded(shared, (torch.randn(5, 8),), ROWS)
    result = InductorCompiler({}, None).compile(again(piece))
    assert result.artifact is not None
    import pickle

    body = QuickArtifact.from_bytes(result.artifact).body
    graph = pickle.loads(body)[0].compiled_fw.result
    assert "intarsia_kernel" in graph.source_code
    InductorCompiler({}, None).load(result.artifact, piece.signature, None)
    from torch._inductor.codecache import get_path

    files = [Path(get_path(graph.cache_key, "py")[2])]
    assert "intarsia_kernel" in files[0].read_text()
    others = set(files[0].parent.parent.glob("*/*.py")) - set(files)
    theirs = [f for f in others if "cpp_fused" in f.read_text() and f.stem != graph.cache_key]
    assert any("cpp_pybinding" in f.read_text() for f in theirs)


@pytest.mark.parametrize("length", [0, 1, 40, 0.5, -1])
def test_a_damaged_artifact_is_told_before_anything_of_it_runs(length: float) -> None:
    (piece,) = recorded(fused, (torch.randn(5, 8), torch.randn(8, 8)), ROWS)
    data = InductorCompiler({}, None).compile(again(piece)).artifact
    assert data is not None
    cut = data[: int(length) if length != 0.5 else len(data) // 2]
    with pytest.raises(
        ValueError, match=r"no artifact|their header says|Expecting|Unterminated|unpack"
    ):
        InductorCompiler({}, None).load(cut, piece.signature, None)


@pytest.mark.parametrize("name", ["torch", "torch's sources"])
def test_an_artifact_of_another_torch_is_refused_with_a_reason(name: str) -> None:
    (piece,) = recorded(shared, (torch.randn(5, 8),), ROWS)
    data = InductorCompiler({}, None).compile(again(piece)).artifact
    assert data is not None
    artifact = QuickArtifact.from_bytes(data)
    other = evolve(artifact, made_with={**artifact.made_with, name: "other"}).to_bytes()
    with pytest.raises(CompileRejected, match=r"made with torch other|sources differ"):
        InductorCompiler({}, None).load(other, piece.signature, None)


def test_a_module_that_needs_inductor_stays_an_entry() -> None:
    source = (
        "import torch\nfrom torch._inductor.select_algorithm import extern_kernels\n"
        "from torch._inductor.utils import maybe_profile\n"
        "def call(args):\n    x, = args\n    return (extern_kernels.{name}(x),)\n"
    )
    torch_own = without_compiler(source.format(name="mm"))
    assert torch_own.light is not None
    assert "torch.mm(x)" in torch_own.light
    assert "_inductor" not in torch_own.light
    assert without_compiler(source.format(name="no_such_function")).light is None


# ------------------------------------------------------------------------------------------ identity


class Pass:
    """A pass with an identity."""

    def __init__(self, uuid: Any) -> None:
        self._uuid = uuid

    def __call__(self, graph: Any) -> None:
        """Change nothing."""

    def uuid(self) -> Any:
        """Return what the test wants."""
        return self._uuid


def factors(options: Mapping[str, Any] | None = None) -> Mapping[str, str] | None:
    """Return the factors of a new compiler."""
    return InductorCompiler(options or {}, None).factors()


def test_options_are_factors_with_passes_by_their_uuid() -> None:
    found = factors({"max_autotune": True, "post_grad_custom_post_pass": Pass("first")})
    assert found is not None
    assert found["option max_autotune"] == "True"
    assert "first" in found["option post_grad_custom_post_pass"]
    assert found != factors({"max_autotune": True, "post_grad_custom_post_pass": Pass("second")})


@pytest.mark.parametrize("value", [Pass(None), lambda graph: None, [Pass("a"), print]])
def test_a_pass_without_an_identity_is_never_cached_and_says_so(
    value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = InductorCompiler({"post_grad_custom_post_pass": value}, None)
    assert compiler.factors() is None
    assert compiler.factors() is None
    (line,) = [r.getMessage() for r in caplog.records if "not cached" in r.getMessage()]
    assert "post_grad_custom_post_pass" in line


def test_a_setting_changed_in_the_process_is_a_factor_and_one_put_back_is_not() -> None:
    import torch._inductor.config as settings

    before = factors()
    with settings.patch({"epilogue_fusion": False, "compile_threads": 1}):
        changed = factors()
    assert changed == {**(before or {}), "setting epilogue_fusion": "False"}
    assert factors() == before
    with settings.patch(post_grad_custom_pre_pass=lambda graph: None):
        assert factors() is None


def test_an_environment_variable_that_inductor_reads_is_a_factor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = factors()
    monkeypatch.setenv("TORCHINDUCTOR_CPP_GEMM_CACHE_BLOCKING", "4,2,1")
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_COMPILE_THREADS", "UNRELATED", "HOME"):
        monkeypatch.setenv(name, "elsewhere")
    added = {"variable TORCHINDUCTOR_CPP_GEMM_CACHE_BLOCKING": "4,2,1"}
    assert factors() == {**(before or {}), **added}


def test_threads_and_switches_of_torch_are_factors() -> None:
    before, threads = factors(), torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert factors() == {**(before or {}), "CPU threads": str(threads + 1)}
    finally:
        torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("medium")
    try:
        assert factors() != before
    finally:
        torch.set_float32_matmul_precision("highest")
    assert factors() == before


def test_described_settings_do_not_depend_on_order() -> None:
    assert described("x", {"b": 1, "a": {2, 1}}) == described("x", {"a": {1, 2}, "b": 1})


IN_CHILD = """
import json, sys, time
import torch
from intarsia_inductor.adaptor import InductorCompiler
compiler = InductorCompiler({"max_autotune": True}, None)
first = compiler.factors()
begun = time.perf_counter()
compiler.factors()
spent = time.perf_counter() - begun
light = not any(m.startswith(("torch._inductor", "torch._dynamo", "sympy")) for m in sys.modules)
import torch._inductor.compile_fx, torch._inductor.select_algorithm
print(json.dumps([light, spent, first, compiler.factors()]))
"""


def test_factors_are_the_same_whether_or_not_inductor_was_imported() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-c", IN_CHILD], env=environment, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    light, spent, before, after = json.loads(done.stdout.strip().splitlines()[-1])
    assert light, "factors() imports nothing heavy"
    assert spent < 0.002
    assert before == after


def test_an_unknown_option_is_told_when_a_piece_is_compiled() -> None:
    (piece,) = recorded(fused, (torch.randn(5, 8), torch.randn(8, 8)), ROWS)
    compiler = InductorCompiler({"max_autotun": True}, None)
    with pytest.raises(ConfigError, match="max_autotune"):
        compiler.compile(again(piece))


def test_every_private_name_is_there() -> None:
    failed = {n: d.reason for n, d in torch_compat.run_probes().items() if not d}
    assert failed == {}


def test_every_private_name_that_is_imported_has_a_probe() -> None:
    tree = ast.parse(inspect.getsource(torch_compat))
    imported = [
        (node.module, alias.name)
        for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names if node.module.startswith("torch") and "._" in f".{node.module}.{alias.name}"
    ]  # fmt: skip
    assert len(imported) > 20
    probed = [probe.replace(":", ".") for probe in torch_compat.PROBES]
    bare = [
        f"{module}.{name}" for module, name in imported
        if not any(f"{probe}.".startswith(f"{module}.{name}.") for probe in probed)
    ]  # fmt: skip
    assert bare == []


def test_the_callable_that_was_just_compiled_equals_eager() -> None:
    functions: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [(fused, (torch.randn(8, 8),))]
    for function, rest in functions:
        (piece,) = recorded(function, (torch.randn(5, 8), *rest), ROWS)
        result = InductorCompiler({}, None).compile(again(piece))
        x = torch.randn(3, 8)
        for value, wanted in zip(run(result.callable, [x, *rest]), function(x, *rest), strict=True):
            torch.testing.assert_close(value, wanted)
