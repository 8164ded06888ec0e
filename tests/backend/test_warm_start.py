"""A start from a bundle: nothing traced, nothing compiled, one file read, and the model behaves the same."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import intarsia
from intarsia.config import load_config
from intarsia.errors import CacheError, ContractError
from intarsia.host import Host
from intarsia.interfaces import CompilerSpec
from tests.checks import compare_call, twin
from tests.models import (
    ZOO,
    Example,
    assert_same,
    by_name,
    randn,
)
from tests.recorded import Recorder
from tests.warm import Start, begin, fresh

pytestmark = pytest.mark.timeout(240)


def both(model: Any, args: Any = (), kwargs: Any = None, **settings: Any) -> tuple[Start, Start]:
    """Compile a model twice; the second time must be a warm start."""
    cold = begin(model, args, kwargs, **settings)
    assert cold.counts[2] == 0
    warm = begin(model, args, kwargs, **settings)
    assert warm.was_warm, (cold.log, warm.log)
    return cold, warm


# ------------------------------------------------------------------------------------ fresh processes

DECODER = """
import json, sys
from tests.models import DECODER_DYNAMIC, decoder, decoder_inputs, ATTENTION
layers, settings = int(sys.argv[2]), json.loads(sys.argv[3])
model = decoder(layers, hidden=32)
start = begin(model, kwargs=decoder_inputs(5), dynamic=DECODER_DYNAMIC, split_at=[ATTENTION],
              cache=sys.argv[1], strict=True, **settings)
start.compiled.wait_packages()
call = decoder_inputs(9, seed=3)
result = start.compiled(**call)
with torch.no_grad():
    error = (result - model(**call)).abs().max().item()
tell(start, result, error=error)
"""


def decoder_twice(
    root: Path, layers: int, **settings: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    cold, warm = (fresh(DECODER, root, layers, json.dumps(settings)).one for _ in range(2))
    assert cold["counts"] == [1, 3, 0]
    assert warm["counts"] == [0, 0, 1], warm["log"]
    assert not warm["heavy"]
    assert warm["result"] == cold["result"], "bit for bit"
    assert warm["error"] < 2e-4
    return cold, warm


@pytest.mark.parametrize("compiler", ["eager", "inductor"])
def test_a_decoder_starts_warm_in_a_fresh_process(tmp_path: Path, compiler: str) -> None:
    decoder_twice(tmp_path / "c", 12, compilers=[compiler], artifact="quick")


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["eager", "inductor"])
def test_a_deep_decoder_starts_warm_in_a_fresh_process(tmp_path: Path, compiler: str) -> None:
    decoder_twice(tmp_path / "c", 32, compilers=[compiler], artifact="quick")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_deep_decoder_starts_from_packages_in_a_fresh_process(tmp_path: Path) -> None:
    decoder_twice(tmp_path / "c", 32, compilers=["inductor"], artifact="package", workers=1)


HUGGING_FACE = """
import json, logging, sys
logging.disable(logging.NOTSET)
from tests.backend import test_architectures as known
from tests.checks import compare_call, twin
for name in json.loads(sys.argv[2]):
    one = next(a for a in known.ARCHITECTURES if a.name == name)
    model, size = one.build(), known.SIZES[0]
    start = begin(model, kwargs=one.inputs(size, 0), dynamic=one.dynamic or known.TEXT,
                  split_at=[known.SDPA], cache=sys.argv[1])
    if sys.argv[3] == "call":
        reference = twin(model)
        for seed, other in enumerate(known.SIZES):
            compare_call(start.compiled, model, reference, ((), one.inputs(other, seed)))
    tell(start, name=name)
