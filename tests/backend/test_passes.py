"""Passes of plugins: they run where and in the order they say, for one compile, checked and counted."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config as inductor_config
from attrs import evolve
from torch import Tensor, fx, nn
from torch._inductor.custom_graph_pass import CustomGraphPass

import intarsia
from intarsia.config import load_config
from intarsia.errors import CompileFailed, CompileRejected, ConfigError, PassError, PluginError
from intarsia.host import Host
from intarsia.interfaces import (
    Capabilities,
    CompileRequest,
    CompileResult,
    CompilerSpec,
    Decision,
    Option,
    PassManagerSpec,
    PassReport,
    PassSpec,
    PlatformSpec,
    Stage,
)
from intarsia.passes.manager import BuiltInManager
from intarsia.passes.pattern import PatternPass
from tests.models import (
    ATTENTION,
    DECODER_DYNAMIC,
    RMSNorm,
    assert_same,
    decoder,
    decoder_inputs,
    decoder_reference,
)

aten = torch.ops.aten

STAGES: tuple[Stage, ...] = (
    "graph", "piece", "piece-aten", "inductor-pre-grad", "inductor-joint",
    "inductor-post-grad-before", "inductor-post-grad-after",
)  # fmt: skip

Deed = Callable[[fx.Graph], Any]


class Do:
    """A pass that does what it is given."""

    def __init__(self, deed: Deed, identity: Any = "1") -> None:
        self.deed, self.identity = deed, identity

    def __call__(self, graph: fx.Graph) -> Any:
        return self.deed(graph)

    def uuid(self) -> Any:
        return self.identity


def does(name: str, deed: Deed, stage: Stage = "piece-aten", **more: Any) -> PassSpec:
    """Return the spec of a pass that does something."""
    identity = more.pop("identity", "1")
    return PassSpec(
        name, more.pop("version", "1"), stage, lambda options: Do(deed, identity), **more
    )


class Plugin:
    """A plugin with passes and whatever else a test gives it."""

    intarsia_api_version = (1, 0)

    def __init__(self, *passes: PassSpec, name: str = "toys", **hooks: Sequence[Any]) -> None:
        self.__name__ = name
        self.passes = passes
        for hook, records in hooks.items():
            setattr(self, f"intarsia_{hook}", lambda records=records: list(records))

    def intarsia_passes(self) -> list[PassSpec]:
        return list(self.passes)


def compiled(
    model: Any, args: tuple[Any, ...], *plugins: Plugin, enable: Iterable[str] | None = None,
    dynamic: Any = None, **settings: Any,
) -> Any:  # fmt: skip
    """Compile with plugins whose passes are all on, in the order of the plugins, unless told otherwise."""
    settings.setdefault("compilers", ["eager"])
    names = [one.name for plugin in plugins for one in plugin.passes]
    table = {"enable": list(names if enable is None else enable), **settings.pop("passes", {})}
    config = load_config(None, passes=table, **settings)
    host = Host(config, extra_plugins=list(plugins))
    return intarsia.compile(model, args, dynamic=dynamic or {}, config=config, host=host)


def matches(made: Any) -> dict[str, Any]:
    """Return how often each pass matched."""
    return {total.name: total.matches for total in made.report.passes}


def failures(made: Any) -> dict[str, str]:
    """Return why what passes did was undone."""
    return {t.name: "; ".join(t.failures) for t in made.report.passes if t.failures}


def calls(graph: fx.Graph, target: Any) -> list[fx.Node]:
    return [n for n in graph.nodes if n.op == "call_function" and n.target is target]


def replaced(old: Any, new: Any) -> Deed:
    """Return a pass that calls something else with the same arguments; it counts."""

    def deed(graph: fx.Graph) -> int:
        found = calls(graph, old)
        for node in found:
            node.target = new
        return len(found)

    return deed


def affine(x: Tensor) -> Tensor:
    return torch.relu(x) + 1


X = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))


# ----------------------------------------------------------------------------------------------- order


@pytest.mark.parametrize("turn", [0, 1, 2])
def test_passes_of_three_plugins_run_as_declared_however_they_are_installed(turn: int) -> None:
    ran: list[str] = []
    specs = [
        does("last", lambda g: ran.append("last"), after=("middle", "absent")),
        does("middle", lambda g: ran.append("middle")),
        does("first", lambda g: ran.append("first"), before=("middle",)),
    ]
    plugins = [Plugin(one, name=f"plugin-{one.name}") for one in specs]
    plugins = plugins[turn:] + plugins[:turn]
    compiled(affine, (X,), *plugins)
    assert ran == ["first", "middle", "last"]


def test_without_constraints_the_order_is_that_of_the_settings() -> None:
    ran: list[str] = []
    plugin = Plugin(*(does(n, lambda g, n=n: ran.append(n)) for n in "abc"))
    compiled(affine, (X,), plugin, enable=["c", "a", "b"])
    assert ran == ["c", "a", "b"]


def test_a_cycle_is_an_error_with_the_passes_in_it() -> None:
    plugin = Plugin(does("a", len, before=("b",)), does("b", len, before=("a",)))
    with pytest.raises(ConfigError, match="a runs after b runs after a"):
        compiled(affine, (X,), plugin)


def test_a_pass_is_asked_for_once() -> None:
    plugin = Plugin(does("a", len))
    with pytest.raises(ConfigError, match='"a" is asked for twice'):
        compiled(affine, (X,), plugin, enable=["a", "a"])


def test_two_plugins_with_a_pass_of_one_name_are_an_error() -> None:
    with pytest.raises(PluginError, match="a"):
        compiled(affine, (X,), Plugin(does("a", len)), Plugin(does("a", len), name="other"),
                 enable=["a"])  # fmt: skip


@pytest.mark.parametrize("key", ["enable", "disable"])
def test_an_unknown_pass_has_its_nearest_name(key: str) -> None:
    with pytest.raises(ConfigError, match='did you mean "fuse-norm"'):
        compiled(affine, (X,), Plugin(does("fuse-norm", len)), passes={key: ["fuse-nrom"]})


def test_disable_and_limit_leave_passes_out() -> None:
    ran: list[str] = []
    plugin = Plugin(*(does(n, lambda g, n=n: ran.append(n)) for n in "abcd"))
    compiled(affine, (X,), plugin, passes={"disable": ["b"], "limit": 2})
    assert ran == ["a", "c"]
    compiled(affine, (X,), plugin, passes={"limit": 0})
    assert ran == ["a", "c"]


def test_a_pass_gets_its_options() -> None:
    seen: list[Mapping[str, Any]] = []

    def factory(options: Mapping[str, Any]) -> Do:
        seen.append(dict(options))
        return Do(lambda g: 0)

    spec = PassSpec("a", "1", "piece", factory, {"eps": Option(1.0, float), "on": Option(True)})
    compiled(affine, (X,), Plugin(spec), options={"a": {"eps": 0.5}})
    assert seen
    assert all(one == {"eps": 0.5, "on": True} for one in seen)


# ---------------------------------------------------------------------------------------------- stages


def stage_passes(ran: list[str]) -> Plugin:
    return Plugin(*(does(s, lambda g, s=s: ran.append(s) or 1, s) for s in reversed(STAGES)))


def test_every_stage_runs_in_the_life_of_a_graph() -> None:
    ran: list[str] = []
    made = compiled(affine, (X,), stage_passes(ran), compilers=["inductor"], strict=True)
    assert ran == list(STAGES)
    assert matches(made) == dict.fromkeys(STAGES, 1)
    torch.testing.assert_close(made(X), affine(X))
    assert "inductor-joint (inductor-joint) for {}: 1 matches in 1 graphs" in made.explain()


RAN: list[str] = []
"""What ran of the plugin of `on_disk`, in this process."""

ON_DISK = """
    from intarsia.interfaces import PassSpec
    from tests.backend import test_passes as tests
    intarsia_api_version = (1, 0)

    class Note:
        def __init__(self, options, stage=None):
            self.stage = stage
        def __call__(self, graph):
            tests.RAN.append(self.stage)
            return 1
        def uuid(self):
            return "1"

    def __getattr__(name):
        if not name.startswith("at_"):
            raise AttributeError(name)
        return lambda options: Note(options, name[3:].replace("_", "-"))

    def intarsia_passes():
        return [PassSpec(s, "1", s, "disk_passes:at_" + s.replace("-", "_")) for s in tests.STAGES]
