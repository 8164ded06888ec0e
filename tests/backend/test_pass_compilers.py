"""Passes reach every compiler alike, here and in workers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from torch import Tensor, fx

from intarsia.config import load_config
from intarsia.errors import CompileRejected, PassError
from intarsia.host import Host
from intarsia.interfaces import Capabilities, CompileRequest, CompileResult, CompilerSpec, Decision
from tests.pass_toys import Plugin, X, affine, aten, calls, compiled, does, failures, matches

# ---------------------------------------------------------------------------------- every compiler alike


@torch.library.custom_op("intarsia_test_passes::relu_and_one", mutates_args=())
def relu_and_one(x: Tensor) -> Tensor:
    """Return relu(x) + 1."""
    return torch.relu(x) + 1


@relu_and_one.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def relu_and_one_fused(graph: fx.Graph) -> int:
    """Replace relu and an addition of 1, as a vendor writes it by hand."""
    count = 0
    for add in calls(graph, aten.add.Tensor):
        relu = add.args[0]
        if getattr(relu, "target", None) is aten.relu.default and add.args[1] == 1:
            with graph.inserting_before(add):
                new = graph.call_function(
                    torch.ops.intarsia_test_passes.relu_and_one.default, (relu.args[0],)
                )
            add.replace_all_uses_with(new)
            graph.erase_node(add)
            graph.erase_node(relu)
            count += 1
    return count


FORMS: list[str] = []
"""What the foreign compiler found of the fused operator."""


class Foreign:
    """A compiler of somebody else, that takes one form and looks for the fused operator in it."""

    def __init__(self, form: str) -> None:
        self.form = form

    def compile(self, request: CompileRequest) -> CompileResult:
        """Run the piece in the form."""
        lowered = request.lower(self.form)
        if self.form == "exported":
            graph, run = lowered.graph, lowered.module()
        else:
            graph, run = lowered.graph, lowered
        FORMS.extend(str(n.target) for n in graph.nodes if "relu_and_one" in str(n.target))
        return CompileResult(lambda *inputs: tuple(run(*inputs)))

    def factors(self) -> None:
        """It is never kept."""
        return

    def supports(self, op: Any) -> Decision:
        """Take all."""
        return Decision(True)


def foreign(form: str) -> CompilerSpec:
    return CompilerSpec(
        name="foreign", version="1", factory=lambda options, device: Foreign(form),
        capabilities=Capabilities(
            dynamic_shapes=True, mutation=form == "aten-mutable", custom_ops=True, workers=False
        ),
    )  # fmt: skip


@pytest.mark.parametrize(
    "who", ["eager", "inductor", "exported", "aten-functional", "aten-mutable", "torch"]
)
def test_a_vendors_fusion_reaches_every_compiler(who: str) -> None:
    FORMS.clear()
    is_ours = who in ("eager", "inductor")
    spec = does("fuse", relu_and_one_fused, min_matches=2)
    plugin = Plugin(spec, compilers=[] if is_ours else [foreign(who)])

    def function(x: Tensor) -> Tensor:
        return torch.sigmoid(torch.relu(x) + 1) @ x.t() + (torch.relu(x) + 1).sum()

    made = compiled(
        function, (X,), plugin, compilers=[who if is_ours else "foreign"], strict=True,
        dynamic={"x": {0: "rows"}}, dynamic_ranges={"rows": [2, 64]},
    )  # fmt: skip
    assert matches(made) == {"fuse": 2}
    for x in (X, X.repeat(3, 1)):
        torch.testing.assert_close(made(x), function(x))
    if not is_ours:
        assert FORMS == ["intarsia_test_passes.relu_and_one.default"] * 2


@pytest.mark.parametrize("form", ["aten-functional", "aten-mutable"])
def test_a_size_that_the_box_fixes_leaves_a_view_a_view_in_every_form(form: str) -> None:
    def function(x: Tensor) -> Tensor:
        middle = x.chunk(3, -1)[1]
        return middle.reshape(x.shape[0], 2, -1)

    x = torch.randn(4, 24)
    made = compiled(
        function, (x,), Plugin(compilers=[foreign(form)]), compilers=["foreign"], strict=True,
        dynamic={"x": {0: "n"}}, sizes={"n": [4, 5]},
    )  # fmt: skip
    for given in (x, torch.randn(5, 24), torch.randn(7, 24)):
        found, expected = made(given), function(given)
        torch.testing.assert_close(found, expected)
        assert found.stride() == expected.stride() == (24, 4, 1)


@pytest.mark.parametrize("form", ["aten-functional", "aten-mutable"])
def test_a_size_among_the_inputs_is_the_size_of_the_tensors_in_every_form(form: str) -> None:
    def function(x: Tensor) -> Tensor:
        return torch.sigmoid(x).reshape(x.shape[0], 2, -1) + 1

    plugin = Plugin(compilers=[foreign(form)])
    settings = {"compilers": ["foreign"], "split_at": ["torch.sigmoid"], "cache": False}
    host = Host(load_config(None, environ={}, **settings), extra_plugins=[plugin])
    call = torch.compile(
        function, backend="intarsia", dynamic=True, options={**settings, "host": host}
    )
    for rows in (3, 5):
        x = torch.randn(rows, 8)
        torch.testing.assert_close(call(x), function(x))


def test_a_pass_counts_once_however_many_forms_and_compilers_a_piece_goes_through() -> None:
    class Picky(Foreign):
        def compile(self, request: CompileRequest) -> CompileResult:
            """Take every form, and decline."""
            for form in ("exported", "aten-functional", "aten-mutable"):
                request.lower(form)
            raise CompileRejected("not mine")

    picky = evolve(foreign("exported"), factory=lambda options, device: Picky("exported"))
    plugin = Plugin(does("fuse", relu_and_one_fused), compilers=[picky])
    made = compiled(affine, (X,), plugin, compilers=["foreign", "eager"])
    assert made.report.piece_reports[0].compiler == "eager"
    assert matches(made) == {"fuse": 1}


# ------------------------------------------------------------------------------------------- in workers

HANGING = """
    import ctypes
    import time
    from intarsia.interfaces import PassSpec
    intarsia_api_version = (1, 0)

    class Spin:
        def __init__(self, options):
            pass
        def __call__(self, graph):
            while True:
                pass
        def uuid(self):
            return "1"

    class Hold(Spin):
        def __call__(self, graph):
            ctypes.PyDLL(None).sleep(1000)

    class Crash(Spin):
        def __call__(self, graph):
            ctypes.string_at(0)

    class Count(Spin):
        def __call__(self, graph):
            return len(graph.nodes)

    class Swap(Spin):
        def __call__(self, graph):
            import torch
            for node in graph.nodes:
                if node.target is torch.ops.aten.relu.default:
                    node.target = torch.ops.aten.sigmoid.default
            return 1

    def intarsia_passes():
        return [PassSpec(c.__name__.lower(), "1", "piece-aten", f"hanging_passes:{c.__name__}")
                for c in (Spin, Hold, Crash, Count, Swap)]
