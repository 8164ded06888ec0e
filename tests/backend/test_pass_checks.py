"""What passes do is checked; what a bad one did is an error or undone and told."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from torch import Tensor, fx

from intarsia.errors import CompileFailed, PassError
from intarsia.interfaces import Stage
from tests.pass_toys import (
    STAGES,
    Blocks,
    Deed,
    Plugin,
    X,
    affine,
    aten,
    calls,
    compiled,
    does,
    fail,
    failures,
    last_through,
    matches,
    replaced,
    results,
)


def two(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return two results, one of them not contiguous."""
    return torch.relu(x).t(), (torch.relu(x) + y) * 2


def add_output(graph: fx.Graph) -> None:
    graph.output_node().args = ((*results(graph), results(graph)[0]),)


def add_input(graph: fx.Graph) -> None:
    with graph.inserting_before(next(iter(graph.nodes))):
        graph.placeholder("one_more")


def drop_input(graph: fx.Graph) -> None:
    first, second = (n for n in graph.nodes if n.op == "placeholder")
    second.replace_all_uses_with(first)
    graph.erase_node(second)


def swap_inputs(graph: fx.Graph) -> None:
    first, second = (n for n in graph.nodes if n.op == "placeholder")
    second.append(first)


def drop_output(graph: fx.Graph) -> None:
    graph.erase_node(graph.output_node())


def use_before_made(graph: fx.Graph) -> None:
    first = next(n for n in graph.nodes if n.op == "call_function")
    next(n for n in reversed(graph.nodes) if n.op == "call_function").append(first)


def call_badly(graph: fx.Graph) -> None:
    calls(graph, aten.mul.Tensor)[0].args = (calls(graph, aten.mul.Tensor)[0].args[0],)


def alias_input(graph: fx.Graph) -> None:
    first = next(n for n in graph.nodes if n.op == "placeholder")
    graph.output_node().args = ((results(graph)[0], first),)


def to_other_device(graph: fx.Graph) -> None:
    last_through(aten._to_copy.default)(graph)
    calls(graph, aten._to_copy.default)[-1].kwargs = {"device": torch.device("meta")}


