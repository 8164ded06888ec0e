"""The JIT door and the cache: a graph is compiled once, and a saved one runs where nothing was traced."""

from __future__ import annotations

import copy
import json
import logging
import os
import pickle
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

import intarsia
from intarsia.cache.entry import decode_entry, encode_entry, read_header
from intarsia.errors import CacheError
from tests.models import ATTENTION, DECODER_DYNAMIC, decoder, decoder_inputs, randn

ROOT = Path(__file__).resolve().parents[2]


class Model(nn.Module):
    """Two linear pieces around a splitting op."""

    def __init__(self, width: int = 8, factor: float = 2.0) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run both."""
        return torch.relu(self.second(torch.sigmoid(self.first(x)))) * self.factor


class Wrapped(nn.Module):
    """The same graph, from a module at another path."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Model()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run it."""
        return self.inner(x)


def through(
    model: Any, *inputs: Any, mark: bool = True, fixed: bool = False, **options: Any
) -> list[Any]:
    """Run a model as a new process would, compare with eager, and return the new reports."""
    torch._dynamo.reset()
    before = len(intarsia.reports())
    settings = {"compilers": ["eager"], "split_at": ["torch.sigmoid"], **options}
    compiled = torch.compile(model, backend="intarsia", options=settings,
                             dynamic=False if fixed else None)  # fmt: skip
    with torch.no_grad():
        for x in inputs:
            if mark:
                torch._dynamo.mark_dynamic(x, 0)
            torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=0)
    return intarsia.reports()[before:]


def counts(reports: list[Any]) -> list[tuple[int, int]]:
    """Return (compiler calls, bundles read) of each graph."""
    return [(r.compiler_calls, r.bundle_reads) for r in reports]


def batch(n: int, width: int = 8, **options: Any) -> torch.Tensor:
    """Return random rows."""
    return randn(n, width, seed=n, **options)


def child(code: str, *arguments: object, path: Path | None = None) -> subprocess.Popen[str]:
    """Start a Python process that finds this repository, and `path` before it."""
    places = [str(path)] if path else []
    places += [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in places if p)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def answer(process: subprocess.Popen[str]) -> Any:
    """Return what a process printed last, as data."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err[-4000:]
    return json.loads(out.splitlines()[-1])


# ------------------------------------------------------------------------------------ a second process

RUN = """
    import json, sys, torch, intarsia
    from tests.models import ATTENTION, DECODER_DYNAMIC, decoder, decoder_inputs
    from tests.checks import twin
    store, compiler, first = sys.argv[1], sys.argv[2], int(sys.argv[3])
    model = decoder(4)
    reference = twin(model)
    compiled = torch.compile(model, backend="intarsia", options={
        "compilers": [compiler], "split_at": [ATTENTION], "cache": store, "artifact": "quick",
        "dynamic": DECODER_DYNAMIC, "strict": True,
    })
    worst = 0.0
    with torch.no_grad():
        for seed, n in enumerate((first, 2, 30)):
            given = decoder_inputs(n, seed)
            for tensor in given.values():
                torch._dynamo.mark_dynamic(tensor, 0)
            worst = max(worst, float((compiled(**given) - reference(**given)).abs().max()))
    reports = [r.to_dict() for r in intarsia.reports()]
    print(json.dumps([worst, [[r["compiler_calls"], r["bundle_reads"], r["misses"], r["pieces"],
                               sorted(r["seconds"]), r["counters"]] for r in reports]]))
