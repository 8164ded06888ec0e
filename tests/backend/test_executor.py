"""Compile tasks on an executor: the same result, wherever the compiler ran."""

from __future__ import annotations

import gc
import multiprocessing
import pickle
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from attrs import evolve

import intarsia
import intarsia_eager
from intarsia.compiling.transport import make_request
from intarsia.config import load_config
from intarsia.executors import run_isolated
from intarsia.host import Host
from intarsia.interfaces import (
    Capabilities,
    CompileRequest,
    CompileResult,
    CompilerSpec,
    Option,
    PassSpec,
    PieceSignature,
    TensorInfo,
)
from intarsia.place import device_of
from intarsia_eager.adaptor import EagerCompiler
from tests.faults.sabotage import compiled as sabotaged
from tests.faults.sabotage import compilers


class Model(torch.nn.Module):
    """Two equal linear pieces around a splitting op, and a third."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run both."""
        return torch.relu(self.second(torch.sigmoid(self.first(x))))


@pytest.fixture(params=["threads", pytest.param("processes", marks=pytest.mark.slow)])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    """A pool that compiles: threads, or spawned processes."""
    if request.param == "threads":
        with ThreadPoolExecutor(2) as pool:
            yield pool
        return
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


def compiled(executor: Executor, **settings: Any) -> Any:
    """Compile the model on an executor."""
    model, x = Model(), torch.randn(3, 8)
    made = intarsia.compile(
        model, args=(x,), dynamic={"x": {0: "n"}}, split_at=["torch.sigmoid"], executor=executor,
        compilers=["eager"], **settings,
    )  # fmt: skip
    for n in (1, 3, 9):
        y = torch.randn(n, 8)
        with torch.no_grad():
            torch.testing.assert_close(made(y), model(y))
    return made


def test_pieces_compiled_on_an_executor_give_eagers_results(executor: Executor) -> None:
    made = compiled(executor, strict=True)
    assert made.report.pieces == 3
    assert made.report.fallbacks == 0


class Slow(EagerCompiler):
    """Eager, and slow enough for two threads to meet."""

    live = 0
    most = 0
    expected = 1

    def compile(self, request: CompileRequest) -> CompileResult:
        """Count how many are here at a time."""
        Slow.live += 1
        Slow.most = max(Slow.most, Slow.live)
        end = time.monotonic() + 5
        time.sleep(0.05)
        while Slow.most < Slow.expected and time.monotonic() < end:
            time.sleep(0.01)  # the other thread may get its turn late
        try:
            return super().compile(request)
        finally:
            Slow.live -= 1


def slow_spec(concurrent: bool) -> CompilerSpec:
    """Return the spec of the slow compiler, which replaces eager."""
    (spec,) = intarsia_eager.intarsia_compilers()
    return evolve(
        spec, factory=lambda options, device: Slow({}, None),
        capabilities=evolve(spec.capabilities, concurrent=concurrent),
    )  # fmt: skip