BAD: dict[str, tuple[Deed, str]] = {
    "shape": (last_through(aten.unsqueeze.default, 0), r"output 0 \(unsqueeze\w*\) had the shape"),
    "dtype": (last_through(torch.ops.prims.convert_element_type.default, torch.float64),
              r"output 0 \(convert\w*\) had the dtype torch.float32"),
    "stride": (last_through(torch.Tensor.contiguous), r"output 0 \(contiguous\) had the stride"),
    "device": (to_other_device, r"output 0 \(_to_copy\w*\) had the device cpu and has meta"),
    "outputs": (add_output, "there were 2 outputs and are 3"),
    "more-inputs": (add_input, "there were 2 inputs and are 3"),
    "fewer-inputs": (drop_input, "there were 2 inputs and are 1"),
    "order-of-inputs": (swap_inputs, "the inputs were in0, in1 and are in1, in0"),
    "no-output": (drop_output, "not sound any more"),
    "unsound": (use_before_made, "not sound any more: .*used before"),
    "arguments": (call_badly, r"cannot be run any more, at mul\w*: "),
    "memory": (alias_input, r"output 1 \(in0\) had memory of its own and has the memory of in0"),
    "raises": (fail, "it raised ValueError: no such luck"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_bad_pass_is_an_error_with_its_plugin_and_node_in_strict_mode(what: str) -> None:
    deed, why = BAD[what]
    plugin = Plugin(does("bad", deed), name="vendor")
    with pytest.raises(PassError, match=why) as caught:
        compiled(two, (X, X + 1), plugin, strict=True)
    assert caught.value.subject == "bad"
    assert 'the pass "bad" of plugin vendor' in caught.value.what
    assert "two" in caught.value.what
    assert "passes.disable" in caught.value.next_step


@pytest.mark.parametrize("what", BAD)
def test_what_a_bad_pass_did_is_undone_and_told(what: str) -> None:
    deed, why = BAD[what]
    good = does("good", replaced(aten.relu.default, aten.relu.default))
    made = compiled(two, (X, X + 1), Plugin(does("bad", deed), good, name="vendor"))
    assert list(failures(made)) == ["bad"]
    (warning,) = (w for w in made.report.warnings if "bad" in w)
    assert "vendor" in warning
    assert re.search(why, warning)
    assert matches(made) == {"bad": None, "good": 2}
    for mine, theirs in zip(made(X, X + 1), two(X, X + 1), strict=True):
        torch.testing.assert_close(mine, theirs)
        assert mine.stride() == theirs.stride()
    assert "undone" in made.explain()


def writes(x: Tensor, y: Tensor) -> Tensor:
    """Write to two arguments, one after the other."""
    x.add_(1)
    y.mul_(2)
    return x + y


def swap_writes(graph: fx.Graph) -> int:
    (add,), (mul,) = calls(graph, aten.add_.Tensor), calls(graph, aten.mul_.Tensor)
    mul.append(add)
    return 1


def drop_write(graph: fx.Graph) -> int:
    (add,) = calls(graph, aten.add_.Tensor)
    add.target = aten.add.Tensor
    return 1


@pytest.mark.parametrize(("deed", "now"), [(swap_writes, "in1, in0"), (drop_write, "in1")])
def test_the_order_of_writes_is_kept(deed: Deed, now: str) -> None:
    def arguments() -> tuple[Tensor, ...]:
        return X.clone(), X + 1

    plugin = Plugin(does("bad", deed))
    with pytest.raises(PassError, match=f"wrote, in order, to in0, in1, and writes to {now}"):
        compiled(writes, arguments(), plugin, strict=True)
    made = compiled(writes, arguments(), plugin)
    mine, theirs = arguments(), arguments()
    torch.testing.assert_close(made(*mine), writes(*theirs))
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("stage", [s for s in STAGES if s != "piece-aten"])
def test_the_checks_are_on_at_every_stage(stage: Stage) -> None:
    plugin = Plugin(does("bad", last_through(aten.unsqueeze.default, 0), stage), name="vendor")
    made = compiled(affine, (X,), plugin, compilers=["inductor"])
    assert "had the shape (4, 8) and has (1, 4, 8)" in failures(made)["bad"]
    torch.testing.assert_close(made(X), affine(X))
    with pytest.raises(PassError, match='"bad" of plugin vendor'):
        compiled(affine, (X,), plugin, compilers=["inductor"], strict=True)


def test_a_size_that_depends_on_data_is_no_difference() -> None:
    made = compiled(lambda x: x.nonzero() + 1, (X,), Plugin(does("nothing", lambda g: 0)))
    assert not failures(made)
    assert torch.equal(made(X), X.nonzero() + 1)


def test_a_piece_without_an_aten_form_is_compiled_without_the_passes_over_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_trace(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no trace today")

    monkeypatch.setattr("torch.fx.experimental.proxy_tensor.make_fx", no_trace)
    plugin = Plugin(does("fuses", lambda g: 1))
    made = compiled(affine, (X,), plugin)
    assert "no ATen form: RuntimeError: no trace today" in failures(made)["fuses"]
    torch.testing.assert_close(made(X), affine(X))
    with pytest.raises(CompileFailed, match="no ATen form"):
        compiled(affine, (X,), plugin, strict=True)


def test_a_piece_without_a_functional_form_has_its_passes_run_over_the_other() -> None:
    def function(x: Tensor) -> Tensor:
        return torch.vmap(lambda row: row.sin() + 1)(x)

    plugin = Plugin(does("fuses", lambda g: 1))
    for model in (function, affine):  # the failed trace has left nothing behind in this thread
        made = compiled(model, (X,), plugin, strict=True)
        assert matches(made) == {"fuses": 1}
        torch.testing.assert_close(made(X), model(X))


def test_dynamic_sizes_are_compared_as_expressions() -> None:
    def halve(graph: fx.Graph) -> None:
        (first,) = results(graph)
        with graph.inserting_before(graph.output_node()):
            new = graph.call_function(aten.slice.Tensor, (first, 0, 0, 4))
        graph.output_node().args = ((new,),)

    made = compiled(affine, (X,), Plugin(does("bad", halve)), dynamic={"x": {0: "rows"}})
    assert "had the shape" in failures(made)["bad"]  # though the example has 4 rows
    torch.testing.assert_close(made(X.repeat(2, 1)), affine(X.repeat(2, 1)))


def test_matches_count_over_the_whole_graph() -> None:
    def plugin(deed: Deed, least: int) -> Plugin:
        return Plugin(does("fuse", deed, min_matches=least))

    def some(graph: fx.Graph) -> int:
        return len(calls(graph, aten.relu.default))

    split = {"split_at": ["torch.sigmoid"]}
    made = compiled(Blocks(), (X,), plugin(some, 6), strict=True, **split)
    assert matches(made) == {"fuse": 6}
    assert made.report.compiler_calls == 1  # equal pieces are compiled once, and count each
    with pytest.raises(PassError, match="matched 6 times for {}, not 7 or more"):
        compiled(Blocks(), (X,), plugin(some, 7), strict=True, **split)
    with pytest.raises(PassError, match="matched 0 times for {}, not 6 or more"):
        compiled(Blocks(), (X,), plugin(lambda g: 0, 6), strict=True, **split)
    made = compiled(Blocks(), (X,), plugin(lambda g: 0, 6), **split)
    assert any("matched 0 times for {}, not 6 or more" in w for w in made.report.warnings)
    torch.testing.assert_close(made(X), Blocks()(X))


def test_a_pass_that_must_match_and_does_not_even_run_is_told() -> None:
    plugin = Plugin(does("fuse", lambda g: 3, "inductor-post-grad-after", min_matches=1))
    made = compiled(affine, (X,), plugin)  # eager has no such stage
    assert any("matched 0 times" in w for w in made.report.warnings)
    with pytest.raises(PassError, match="matched 0 times"):
        compiled(affine, (X,), plugin, strict=True)
    not_here = evolve(plugin.passes[0], boxes=lambda box: False)
    assert not compiled(affine, (X,), Plugin(not_here)).report.warnings


def test_the_graphs_of_every_box_are_written_down(tmp_path: Path) -> None:
    compiled(
        affine, (X,), Plugin(does("a", lambda g: 0), does("b", lambda g: 0)), dump=str(tmp_path),
        dynamic={"x": {0: "rows"}}, boxes={"rows": [4, 64]},
    )  # fmt: skip
    names = sorted(file.name for file in tmp_path.rglob("*-after.txt"))
    assert [name[:2] for name in names] == [f"{n:02}" for n in range(6)]
    assert [name[-11] for name in names] == ["a", "b"] * 3


def test_the_graph_before_and_after_is_written_down(tmp_path: Path) -> None:
    deed = replaced(aten.relu.default, aten.sigmoid.default)
    compiled(affine, (X,), Plugin(does("wrong", deed)), dump=str(tmp_path))
    (before,), (after,) = (
        [f.read_text() for f in tmp_path.rglob(f"*wrong-{when}.txt")]
        for when in ("before", "after")
    )
    assert "aten.relu" in before
    assert "aten.sigmoid" not in before
    assert "aten.sigmoid" in after