"""


def test_every_stage_runs_through_torch_compile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.toys import write_distribution

    monkeypatch.syspath_prepend(str(tmp_path))
    write_distribution(tmp_path, "disk", {"disk": "disk_passes"}, {"disk_passes": ON_DISK})
    RAN.clear()
    options = {"compilers": ["inductor"], "passes": {"enable": list(STAGES)}, "workers": 0}
    made = torch.compile(affine, backend="intarsia", options=options)
    torch.testing.assert_close(made(X), affine(X))
    assert list(STAGES) == RAN


def test_a_pass_for_some_boxes_runs_for_those() -> None:
    def is_wide(box: Any) -> bool:
        return bool(box["rows"][1] > 4)

    plugin = Plugin(does("wide", lambda g: 1, boxes=is_wide), does("any", lambda g: 1))
    made = compiled(affine, (X,), plugin, dynamic={"x": {0: "rows"}}, boxes={"rows": [4, 64]})
    ran = [(t.name, t.box) for t in made.report.passes]
    assert ran == [
        ("any", "{rows: 1..4}"), ("wide", "{rows: 5..64}"), ("any", "{rows: 5..64}"),
        ("wide", "{rows: 1..}"), ("any", "{rows: 1..}"),
    ]  # fmt: skip
    for rows in (4, 6):
        x = X.repeat(2, 1)[:rows]
        torch.testing.assert_close(made(x), affine(x))


class Scale(nn.Module):
    """Two equal pieces, with constants, around one that splits."""

    def forward(self, x: Tensor) -> Tensor:
        """Run."""
        return torch.relu(torch.sigmoid(torch.relu(x) * torch.tensor([2.0]))) * torch.tensor([2.0])


def test_a_piece_with_constants_keeps_them() -> None:
    plugin = Plugin(does("nothing", lambda g: 0))
    made = compiled(Scale(), (X,), plugin, split_at=["torch.sigmoid"], strict=True)
    torch.testing.assert_close(made(X), Scale()(X))


def test_a_view_of_an_input_stays_one() -> None:
    made = compiled(lambda x: x.view(8, 4), (X,), Plugin(does("nothing", lambda g: 0)), strict=True)
    assert made(X).data_ptr() == X.data_ptr()


# --------------------------------------------------------------------------------- scoped to a compile


class Add(nn.Module):
    """Adds a number, so that no two are one piece."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number

    def forward(self, x: Tensor) -> Tensor:
        """Run."""
        return torch.relu(x) + self.number