"""


@pytest.mark.parametrize(
    ("compiler", "tolerance"),
    [("eager", 0.0), pytest.param("inductor", 1e-4, marks=pytest.mark.slow)],
)
def test_a_second_process_compiles_and_splits_nothing_and_gives_eagers_results(
    compiler: str, tolerance: float, tmp_path: Path
) -> None:
    worst, (cold,) = answer(child(RUN, tmp_path, compiler, 7))
    assert worst <= tolerance
    assert cold[:2] == [3, 0], "three distinct pieces"
    worst, (warm,) = answer(child(RUN, tmp_path, compiler, 9))  # another first batch
    assert worst <= tolerance
    assert warm[:4] == [0, 1, 0, 9]
    assert not {"split", "compile", "bind"} & set(warm[4]), "no such phase was entered"
    assert not warm[5].get("uncovered")


# ---------------------------------------------------------------------------------- what is in the key


def test_the_same_graph_is_found_whatever_the_weights_and_the_size_of_the_example(
    tmp_path: Path,
) -> None:
    assert counts(through(Model(), batch(5), batch(9), cache=str(tmp_path))) == [(2, 0)]
    assert counts(through(Model(), batch(3), batch(2), batch(7), cache=str(tmp_path))) == [(0, 1)]


CHANGES: dict[str, Callable[[str], Any]] = {
    "a constant": lambda at: through(Model(factor=3.0), batch(5), cache=at),
    "the width": lambda at: through(Model(16), batch(5, 16), cache=at),
    "the dtype": lambda at: through(Model().double(), batch(5, dtype=torch.float64), cache=at),
    "the stride": lambda at: through(
        Model(), randn(8, 5).t(), batch(6).t().contiguous().t(), cache=at
    ),
    "a fixed size": lambda at: through(Model(), batch(5), mark=False, fixed=True, cache=at),
    "the boxes": lambda at: through(
        Model(), batch(5), cache=at, dynamic={"x": {0: "n"}}, boxes={"n": [8]}
    ),
    "a setting": lambda at: through(Model(), batch(5), cache=at, check="always"),
    "the rules": lambda at: through(Model(), batch(5), cache=at, split_at=["torch.relu"]),
    "the path of a module": lambda at: through(Wrapped(), batch(5), cache=at),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_anything_that_matters_misses(change: str, tmp_path: Path) -> None:
    through(Model(), batch(5), cache=str(tmp_path))
    (report,) = CHANGES[change](str(tmp_path))
    assert report.bundle_reads == 0
    assert "miss: graph" in report.reasons
    (again,) = CHANGES[change](str(tmp_path))
    assert again.bundle_reads == 1, "it is kept as well"


def test_a_miss_names_what_differs_from_the_nearest_graph(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    through(Model(), batch(5), cache=str(tmp_path))
    caplog.set_level(logging.INFO, "intarsia")
    caplog.clear()
    through(Model(), batch(5), cache=str(tmp_path), check="always")
    lines = [r.getMessage() for r in caplog.records if "cache miss for the graph" in r.getMessage()]
    assert len(lines) == 1
    assert "setting check" in lines[0]


def test_equal_pieces_of_another_graph_come_from_the_cache(tmp_path: Path) -> None:
    through(Model(), batch(5), cache=str(tmp_path))
    (report,) = through(Model(), batch(5), cache=str(tmp_path), check="always")
    assert (report.compiler_calls, report.hits) == (0, 2)


# ------------------------------------------------------------------------------- several graphs, no key


def broken(x: torch.Tensor) -> torch.Tensor:
    """Break the graph in two."""
    y = torch.sigmoid(x * 3) + 1
    torch._dynamo.graph_break()
    return torch.sigmoid(y) - x


def test_every_graph_of_a_model_with_a_break_is_found(tmp_path: Path) -> None:
    cold = through(broken, batch(5), mark=False, cache=str(tmp_path))
    assert len(cold) == 2
    assert all(r.compiler_calls and not r.bundle_reads for r in cold)
    warm = through(broken, batch(5), mark=False, cache=str(tmp_path))
    assert counts(warm) == [(0, 1), (0, 1)]


def test_the_graphs_of_recompilations_are_found(tmp_path: Path) -> None:
    model = Model()
    cold = through(model, batch(4), batch(5), batch(6), mark=False, cache=str(tmp_path))
    assert [r.compiler_calls for r in cold] == [2, 2], "a fixed size, then a dynamic one"
    warm = through(model, batch(4), batch(5), batch(6), mark=False, cache=str(tmp_path))
    assert counts(warm) == [(0, 1), (0, 1)]


def test_a_loaded_graph_runs_eagerly_where_no_box_fits(tmp_path: Path) -> None:
    settings = {"dynamic": {"x": {0: "n"}}, "boxes": {"n": [4]}, "uncovered": "eager"}
    for reads in (0, 1):
        (report,) = through(Model(), batch(3), batch(40), cache=str(tmp_path), **settings)
        assert report.bundle_reads == reads
        assert report.counters["uncovered"] == 1


def test_a_graph_that_needs_gradients_is_left_to_eager_and_not_kept(tmp_path: Path) -> None:
    model, before = Model(), len(intarsia.reports())
    options = {"compilers": ["eager"], "cache": str(tmp_path)}
    compiled = torch.compile(model, backend="intarsia", options=options)
    x = batch(3)
    compiled(x).sum().backward()
    assert model.first.weight.grad is not None
    assert len(intarsia.reports()) == before
    assert not list(tmp_path.iterdir())


def _local_rule() -> Any:
    wanted = torch.sigmoid
    return lambda node: node.target is wanted


def test_what_has_no_key_is_compiled_and_says_why_it_is_not_kept(tmp_path: Path) -> None:
    events: list[Any] = []
    for _ in range(2):
        (report,) = through(
            Model(), batch(3), cache=str(tmp_path), split_at=[_local_rule()], on_event=events.append
        )
        assert report.bundle_reads == 0
        assert report.pieces == 3
    told = [e.message for e in events if e.kind == "unkept"]
    assert len(told) == 2
    assert "_local_rule" in told[0]


def test_a_graph_with_tensors_of_a_subclass_is_not_kept(tmp_path: Path) -> None:
    events: list[Any] = []
    options = {"compilers": ["eager"], "cache": str(tmp_path), "on_event": events.append}
    compiled = torch.compile(lambda x: x.sigmoid() * 3, backend="intarsia", options=options)
    x, y = batch(3), batch(3) + 1
    with torch.no_grad():
        made = compiled(TwoTensor(x, y))
    torch.testing.assert_close(made.b, y.sigmoid() * 3)
    (told,) = [e.message for e in events if e.kind == "unkept"]
    assert "TwoTensor" in told


# ------------------------------------------------------------------------------------------- the cache


def test_without_a_cache_nothing_is_looked_for_or_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    through(Model(), batch(3), cache=False)
    assert not list(tmp_path.iterdir())
    through(Model(), batch(3), cache=True)
    assert list(tmp_path.iterdir()), "the test would see it"


def _damage_bundles(root: Path) -> None:
    for file in [f for f in root.rglob("*") if f.is_file()]:
        data = file.read_bytes()
        if b'"kind":"graph"' in data[:200_000].replace(b" ", b""):
            file.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])


def test_a_damaged_graph_is_moved_aside_with_one_warning_and_made_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    through(Model(), batch(3), cache=str(tmp_path))
    _damage_bundles(tmp_path)
    (report,) = through(Model(), batch(3), cache=str(tmp_path))
    assert report.bundle_reads == 0
    assert len([r for r in caplog.records if "moved aside" in r.getMessage()]) == 1
    assert counts(through(Model(), batch(3), cache=str(tmp_path))) == [(0, 1)]


def test_a_damaged_graph_raises_with_strict(tmp_path: Path) -> None:
    through(Model(), batch(3), cache=str(tmp_path), strict=True)
    _damage_bundles(tmp_path)
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="cannot be used"):
        through(Model(), batch(3), cache=str(tmp_path), strict=True)


PLUGIN = """
    import time
    from intarsia.interfaces import Capabilities, CompilerSpec
    from intarsia_eager.adaptor import EagerCompiler
    from attrs import evolve
    intarsia_api_version = (1, 0)
    RUNS = []

    class Tiered(EagerCompiler):
        def compile(self, request):
            made = super().compile(request)
            if request.tier == "package":
                return evolve(made, artifact=b"package " + made.artifact, tier="package")
            return made

        def load(self, artifact, signature, device):
            function = super().load(artifact.removeprefix(b"package "), signature, device)
            if not artifact.startswith(b"package "):
                return function
            def run(*inputs):
                RUNS.append(inputs)
                return function(*inputs)
            return run

    class Slow(EagerCompiler):
        def compile(self, request):
            time.sleep(1.5)
            return super().compile(request)

    class Forgetful(EagerCompiler):
        def compile(self, request):
            return evolve(super().compile(request), artifact=None)

    every = Capabilities(dynamic_shapes=True, mutation=True, custom_ops=True)

    def intarsia_compilers():
        return [
            CompilerSpec("tiered", "1", f"{__name__}:Tiered", tiers=("quick", "package"),
                         capabilities=every),
            CompilerSpec("slow", "1", f"{__name__}:Slow", capabilities=every),
            CompilerSpec("forgetful", "1", f"{__name__}:Forgetful", capabilities=every),
        ]