"""


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saboteur: None) -> dict[str, Any]:
    """Install passes that do not come back, and settings with which a worker runs them."""
    from tests.toys import write_distribution

    monkeypatch.syspath_prepend(str(tmp_path))
    write_distribution(
        tmp_path, "hanging", {"hanging": "hanging_passes"}, {"hanging_passes": HANGING}
    )
    return {"compilers": ["saboteur", "eager"], "workers": 1, "compile_timeout": 3.0}


@pytest.mark.timeout(60)
def test_passes_count_in_a_worker_as_here(hanging: dict[str, Any]) -> None:
    made = compiled(affine, (X,), enable=["count"], strict=True, **hanging)
    here = compiled(affine, (X,), enable=["count"], strict=True, **{**hanging, "workers": 0})
    assert matches(made) == matches(here) == {"count": 4}


@pytest.mark.timeout(60)
def test_passes_are_in_packages_that_are_made_in_the_background(
    hanging: dict[str, Any], tmp_path: Path
) -> None:
    settings = {
        "compilers": ["tiered"], "artifact": "tiered", "cache": str(tmp_path / "cache"),
        "options": {"tiered": {"folder": str(tmp_path)}},
    }  # fmt: skip
    made = compiled(affine, (X,), enable=["swap"], **settings)
    expected = torch.sigmoid(X) + 1  # the pass is wrong on purpose, so that one sees where it is
    torch.testing.assert_close(made(X), expected)
    assert made.wait_packages(40)
    again = compiled(affine, (X,), enable=["swap"], **settings)
    for one in (made, again):
        (box,) = one._engine.dispatcher.boxes
        assert {function.tier for function in box.functions.values()} == {"package"}
        torch.testing.assert_close(one(X), expected)
    assert again.report.bundle_reads == 1
    assert matches(again) == matches(made) == {"swap": 1}


@pytest.mark.timeout(60)
def test_a_pass_that_loops_is_stopped_in_a_worker_and_named(hanging: dict[str, Any]) -> None:
    made = compiled(affine, (X,), enable=["spin", "count"], **hanging)
    assert failures(made) == {"spin": "it ran longer than 1.5 s (plugin hanging (hanging))"}
    assert matches(made)["count"] == 4
    assert made.report.piece_reports[0].compiler == "saboteur"
    torch.testing.assert_close(made(X), affine(X))
    with pytest.raises(PassError, match='"spin" of plugin hanging .*longer than 1.5 s'):
        compiled(affine, (X,), enable=["spin"], strict=True, **hanging)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["hold", "crash"])
def test_a_pass_that_takes_its_worker_along_does_not_run_here(
    hanging: dict[str, Any], name: str
) -> None:
    made = compiled(affine, (X,), enable=[name], **hanging)
    assert re.search(r"in a pass, at .*hanging_passes\.py:\d+", failures(made)[name])
    assert made.report.piece_reports[0].compiler == "eager"
    torch.testing.assert_close(made(X), affine(X))
