"""Each thing that a plan or a piece depends on: changed alone it misses and is named, put back it hits.

And what nothing depends on: the home and current directories, the place of the cache, the host's name,
variables that nobody declared, the hash seed.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from attrs import define, field

from intarsia.config import load_config
from intarsia.entry_points import plugin_entries
from intarsia.host import Host
from tests.models import randn
from tests.toys import write_distribution
from tests.warm import Start, begin, copied, fresh, headers, same_length_edit, why_missed

pytestmark = pytest.mark.timeout(120)

SUBJECT = """
    import torch
    from torch import nn

    FACTOR = 3.0
    TABLE = {"shift": 0.5}

    class Settings:
        def __init__(self):
            self.offset, self.inner = 0.25, {"mode": "add"}

    def helper(x):
        return x * 1.25

    class Subject(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
            self.register_buffer("bias", torch.ones(4))
            self.scale, self.settings = 1.5, Settings()

        def forward(self, x, power=2):
            y = torch.sigmoid(self.linear(x.float())) * self.scale
            for block in self.blocks:
                y = block(y)
            y = helper(y) + self.settings.offset if self.settings.inner["mode"] == "add" else y
            return y ** power * FACTOR - TABLE["shift"] * self.bias

    def closure(offset):
        def forward(x):
            return torch.tanh(x) + offset
        return forward
"""

TOYS = """
    from intarsia.interfaces import (Capabilities, CompilerSpec, Cut, Decision, Option, PassSpec,
                                     PlatformSpec, SplitRuleSpec)
    from {name}_heavy import EagerCompiler

    intarsia_api_version = (1, 0)
    STATE = dict(factor="one", version="1", passes="1", trait="red", environment="ACME_DECLARED")

    class Compiler(EagerCompiler):
        def factors(self):
            return {{"flavour": STATE["factor"]}}

    def intarsia_compilers():
        return [CompilerSpec(
            "acme", STATE["version"], Compiler, capabilities=Capabilities(
                dynamic_shapes=True, mutation=True, custom_ops=True, workers=False),
            options={{"level": Option(1, int), "chatty": Option(False, bool, in_key=False)}},
            environment=(STATE["environment"],))]

    def intarsia_passes():
        return [PassSpec("fuse", STATE["passes"], "graph", "{name}_heavy:Fuse")]

    def intarsia_platforms():
        return [PlatformSpec("acme", "cpu", traits=lambda device: {{"colour": STATE["trait"]}},
                             compilers=("acme",), passes=("fuse",), priority=-1)]

    def rule(node):
        return node.op == "call_function" and "sigmoid" in str(node.target)

    def intarsia_split_rules():
        return [SplitRuleSpec("acme-rule", rule=rule)]
"""

HEAVY = """
    from intarsia_eager.adaptor import EagerCompiler

    class Fuse:
        def __init__(self, options):
            self.options = options

        def __call__(self, graph):
            return 0

        def uuid(self):
            return "1"
"""


@define
class Bench:
    """A model and everything around it that a change may touch."""

    site: Path
    root: Path
    subject: ModuleType
    toys: ModuleType
    model: Any
    args: tuple[Any, ...]
    settings: dict[str, Any] = field(factory=dict)
    patch: pytest.MonkeyPatch = field(factory=pytest.MonkeyPatch)

    def start(self) -> Start:
        return begin(self.model, self.args, host=self.host(), cache=self.root, **self._asked())

    def why(self) -> str:
        return why_missed(self.model, self.args, host=self.host(), cache=self.root, **self._asked())

    def host(self) -> Host:
        known = [entry for entry in plugin_entries() if entry.distribution == "intarsia"]
        asked = {k: v for k, v in self._asked().items() if k != "dynamic"}
        config = load_config(None, cache=str(self.root), workers=0, **asked)
        return Host(config, entries=[*known, *plugin_entries([str(self.site)])])

    def _asked(self) -> dict[str, Any]:
        return {"compilers": ["acme"], "platform": "acme", "dynamic": {"x": {0: "n"}},
                **self.settings}  # fmt: skip


def imported(site: Path, name: str, source: str) -> ModuleType:
    site.joinpath(f"{name}.py").write_text(textwrap.dedent(source))
    importlib.invalidate_caches()
    sys.modules.pop(name, None)
    return importlib.import_module(name)


def again(bench: Bench) -> Any:
    """Return the model made anew from its file, as another process would have it."""
    sys.modules.pop(bench.subject.__name__)
    shutil.rmtree(bench.site / "__pycache__", ignore_errors=True)
    importlib.invalidate_caches()
    state = bench.model.state_dict() if isinstance(bench.model, torch.nn.Module) else {}
    bench.subject = importlib.import_module(bench.subject.__name__)
    bench.model = bench.subject.Subject().eval()
    bench.model.load_state_dict(state)
    return bench.model


@pytest.fixture
def bench(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bench]:
    """A bench whose modules are its own and are forgotten afterwards."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    tag = f"t{abs(hash(request.node.name)) % 10**8}"
    subject = imported(site, f"subject_{tag}", SUBJECT)
    site.joinpath(f"toys_{tag}_heavy.py").write_text(textwrap.dedent(HEAVY))
    source = TOYS.format(name=f"toys_{tag}")
    write_distribution(site, "intarsia-acme", {"acme": f"toys_{tag}"}, {f"toys_{tag}": source})
    toys = importlib.import_module(f"toys_{tag}")
    model = subject.Subject().eval()
    made = Bench(site, tmp_path / "cache", subject, toys, model, (randn(6, 4),), patch=monkeypatch)
    yield made
    for name in [n for n in sys.modules if n.endswith(tag) or tag in n]:
        del sys.modules[name]


# ------------------------------------------------------------------------------- what a plan depends on

CHANGES: dict[str, tuple[Callable[[Bench], Any], str]] = {}


def factor(name: str, word: str) -> Callable[[Callable[[Bench], Any]], Callable[[Bench], Any]]:
    """Add a change to the table, with what the line about the miss must name."""

    def add(change: Callable[[Bench], Any]) -> Callable[[Bench], Any]:
        CHANGES[name] = change, word
        return change

    return add


@factor("argument-shape", "arguments shape")
def _(b: Bench) -> None:
    b.settings["dynamic"] = {}
    b.args = (randn(7, 4),)


@factor("argument-dtype", "arguments dtype")
def _(b: Bench) -> None:
    b.args = (b.args[0].double(),)


@factor("argument-stride", "arguments layout")
def _(b: Bench) -> None:
    b.args = (b.args[0].t().contiguous().t(),)


@factor("argument-value", "arguments")
def _(b: Bench) -> None:
    b.args = (b.args[0], 3)


@factor("weight-shape", "weights shape")
def _(b: Bench) -> None:
    b.model.blocks[1] = torch.nn.Linear(4, 1)


@factor("weight-dtype", "weights dtype")
def _(b: Bench) -> None:
    b.model.bias = b.model.bias.double()


@factor("weight-stride", "weights stride")
def _(b: Bench) -> None:
    b.model.linear.weight.data = b.model.linear.weight.data.t().contiguous().t()


@factor("weight-tie", "weights ties")
def _(b: Bench) -> None:
    b.model.blocks[0].weight = b.model.blocks[1].weight


@factor("box", "setting boxes")
def _(b: Bench) -> None:
    b.settings["boxes"] = {"n": [8, 32]}


@factor("sizes", "setting sizes")
def _(b: Bench) -> None:
    b.settings["sizes"] = {"n": [6]}


@factor("uncovered", "setting uncovered")
def _(b: Bench) -> None:
    b.settings["uncovered"] = "eager"


@factor("dynamic", "dynamic")
def _(b: Bench) -> None:
    b.settings["dynamic"] = {"x": {0: "m"}}


@factor("rule", "rules")
def _(b: Bench) -> None:
    b.settings["split_at"] = ["torch.sigmoid"]


@factor("named-rule", "rule acme-rule")
def _(b: Bench) -> None:
    b.settings["split_rule"] = ["acme-rule"]


@factor("platform", "platform")
def _(b: Bench) -> None:
    b.settings["platform"] = "cpu"


@factor("policy-of-checks", "setting check")
def _(b: Bench) -> None:
    b.settings["check"] = "none"


@factor("pass-version", "passes")
def _(b: Bench) -> None:
    b.toys.STATE["passes"] = "2"


@factor("pass-source", "passes")
def _(b: Bench) -> None:
    same_length_edit(b.site / f"{b.toys.__name__}_heavy.py", "return 0", "return 1")


@factor("compiler-factor", "compiler acme flavour")
def _(b: Bench) -> None:
    b.toys.STATE["factor"] = "two"


@factor("compiler-version", "compiler acme is")
def _(b: Bench) -> None:
    b.toys.STATE["version"] = "2"


@factor("compiler-option", "compiler acme options")
def _(b: Bench) -> None:
    b.settings["options"] = {"acme": {"level": 2}}


@factor("compilers", "compiler eager")
def _(b: Bench) -> None:
    b.settings["compilers"] = ["acme", "eager"]


@factor("plugin-version", "compiler acme plugin")
def _(b: Bench) -> None:
    shutil.rmtree(b.site / "intarsia_acme-1.0.dist-info")
    write_distribution(b.site, "intarsia-acme", {"acme": b.toys.__name__}, version="1.1")


@factor("plugin-source", "compiler acme source")
def _(b: Bench) -> None:
    same_length_edit(b.site / f"{b.toys.__name__}.py", "def rule(node)", "def rule(kode)")


@factor("device-trait", "trait colour")
def _(b: Bench) -> None:
    b.toys.STATE["trait"] = "blue"


@factor("declared-variable", "environment ACME_DECLARED")
def _(b: Bench) -> None:
    b.patch.setenv("ACME_DECLARED", "1")


@factor("torch-version", "torch")
def _(b: Bench) -> None:
    from intarsia.compiling import identity

    fake = {**identity.torch_factors(), "torch": "2.99.0 0123456789ab"}
    for module in ("intarsia.compiling.kept", "intarsia.bundle.lookup"):
        b.patch.setattr(f"{module}.torch_factors", lambda: fake)


@factor("model-source", "source of subject")
def _(b: Bench) -> None:
    same_length_edit(b.site / f"{b.subject.__name__}.py", "x * 1.25", "x * 1.75")
    again(b)


@factor("model-source-edited-after-the-import", "source of subject")
def _(b: Bench) -> None:
    same_length_edit(b.site / f"{b.subject.__name__}.py", "x * 1.25", "x * 1.75")


@factor("module-attribute", "self.scale was 1.5 at capture and is 2.5")
def _(b: Bench) -> None:
    b.model.scale = 2.5


@factor("nested-attribute", "settings.offset was 0.25 at capture and is 0.75")
def _(b: Bench) -> None:
    b.model.settings.offset = 0.75


@factor("nested-item", "'add'")
def _(b: Bench) -> None:
    b.model.settings.inner["mode"] = "none"


@factor("global", "FACTOR")
def _(b: Bench) -> None:
    b.subject.FACTOR = 4.0


@factor("global-item", "shift")
def _(b: Bench) -> None:
    b.subject.TABLE["shift"] = 0.75


@factor("training", "training")
def _(b: Bench) -> None:
    b.model.blocks[1].train()


@factor("module-list", "model lengths")
def _(b: Bench) -> None:
    b.model.blocks.append(torch.nn.Linear(4, 4))


@factor("autocast", "autocast")
def _(b: Bench) -> None:
    b.patch.setattr("torch.is_autocast_enabled", lambda kind=None: True)


@pytest.mark.parametrize("name", CHANGES)
def test_a_factor_changed_alone_misses_and_is_named(bench: Bench, name: str) -> None:
    change, word = CHANGES[name]
    assert bench.start().counts[1:] == (1, 0)
    assert bench.start().was_warm, "nothing has changed yet"
    assert bench.why() == ""
    change(bench)
    assert word in bench.why()
    if name == "autocast":  # the patch only pretends
        return
    start = bench.start()
    assert start.counts[0] >= 1, "it was traced again"
    assert start.counts[2] == 0
    assert word in start.plan_miss
    assert not start.warnings
    with torch.no_grad():
        torch.testing.assert_close(start.compiled(*bench.args), bench.model(*bench.args))
    assert bench.start().was_warm, "what was made anew is found the next time"


@pytest.mark.parametrize("name", ["module-attribute", "device-trait", "compiler-version", "box"])
def test_what_is_put_back_hits_the_entry_of_before(bench: Bench, name: str) -> None:
    first = bench.start().compiled(*bench.args)
    kept, model = (dict(bench.settings), dict(bench.toys.STATE)), bench.model.scale
    CHANGES[name][0](bench)
    bench.start()
    bench.settings, bench.model.scale = kept[0], model
    bench.toys.STATE.update(kept[1])
    start = bench.start()
    assert start.was_warm
    assert torch.equal(start.compiled(*bench.args), first)


# --------------------------------------------------------------------------- rules, functions, arguments


def test_a_rule_whose_helper_was_edited_misses(bench: Bench) -> None:
    path = bench.site / f"{bench.toys.__name__}.py"
    bench.settings.update(split_rule=["acme-rule"], compilers=["eager"], platform="cpu")
    bench.start()
    assert bench.start().was_warm
    same_length_edit(path, '"sigmoid" in', '"linear"  in')
    assert "rule acme-rule" in bench.start().plan_miss


def test_a_rule_object_whose_code_was_edited_misses(bench: Bench) -> None:
    source = """
        from intarsia.interfaces import Cut

        class Rule:
            word = "sigmoid"
            def assign(self, graph):
                nodes = graph.graph_module.graph.nodes
                return {n: Cut(reason=self.word) for n in nodes if self.word in str(n.target)}
            def factors(self):
                return {}
    """
    name = f"rules_{bench.subject.__name__}"
    rules = imported(bench.site, name, source)
    bench.settings["split_at"] = [rules.Rule()]
    bench.start()
    assert bench.start().was_warm
    same_length_edit(bench.site / f"{name}.py", '"sigmoid"', '"linear" ')
    assert "rules" in bench.start().plan_miss


def test_a_changed_closure_misses_and_a_closure_with_the_same_value_hits(bench: Bench) -> None:
    for offset, warm in ((0.5, False), (0.5, True), (0.75, False), (0.75, True), (0.5, True)):
        bench.model = bench.subject.closure(offset)
        start = bench.start()
        assert start.was_warm == warm
        assert warm or offset == 0.5 or "offset was 0.5 at capture and is 0.75" in start.plan_miss
        assert torch.equal(start.compiled(*bench.args), bench.model(*bench.args))


def test_values_that_come_back_find_the_plan_that_was_made_for_them(bench: Bench) -> None:
    seen = set()
    for scale in (1.0, 2.0, 1.0, 3.0, 2.0, 1.0, 3.0):
        bench.model.scale = scale
        start = bench.start()
        assert start.was_warm == (scale in seen), scale
        seen.add(scale)
        torch.testing.assert_close(start.compiled(*bench.args), bench.model(*bench.args))


def test_an_option_that_is_declared_to_change_nothing_hits(bench: Bench) -> None:
    bench.start()
    bench.settings["options"] = {"acme": {"chatty": True}}
    assert bench.start().was_warm


# ------------------------------------------------------------------------------ what a piece depends on

Piece = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def sums(x: Any, y: Any) -> Any:
    return torch.sin(x) * 1.5 + y


def same_sums(a: Any, b: Any) -> Any:
    made = torch.sin(a)
    return made * 1.5 + b


def other_graph(x: Any, y: Any) -> Any:
    return torch.cos(x) * 1.5 + y


def other_constant(x: Any, y: Any) -> Any:
    return torch.sin(x) * 2.5 + y


def in_place(x: Any, y: Any) -> Any:
    return torch.sin(x) * 1.5 + y.add_(0.0)


TWO = (randn(6, 4), randn(6, 4, seed=1))
DYNAMIC = {"dynamic": {"x": {0: "n"}, "y": {0: "n"}}}
PIECES: dict[str, tuple[Piece, str]] = {
    "graph": ((other_graph, TWO, DYNAMIC), "no entry of such a piece yet"),
    "mutation": ((in_place, TWO, DYNAMIC), "no entry of such a piece yet"),
    "constant": ((other_constant, TWO, DYNAMIC), "piece constants"),
    "shape": ((sums, (randn(6, 5), randn(6, 5)), DYNAMIC), "piece shapes"),
    "static": ((sums, TWO, {}), "box is"),
    "stride": ((sums, (TWO[0], randn(4, 6).t()), DYNAMIC), "piece strides"),
    "dtype": ((sums, (TWO[0], TWO[1].double()), DYNAMIC), "piece dtypes"),
    "box": ((sums, TWO, {**DYNAMIC, "boxes": {"n": [8, 32]}}), "box is"),
}


def piece_start(piece: Piece, root: Path) -> Start:
    function, args, settings = piece
    return begin(function, args, cache=root, **settings)


@pytest.mark.parametrize("name", PIECES)
def test_a_factor_of_a_piece_changed_alone_misses_and_is_named(tmp_path: Path, name: str) -> None:
    piece, word = PIECES[name]
    piece_start((sums, TWO, DYNAMIC), tmp_path / "c")
    start = piece_start(piece, tmp_path / "c")
    assert start.report.hits == (name == "box"), "the box of the other sizes is as before"
    assert start.report.compiler_calls >= 1
    lines = [line for line in start.misses if "for the piece" in line]
    assert lines, start.log
    assert all(word in line for line in lines), lines
    function, args, _ = piece
    assert torch.equal(start.compiled(*args), function(*args))


def test_an_equal_piece_of_another_model_hits(tmp_path: Path) -> None:
    piece_start((sums, TWO, DYNAMIC), tmp_path / "c")
    dynamic = {"a": {0: "m"}, "b": {0: "m"}}
    start = piece_start((same_sums, TWO, {"dynamic": dynamic}), tmp_path / "c")
    assert start.counts == (1, 0, 0)
    assert start.report.hits == 1
    assert torch.equal(start.compiled(*TWO), same_sums(*TWO))


def test_every_entry_has_the_grad_mode_among_its_factors(tmp_path: Path) -> None:
    for enabled in (False, True):
        with torch.set_grad_enabled(enabled):
            start = piece_start((sums, TWO, DYNAMIC), tmp_path / "c")
        assert start.was_warm == enabled, "intarsia is inference whatever the mode around it is"
    modes = {(h.kind, h.factors["grad mode"]) for h in headers(tmp_path / "c").values()}
    assert modes == {("bundle", "off"), ("piece", "off")}


# ----------------------------------------------------------------------------- what nothing depends on

WARM = """
import json, os, sys
from pathlib import Path
from tests.models import DECODER_DYNAMIC, decoder, decoder_inputs, ATTENTION
model = decoder(2, hidden=32)
start = begin(model, kwargs=decoder_inputs(5), dynamic=DECODER_DYNAMIC, split_at=[ATTENTION],
              cache=sys.argv[1], compilers=json.loads(sys.argv[2]))
tell(start, start.compiled(**decoder_inputs(9, seed=3)))
"""


def warm_again(root: Path, *compilers: str, **options: Any) -> dict[str, Any]:
    return fresh(WARM, root, json.dumps(compilers or ["eager"]), **options).one


def test_nothing_else_misses_home_folder_place_host_name_variables_hash_seed(
    tmp_path: Path,
) -> None:
    cold = warm_again(tmp_path / "cache", env={**os.environ, "PYTHONHASHSEED": "1"})
    assert cold["counts"] == [1, 3, 0]
    home = tmp_path / "home"
    home.mkdir()
    moved = {
        **os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(home), "HOSTNAME": "elsewhere",
        "POD_IP": "10.1.2.3", "UNDECLARED": "1", "PYTHONHASHSEED": "2", "LANG": "C", "TMPDIR": str(home),
    }  # fmt: skip
    place = copied(tmp_path / "cache", tmp_path / "a longer way" / "to the cache")
    warm = warm_again(place, env=moved, cwd=str(home))
    assert warm["warm"], warm["log"]
    assert warm["result"] == cold["result"]
    assert not warm["heavy"]
    assert not warm["log"], "nothing to tell"


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["eager", "inductor"])
@pytest.mark.parametrize(
    "change", ["HOME", "cwd", "place", "HOSTNAME", "uts", "UNDECLARED", "PYTHONHASHSEED"]
)
def test_one_thing_that_changes_nothing_hits(tmp_path: Path, change: str, compiler: str) -> None:
    root = tmp_path / "cache"
    cold = warm_again(root, compiler, env={**os.environ, "PYTHONHASHSEED": "1"})
    environment, options = {**os.environ, "PYTHONHASHSEED": "1"}, {}
    if change == "cwd":
        options["cwd"] = str(tmp_path)
    elif change == "place":
        root = copied(root, tmp_path / "elsewhere")
    elif change == "uts":
        if subprocess.run(["unshare", "--uts", "true"], check=False).returncode:
            pytest.skip("this machine gives no namespace for the host's name")
        options["under"] = ("unshare", "--uts", "sh", "-c", 'hostname elsewhere; exec "$@"', "sh")
    else:
        environment[change] = str(tmp_path) if change == "HOME" else "2"
    warm = warm_again(root, compiler, env=environment, **options)
    assert warm["warm"], warm["log"]
    assert warm["result"] == cold["result"]
    assert not warm["heavy"]