"""


@pytest.fixture(autouse=True)
def _aot() -> Iterator[None]:
    """Switch `aot_compile` on, which torch 2.11 has off by default."""
    with torch._dynamo.config.patch(enable_aot_compile=True):
        yield


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a plugin with three compilers, here and in processes that are started."""
    place = tmp_path / "plugins"
    info = place / "intarsia_tests_jit-1.0.dist-info"
    info.mkdir(parents=True)
    (place / "intarsia_tests_jit.py").write_text(textwrap.dedent(PLUGIN))
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: intarsia-tests-jit\nVersion: 1.0\n"
    )
    (info / "entry_points.txt").write_text("[intarsia]\ntests-jit = intarsia_tests_jit\n")
    monkeypatch.syspath_prepend(str(place))
    return place


@pytest.mark.slow
def test_processes_that_start_together_compile_each_piece_once(
    plugin: Path, tmp_path: Path
) -> None:
    together = [child(RUN, tmp_path / "store", "slow", 7, path=plugin) for _ in range(2)]
    found = [answer(process)[1][0] for process in together]
    assert sorted(calls for calls, *_ in found) == [0, 3]
    assert sorted(reads for _, reads, *_ in found) == [0, 1], "one waits for the other's bundle"


@pytest.mark.timeout(120)
def test_packages_are_put_in_and_the_next_start_has_them(plugin: Path, tmp_path: Path) -> None:
    events: list[Any] = []
    model, store = Model(), str(tmp_path / "store")
    settings = {"cache": store, "compilers": ["tiered"], "split_at": ["torch.sigmoid"]}
    options = {**settings, "on_event": events.append}
    compiled = torch.compile(model, backend="intarsia", options=options)
    x = batch(3)
    with torch.no_grad():
        for _ in range(3):  # the first call runs checks, and leaves nothing in the table of sizes
            compiled(x)
        while not [e for e in events if e.kind == "packages"]:
            time.sleep(0.05)
        runs = sys.modules["intarsia_tests_jit"].RUNS
        assert not runs
        torch.testing.assert_close(compiled(x), model(x))
        assert len(runs) == 2, "both pieces are packages now"
    report = intarsia.reports()[-1]
    assert (report.compiler_calls, report.counters["swap"]) == (2, 1)
    loaded: list[Any] = []
    warm = through(model, batch(3), mark=False, **settings, on_event=loaded.append)
    assert counts(warm) == [(0, 1)]
    assert "loaded with package artifacts" in [e.message for e in loaded]
    del runs[:]
    assert counts(through(model, batch(3), mark=False, **settings, artifact="quick")) == [(0, 1)]
    assert not runs