@pytest.mark.parametrize(("concurrent", "most"), [(False, 1), (True, 2)])
def test_a_compiler_that_is_not_concurrent_compiles_one_piece_at_a_time(
    concurrent: bool, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = slow_spec(concurrent)
    monkeypatch.setattr(intarsia_eager, "intarsia_compilers", lambda: [spec])
    Slow.live = Slow.most = 0
    monkeypatch.setattr(Slow, "expected", most)

    def function(x: torch.Tensor) -> torch.Tensor:
        x = torch.sigmoid(x * 2)
        return torch.sigmoid(torch.relu(torch.sigmoid(x + 3)))

    with ThreadPoolExecutor(2) as pool:
        intarsia.compile(function, (torch.ones(3),), compilers=["eager"], executor=pool,
                         split_at=["torch.sigmoid"])  # fmt: skip
    assert Slow.most == most


@pytest.mark.timeout(120)
def test_torch_compile_does_not_wait_for_a_thread_that_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = slow_spec(False)
    monkeypatch.setattr(intarsia_eager, "intarsia_compilers", lambda: [spec])
    model = Model()
    with ThreadPoolExecutor(2) as pool, torch.no_grad():
        options = {"compilers": ["eager"], "split_at": ["torch.sigmoid"], "executor": pool}
        made = torch.compile(model, backend="intarsia", options=options)
        x = torch.randn(3, 8)
        torch.testing.assert_close(made(x), model(x))


class Recording(Executor):
    """An executor that runs at once, and keeps what it was given."""

    def __init__(self) -> None:
        self.given: list[tuple[Any, ...]] = []

    def submit(self, function: Any, *args: Any, **_kwargs: Any) -> Any:
        """Run it."""
        self.given.append(args)
        future: Future[Any] = Future()
        future.set_result(function(*args))
        return future


def test_a_worker_loads_the_plugins_that_settings_choose() -> None:
    executor = Recording()
    compiled(executor, plugins={"block": ["nobody"], "autoload": False})
    _, _, settings = executor.given[0]
    assert settings["plugins"]["block"] == ["nobody"]
    assert settings["plugins"]["autoload"] is False
    assert pickle.loads(pickle.dumps(settings)) == settings


# ------------------------------------------------------------------------------------ requests as bytes


def request(**fields: Any) -> CompileRequest:
    """Return a small request."""
    module = torch.fx.symbolic_trace(lambda x: (torch.sin(x),))
    info = TensorInfo("float32", (3,), (1,), "cpu")
    signature = PieceSignature((info,), (info,), {})
    return make_request(module, signature, device_type="cpu", device=None, name="m.piece_0",
                        kind="compiled", **fields)  # fmt: skip


def test_passes_go_with_a_request() -> None:
    spec = PassSpec(
        "fuse", "2", "piece", "acme:fuse", {"limit": Option(4, int, "How many."), "x": Option(None)},
        before=("last",), boxes="acme:small", min_matches=3,
    )  # fmt: skip
    made = request(passes=(spec,))
    assert CompileRequest.from_bytes(made.to_bytes()).passes == (spec,)


@pytest.mark.parametrize(
    "fields",
    [
        {"factory": lambda options: None},
        {"factory": "acme:fuse", "boxes": lambda box: True},
        {"factory": "acme:fuse", "options": {"x": Option(torch.float32)}},
        {"factory": "acme:fuse", "options": {"x": Option(None, torch.dtype)}},
    ],
    ids=["factory", "boxes", "default", "type"],
)
def test_a_pass_without_a_plain_form_is_refused_by_name(fields: dict[str, Any]) -> None:
    made = request(passes=(PassSpec("fuse", "2", "piece", **fields),))
    with pytest.raises(intarsia.CompileFailed, match='"fuse"'):
        made.to_bytes()


def test_a_request_tells_adaptors_its_fake_mode_and_needs() -> None:
    made = request()
    assert made.fake_mode is made.fake_inputs[0].fake_mode
    assert made.needs == ()


# ------------------------------------------------------------------------------ compilers asked in turn


class Asked(EagerCompiler):
    """Lowers, keeps what it got, and declines unless it is the last."""

    seen: ClassVar[list[Any]] = []

    def __init__(self, last: bool) -> None:
        super().__init__({}, None)
        self.last = last

    def compile(self, request: CompileRequest) -> CompileResult:
        """Lower the piece."""
        lowered = request.lower("aten-functional")
        Asked.seen.append((lowered, request))
        if not self.last:
            request.graph.graph.erase_node(request.graph.graph.output_node())
            raise intarsia.CompileRejected("not this one")
        return super().compile(request)


def plugin_with(*specs: CompilerSpec) -> Host:
    """Return a host with a plugin that brings compilers."""

    class Acme:
        intarsia_api_version = (1, 0)
        __name__ = "acme"

        @staticmethod
        def intarsia_compilers() -> list[CompilerSpec]:
            return list(specs)

    return Host(load_config(None), extra_plugins=[Acme()])


EVERYTHING = Capabilities(dynamic_shapes=True, mutation=True, custom_ops=True)


def test_a_form_is_lowered_once_for_all_compilers_that_are_asked() -> None:
    Asked.seen.clear()
    host = plugin_with(
        CompilerSpec("first", "1", lambda *_: Asked(False), capabilities=EVERYTHING),
        CompilerSpec("second", "1", lambda *_: Asked(True), capabilities=EVERYTHING),
    )
    made = intarsia.compile(
        lambda x: x.sin(), (torch.ones(3),), host=host, compilers=["first", "second"]
    )
    torch.testing.assert_close(made(torch.ones(3)), torch.ones(3).sin())
    (one, before), (two, after) = Asked.seen
    assert one is two
    assert before.graph is not after.graph
    assert before.fake_mode is after.fake_mode


class Baker(EagerCompiler):
    """Keeps the weights that it compiled with, and ignores those that it is called with."""

    def compile(self, request: CompileRequest) -> CompileResult:
        """Bake."""
        assert request.weights is not None
        kept, made = dict(request.weights), super().compile(request)

        def run(*inputs: Any) -> Any:
            return made.callable(*(kept.get(i, value) for i, value in enumerate(inputs)))

        return CompileResult(run)


def test_equal_pieces_with_other_weights_are_baked_apart() -> None:
    capabilities = evolve(EVERYTHING, weights="bake")
    host = plugin_with(
        CompilerSpec("baker", "1", lambda *_: Baker({}, None), capabilities=capabilities)
    )
    model, x = Model(), torch.randn(3, 8)
    with ThreadPoolExecutor(1) as pool:
        made = intarsia.compile(model, (x,), host=host, compilers=["baker"], strict=True,
                                split_at=["torch.sigmoid", "torch.relu"], executor=pool)  # fmt: skip
    with torch.no_grad():
        torch.testing.assert_close(made(x), model(x))
    kept = model.first.weight
    model.first.weight = torch.nn.Parameter(torch.zeros(8, 8))
    with pytest.raises(intarsia.ContractError, match=r"first\.weight.*was replaced"):
        made(x)
    model.first.weight = kept
    with torch.no_grad():
        torch.testing.assert_close(made(x), model(x))


def test_a_model_on_several_devices_of_one_type_is_refused() -> None:
    tensors = [torch.empty(2, device="meta"), SimpleNamespace(device=torch.device("cuda", 1)),
               SimpleNamespace(device=torch.device("cuda", 0))]  # fmt: skip
    with pytest.raises(intarsia.ConfigError, match="cuda:0, cuda:1"):
        device_of(tensors[1:])  # type: ignore[arg-type]


class Closing(EagerCompiler):
    """Binds, and its callables can be closed."""

    events: ClassVar[list[str]] = []

    class Callable:
        """A callable with `close`."""

        def __init__(self, function: Any, name: str) -> None:
            self.function, self.name = function, name

        def __call__(self, *inputs: Any) -> Any:
            return self.function(*inputs)

        def close(self) -> None:
            """Note it."""
            Closing.events.append(self.name)

    def compile(self, request: CompileRequest) -> CompileResult:
        """Return such a callable."""
        return CompileResult(self.Callable(super().compile(request).callable, "compiled"))

    def bind(self, function: Any, weights: Any) -> Any:
        """Return another."""
        return self.Callable(function, "bound")


def test_what_was_bound_is_closed_after_a_rebind_and_everything_by_close() -> None:
    Closing.events.clear()
    host = plugin_with(
        CompilerSpec("closing", "1", lambda *_: Closing({}, None), capabilities=EVERYTHING)
    )
    model, x = Model(), torch.randn(3, 8)
    made = intarsia.compile(model, (x,), host=host, compilers=["closing"],
                            split_at=["torch.sigmoid", "torch.relu"])  # fmt: skip
    made(x)
    assert Closing.events == []
    made.rebind()
    made(x)
    gc.collect()
    assert Closing.events == ["bound", "bound"]
    made.close()
    gc.collect()
    assert Closing.events == ["bound"] * 4 + ["compiled"], "equal pieces share one"


class Broken(Executor):
    """An executor whose workers always die."""

    def submit(self, *_args: Any, **_kwargs: Any) -> Any:
        """Return a future that failed."""
        from concurrent.futures import Future
        from concurrent.futures.process import BrokenProcessPool

        future: Future[Any] = Future()
        future.set_exception(BrokenProcessPool("a worker died"))
        return future


def test_a_dead_executor_is_told_and_the_piece_compiles_here(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = compiled(Broken())
    assert made.report.compiled_pieces == 2
    lines = [r.getMessage() for r in caplog.records if r.name == "intarsia"]
    assert any("the executor failed" in line and "a worker died" in line for line in lines)


class Elsewhere(ThreadPoolExecutor):
    """Runs everything in worker processes, as an executor on other machines does."""

    other_processes = True

    def __init__(self) -> None:
        super().__init__(2)
        self.sent: list[str] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Run it there."""
        self.sent.append(fn.__name__)
        return super().submit(run_isolated, fn, *args, deadline=100, limit=1)


def test_torch_compile_uses_an_executor_whose_work_is_in_other_processes() -> None:
    model, x = Model(), torch.randn(3, 8)
    options = {
        "split_at": ["torch.sigmoid"],
        "cache": False,
        "compilers": ["eager"],
        "strict": True,
    }
    with Elsewhere() as executor, torch.no_grad():
        made = torch.compile(model, backend="intarsia", options={**options, "executor": executor})
        torch.testing.assert_close(made(x), model(x))
    assert len(executor.sent) == 2


@pytest.mark.usefixtures("saboteur")
def test_what_takes_down_an_isolated_process_is_not_compiled_here() -> None:
    with Elsewhere() as executor:
        made = sabotaged("exit", executor=executor)
    assert compilers(made) == [["saboteur failed", "eager compiled"]]
    (reason,) = [a.reason for a in made.report.piece_reports[0].boxes[0].attempts[:1]]
    assert "WorkerDied" in reason


def test_an_executor_that_takes_nothing_is_told_and_the_piece_compiles_here(
    caplog: pytest.LogCaptureFixture,
) -> None:
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    made = compiled(executor)
    assert made.report.compiled_pieces == 2
    lines = [r.getMessage() for r in caplog.records if r.name == "intarsia"]
    assert any("cannot schedule new futures after shutdown" in line for line in lines)


def test_an_isolated_function_has_a_deadline() -> None:
    with pytest.raises(intarsia.CompileFailed, match="longer than 1 s"):
        run_isolated(time.sleep, 600, deadline=1, name="a nap")
