"""Several models, threads and configs in one process, and what a compile leaves of torch's settings."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import intarsia
from tests.models import (
    ATTENTION,
    DECODER_DYNAMIC,
    assert_same,
    by_name,
    decoder,
    decoder_inputs,
    randn,
)

X = {"x": {0: "n"}}


def job(number: int) -> tuple[Any, dict[str, Any], Callable[[int], tuple[Any, dict[str, Any]]]]:
    """Return a model, how to compile it, and its calls."""
    if number == 0:
        config = {"compilers": ["eager"], "split_at": [ATTENTION], "dynamic": DECODER_DYNAMIC}
        return decoder(3, hidden=32), config, lambda n: ((), decoder_inputs(n, seed=n))
    if number == 1:
        config = {"compilers": ["inductor"], "split_at": ["torch.sigmoid"], "dynamic": X}
        return by_name("consumers").build(), config, lambda n: ((randn(n, 4, seed=n),), {})
    config = {"compilers": ["recorder"], "boxes": {"n": [4, 64]}, "dynamic": X}
    return by_name("multiple-outputs").build(), config, lambda n: ((randn(n, 6, seed=n),), {})


def compiled_and_called(number: int) -> list[Any]:
    """Compile a job and call it with several sizes."""
    model, config, call = job(number)
    args, kwargs = call(7)
    compiled = intarsia.compile(model, args=args, kwargs=kwargs, name=f"job-{number}", **config)
    results = []
    for n in (7, 3, 12, 5, 7):
        args, kwargs = call(n)
        results.append(compiled(*args, **kwargs))
    return results


@pytest.mark.usefixtures("toys")
def test_three_models_compiled_and_run_from_two_threads_give_what_each_gives_alone() -> None:
    alone = [compiled_and_called(number) for number in range(3)]
    torch._dynamo.reset()
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(compiled_and_called, range(3), timeout=300))
    assert_same(together, alone, scale=5)


def test_one_compiled_model_is_called_from_many_threads_while_weights_change() -> None:
    model = by_name("consumers").build()
    compiled = intarsia.compile(
        model, args=(randn(6, 4),), dynamic=X, compilers=["eager"], split_at=["torch.sigmoid"]
    )
    weight = model.one.weight
    other = nn.Parameter(randn(4, 4, seed=9))
    inputs = {n: randn(n, 4, seed=n) for n in range(2, 10)}
    expected: dict[int, list[Any]] = {}
    with torch.no_grad():
        for used in (weight, other):
            model.one.weight = used
            for n, x in inputs.items():
                expected.setdefault(n, []).append([t.detach() for t in model(x)])
    wrong: list[int] = []
    stop = threading.Event()

    def call() -> None:
        while not stop.is_set():
            for n, x in inputs.items():
                result = compiled(x)
                if not any(all(map(torch.allclose, result, one)) for one in expected[n]):
                    wrong.append(n)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(60):
        model.one.weight = (weight, other)[turn % 2]
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    for turn, used in enumerate((weight, other)):
        model.one.weight = used
        for n, x in inputs.items():
            assert all(map(torch.allclose, compiled(x), expected[n][turn]))


def test_grad_mode_is_as_the_caller_left_it() -> None:
    compiled = intarsia.compile(
        lambda x: x.sin(), args=(randn(6, 4),), dynamic=X, compilers=["eager"]
    )
    for mode in (True, False):
        with torch.set_grad_enabled(mode):
            compiled(randn(6, 4))
            assert torch.is_grad_enabled() == mode
            with pytest.raises(intarsia.ContractError):
                compiled(randn(6, 5))
            assert torch.is_grad_enabled() == mode


# ----------------------------------------------------------------------------------- nothing is left changed


def torch_settings() -> dict[str, Any]:
    """Return all of torch's settings, and attributes of torch that a careless plugin would replace."""
    import torch._dynamo.config
    import torch._functorch.config
    import torch._inductor.config
    import torch.fx.experimental._config as fx_config

    modules = {
        "dynamo": torch._dynamo.config, "inductor": torch._inductor.config,
        "functorch": torch._functorch.config, "fx": fx_config,
    }  # fmt: skip
    found = {name: module.get_config_copy() for name, module in modules.items()}
    found["grad"] = torch.is_grad_enabled()
    found["threads"] = torch.get_num_threads()
    found["dtype"] = torch.get_default_dtype()
    found["deterministic"] = torch.are_deterministic_algorithms_enabled()
    found["torch"] = {n: id(v) for n, v in vars(torch).items() if callable(v)}
    found["tensor"] = {n: id(v) for n, v in vars(torch.Tensor).items()}
    found["module"] = {n: id(v) for n, v in vars(nn.Module).items()}
    found["functional"] = {n: id(v) for n, v in vars(nn.functional).items()}
    found["rng"] = torch.get_rng_state().tolist()
    return found


def fails_to_capture(x: Tensor) -> Tensor:
    """Break the graph."""
    print("a graph break")
    return x * 2


