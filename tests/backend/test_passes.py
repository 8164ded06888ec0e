"""Passes of plugins: they run where and in the order they say, for one compile."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config as inductor_config
from torch import Tensor, fx, nn

from intarsia.errors import ConfigError, PassError, PluginError
from intarsia.interfaces import Option, PassSpec, Stage
from tests.pass_toys import STAGES, Do, Plugin, X, affine, compiled, does, fail, failures, matches

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


class Nameless:
    """A pass without an identity."""

    def __call__(self, graph: fx.Graph) -> int:
        return 0


def no_level(options: Mapping[str, Any]) -> Any:
    return options["level"]


def nothing(options: Mapping[str, Any]) -> Any:
    return None


def undecided(options: Mapping[str, Any]) -> Any:
    made = Do(lambda g: 0)
    made.uuid = lambda: 1 / 0  # type: ignore[assignment]
    return made


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize(
    ("factory", "told"),
    [
        (
            no_level,
            'the pass "a" of plugin toys .* cannot be built, .*KeyError: .level.*disable = ',
        ),
        (nothing, 'the factory of pass "a" made None: a pass has `__call__'),
        (lambda options: Nameless(), 'the factory of pass "a" made .*Nameless.*: a pass has'),
        (undecided, "does not say its identity: ZeroDivisionError"),
        ("no_such_module:fuse", 'pass "a" names .no_such_module:fuse., which cannot be loaded'),
    ],
)
def test_a_pass_that_cannot_be_built_is_an_error_before_anything_is_compiled(
    factory: Any, told: str, cache: bool, tmp_path: Path
) -> None:
    # As a failure of the compiler that came to build it, it would send the piece to the next compiler.
    plugin = Plugin(PassSpec("a", "1", "inductor-post-grad-after", factory))
    where = str(tmp_path) if cache else False
    with pytest.raises(PluginError, match=told):
        compiled(affine, (X,), plugin, compilers=["inductor", "eager"], cache=where)


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