# ------------------------------------------------------------------------------------------ saved by torch

LOAD = """
    import json, sys, torch
    from torch.compiler import load_compiled_function
    file, batches = sys.argv[1], json.loads(sys.argv[2])
    with open(file, "rb") as opened, torch.no_grad():
        loaded = load_compiled_function(opened)
    from tests.backend.test_jit_warm import saved_models
    model, inputs = saved_models()[sys.argv[3]]
    worst = 0.0
    with torch.no_grad():
        for n in batches:
            args, kwargs = inputs(n)
            made, wanted = loaded(model, *args, **kwargs), model(*args, **kwargs)
            worst = max(worst, float((made - wanted).abs().max()))
    import intarsia
    print(json.dumps([worst, [[r.compiler_calls, r.captures, r.bundle_reads, dict(r.counters)]
                              for r in intarsia.reports()]]))
"""


def saved_models() -> dict[str, Any]:
    """Return the models that are saved here and called there, with what makes their inputs."""
    torch.manual_seed(7)
    return {
        "linears": (Model(), lambda n: ((batch(n),), {})),
        "decoder": (decoder(3), lambda n: ((), decoder_inputs(n, n))),
    }


def aot(name: str, **options: Any) -> Any:
    """Compile a model ahead of time; returns what torch gives."""
    model, inputs = saved_models()[name]
    args, kwargs = inputs(6)
    for tensor in (*args, *kwargs.values()):
        torch._dynamo.mark_dynamic(tensor, 0)
    settings = {"split_at": ["torch.sigmoid", ATTENTION], "compilers": ["eager"], **options}
    compiled: Any = torch.compile(
        model.forward, fullgraph=True, backend="intarsia", options=settings
    )
    with torch.no_grad():
        return compiled.aot_compile((args, kwargs))


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("linears", {}, 0.0),
        ("decoder", {}, 0.0),
        pytest.param("linears", {"compilers": ["inductor"]}, 1e-5, marks=pytest.mark.slow),
        pytest.param("decoder", {"compilers": ["inductor"]}, 1e-4, marks=pytest.mark.slow),
    ],
)
def test_a_saved_function_runs_in_a_new_process_without_a_trace(
    name: str, options: dict[str, Any], tolerance: float, tmp_path: Path
) -> None:
    file = tmp_path / "saved"
    aot(name, **options).save_compiled_function(str(file))
    worst, reports = answer(child(LOAD, file, [2, 6, 11, 30], name))
    assert worst <= tolerance
    assert [r[:3] for r in reports] == [[0, 0, 1]]
    assert not reports[0][3].get("uncovered")