"""
FEW = ("llama", "bert-mask")
HF: tuple[str, ...] = ()
try:
    from tests.backend.test_architectures import ARCHITECTURES

    HF = tuple(one.name for one in ARCHITECTURES)
except pytest.skip.Exception:  # there is no transformers here
    pass


def hugging_face_twice(root: Path, names: tuple[str, ...]) -> None:
    cold = fresh(HUGGING_FACE, root, json.dumps(names), "do not call", seconds=600).told
    warm = fresh(HUGGING_FACE, root, json.dumps(names), "call", seconds=600).told
    assert [one["name"] for one in warm] == list(names)
    traced = {
        w["name"]: [*c["log"], *w["log"]] for c, w in zip(cold, warm, strict=True) if not w["warm"]
    }
    assert not traced


@pytest.mark.slow
@pytest.mark.skipif(not HF, reason="transformers is not installed")
def test_hugging_face_models_start_warm_in_a_fresh_process(tmp_path: Path) -> None:
    hugging_face_twice(tmp_path / "c", FEW)


@pytest.mark.slow
@pytest.mark.timeout(1300)
@pytest.mark.skipif(not HF, reason="transformers is not installed")
def test_every_hugging_face_model_starts_warm_in_a_fresh_process(tmp_path: Path) -> None:
    hugging_face_twice(tmp_path / "c", tuple(name for name in HF if name not in FEW))


# ------------------------------------------------------------------------------- the same, warm as cold

SPLIT = ["torch.sigmoid", "intarsia_tests::add_into", "torch.tanh", ".mul_", ".index_copy_"]


@pytest.mark.parametrize("example", ZOO, ids=[one.name for one in ZOO])
def test_a_small_model_gives_eagers_results_after_a_warm_start(
    tmp_path: Path, example: Example
) -> None:
    model = example.build()
    args, kwargs = example.inputs(example.sizes[0], 100)
    settings = {"dynamic": example.dynamic, "split_at": SPLIT, "check": "always"}
    _, warm = both(model, args, kwargs, cache=tmp_path / "c", **settings)
    reference = twin(model)
    for seed, size in enumerate([*example.sizes, example.sizes[0]]):
        call = example.inputs(size, seed)
        compare_call(warm.compiled, model, reference, call, where=f"{example.name} {size}")


class Deep(nn.Module):
    """Reads attributes, a buffer and tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.last.weight = self.first.weight
        self.register_buffer("shift", torch.ones(4))
        self.scale = 1.5

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.sigmoid(self.first(x)) * self.scale) + self.shift


X = {"dynamic": {"x": {0: "n"}}, "split_at": ["torch.sigmoid"]}


def deep(root: Path, **settings: Any) -> tuple[Deep, Any]:
    model = Deep().eval()
    _, warm = both(model, (randn(6, 4),), cache=root, **{**X, **settings})
    return model, warm.compiled


def same(compiled: Any, model: Any, *shape: int) -> None:
    x = randn(*(shape or (5, 4)), seed=11)
    with torch.no_grad():
        assert_same(compiled(x), model(x))


def test_a_weight_that_is_replaced_after_a_warm_start_is_used(tmp_path: Path) -> None:
    model, compiled = deep(tmp_path / "c")
    same(compiled, model)
    model.first.bias = nn.Parameter(randn(4, seed=5))
    same(compiled, model)
    model.shift = randn(4, seed=6)
    same(compiled, model)
    with torch.no_grad():
        model.first.weight.mul_(2)  # tied
    same(compiled, model)
    model.load_state_dict({k: v * 1.5 for k, v in model.state_dict().items()})
    same(compiled, model)
    model.last._parameters["bias"] = nn.Parameter(randn(4, seed=8))  # no hook of torch's sees it
    compiled.rebind()
    same(compiled, model)


def test_tied_weights_that_come_apart_are_another_plan(tmp_path: Path) -> None:
    model, _ = deep(tmp_path / "c")
    model.last.weight = nn.Parameter(model.first.weight.detach().clone())
    start = begin(model, (randn(6, 4),), cache=tmp_path / "c", **X)
    assert not start.was_warm
    assert "weights ties" in start.plan_miss
    model.last.weight = nn.Parameter(randn(4, 4, seed=9))
    same(start.compiled, model)


def test_a_frozen_value_that_changes_after_a_warm_start_is_noticed(tmp_path: Path) -> None:
    model, compiled = deep(tmp_path / "c", check="values")
    same(compiled, model)
    model.scale = 2.0
    with pytest.raises(ContractError, match=r"self\.scale was 1\.5 at capture and is 2\.0"):
        compiled(randn(6, 4))
    model.scale = 1.5
    same(compiled, model)


@pytest.mark.parametrize("check", ["first", "none", "always"])
def test_a_frozen_value_is_noticed_at_rebind_after_a_warm_start(tmp_path: Path, check: str) -> None:
    model, compiled = deep(tmp_path / "c", check=check)
    before = compiled(randn(6, 4))
    model.scale = 2.0
    assert torch.equal(compiled(randn(6, 4)), before), "documented: the values of the capture stay"
    with pytest.raises(ContractError, match=r"self\.scale"):
        compiled.rebind()


