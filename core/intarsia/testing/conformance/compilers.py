"""What a compiler must do."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

import intarsia
from intarsia.cache.opening import open_cache
from intarsia.cache.pack import pack, unpack
from intarsia.errors import CompileRejected, ContractError
from intarsia.references import resolve_reference
from intarsia.testing.conformance.graphs import GRAPHS, GraphCase
from intarsia.testing.conformance.numbers import agree, compile_case, compiled_by, follow, results
from intarsia.testing.conformance.subject import Requirement, Subject

__all__ = ["REQUIREMENTS", "claims_of"]

BLOCK = GRAPHS[0]
_CASES = {case.name: case for case in GRAPHS}


def _case(subject: Subject, folder: Path, case: GraphCase) -> None:
    compiled, function = compile_case(subject, case)
    follow(subject, compiled, function, case)


def _fresh_results(subject: Subject, folder: Path) -> None:
    """Results of a call must stay as they are when the next one runs, and must not be the inputs."""
    compiled, function = compile_case(subject, BLOCK)
    one, other = (BLOCK.inputs(subject.device, 4) for _ in range(2))
    first = results(compiled, one)
    kept = [x.clone() for x in first]
    second = results(compiled, other)
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True)), (
        "a second call changed what the first returned"
    )
    starts = {x.untyped_storage().data_ptr() for x in (*first, *one, *other) if x.numel()}
    shared = [i for i, x in enumerate(second) if x.untyped_storage().data_ptr() in starts]
    assert not shared, f"result {shared} lies in the memory of an input or of an earlier result"
    agree(subject, compiled, function, other)


def _weights_replaced(subject: Subject, folder: Path) -> None:
    """A weight that is replaced is used from then on, or the next call raises."""
    compiled, function = compile_case(subject, BLOCK)
    args = BLOCK.inputs(subject.device, 4)
    agree(subject, compiled, function, args)
    function.down.weight = torch.nn.Parameter(
        torch.randn_like(function.down.weight), requires_grad=False
    )
    try:
        agree(subject, compiled, function, args)
    except ContractError:
        return  # a compiler that bakes weights says so


def _weights_baked(subject: Subject, folder: Path) -> None:
    """With the option weights = "bake" it computes the same, and a replaced weight is an error."""
    spec = subject.host()[1].compiler(subject.name)
    if "weights" not in spec.options:
        raise CompileRejected('it has no option "weights"')
    settings = {"options": {subject.name: {"weights": "bake"}}}
    case = _CASES["dynamic-block"]
    compiled, function = compile_case(subject, case, **settings)
    follow(subject, compiled, function, case)
    function.down.weight = torch.nn.Parameter(function.down.weight * 2, requires_grad=False)
    try:
        compiled(*case.inputs(subject.device, 4))
    except ContractError:
        return
    raise AssertionError("a baked weight was replaced, and nothing was said")


def _weights_written(subject: Subject, folder: Path) -> None:
    """What is written into a weight's memory counts at the next call."""
    compiled, function = compile_case(subject, BLOCK)
    args = BLOCK.inputs(subject.device, 4)
    agree(subject, compiled, function, args)
    with torch.no_grad():
        function.down.weight.mul_(2)
    agree(subject, compiled, function, args)


def _threads(subject: Subject, folder: Path) -> None:
    """Several threads compile and call different functions."""
    cases = [_CASES[name] for name in ("block", "elementwise", "several-results")]
    _together([functools.partial(_case, subject, folder, case) for case in cases])


def _calls_at_a_time(subject: Subject, folder: Path) -> None:
    """Several threads call one compiled function, each with numbers of its own."""
    compiled, function = compile_case(subject, BLOCK)
    calls = [[BLOCK.inputs(subject.device, 4) for _ in range(8)] for _ in range(3)]
    agree(subject, compiled, function, calls[0][0])

    def work(mine: Sequence[Sequence[Any]]) -> None:
        for args in mine:
            agree(subject, compiled, function, args)

    _together([functools.partial(work, mine) for mine in calls])


def _together(functions: Sequence[Callable[[], None]]) -> None:
    """Run functions in threads, and raise the first error."""
    with ThreadPoolExecutor(len(functions)) as threads:
        for running in [threads.submit(function) for function in functions]:
            running.result()