def test_a_saved_function_runs_eagerly_where_no_box_fits(tmp_path: Path) -> None:
    file = tmp_path / "saved"
    settings = {"dynamic": DECODER_DYNAMIC, "boxes": {"tokens": [8]}, "uncovered": "eager"}
    aot("decoder", **settings).save_compiled_function(str(file))
    worst, reports = answer(child(LOAD, file, [5, 20], "decoder"))
    assert worst == 0
    assert reports[0][3]["uncovered"] == 1


def test_a_function_that_the_cache_had_is_saved_as_well(tmp_path: Path) -> None:
    file = tmp_path / "saved"
    aot("linears", cache=str(tmp_path / "store"))
    torch._dynamo.reset()
    aot("linears", cache=str(tmp_path / "store")).save_compiled_function(str(file))
    assert intarsia.reports()[-1].bundle_reads == 1
    assert answer(child(LOAD, file, [4], "linears"))[0] == 0


OPERATOR = """
    import torch
    LIBRARY = torch.library.Library("jit_warm_tests", "FRAGMENT")
    LIBRARY.define("twice(Tensor x) -> Tensor")
    LIBRARY.impl("twice", lambda x: x * 2, "CPU")
    torch.library.register_fake("jit_warm_tests::twice", lambda x: torch.empty_like(x), lib=LIBRARY)

    def function(x):
        return torch.sigmoid(torch.ops.jit_warm_tests.twice(x + 1)) * 3
"""