@pytest.mark.parametrize("compiler", ["eager", "inductor"])
def test_two_threads_do_not_see_each_others_passes(compiler: str) -> None:
    stages: tuple[Stage, ...] = ("piece", "piece-aten")
    stages += ("inductor-joint", "inductor-post-grad-after") if compiler == "inductor" else ()
    rounds = 4 if compiler == "eager" else 2
    ran: dict[str, list[int]] = {"left": [], "right": []}
    start, problems = threading.Barrier(2), []

    def work(name: str) -> None:
        try:
            start.wait(20)
            for number in range(rounds):

                def note(graph: fx.Graph) -> None:
                    ran[name].append(threading.get_ident())

                plugin = Plugin(*(does(f"{name}-{s}", note, s) for s in stages), name=name)
                add = float(number + (name == "left"))
                made = compiled(Add(add), (X,), plugin, compilers=[compiler])
                assert {t.name for t in made.report.passes} == {f"{name}-{s}" for s in stages}
                torch.testing.assert_close(made(X), torch.relu(X) + add)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in ran]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not problems
    assert {name: len(idents) for name, idents in ran.items()} == dict.fromkeys(
        ran, rounds * len(stages)
    )
    if compiler == "eager":
        assert all(len(set(idents)) == 1 for idents in ran.values())


SLOW: list[int] = []
"""How many threads were in the fake kernel of `slow` each time; the first: how many are there now."""


@torch.library.custom_op("intarsia_test_passes::slow", mutates_args=())
def slow(x: Tensor) -> Tensor:
    """Return x + 1."""
    return x + 1


@slow.register_fake
def _(x: Tensor) -> Tensor:
    SLOW[0] += 1
    SLOW.append(SLOW[0])
    time.sleep(0.03)
    SLOW[0] -= 1
    return torch.empty_like(x)


def test_two_threads_do_not_trace_at_a_time() -> None:
    before, SLOW[:] = nn.Module.__call__, [0]
    plugin = Plugin(does("nothing", lambda g: 0))
    models = [lambda x, n=n: slow(x) + n for n in range(4)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda model: compiled(model, (X,), plugin), models))
    assert set(SLOW) == {0, 1}
    assert nn.Module.__call__ is before


def fail(graph: fx.Graph) -> None:
    raise ValueError("no such luck")