def _factors(subject: Subject, folder: Path) -> None:
    """Two instances say the same of themselves, in text, and another version says something else."""
    _, host = subject.host()
    spec = host.compiler(subject.name)
    assert spec.version, "it has no version"
    make = resolve_reference(spec.factory, owner=f'compiler "{spec.name}"')
    device = 0 if subject.device not in ("cpu",) else None
    one, other = (make(host.options(spec), device).factors() for _ in range(2))
    assert one == other, f"factors() is {one} and then {other}"
    if one is None:
        return
    wrong = [k for k, v in one.items() if not isinstance(k, str) or not isinstance(v, str)]
    assert not wrong, f"factors() has {wrong[0]!r}, which is no text"
    for seed in ("1", "2"):  # Python's hashes of texts differ, and with them the order of sets
        code = _FACTORS.replace("DEVICE", repr(device))
        there = _in_another_process(subject, code, environ={"PYTHONHASHSEED": seed})
        assert there == dict(one), f"factors() is {one}, and in another process {there}"


_FACTORS = """
import json, sys
from intarsia.references import resolve_reference
from intarsia.testing.conformance.subject import Subject
subject = Subject.from_json(sys.stdin.read())
_, host = subject.host()
spec = host.compiler(subject.name)
made = resolve_reference(spec.factory, owner=spec.name)(host.options(spec), DEVICE)
print(json.dumps(dict(made.factors())))
"""


def _in_another_process(
    subject: Subject, code: str, *args: str, environ: Mapping[str, str] = MappingProxyType({})
) -> Any:
    """Run code that has the subject on its standard input; return the JSON that it prints last."""
    done = subprocess.run(
        [sys.executable, "-c", code, *args], input=subject.to_json(), text=True,
        capture_output=True, timeout=subject.deadline, check=False, env={**os.environ, **environ},
    )  # fmt: skip
    assert done.returncode == 0, f"a second process failed: {done.stderr[-1500:]}"
    return json.loads(done.stdout.splitlines()[-1])


def _artifact(subject: Subject, folder: Path) -> None:
    """A second process compiles nothing and computes the same."""
    _fill(subject, folder / "cache")
    _start_warm(subject, folder / "cache")


def _packed(subject: Subject, folder: Path) -> None:
    """What was packed and unpacked elsewhere is as good."""
    _fill(subject, folder / "cache")
    one, other = (open_cache(str(folder / name)) for name in ("cache", "other"))
    assert one is not None
    assert other is not None
    assert one.local is not None
    pack(one, list(one.local.list()), str(folder / "packed"))
    unpack(other, str(folder / "packed"))
    _start_warm(subject, folder / "other")


def _fill(subject: Subject, cache: Path) -> None:
    compiled, function = compile_case(subject, BLOCK, cache=str(cache))
    follow(subject, compiled, function, BLOCK)
    assert compiled.report.compiler_calls >= 1
    compiled.close()


_WARM = """
import sys
from intarsia.testing.conformance.compilers import warm_start
from intarsia.testing.conformance.subject import Subject
warm_start(Subject.from_json(sys.stdin.read()), sys.argv[1])
"""


def _start_warm(subject: Subject, cache: Path) -> None:
    found = _in_another_process(subject, _WARM, str(cache))
    assert found["compiler_calls"] == 0, f"a second process compiled again: {found}"


def warm_start(subject: Subject, cache: str) -> None:
    """Compile the block out of a cache, compare, and print how often a compiler was called."""
    compiled, function = compile_case(subject, BLOCK, cache=cache)
    follow(subject, compiled, function, BLOCK)
    print(json.dumps({"compiler_calls": compiled.report.compiler_calls}))


_FOUND = """
import json, sys
from intarsia.testing.conformance.subject import Subject
subject = Subject.from_json(sys.stdin.read())
_, host = subject.host()
host.compiler(subject.name, usable=False)
print(json.dumps("torch" in sys.modules))
"""


def _is_found_without_torch(subject: Subject, folder: Path) -> None:
    """The module that an entry point names is imported by whoever lists plugins: it has to be light."""
    if subject.plugins:
        return  # a function that returns plugins is no entry point
    assert not _in_another_process(subject, _FOUND), (
        'the plugin\'s module imports torch: name what needs it as "module:name"'
    )


