"""AOTInductor packages: made, proved, loaded without Inductor, refused where they would be wrong.

Making one costs seconds of the C++ compiler, so the plain run makes two; the table of cases is slow.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from torch import Tensor

from intarsia.compiling.soundness import compile_soundly
from intarsia.compiling.transport import make_request
from intarsia.errors import CompileRejected
from intarsia.interfaces import CompileRequest, IntInfo, PieceSignature, TensorInfo
from intarsia_inductor.adaptor import InductorCompiler
from intarsia_inductor.calls import PackageCall
from intarsia_inductor.package_file import LIBRARY, Package, load_package, made_with
from intarsia_inductor.packaged_graph import packaged_graph
from intarsia_inductor.probe import probe_load
from intarsia_inductor.proof import here, prove, random_inputs
from tests.models import assert_same, clone
from tests.recorded import again, recorded

CPU = torch.device("cpu")
ROWS = {"x": {0: "n"}}


def run(function: Any, inputs: list[Any]) -> list[Any]:
    """Call a piece's callable, whichever way it takes its inputs."""
    with torch.no_grad():
        boxed = getattr(function, "boxed_call", False)
        return list(function(list(inputs)) if boxed else function(*inputs))


def packaged(request: CompileRequest) -> Any:
    """Make a request's package, and load it from its bytes."""
    compiler = InductorCompiler({}, None)
    result = compile_soundly(compiler, again(request, "package"))
    assert result.artifact is not None
    assert "compared with eager" in result.note
    return compiler.load(result.artifact, request.signature, None)


def refusal(request: CompileRequest) -> str:
    """Return why a piece stays quick."""
    with pytest.raises(CompileRejected) as caught:
        InductorCompiler({}, None).compile(again(request, "package"))
    return str(caught.value)


def compare(function: Any, request: CompileRequest, sizes: Mapping[str, int]) -> None:
    """Compare a package with the piece run eagerly: results, and inputs afterwards."""
    ours = random_inputs(request.signature, "cpu", None, sizes)
    theirs = random_inputs(request.signature, "cpu", None, sizes)
    with torch.no_grad():
        expected = list(request.graph.forward(*theirs))
    actual = run(function, ours)
    for index, (value, wanted) in enumerate(zip(actual, expected, strict=True)):
        _same(value, wanted, f"output {index} at {sizes}")
    for index, (value, wanted) in enumerate(zip(ours, theirs, strict=True)):
        _same(value, wanted, f"input {index} at {sizes}")


def _same(value: Any, wanted: Any, where: str) -> None:
    if isinstance(wanted, Tensor):
        assert value.dtype == wanted.dtype, where
        torch.testing.assert_close(value, wanted, equal_nan=True, msg=lambda m: f"{where}: {m}")
    else:
        assert value == wanted, where


# ----------------------------------------------------------------------------- one package, everywhere