@pytest.mark.parametrize("stage", STAGES[3:])
@pytest.mark.parametrize("strict", [False, True])
def test_torchs_settings_are_as_before_also_after_an_error_in_a_slot(
    stage: Stage, strict: bool
) -> None:
    before = inductor_config.save_config()
    plugin = Plugin(does("fails", fail, stage))
    if strict:
        with pytest.raises(PassError, match="no such luck"):
            compiled(affine, (X,), plugin, compilers=["inductor"], strict=True)
    else:
        made = compiled(affine, (X,), plugin, compilers=["inductor"])
        assert "no such luck" in failures(made)["fails"]
        assert made.report.piece_reports[0].compiler == "inductor"
        torch.testing.assert_close(made(X), affine(X))
    assert inductor_config.save_config() == before


# ---------------------------------------------------------------------------------------------- checks


def two(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return two results, one of them not contiguous."""
    return torch.relu(x).t(), (torch.relu(x) + y) * 2


def results(graph: fx.Graph) -> list[Any]:
    return list(graph.output_node().args[0])


def last_through(target: Any, *more: Any) -> Deed:
    """Return a pass that puts a call behind the first result."""

    def deed(graph: fx.Graph) -> int:
        first, *rest = results(graph)
        with graph.inserting_before(graph.output_node()):
            new = graph.call_function(target, (first, *more))
        graph.output_node().args = ((new, *rest),)
        return 1

    return deed


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


class Blocks(nn.Module):
    """Six blocks with a relu each, in three equal pieces."""

    def forward(self, x: Tensor) -> Tensor:
        """Run."""
        for _ in range(3):
            x = torch.sigmoid(torch.relu(torch.relu(x) - 1))
        return x


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


# ----------------------------------------------------------------------------------------------- cache


class Kept:
    """Compiles `Blocks` with one cache, and says what of it was found there."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.settings = {
            "cache": str(root), "workers": 0, "split_at": ["torch.sigmoid"], **settings
        }  # fmt: skip

    def made(self, *plugins: Plugin, model: Any = None, **settings: Any) -> Any:
        return compiled(model or Blocks(), (X,), *plugins, **{**self.settings, **settings})

    def found(self, *plugins: Plugin, **settings: Any) -> str:
        """Say what was found: the "plan", the "piece", or "nothing"."""
        report = self.made(*plugins, **settings).report
        if report.bundle_reads:
            return "plan"
        return "nothing" if report.compiler_calls else "piece"


OPTION = {"level": Option(1, int)}
FIRST = does("a", lambda g: 1, options=OPTION)
SECOND = does("b", lambda g: 1)


def reverse_of(specs: Sequence[PassSpec]) -> list[PassSpec]:
    return list(reversed(specs))


class Reversed(BuiltInManager):
    """Runs passes in the opposite order."""

    level = "1"

    def order(self, specs: Any, stage: Any, box: Any, config: Any) -> Any:
        """Return the passes in the opposite order."""
        return reverse_of(super().order(specs, stage, box, config))

    def factors(self) -> Mapping[str, str]:
        """Return its level."""
        return {"level": self.level}


REVERSED = PassManagerSpec("reversed", lambda: Reversed())

CHANGES: dict[str, tuple[Plugin, dict[str, Any]]] = {
    "version": (Plugin(evolve(FIRST, version="2"), SECOND), {}),
    "uuid": (Plugin(does("a", lambda g: 1, options=OPTION, identity="2"), SECOND), {}),
    "options": (Plugin(FIRST, SECOND), {"options": {"a": {"level": 2}}}),
    "stage": (Plugin(evolve(FIRST, stage="piece"), SECOND), {}),
    "after": (Plugin(evolve(FIRST, after=("b",)), SECOND), {}),
    "before": (Plugin(FIRST, evolve(SECOND, before=("a",))), {}),
    "order in the settings": (Plugin(FIRST, SECOND), {"enable": ["b", "a"]}),
    "one less": (Plugin(FIRST, SECOND), {"enable": ["a"]}),
    "disabled": (Plugin(FIRST, SECOND), {"passes": {"disable": ["a"]}}),
    "limit": (Plugin(FIRST, SECOND), {"passes": {"limit": 1}}),
    "manager": (Plugin(FIRST, SECOND, pass_managers=[REVERSED]), {"pass_manager": "reversed"}),
    "none": (Plugin(FIRST, SECOND), {"enable": []}),
}