def test_a_call_that_does_not_fit_is_refused_after_a_warm_start(tmp_path: Path) -> None:
    _, compiled = deep(tmp_path / "c")
    for wrong in (randn(6, 5), randn(6, 4).double(), randn(6), 3, None):
        with pytest.raises(ContractError, match="x"):
            compiled(wrong)


POLICIES: dict[str, dict[str, Any]] = {
    "boxes": {"boxes": {"n": [4, 16]}},
    "sizes": {"sizes": {"n": [2, 6]}},
    "general": {"boxes": {"n": [8]}, "uncovered": "general"},
    "eager": {"boxes": {"n": [8]}, "uncovered": "eager"},
    "pad": {"sizes": {"n": [8, 16]}, "uncovered": "pad", "rows_independent": ["n"]},
}


@pytest.mark.parametrize("name", POLICIES)
def test_every_size_gives_eagers_results_after_a_warm_start(tmp_path: Path, name: str) -> None:
    model, compiled = deep(tmp_path / "c", **POLICIES[name])
    for n in (1, 2, 4, 6, 8, 9, 16):
        same(compiled, model, n, 4)
    if name == "eager":
        assert compiled.report.counters["uncovered"] == 2


def test_uncovered_sizes_are_refused_after_a_warm_start_where_the_policy_says_so(
    tmp_path: Path,
) -> None:
    model, compiled = deep(tmp_path / "c", boxes={"n": [8]}, uncovered="error")
    same(compiled, model, 8, 4)
    with pytest.raises(ContractError, match="9"):
        compiled(randn(9, 4))