SCENES: dict[str, tuple[Any, dict[str, Any], bool]] = {
    "eager": (lambda x: torch.sigmoid(x).cumsum(0), {"compilers": ["eager"]}, True),
    "inductor": (lambda x: torch.sigmoid(x).cumsum(0), {"compilers": ["inductor"]}, True),
    "capture-fails": (fails_to_capture, {"compilers": ["eager"]}, False),
    "compiler-fails": (lambda x: x * 2, {"compilers": ["raiser"]}, False),
    "config-fails": (lambda x: x * 2, {"compilers": ["nope"]}, False),
    "box-fails": (lambda x: x * 2 if x.shape[0] > 5 else x,
                  {"compilers": ["eager"], "boxes": {"n": [64]}}, False),
}  # fmt: skip


@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize("name", SCENES)
def test_a_compile_leaves_environment_and_torch_as_they_were(name: str) -> None:
    import torch._inductor.standalone_compile  # importing it sets variables of its own

    model, config, works = SCENES[name]
    if name == "inductor":  # Inductor itself sets variables when first used
        intarsia.compile(lambda x: x + 1, args=(randn(3),), compilers=["inductor"])(randn(3))
    environment, settings = dict(os.environ), copy.deepcopy(torch_settings())
    x = randn(6, 4)
    before = x.clone()
    marks = sorted(vars(x))
    if works:
        intarsia.compile(model, args=(x,), dynamic=X, **config)(x)
    else:
        with pytest.raises(intarsia.IntarsiaError):
            intarsia.compile(model, args=(x,), dynamic=X, **config)
    assert dict(os.environ) == environment
    after = torch_settings()
    for part in settings:
        assert after[part] == settings[part], part
    assert torch.equal(x, before)
    assert sorted(vars(x)) == marks, "Dynamo's marks on the caller's tensors"


def test_a_model_without_modules_hooks_leaves_none_behind() -> None:
    import gc

    from torch.nn.modules import module as hooks

    def count() -> int:
        return sum(
            len(getattr(hooks, name)) for name in vars(hooks)
            if name.startswith("_global_") and isinstance(getattr(hooks, name), dict)
        )  # fmt: skip

    gc.collect()  # models of tests before this one take theirs along
    before = count()
    model = by_name("consumers").build()
    compiled = intarsia.compile(model, args=(randn(6, 4),), compilers=["eager"])
    assert count() == before + 3
    compiled.close()
    assert count() == before
    with pytest.raises(intarsia.ContractError, match="closed"):
        compiled(randn(6, 4))
    compiled = intarsia.compile(model, args=(randn(6, 4),), compilers=["eager"])
    del compiled
    gc.collect()
    assert count() == before, "a compiled model that is dropped takes its hooks along"


def test_generated_source_goes_with_its_model() -> None:
    import gc
    import linecache

    def count() -> int:
        return sum(name.startswith("<intarsia") for name in linecache.cache)

    gc.collect()
    before = count()
    compiled = intarsia.compile(
        by_name("consumers").build(), args=(randn(6, 4),), compilers=["eager"]
    )
    compiled(randn(6, 4))
    assert count() > before, "tracebacks show its lines"
    compiled.close()
    del compiled
    gc.collect()
    assert count() == before


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_compiled_model_is_not_copied(copied: Callable[[Any], Any]) -> None:
    for model in (nn.Linear(4, 4), torch.fx.symbolic_trace(nn.Linear(4, 4))):
        compiled = intarsia.compile(model, args=(randn(6, 4),), compilers=["eager"])
        with pytest.raises(intarsia.ContractError, match="copied or pickled"):
            copied(compiled)


def test_marks_for_tracing_stay_until_the_last_user_is_done() -> None:
    from torch._dynamo import trace_rules

    from intarsia.torch_compat import allowed_in_graph

    def function() -> None:
        pass

    with allowed_in_graph([function]):
        with allowed_in_graph([function]):
            pass
        assert id(function) in trace_rules._allowed_callable_ids
    assert id(function) not in trace_rules._allowed_callable_ids


def test_models_of_equal_blocks_are_traced_by_regions_in_every_thread() -> None:
    def warnings(seed: int) -> list[str]:
        model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3 + seed)))
        compiled = intarsia.compile(model, args=(randn(6, 4),), compilers=["eager"])
        return list(compiled.report.warnings)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(warnings, range(4), timeout=300)) == [[]] * 4


def test_a_compilers_factory_may_build_another_compiler() -> None:
    from intarsia.compiling.instances import instance
    from intarsia.interfaces import CompilerSpec

    inner = CompilerSpec("inner", "1", lambda *_: object())  # type: ignore[arg-type,return-value]
    outer = CompilerSpec("outer", "1", lambda *_: instance(inner, {}, None))  # type: ignore[arg-type,return-value]
    thread = threading.Thread(target=instance, args=(outer, {}, None), daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


def test_compilers_are_closed_when_the_interpreter_exits() -> None:
    code = (
        "from intarsia.compiling.instances import instance\n"
        "from intarsia.interfaces import CompilerSpec\n"
        "class C:\n"
        "    def close(self): print('closed')\n"
        "spec = CompilerSpec('c', '1', lambda *_: C())\n"
        "instance(spec, {}, None), instance(spec, {}, None)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["closed"]