def test_what_passes_are_changed_by_misses_alone_and_nothing_changed_hits(tmp_path: Path) -> None:
    kept, plugin = Kept(tmp_path), Plugin(FIRST, SECOND)
    assert kept.found(plugin) == "nothing"
    assert kept.found(plugin) == "plan"
    for what, (changed, settings) in CHANGES.items():
        assert (what, kept.found(changed, **settings)) == (what, "nothing")
        assert (what, kept.found(changed, **settings)) == (what, "plan")
    assert kept.found(plugin) == "plan"


class MoreBlocks(Blocks):
    """Another model that has the pieces of `Blocks`."""

    def forward(self, x: Tensor) -> Tensor:
        """Run."""
        return torch.sigmoid(super().forward(x))


def test_pieces_are_found_without_their_plan_and_miss_by_the_same_factors(tmp_path: Path) -> None:
    kept, plugin = Kept(tmp_path), Plugin(FIRST, SECOND)
    assert kept.found(plugin) == "nothing"
    assert kept.found(plugin, model=MoreBlocks()) == "piece"
    for what in ("version", "uuid", "options", "after", "order in the settings", "manager"):
        changed, settings = CHANGES[what]
        found = kept.found(changed, model=MoreBlocks(), **settings)
        assert (what, found) == (what, "nothing")


@pytest.mark.parametrize("compiler", ["eager", "inductor"])
def test_what_is_found_says_how_often_passes_matched(tmp_path: Path, compiler: str) -> None:
    kept = Kept(tmp_path, compilers=[compiler])
    slots = ("inductor-joint",) if compiler == "inductor" else ()
    plugin = Plugin(*(does(s, lambda g: 2, s) for s in ("graph", "piece", "piece-aten", *slots)))
    cold = matches(kept.made(plugin))
    assert cold == {"graph": 2, "piece": 6, "piece-aten": 6, **dict.fromkeys(slots, 6)}
    assert kept.found(plugin) == "plan"
    assert matches(kept.made(plugin)) == cold
    assert kept.found(plugin, model=MoreBlocks()) == "piece"
    again = kept.made(plugin, model=MoreBlocks(), name="again")
    assert matches(again) == cold
    torch.testing.assert_close(again(X), MoreBlocks()(X))


def test_a_pass_without_an_identity_is_never_found(tmp_path: Path) -> None:
    kept, plugin = Kept(tmp_path), Plugin(does("a", lambda g: 1, identity=None))
    assert kept.found(plugin) == "nothing"
    assert kept.found(plugin) == "nothing"


def test_strict_mode_does_not_take_what_was_kept_without_its_pass(tmp_path: Path) -> None:
    kept, plugin = Kept(tmp_path), Plugin(does("fails", fail))
    assert "no such luck" in failures(kept.made(plugin))["fails"]
    for model in (Blocks(), MoreBlocks()):
        with pytest.raises(PassError, match="no such luck"):
            kept.made(plugin, model=model, strict=True)


def test_a_plan_that_was_kept_does_not_hide_a_raised_min_matches(tmp_path: Path) -> None:
    kept, spec = Kept(tmp_path), does("fuse", lambda g: 1, min_matches=3)
    kept.made(Plugin(spec), strict=True)
    with pytest.raises(PassError, match="matched 3 times for {}, not 4 or more"):
        kept.made(Plugin(evolve(spec, min_matches=4)), strict=True)


def test_inductors_own_cache_does_not_skip_a_pass_that_changed(tmp_path: Path) -> None:
    for number in (1, 2):
        plugin = Plugin(does("a", lambda g, n=number: n, "inductor-post-grad-before"))
        made = compiled(
            affine, (X,), plugin, compilers=["inductor"], cache=str(tmp_path / str(number))
        )
        assert matches(made) == {"a": number}


class Users(CustomGraphPass):
    """A pass that the user has put into one of Inductor's slots."""

    ran: list[str]

    def __init__(self, ran: list[str], identity: str = "1") -> None:
        self.ran, self.identity = ran, identity

    def __call__(self, graph: fx.Graph) -> None:
        """Note that it ran."""
        self.ran.append("user")

    def uuid(self) -> str:
        """Return what it is told by."""
        return self.identity


SLOT: Stage = "inductor-post-grad-after"