class Halves(nn.Module):
    """Takes even sizes only: a condition between sizes that capture finds."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.sigmoid(torch.cat([x, x]) + y)


def test_conditions_between_sizes_hold_after_a_warm_start(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"dynamic": {"x": {0: "n"}, "y": {0: "m"}}}
    model = Halves()
    _, warm = both(model, (randn(3, 4), randn(6, 4)), cache=tmp_path / "c", **settings)
    for n in (1, 2, 5):
        x, y = randn(n, 4, seed=n), randn(2 * n, 4)
        assert_same(warm.compiled(x, y), model(x, y))
    with pytest.raises(ContractError):
        warm.compiled(randn(3, 4), randn(7, 4))


def test_one_size_that_branches_has_its_own_plan_after_a_warm_start(tmp_path: Path) -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.shape[0] == 1 else torch.sigmoid(x)

    model = Branch()
    _, warm = both(model, (randn(6, 4),), cache=tmp_path / "c", dynamic={"x": {0: "n"}})
    for n in (1, 2, 6, 1):
        same(warm.compiled, model, n, 4)


# ---------------------------------------------------------------------------------- save and load files


def saved(tmp_path: Path, model: Any, **settings: Any) -> Path:
    start = begin(model, (randn(6, 4),), cache=False, **{**X, **settings})
    start.compiled.save(tmp_path / "plan")
    return tmp_path / "plan"


def test_a_saved_plan_is_loaded_without_tracing(tmp_path: Path) -> None:
    model = Deep().eval()
    path = saved(tmp_path, model)
    loaded = intarsia.load(path, model)
    report = loaded.report
    assert (report.captures, report.compiler_calls, report.bundle_reads) == (0, 0, 1)
    for n in (1, 6, 9):
        same(loaded, model, n, 4)
    other = Deep().eval()  # with weights of its own
    same(intarsia.load(path, other), other)
    loaded.save(tmp_path / "again")
    same(intarsia.load(tmp_path / "again", model), model)


def test_a_warm_start_can_be_saved(tmp_path: Path) -> None:
    model, compiled = deep(tmp_path / "c")
    compiled.save(tmp_path / "plan")
    same(intarsia.load(tmp_path / "plan", model), model)


def test_a_saved_plan_is_loaded_in_a_fresh_process(tmp_path: Path) -> None:
    path = saved(tmp_path, by_name("attributes").build())
    found = fresh(
        "import sys, intarsia, torch\n"
        "from tests.models import by_name, randn\n"
        "from tests.warm import Start\n"
        "model = by_name('attributes').build()\n"
        "compiled = intarsia.load(sys.argv[1], model)\n"
        "x = randn(5, 4)\n"
        "tell(Start(compiled, [], []), compiled(x), same=torch.equal(compiled(x), model(x)))\n",
        path,
    ).one
    assert found["warm"]
    assert found["same"]
    assert not found["heavy"]


WRONG: dict[str, tuple[Any, str]] = {
    "class": (lambda m: nn.Sequential(m), "source of torch|model"),
    "shape": (
        lambda m: setattr(m, "shift", torch.ones(2, 4)),
        r"weights shape differs: the weight shift of .* has another shape: it was \(.*\) and is \(2, 4\)",
    ),
    "untied": (
        lambda m: setattr(m, "last", nn.Linear(4, 1).eval()),
        r"weights shape differs: .* first\.weight, last\.weight were one tensor and are several",
    ),
    "dtype": (lambda m: setattr(m, "shift", m.shift.double()), "weights dtype"),
    "tie": (lambda m: setattr(m.last, "weight", nn.Parameter(randn(4, 4))), "weights ties"),
    "value": (lambda m: setattr(m, "scale", 2.0), r"self\.scale was 1\.5 at capture and is 2\.0"),
    "mode": (lambda m: m.train() and None, "training"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_saved_plan_is_refused_for_another_model_with_what_differs(
    tmp_path: Path, name: str
) -> None:
    model = Deep().eval()
    path = saved(tmp_path, model)
    change, word = WRONG[name]
    changed = change(model) or model
    with pytest.raises(CacheError, match=word):
        intarsia.load(path, changed)


def test_a_saved_plan_of_another_version_is_refused_with_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from intarsia.compiling.identity import torch_factors

    model = Deep().eval()
    path = saved(tmp_path, model)
    other = {**torch_factors(), "torch": "2.99.0 0123"}
    monkeypatch.setattr("intarsia.bundle.file.torch_factors", lambda: other)
    with pytest.raises(CacheError, match=r'torch is "2\.99\.0 0123" here and "2\.\d+'):
        intarsia.load(path, model)


@pytest.mark.parametrize("place", [0.0, 0.01, 0.1, 0.3, 0.6, 0.95, -1])
@pytest.mark.parametrize("how", ["flip", "cut"])
def test_a_damaged_file_is_refused(tmp_path: Path, place: float, how: str) -> None:
    model = Deep().eval()
    path = saved(tmp_path, model)
    data = bytearray(path.read_bytes())
    at = int(place * len(data)) if place >= 0 else len(data) - 1
    if how == "flip":
        data[at] ^= 4
    else:
        del data[at:]
    path.write_bytes(data)
    with pytest.raises(CacheError, match="plan"):
        intarsia.load(path, model)


def test_a_file_that_is_not_there_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        intarsia.load(tmp_path / "nothing", Deep())


def test_what_cannot_be_saved_says_why_and_leaves_no_file(tmp_path: Path) -> None:
    spec = CompilerSpec("keeps", "1", lambda options, device: Recorder())
    plugin = SimpleNamespace(
        __name__="keeps", intarsia_api_version=(1, 0), intarsia_compilers=lambda: [spec]
    )
    host = Host(load_config(None, compilers=["keeps"]), extra_plugins=[plugin])
    asked: dict[str, Any] = {"compilers": ["keeps"], "cache": False, "host": host}
    start = begin(Deep().eval(), (randn(6, 4),), **asked)
    with pytest.raises(CacheError, match=r'cannot be saved.*"keeps" (is never|leaves no)'):
        start.compiled.save(tmp_path / "plan")
    assert not list(tmp_path.iterdir())


class Pools(nn.Module):
    """Calls functions that torch's own factories made, so that no qualified name leads to them."""

    def forward(self, x: Tensor) -> Tensor:
        found = nn.functional.max_pool2d(x, 2)
        return nn.functional.adaptive_max_pool2d(found, 1)


def test_functions_that_a_factory_made_are_found_again(tmp_path: Path) -> None:
    model, x = Pools(), randn(2, 3, 8, 8)
    _, warm = both(model, (x,), cache=tmp_path / "c")
    assert torch.equal(warm.compiled(x), model(x))


@pytest.mark.parametrize("cut", [[], ["torch.sigmoid"]])
def test_models_without_a_compiled_piece_start_warm(tmp_path: Path, cut: list[str]) -> None:
    for number, model in enumerate((nn.Identity(), nn.Sigmoid())):
        settings: dict[str, Any] = {"split_at": cut if number else [], "cache": tmp_path / "c"}
        _, warm = both(model, (randn(6, 4),), dynamic={"input": {0: "n"}}, **settings)
        same(warm.compiled, model)