def cached_step(x: Tensor, cache: Tensor, at: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """A piece that writes to an input, uses a size as a number, and reads strides and offsets."""
    cache[at] = torch.relu(x @ w)
    return cache.sum(0) * x.shape[0], x.view(x.shape[0] * 2, -1) + x.shape[0]


def step_request() -> CompileRequest:
    """The request of `cached_step`, with weights that are a transposed part of something larger."""
    w = torch.randn(16, 12)[3:11, 2:10].t()
    args = (torch.randn(5, 8), torch.zeros(16, 8), torch.arange(5), w)
    dynamic = {"x": {0: "n"}, "at": {0: "n"}}
    (request,) = recorded(cached_step, args, dynamic, boxes={"n": [12]}, uncovered="error")
    return request


IN_CHILD = """
import sys, json, torch
from intarsia.interfaces import PieceSignature
from intarsia_inductor.adaptor import InductorCompiler
folder = sys.argv[1]
signature = PieceSignature.from_dict(json.load(open(folder + "/signature.json")))
inputs = torch.load(folder + "/inputs")
compiler = InductorCompiler({"cpp.simdlen": None}, None)
function = compiler.load(open(folder + "/artifact", "rb").read(), signature, None)
with torch.no_grad():
    boxed = getattr(function, "boxed_call", False)
    outputs = list(function(list(inputs)) if boxed else function(*inputs))
torch.save((inputs, outputs), folder + "/outputs")
heavy = ("torch._inductor", "torch._dynamo", "sympy")
print(json.dumps([m for m in sys.modules if m.startswith(heavy)]))
"""


def in_another_home(
    folder: Path, artifact: bytes, signature: PieceSignature, inputs: list[Any], prefix: list[str]
) -> subprocess.CompletedProcess[str]:
    """Load an artifact and run it: another HOME, no cache of Inductor's, no compiler on the PATH."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    (folder / "artifact").write_bytes(artifact)
    (folder / "signature.json").write_text(json.dumps(signature.to_dict()))
    torch.save(inputs, folder / "inputs")
    environment = {
        "HOME": str(home), "PATH": str(folder / "nowhere"), "OMP_NUM_THREADS": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "empty"),
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }  # fmt: skip
    return subprocess.run(
        [*prefix, sys.executable, "-c", IN_CHILD, str(folder)], env=environment,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def step() -> tuple[CompileRequest, bytes]:
    """The package that the tests below share."""
    request = step_request()
    result = compile_soundly(InductorCompiler({}, None), again(request, "package"))
    assert result.note == "package, compared with eager"
    assert result.artifact is not None
    return request, result.artifact


def test_a_package_equals_eager_at_every_size_of_its_box(
    step: tuple[CompileRequest, bytes],
) -> None:
    request, artifact = step
    function = InductorCompiler({}, None).load(artifact, request.signature, None)
    (name,) = request.box
    for n in (1, 2, 5, 8, 12):
        compare(function, request, {name: n})


def test_a_package_needs_nothing_of_inductor_and_no_compiler_in_another_process(
    step: tuple[CompileRequest, bytes], tmp_path: Path
) -> None:
    request, artifact = step
    (name,) = request.box
    inputs = random_inputs(request.signature, "cpu", None, {name: 7})
    theirs = clone(inputs)
    expected = list(request.graph.forward(*theirs))
    done = in_another_home(tmp_path, artifact, request.signature, inputs, [])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
    after, outputs = torch.load(tmp_path / "outputs")
    for value, wanted in zip([*outputs, *after], [*expected, *theirs], strict=True):
        _same(value, wanted, "in another process")
    left = [p for p in (tmp_path / "home").rglob("*") if p.is_file()]
    assert left == []
    assert not (tmp_path / "empty").exists()


def test_a_noexec_folder_is_named_in_the_refusal(
    step: tuple[CompileRequest, bytes], tmp_path: Path
) -> None:
    unshare = shutil.which("unshare")
    cache = tmp_path / "home" / ".cache"
    cache.mkdir(parents=True)
    script = f'mount -t tmpfs -o noexec,mode=700 tmpfs {cache} && exec "$@"'
    prefix = [str(unshare), "-rm", "/bin/sh", "-c", f"export PATH=/bin:/usr/bin; {script}", "sh"]
    if unshare is None or subprocess.run([*prefix, "true"], check=False).returncode:
        pytest.skip("this machine allows no private mounts")
    request, artifact = step
    (name,) = request.box
    inputs = random_inputs(request.signature, "cpu", None, {name: 7})
    done = in_another_home(tmp_path, artifact, request.signature, inputs, prefix)
    assert done.returncode
    assert "CompileRejected" in done.stderr
    assert "noexec" in done.stderr
    assert str(cache) in done.stderr


def test_a_damaged_package_is_told_before_anything_of_it_is_loaded(
    step: tuple[CompileRequest, bytes],
) -> None:
    _, artifact = step
    for length in (0, 1, len(artifact) // 2, len(artifact) - 1):
        with pytest.raises(ValueError, match=r"no package|their header says|Expecting|Extra data"):
            Package.from_bytes(artifact[:length])


def test_a_package_of_another_torch_is_refused_with_both_versions(
    step: tuple[CompileRequest, bytes],
) -> None:
    _, artifact = step
    other = evolve(Package.from_bytes(artifact), made_with={"torch": "2.99.0"}).to_bytes()
    with pytest.raises(CompileRejected, match=rf"2\.99\.0.*{torch.__version__.split('+')[0]}"):
        load_package(other, CPU)


def test_a_load_that_crashes_is_found_out_in_another_process(tmp_path: Path) -> None:
    source, library = tmp_path / "crash.cpp", tmp_path / "crash.so"
    source.write_text("__attribute__((constructor)) static void f() { *(volatile int*)0 = 1; }")
    subprocess.run(["g++", "-shared", "-fPIC", "-o", library, source], check=True)
    content = library.read_bytes() + b"libstdc++.so"
    call = PackageCall(1, (0,), (), ("made[0]",))
    data = Package(call, made_with(), {LIBRARY: content}).to_bytes()
    signature = PieceSignature((TensorInfo("float32", ("n",), (1,), "cpu"),), (), {"n": (1, 9)})
    answer = probe_load(data, signature, CPU)
    assert not answer
    assert "SIGSEGV" in answer.reason


def static_compiler(folder: Path) -> Path:
    """A C++ compiler that puts libstdc++ into every library, as one without the shared one does."""
    compiler = folder / "g++"
    compiler.write_text(
        '#!/bin/sh\ncase " $* " in *" -shared "*) exec g++ -static-libstdc++ "$@";; esac\n'
        'exec g++ "$@"\n'
    )
    compiler.chmod(0o755)
    return compiler


def test_a_package_with_a_cpp_library_of_its_own_is_refused_before_it_crashes(
    tmp_path: Path,
) -> None:
    source, library = tmp_path / "own.cpp", tmp_path / "own.so"
    source.write_text(
        '#include <regex>\nbool f() { return std::regex_match("a", std::regex("a")); }'
    )
    command = [static_compiler(tmp_path), "-shared", "-fPIC", "-o", library, source]
    subprocess.run(command, check=True)
    call = PackageCall(1, (0,), (), ("made[0]",))
    data = Package(call, made_with(), {LIBRARY: library.read_bytes()}).to_bytes()
    with pytest.raises(CompileRejected, match=r"C\+\+ standard library of its own"):
        load_package(data, CPU)


@pytest.mark.slow
def test_a_compiler_with_a_static_cpp_library_makes_packages_that_use_torchs(
    tmp_path: Path,
) -> None:
    (request,) = recorded(mlp, (torch.randn(5, 8), torch.randn(8, 8)), ROWS)
    compiler = InductorCompiler({"cpp.cxx": (None, str(static_compiler(tmp_path)))}, None)
    result = compiler.compile(again(request, "package"))
    assert result.note == "package, compared with eager"
    compare(result.callable, request, dict.fromkeys(request.box, 3))


# ------------------------------------------------------------------------------------------- refusals


def drawn(x: Tensor) -> Tensor:
    """A piece with random numbers."""
    return x + torch.rand_like(x)


def overlapping(x: Tensor, y: Tensor) -> Tensor:
    """A piece that writes to memory that another input shares."""
    x.mul_(2)
    return y + 1


def test_random_numbers_stay_quick_before_the_compiler_runs() -> None:
    (request,) = recorded(drawn, (torch.randn(5, 8),), ROWS)
    begun = time.process_time()
    assert "draws random numbers" in refusal(request)
    assert time.process_time() - begun < 20


def test_writes_to_shared_memory_stay_quick() -> None:
    base = torch.randn(9, 4)
    (request,) = recorded(overlapping, (base[2:6], base[3:7]))
    assert "aliased inputs that are mutated" in refusal(request)


def hand_made(inputs: tuple[Any, ...], outputs: tuple[Any, ...], box: Any) -> CompileRequest:
    """A request whose graph returns its first input plus one."""
    graph = torch.fx.Graph()
    nodes = [graph.placeholder(f"in{i}") for i in range(len(inputs))]
    graph.output((graph.call_function(torch.add, (nodes[0], 1)),) * len(outputs))
    module = torch.fx.GraphModule({}, graph)
    signature = PieceSignature(inputs, outputs, box)
    return make_request(
        module, signature, device_type="cpu", device=None, name="piece", kind="compiled",
        tier="package",
    )  # fmt: skip


def test_a_size_that_no_shape_shows_alone_stays_quick() -> None:
    whole = TensorInfo("float32", ("2*n",), (1,), "cpu")
    reason = refusal(hand_made((whole,), (whole,), {"n": (1, 9)}))
    assert "n appears only inside the size 2*n" in reason


def test_a_size_is_read_off_a_shape_or_handed_over_as_a_number() -> None:
    rows = TensorInfo("float32", ("n",), (1,), "cpu")
    shown = packaged_graph(hand_made((rows, IntInfo("n")), (rows,), {"n": (1, 9)}))
    assert shown.call.takes == (0,)
    alone = hand_made((rows, IntInfo("m")), (rows,), {"n": (1, 9), "m": (1, 9)})
    graph = alone.graph.graph
    first, second = graph.find_nodes(op="placeholder")
    graph.find_nodes(op="call_function", target=torch.add)[0].args = (first, second)
    given = packaged_graph(alone)
    assert given.call.takes == (0, 1)
    assert given.call.numbers == (1,)


# ------------------------------------------------------------------------------------- the callable


def test_a_package_that_takes_what_the_piece_takes_is_called_without_anything_in_between() -> None:
    call = PackageCall(2, (0, 1), (), ("made[0]",))
    function = call.bind(lambda values: [sum(values)], threading.Lock())
    assert getattr(function, "boxed_call", False)
    assert run(function, [2, 3]) == [5]


def test_sizes_inputs_and_repeated_values_are_put_together_around_a_package() -> None:
    call = PackageCall(3, (0, 2), (2,), ("made[0]", "i1", "(i2*2)", "made[0]"))

    def package(values: list[Any]) -> list[Any]:
        assert values[1].dtype is torch.int64
        return [values[0] * values[1]]

    function = call.bind(package, threading.Lock())
    x, y = torch.ones(2), torch.zeros(1)
    first, second, third, fourth = run(function, [x, y, 3])
    assert torch.equal(first, torch.full((2,), 3.0))
    assert second is y
    assert third == 6
    assert fourth is first


def test_a_package_that_calls_python_lets_one_thread_in_at_a_time() -> None:
    inside: list[int] = []
    most: list[int] = []

    def package(values: list[Any]) -> list[Any]:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.01)
        inside.pop()
        return values

    function = PackageCall(1, (0,), (), ("made[0]",), serial=True).bind(package, threading.Lock())
    threads = [threading.Thread(target=run, args=(function, [0])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1


# ------------------------------------------------------------------------------------------ the proof


def doubled_in_place(x: Tensor) -> tuple[Tensor, Tensor]:
    """Writes to its input and returns a view of it and a new tensor."""
    x.mul_(2)
    return x.t(), x + 1


LIES: Mapping[str, tuple[Callable[[Tensor], Any], str]] = {
    "value": (lambda x: (x.mul_(2).t(), x + 1.01), "off eager's"),
    "dtype": (lambda x: (x.mul_(2).t(), (x + 1).double()), "float64"),
    "shape": (lambda x: (x.mul_(2).t(), (x + 1)[:, :1]), "instead of"),
    "stride": (lambda x: (x.mul_(2).t(), (x + 1).t().contiguous().t()), "strides"),
    "write": (lambda x: ((x * 2).t(), x * 2 + 1), "memory"),
    "view": (lambda x: (x.mul_(2).t().clone(memory_format=torch.preserve_format), x + 1), "memory"),
    "alias": (lambda x: (x.mul_(2).t(), x.add_(1)), "memory|input 0|off"),
    "arity": (lambda x: (x.mul_(2).t(),), "returns 1 values"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_package_that_differs_from_eager_is_refused(lie: str) -> None:
    (request,) = recorded(doubled_in_place, (torch.randn(5, 8),), ROWS)
    function, reason = LIES[lie]
    with pytest.raises(CompileRejected, match=reason):
        prove(here(function), request.graph, request, False)


def test_the_truth_is_accepted() -> None:
    (request,) = recorded(doubled_in_place, (torch.randn(5, 8),), ROWS)
    assert prove(here(doubled_in_place), request.graph, request, False).endswith("eager")


def test_memory_that_nobody_wrote_is_not_compared() -> None:
    def allocates(x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.empty_like(x), x + 1

    (request,) = recorded(allocates, (torch.randn(5, 8),), ROWS)

    def other(x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(x, 7.0), x + 1

    assert prove(here(other), request.graph, request, False).endswith("eager")


def test_a_piece_with_operators_outside_torch_is_not_tried_out() -> None:
    (request,) = recorded(doubled_in_place, (torch.randn(5, 8),), ROWS)
    quiet = evolve(
        request.signature,
        outputs=tuple(evolve(o, alias_class=None) for o in request.signature.outputs),
    )

    def never(x: Tensor) -> Any:
        raise AssertionError("it was run")

    note = prove(here(never), request.graph, evolve(request, signature=quiet), True)
    assert "not compared" in note


# ------------------------------------------------------------------------------------- the slow table


def mlp(x: Tensor, w: Tensor) -> Tensor:
    return torch.relu(x @ w) + x


def views(x: Tensor) -> Any:
    return x[1:], x.t(), x * 2


def inputs_back(x: Tensor, y: Tensor) -> Any:
    return x, x * y, x


def twice(x: Tensor) -> Any:
    y = x * 2
    return y, y


def other_dtypes(x: Tensor) -> Any:
    return (x * 2).to(torch.int64), x > 0, (x * 3).to(torch.uint8)


def two_symbols(x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([x, y], 0) * x.shape[0] + y.shape[0]


def empty(x: Tensor) -> Any:
    return x[:0] * 2, x + 1


def sizes_out(x: Tensor) -> Any:
    return x * 2, x.shape[0], x.shape[0] * 2 + 1


def constants(x: Tensor) -> Tensor:
    return x + torch.arange(8.0) * torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8])


def looked_up(i: Tensor, w: Tensor) -> Tensor:
    return torch.nn.functional.embedding(i, w).cumsum(0)


def reductions(x: Tensor) -> Any:
    return x.argmax(-1), x.sort(-1)[0], x.softmax(-1)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q, k, v)


def written_back(x: Tensor) -> Tensor:
    return x.add_(1)


def from_data(x: Tensor) -> Tensor:
    return x * x.sum().item()


def complex_square(x: Tensor) -> Tensor:
    return x * x + 1j


def first_rows(x: Tensor) -> Tensor:
    return x[:5] * 2


def offset(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1) * 3


BASE = torch.randn(20, 8)
HEADS = {name: {2: "n"} for name in "qkv"}
CASES: Mapping[str, tuple[Any, tuple[Any, ...], Mapping[str, Any]]] = {
    **{str(d): (mlp, (torch.randn(5, 8).to(d), torch.randn(8, 8).to(d)), ROWS)
       for d in (torch.float64, torch.float16, torch.bfloat16)},
    "static": (mlp, (torch.randn(5, 8), torch.randn(8, 8)), {}),
    "views": (views, (torch.randn(5, 8),), ROWS),
    "inputs back": (inputs_back, (torch.randn(5, 8), torch.randn(8)), ROWS),
    "twice": (twice, (torch.randn(5, 8),), ROWS),
    "other dtypes": (other_dtypes, (torch.rand(5, 8),), ROWS),
    "two symbols": (two_symbols, (torch.randn(5, 8), torch.randn(3, 8)), {**ROWS, "y": {0: "m"}}),
    "empty": (empty, (torch.randn(5, 8),), ROWS),
    "sizes out": (sizes_out, (torch.randn(5, 8),), ROWS),
    "constants": (constants, (torch.randn(5, 8),), ROWS),
    "looked up": (looked_up, (torch.tensor([1, 2, 0]), torch.randn(4, 8)), {"i": {0: "n"}}),
    "reductions": (reductions, (torch.randn(5, 8),), ROWS),
    "attention": (attention, tuple(torch.randn(1, 2, 5, 8) for _ in range(3)), HEADS),
    "written back": (written_back, (torch.randn(5, 8),), ROWS),
    "from data": (from_data, (torch.randn(5, 8),), ROWS),
    "complex": (complex_square, (torch.randn(5, 8, dtype=torch.complex64),), ROWS),
    "first rows": (first_rows, (torch.randn(7, 8),), ROWS),
    "strides": (mlp, (torch.randn(8, 5).t(), torch.randn(8, 8).t()), ROWS),
    "offset": (offset, (BASE[3:, 2:6],), ROWS),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_case_equals_eager_or_is_refused(case: str) -> None:
    model, args, dynamic = CASES[case]
    requests = recorded(model, args, dynamic, boxes={"n": [9]} if dynamic else {})
    for request in requests[:1]:
        function = packaged(request)
        low = {name: bounds[0] for name, bounds in request.box.items()}
        for extra in (0, 1, 4, 6):
            sizes = {
                n: min(request.box[n][1], lo + extra + k) for k, (n, lo) in enumerate(low.items())
            }
            compare(function, request, sizes)


@pytest.mark.slow
def test_a_box_that_begins_at_zero_is_right_at_zero() -> None:
    x, w = (
        TensorInfo("float32", ("n", 8), (8, 1), "cpu"),
        TensorInfo("float32", (8, 8), (8, 1), "cpu"),
    )
    graph = torch.fx.Graph()
    first, second = graph.placeholder("x"), graph.placeholder("w")
    product = graph.call_function(torch.matmul, (first, second))
    graph.output((graph.call_function(torch.relu, (product,)),))
    request = make_request(
        torch.fx.GraphModule({}, graph), PieceSignature((x, w), (x,), {"n": (0, 9)}),
        device_type="cpu", device=None, name="piece", kind="compiled",
    )  # fmt: skip
    function = packaged(request)
    for n in (0, 1, 2, 9):
        compare(function, request, {"n": n})


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_an_operator_written_in_python_is_called_from_two_threads_without_a_deadlock() -> None:
    library = torch.library.Library("intarsia_packages", "DEF")
    library.define("slow(Tensor x) -> Tensor")

    def slow(x: Tensor) -> Tensor:
        time.sleep(0.01)  # lets go of Python's lock inside the package
        return x * 2

    library.impl("slow", slow, "CPU")
    library.impl("slow", lambda x: torch.empty_like(x), "Meta")

    def model(x: Tensor) -> Tensor:
        return torch.ops.intarsia_packages.slow(torch.relu(x)) + 1

    (request,) = recorded(model, (torch.randn(5, 8),), ROWS)
    result = InductorCompiler({}, None).compile(again(request, "package"))
    assert "not compared" in result.note
    assert result.artifact is not None
    function = InductorCompiler({}, None).load(result.artifact, request.signature, None)
    x = torch.randn(3, 8)
    wrong: list[Any] = []

    def calls() -> None:
        for _ in range(10):
            (value,) = run(function, [x])
            if not torch.allclose(value, torch.relu(x) * 2 + 1):
                wrong.append(value)

    threads = [threading.Thread(target=calls) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert not wrong
    assert_same(run(function, [x])[0], torch.relu(x) * 2 + 1)