@pytest.mark.parametrize("place", ["options", "torch"])
def test_a_pass_of_the_users_in_a_slot_runs_first_and_enters_the_key(
    tmp_path: Path, place: str
) -> None:
    ran: list[str] = []
    plugin = Plugin(does("ours", lambda g: ran.append("ours"), SLOT))

    def found(identity: str) -> str:
        users = Users(ran, identity)
        name = "post_grad_custom_post_pass"
        kept = Kept(tmp_path, compilers=["inductor"])
        if place == "options":
            return kept.found(plugin, options={"inductor": {name: users}})
        with inductor_config.patch({name: users}):
            before = inductor_config.save_config()
            how = kept.found(plugin)
            assert inductor_config.save_config() == before
            return how

    assert found("1") == "nothing"
    assert ran == ["user", "ours"]
    assert found("1") == "plan"
    assert found("2") == "nothing"
    assert ran == ["user", "ours"] * 2


# ----------------------------------------------------------------------------------- a vendor's manager


def platforms(manager: str | None) -> list[PlatformSpec]:
    """Return a platform on the CPU of its own, with a manager, and with the passes "a" and "b"."""
    return [
        PlatformSpec(
            name="acme", device_type="cpu", available=lambda: Decision(True), compilers=("eager",),
            passes=("a", "b"), pass_manager=manager,
        )
    ]  # fmt: skip


def test_a_vendors_manager_is_used_for_its_platform_only_and_its_factors_enter_the_key(
    tmp_path: Path,
) -> None:
    ran: list[str] = []
    specs = [does(n, lambda g, n=n: ran.append(n)) for n in "ab"]
    plugin = Plugin(*specs, pass_managers=[REVERSED], platforms=platforms("reversed"))
    kept = Kept(tmp_path, compilers=None)
    made = kept.made(plugin, enable=[], platform="acme")
    assert made.report.platform == "acme"
    assert ran == ["b", "a"]
    assert "level=1" in made.explain()
    ran.clear()
    kept.made(plugin, enable=["a", "b"], platform="cpu")
    assert ran == ["a", "b"]
    assert kept.found(plugin, enable=[], platform="acme") == "plan"

    class Newer(Reversed):
        level = "2"

    newer = PassManagerSpec("reversed", lambda: Newer())
    plugin = Plugin(*specs, pass_managers=[newer], platforms=platforms("reversed"))
    assert kept.found(plugin, enable=[], platform="acme") == "nothing"


def test_the_checks_stay_on_with_a_vendors_manager() -> None:
    good = does("good", replaced(aten.relu.default, aten.relu.default), min_matches=3)
    bad = does("bad", last_through(aten.unsqueeze.default, 0))
    plugin = Plugin(good, bad, pass_managers=[REVERSED])
    made = compiled(affine, (X,), plugin, pass_manager="reversed")
    assert "had the shape" in failures(made)["bad"]
    assert any('"good" matched 1 times' in w for w in made.report.warnings)
    torch.testing.assert_close(made(X), affine(X))
    with pytest.raises(PassError, match="had the shape"):
        compiled(affine, (X,), plugin, pass_manager="reversed", strict=True)


def managed(order: Callable[[list[PassSpec]], Sequence[PassSpec]], **methods: Any) -> Plugin:
    """Return a plugin with the passes "a" and "b" and a manager that is built in but for something."""
    methods["order"] = lambda self, specs, *_: order(list(specs))
    manager = type("Managed", (BuiltInManager,), methods)
    specs = (does("a", lambda g: 1, min_matches=1), does("b", lambda g: 1))
    return Plugin(*specs, pass_managers=[PassManagerSpec("acme", manager)])


STRANGE = does("strange", lambda g: 1)


@pytest.mark.parametrize(
    ("order", "answer"),
    [
        (lambda specs: [*specs, STRANGE], "a, b, strange"),
        (lambda specs: [*specs, specs[0]], "a, b, a"),
        (lambda specs: [evolve(specs[0], version="9"), specs[1]], "a, b"),
    ],
)
def test_a_manager_orders_the_passes_that_it_is_given_and_no_others(
    order: Any, answer: str
) -> None:
    with pytest.raises(PluginError, match=f'"acme" gave an order.*asked for a, b.* {answer}'):
        compiled(affine, (X,), managed(order), pass_manager="acme")


def test_a_manager_may_leave_passes_out_but_not_unseen() -> None:
    made = compiled(affine, (X,), managed(lambda specs: specs[1:]), pass_manager="acme")
    assert matches(made) == {"b": 1}
    ran_none = managed(list, run=lambda self, passes, stage, graph, context: PassReport(stage))
    made = compiled(affine, (X,), ran_none, pass_manager="acme")
    assert [w for w in made.report.warnings if '"a" matched 0 times' in w]
    # what it reports does not count, only what the checks have seen
    assert matches(made) == {"a": None}


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