def _alone_in_a_process(subject: Subject, folder: Path) -> None:
    """Compiling leaves torch's settings, the working folder and the environment as they were."""
    before = (dict(os.environ), Path.cwd(), torch.get_num_threads(), torch.get_default_dtype(),
              torch.is_grad_enabled())  # fmt: skip
    _case(subject, folder, BLOCK)
    after = (dict(os.environ), Path.cwd(), torch.get_num_threads(), torch.get_default_dtype(),
             torch.is_grad_enabled())  # fmt: skip
    names = ("environment", "working folder", "threads", "default dtype", "grad mode")
    changed = [n for n, a, b in zip(names, before, after, strict=True) if a != b]
    assert not changed, f"compiling changed the {changed[0]}"


def _refusal(subject: Subject, folder: Path) -> None:
    """What is refused goes to the next compiler, and the report has the reason."""
    resolved, host = subject.host(compilers=[subject.name, "eager"])
    case = _CASES["custom-op"]
    function, args = case.make(), case.inputs(subject.device, 4)
    made = intarsia.compile(function, tuple(args), config=resolved, host=host)
    agree(subject, made, function, args)
    for piece in made.report.piece_reports:
        for box in piece.boxes if piece.kind == "compiled" else ():
            refused = [
                a for a in box.attempts if a.compiler == subject.name and a.outcome != "compiled"
            ]
            assert all(a.reason for a in refused), "a refusal has no reason"


def _supports(subject: Subject, folder: Path) -> None:
    """Asked operation by operation, it answers, and what it says that it takes it takes."""
    resolved, host = subject.host(
        compilers=[subject.name, "eager"], split_by_support=[subject.name]
    )
    custom = _CASES["custom-op"].make()

    def function(x: torch.Tensor) -> torch.Tensor:
        return custom(x.sigmoid()).tanh()

    args = _CASES["custom-op"].inputs(subject.device, 4)
    made = intarsia.compile(function, tuple(args), config=resolved, host=host)
    agree(subject, made, function, args)
    boxes = [
        b for piece in made.report.piece_reports if piece.kind == "compiled" for b in piece.boxes
    ]
    assert any(box.compiler == subject.name for box in boxes), (
        f"it was given nothing: its supports() takes none of {[p.ops for p in made.report.piece_reports]}"
    )


def _second_piece(subject: Subject, folder: Path) -> None:
    """Two pieces of one model: what one returns is what the next takes."""
    function = _CASES["custom-op"].make()
    case = BLOCK

    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = case.make(), case.make()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.other(function(self.one(x)))

    torch.manual_seed(0)
    model = Two().to(subject.device)
    args = case.inputs(subject.device, 4)
    compiled = compiled_by(subject, model, args, split_at=["intarsia_conformance::scaled"])
    for seed in range(2):
        torch.manual_seed(seed)
        agree(subject, compiled, model, case.inputs(subject.device, 4))


REQUIREMENTS: tuple[Requirement, ...] = (
    *(Requirement(c.name, c.capability, c.about, functools.partial(_case, case=c)) for c in GRAPHS),
    Requirement("fresh-results", "", "results are new memory at every call", _fresh_results),
    Requirement("two-pieces", "", "two pieces of one model around an operator", _second_piece),
    Requirement("weights-replaced", "", "a replaced weight is used, or the call raises", _weights_replaced),
    Requirement("weights-baked", "baked-weights", "weights may become part of what is compiled",
                _weights_baked),
    Requirement("weights-written", "live-weights", "a write into a weight's memory counts", _weights_written),
    Requirement("threads", "", "several threads compile different functions", _threads),
    Requirement("calls-at-a-time", "", "several threads call one compiled function", _calls_at_a_time),
    Requirement("factors", "", "its identity is the same every time, in every process", _factors),
    Requirement("discovery", "", "finding it imports no torch", _is_found_without_torch),
    Requirement("leaves-no-trace", "", "settings of the process stay as they were", _alone_in_a_process),
    Requirement("refusal", "", "what it refuses goes to the next compiler, with a reason", _refusal),
    Requirement("supports", "", "it says of each operation whether it takes it", _supports),
    Requirement("artifact", "artifacts", "a second process loads what the first compiled", _artifact),
    Requirement("packed", "artifacts", "so does one that unpacked it", _packed),
)  # fmt: skip


def claims_of(host: Any, name: str) -> frozenset[str]:
    """Return the capabilities that a compiler's own record claims."""
    able = host.compiler(name).capabilities
    names = {
        "dynamic-shapes": able.dynamic_shapes, "mutation": able.mutation,
        "custom-ops": able.custom_ops, "live-weights": able.weights == "input",
    }  # fmt: skip
    return frozenset(n for n, yes in names.items() if yes)