def test_the_operators_that_a_saved_function_needs_are_imported(tmp_path: Path) -> None:
    (tmp_path / "jit_warm_user.py").write_text(textwrap.dedent(OPERATOR))
    save = """
        import sys, torch, jit_warm_user
        torch._dynamo.config.enable_aot_compile = True
        compiled = torch.compile(jit_warm_user.function, fullgraph=True, backend="intarsia",
                                 options={"compilers": ["eager"], "split_at": ["torch.sigmoid"]})
        x = torch.ones(3)
        with torch.no_grad():
            compiled.aot_compile(((x,), {})).save_compiled_function(sys.argv[1])
        print("[]")
    """
    load = """
        import json, sys, torch
        from intarsia.graph_door import callable
        seen = []
        original = callable.GraphCallable.deserialize_compile_artifacts.__func__
        def noting(cls, data):
            seen.append("jit_warm_user" in sys.modules)
            return original(cls, data)
        callable.GraphCallable.deserialize_compile_artifacts = classmethod(noting)
        with open(sys.argv[1], "rb") as file, torch.no_grad():
            print(json.dumps([seen, torch.compiler.load_compiled_function(file)(torch.ones(3)).tolist()]))
    """
    file = tmp_path / "saved"
    answer(child(save, file, path=tmp_path))
    seen, result = answer(child(load, file, path=tmp_path))
    assert seen == [False], "nothing but the needs brings the operator"
    assert result == pytest.approx([float(torch.sigmoid(torch.tensor(4.0)) * 3)] * 3)


def graph_callable(function: Any) -> Any:
    """Return intarsia's callable in what torch compiled ahead of time."""
    return function._artifacts.compiled_fn


def test_a_function_whose_piece_leaves_no_artifact_cannot_be_saved_and_says_which(
    plugin: Path, tmp_path: Path
) -> None:
    made = aot("linears", compilers=["forgetful"])
    with pytest.raises(CacheError, match='piece 0 by "forgetful" leaves no artifact'):
        made.save_compiled_function(str(tmp_path / "saved"))


def test_a_function_that_needs_gradients_cannot_be_saved_and_says_why(tmp_path: Path) -> None:
    model = Model()
    options = {"compilers": ["eager"]}
    compiled: Any = torch.compile(model, fullgraph=True, backend="intarsia", options=options)
    made = compiled.forward.aot_compile(((batch(3),), {}))
    with pytest.raises(CacheError, match="gradients"):
        made.save_compiled_function(str(tmp_path / "saved"))


@pytest.mark.parametrize("factor", ["torch", "device type", "compiler eager"])
def test_a_function_made_for_something_else_is_refused_by_name(factor: str) -> None:
    inner = graph_callable(aot("linears"))
    data = type(inner).serialize_compile_artifacts(inner)
    header = read_header(data)
    assert header is not None
    entry = decode_entry(data, key=header.key)
    other = encode_entry(evolve(entry, factors={**entry.factors, factor: "another one"}))
    with pytest.raises(CacheError, match=f"{factor}.*another one"):
        type(inner).deserialize_compile_artifacts(other)


def test_a_function_of_a_compiler_that_is_gone_is_refused(
    plugin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = graph_callable(aot("linears", compilers=["tiered"], cache=False))
    data = type(inner).serialize_compile_artifacts(inner)
    type(inner).deserialize_compile_artifacts(data)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(plugin)])
    with pytest.raises(CacheError, match="tiered"):
        type(inner).deserialize_compile_artifacts(data)


def test_damaged_bytes_are_refused_before_anything_of_them_is_loaded() -> None:
    inner = graph_callable(aot("linears"))
    data = type(inner).serialize_compile_artifacts(inner)
    for at in range(0, len(data), len(data) // 23):
        wrong = data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]
        with pytest.raises(CacheError):
            type(inner).deserialize_compile_artifacts(wrong)
    with pytest.raises(CacheError):
        type(inner).deserialize_compile_artifacts(data[: len(data) // 2])


def test_a_graphs_callable_is_copied_as_a_function_and_pickled_as_its_plan() -> None:
    compiled: Any = torch.compile(
        lambda x: torch.sigmoid(x) * 3, fullgraph=True, backend="intarsia",
        options={"compilers": ["eager"]},
    )  # fmt: skip
    inner = graph_callable(compiled.aot_compile(((randn(3, 4),), {})))
    assert copy.copy(inner) is inner
    assert copy.deepcopy(inner) is inner
    again = pickle.loads(pickle.dumps(inner))
    assert again is not inner
    x = randn(3, 4)
    assert torch.equal(again(x)[0], inner(x)[0])
    assert torch.equal(again(x)[0], torch.sigmoid(x) * 3)