# --------------------------------------------------------------------------------------------- patterns

LIBRARY = torch.library.Library("intarsia_test_passes", "FRAGMENT")
LIBRARY.define("rms(Tensor x, Tensor weight, float eps) -> Tensor")
LIBRARY.define("sin_cos(Tensor x) -> (Tensor, Tensor)")
LIBRARY.define("add_relu_(Tensor(a!) x, Tensor y) -> ()")


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return (wide * (wide.pow(2).mean(-1, keepdim=True) + eps).rsqrt()).to(x.dtype) * weight


def _add_relu_(x: Tensor, y: Tensor) -> None:
    x.add_(y).relu_()


LIBRARY.impl("rms", rms, "CPU")
LIBRARY.impl("sin_cos", lambda x: (x.sin(), x.cos()), "CPU")
LIBRARY.impl("add_relu_", _add_relu_, "CPU")
torch.library.register_fake(
    "intarsia_test_passes::rms", lambda x, weight, eps: torch.empty_like(x), lib=LIBRARY
)
torch.library.register_fake(
    "intarsia_test_passes::sin_cos",
    lambda x: (torch.empty_like(x), torch.empty_like(x)),
    lib=LIBRARY,
)
torch.library.register_fake("intarsia_test_passes::add_relu_", lambda x, y: None, lib=LIBRARY)
OPS = torch.ops.intarsia_test_passes


def pattern_pass(name: str, *parts: Any, **more: Any) -> PassSpec:
    """Return the spec of a pattern pass."""
    named = {k: more.pop(k) for k in ("check", "numbers") if k in more}
    return PassSpec(name, "1", "piece-aten", lambda options: PatternPass(*parts, **named), **more)


def rms_pass(pattern: Any = rms, **more: Any) -> PassSpec:
    return pattern_pass(
        "rms", pattern, lambda x, weight, eps: OPS.rms(x, weight, eps),
        lambda: (torch.randn(3, 8), torch.randn(8), 1e-6), numbers={"eps": 1e-6}, **more,
    )  # fmt: skip


class Norms(nn.Module):
    """Norms with different numbers and sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.big = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(16))

    def forward(self, x: Tensor) -> Tensor:
        """Run."""
        x = rms(x, self.small, 1e-5)
        return rms(torch.cat((x, x), -1), self.big, 0.25)


@pytest.mark.parametrize("compiler", ["eager", "inductor"])
def test_a_pattern_matches_at_any_size_and_number(compiler: str) -> None:
    model = Norms()
    made = compiled(
        model, (X,), Plugin(rms_pass(min_matches=2)), compilers=[compiler], strict=True,
        dynamic={"x": {0: "rows"}},
    )  # fmt: skip
    assert matches(made) == {"rms": 2}
    for x in (X, X[:1], X.repeat(5, 1)):
        torch.testing.assert_close(made(x), model(x).detach(), rtol=1e-5, atol=1e-5)


def test_a_check_sees_the_sizes_and_numbers_of_a_match() -> None:
    seen: list[tuple[int, float]] = []

    def check(match: Mapping[str, Any]) -> bool:
        seen.append((match["x"].shape[-1], match["eps"]))
        return bool(match["weight"].shape[0] == 16)

    made = compiled(Norms(), (X,), Plugin(rms_pass(check=check)), dynamic={"x": {0: "rows"}})
    assert matches(made) == {"rms": 1}
    assert sorted(set(seen)) == [(8, 1e-5), (16, 0.25)]


def test_a_value_that_is_used_outside_the_pattern_keeps_it_from_matching() -> None:
    def function(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        wide = x.float()
        scale = (wide.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()
        return (wide * scale).to(x.dtype) * weight, scale

    made = compiled(function, (X, X[0]), Plugin(rms_pass()))
    assert matches(made) == {"rms": 0}
    torch.testing.assert_close(made(X, X[0]), function(X, X[0]))


def sin_and_cos(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.sin(), x.cos()


def test_a_pattern_may_have_several_results() -> None:
    def function(x: Tensor) -> Tensor:
        return (x + 1).sin() * (x + 1).cos() + x.sin()

    spec = pattern_pass("pair", sin_and_cos, lambda x: OPS.sin_cos(x), lambda: (torch.randn(3, 4),))

    def both(x: Tensor) -> Tensor:
        y = x + 1
        return y.sin() * y.cos() + x.sin()

    made = compiled(both, (X,), Plugin(spec), strict=True, dynamic={"x": {0: "rows"}})
    assert matches(made) == {"pair": 1}
    torch.testing.assert_close(made(X[:3]), function(X[:3]))


def added_relu(x: Tensor, y: Tensor) -> Tensor:
    return torch.relu(x + y)


def added_relu_in_place(x: Tensor, y: Tensor) -> Tensor:
    """Do the same with an operator that writes to what it is given."""
    mine = x.clone()
    OPS.add_relu_(mine, y)
    return mine


@pytest.mark.parametrize("compiler", ["eager", "inductor"])
def test_a_replacement_may_write_to_what_it_made_where_the_piece_writes(compiler: str) -> None:
    def function(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        z.mul_(3)
        return torch.relu(x + y) * 2

    spec = pattern_pass(
        "fuse", added_relu, added_relu_in_place, lambda: (torch.randn(3, 4), torch.randn(3, 4))
    )
    made = compiled(function, (X, X - 1, X + 1), Plugin(spec), compilers=[compiler], strict=True)
    assert matches(made) == {"fuse": 1}
    mine, theirs = [(X.clone(), X - 1, X + 1) for _ in range(2)]
    torch.testing.assert_close(made(*mine), function(*theirs))
    torch.testing.assert_close(mine, theirs)


def test_a_pass_runs_over_a_piece_that_writes_to_its_own_tensors_by_a_custom_operator() -> None:
    def function(x: Tensor, y: Tensor) -> Tensor:
        mine = x * 2
        OPS.add_relu_(mine, y)
        return mine.sigmoid() + (x + y).relu()

    spec = pattern_pass(
        "fuse", added_relu, lambda x, y: torch.clamp_min(x + y, 0),
        lambda: (torch.randn(3, 4), torch.randn(3, 4)),
    )  # fmt: skip
    made = compiled(function, (X, X - 1), Plugin(spec), strict=True)
    assert matches(made) == {"fuse": 1}
    torch.testing.assert_close(made(X, X - 1), function(X, X - 1))


# ------------------------------------------------------------------------------------------ real models


def decoder_of(layers: int, plugin: Plugin, **settings: Any) -> Any:
    model = decoder(layers)
    call = decoder_inputs(6)
    config = load_config(
        None, compilers=["eager"], passes={"enable": ["rms"]}, split_at=[ATTENTION], **settings
    )
    made = intarsia.compile(
        model, kwargs=call, dynamic=DECODER_DYNAMIC, config=config,
        host=Host(config, extra_plugins=[plugin]),
    )  # fmt: skip
    for tokens in (6, 9):
        call = decoder_inputs(tokens)
        assert_same(made(**call), decoder_reference(model, **call).detach(), scale=4)
    return made


def test_a_pattern_matches_as_often_as_the_decoder_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made = decoder_of(12, Plugin(rms_pass(min_matches=25)), strict=True)
    assert matches(made) == {"rms": 25}

    # one that computes the same differently, in the last norm of each layer
    def changed(self: Any, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide / ((wide * wide).mean(-1, keepdim=True) + 1e-6).sqrt()).to(
            x.dtype
        ) * self.weight

    monkeypatch.setattr(RMSNorm, "forward", changed)
    with pytest.raises(PassError, match="matched 0 times for .*, not 25 or more"):
        decoder_of(12, Plugin(rms_pass(min_matches=25)), strict=True)


def hugging_face_rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


@pytest.mark.parametrize(("name", "count"), [("Llama", 5), ("Qwen3", 9)])
def test_a_pattern_matches_as_often_as_a_hugging_face_model_has_it(name: str, count: int) -> None:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{name}Config")(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, head_dim=8,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval().requires_grad_(False)
    ids = torch.arange(10).reshape(2, 5)
    plugin = Plugin(rms_pass(hugging_face_rms, min_matches=count))
    settings = load_config(None, compilers=["eager"], passes={"enable": ["rms"]}, strict=True)
    made = intarsia.compile(
        model, kwargs={"input_ids": ids, "use_cache": False}, config=settings,
        dynamic={"input_ids": {1: "length"}}, host=Host(settings, extra_plugins=[plugin]),
    )  # fmt: skip
    assert matches(made) == {"rms": count}
    ids = torch.arange(14).reshape(2, 7)
    torch.testing.assert_close(
        made(input_ids=ids, use_cache=False).logits, model(input_ids=ids, use_cache=False).logits
    )
