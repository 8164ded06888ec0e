"""F14: the files of model, helper, rule, pass and compiler are edited between runs; code without a file.

The edits keep the length and the times of the file, so that only its content tells.
"""

from __future__ import annotations

import os
import shutil
import textwrap
from pathlib import Path

import pytest

from tests.toys import write_distribution
from tests.warm import Fresh, fresh, same_length_edit

pytestmark = pytest.mark.timeout(240)

MODEL = """
    import torch
    import subject_helper
    from subject_package import scaled

    def inner(x):
        return torch.sigmoid(x) * 1.25

    class Subject(torch.nn.Module):
        def forward(self, x):
            return scaled(subject_helper.shifted(inner(x)))

    class Other(torch.nn.Module):
        def forward(self, x):
            return torch.tanh(torch.sigmoid(x))
"""
HELPER = """
    def shifted(x):
        return x + 0.25
"""
PACKAGE = """
    from subject_package.deep import scaled
"""
DEEP = """
    FACTOR = 3.5
    def scaled(x, by=2.5):
        return x * by * FACTOR
"""
PLUGIN = """
    from intarsia.interfaces import (Capabilities, CompilerSpec, PassSpec, PlatformSpec, SplitRuleSpec)
    intarsia_api_version = (1, 0)
    def intarsia_compilers():
        return [CompilerSpec("acme", "1", "acme_adaptor:Compiler", capabilities=Capabilities(
            dynamic_shapes=True, workers=False))]
    def intarsia_passes():
        return [PassSpec("fuse", "1", "graph", "acme_pass:Fuse")]
    def intarsia_split_rules():
        return [SplitRuleSpec("acme-rule", rule="acme_rule:rule")]
    def intarsia_platforms():
        return [PlatformSpec("acme", "cpu", compilers=("acme",), passes=("fuse",), priority=-1)]
"""
ADAPTOR = """
    from intarsia_eager.adaptor import EagerCompiler
    class Compiler(EagerCompiler):
        level = 1
"""
PASS = """
    class Fuse:
        level = 1
        def __init__(self, options):
            self.options = options
        def __call__(self, graph):
            return 0
        def uuid(self):
            return "1"
"""
RULE = """
    WORD = "sigmoid"
    def rule(node):
        return node.op == "call_function" and WORD in str(node.target)
"""

RUN = """
import sys
import subject_model
from tests.models import randn
x = randn(6, 4)
def run(model, **settings):
    start = begin(model, (x,), cache=sys.argv[1], dynamic={"x": {0: "n"}}, **settings)
    tell(start, start.compiled(x), same=bool(torch.equal(start.compiled(x), model(x))))
run(subject_model.Subject())
run(subject_model.Other(), compilers=["acme"], platform="acme")
run(subject_model.Other(), compilers=["eager"], split_rule=["acme-rule"], uncovered="eager")
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    site = tmp_path / "site"
    (site / "subject_package").mkdir(parents=True)
    for name, source in {
        "subject_model": MODEL, "subject_helper": HELPER, "subject_package/__init__": PACKAGE,
        "subject_package/deep": DEEP, "acme_adaptor": ADAPTOR, "acme_pass": PASS, "acme_rule": RULE,
    }.items():  # fmt: skip
        site.joinpath(f"{name}.py").write_text(textwrap.dedent(source))
    write_distribution(site, "intarsia-acme", {"acme": "acme_plugin"}, {"acme_plugin": PLUGIN})
    return site


def run(site: Path, code: str = RUN) -> Fresh:
    """Run in a process of its own that finds no code compiled before: Python goes by size and time too."""
    for cached in site.rglob("__pycache__"):
        shutil.rmtree(cached)
    return fresh(code, site.parent / "c", paths=[site])


def edit(site: Path, name: str, old: str, new: str) -> None:
    same_length_edit(site / f"{name}.py", old, new)


Edit = tuple[str, str, str]
# What is edited at once, and what the lines of the three compiles name; "" for one that must hit.
ROUNDS: list[tuple[list[Edit], list[str]]] = [
    (
        [("subject_helper", "0.25", "0.75"), ("acme_adaptor", "level = 1", "level = 2")],
        ["source of subject_helper has changed", "compiler acme source", ""],
    ),
    (
        [
            ("subject_package/deep", "by=2.5", "by=1.5"),
            ("acme_pass", "level = 1", "level = 2"),
            ("acme_rule", '"sigmoid"', '"tanh"   '),
        ],
        ["source of subject_package.deep has changed", "passes", "rule acme-rule"],
    ),
    ([("subject_model", "* 1.25", "* 1.75")], ["source of subject_model"] * 3),
]


def test_an_edited_file_misses_and_is_named_and_nothing_else_misses(site: Path) -> None:
    first = run(site)
    assert [one["warm"] for one in first.told] == [False] * 3
    assert [one["warm"] for one in run(site).told] == [True] * 3, first.told
    for edits, lines in ROUNDS:
        for change in edits:
            edit(site, *change)
        found = run(site)
        for one, line in zip(found.told, lines, strict=True):
            assert one["same"], edits
            assert one["warm"] == (not line), (edits, one["log"])
            assert line in one["plan_miss"], (edits, one["plan_miss"])
            assert not one["warnings"]
    for name, old, new in [change for edits, _ in ROUNDS for change in edits]:  # as it was
        edit(site, name, new, old)
    back = run(site)
    assert [one["warm"] for one in back.told] == [True] * 3, "the old entries are still there"
    assert [one["result"] for one in back.told] == [one["result"] for one in first.told]


def test_a_file_edited_after_the_import_is_not_taken_for_what_runs(site: Path) -> None:
    code = RUN.replace(
        "import subject_model\n",
        "import subject_model, pathlib, subject_helper, os\n"
        "if len(sys.argv) > 2:\n"
        "    path = pathlib.Path(subject_helper.__file__)\n"
        "    path.write_text(path.read_text().replace('0.25', '0.75'))\n",
    )
    shutil.rmtree(site / "__pycache__", ignore_errors=True)
    late = fresh(code, site.parent / "c", "edit", paths=[site])
    assert late.told[0]["same"], "what was imported runs"
    found = run(site)
    assert found.told[0]["same"], "and what is in the file, in the next process"
    assert found.told[0]["result"] != late.told[0]["result"]


@pytest.mark.slow
def test_an_old_compiled_file_that_python_takes_for_the_new_source_is_noticed(site: Path) -> None:
    writes = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    first = fresh(RUN, site.parent / "c", paths=[site], env=writes).told[0]
    edit(site, "subject_helper", "0.25", "0.75")
    stale = fresh(RUN, site.parent / "c", paths=[site], env=writes).told[0]
    assert stale["same"]
    assert "subject_helper has changed" in stale["plan_miss"]
    assert stale["result"] == first["result"], "Python itself runs the old code"
    renewed = run(site).told[0]
    assert renewed["same"]
    assert renewed["result"] != first["result"]
    assert "subject_helper" in renewed["plan_miss"], renewed["log"]
    assert run(site).told[0]["warm"]


GENERATED = """
import sys
from tests.models import randn
x = randn(6, 4)
body = sys.argv[2]
space = {"torch": torch}
exec("class Model(torch.nn.Module):\\n    def forward(self, x):\\n        return " + body, space)
exec("def made(x): return " + body, space)
def helped(x):
    return space_made(x) + 1
space_made = space["made"]
for model in (space["Model"](), space["made"], helped):
    start = begin(model, (x,), cache=sys.argv[1], dynamic={"x": {0: "n"}})
    tell(start, same=bool(torch.equal(start.compiled(x), model(x))))
"""


@pytest.mark.slow
def test_generated_code_is_never_found_without_tracing_and_a_changed_graph_misses(
    tmp_path: Path,
) -> None:
    root = tmp_path / "c"
    for body, hits in (("torch.sin(x)", False), ("torch.sin(x)", True), ("torch.cos(x)", False)):
        for one in fresh(GENERATED, root, body).told:
            assert one["same"]
            assert not one["warm"]
            assert (one["counts"][1] == 0) == (one["hits"] > 0)
            if hits:
                assert one["counts"][1] == 0, "its pieces are found by the captured graph"
            again = [line for line in one["log"] if "the next start has to trace again" in line]
            assert len(again) == 1, one["log"]
            assert "cannot be read" in again[0] or "means nothing in another process" in again[0]


@pytest.mark.slow
def test_generated_code_that_a_module_holds_is_compared_by_what_it_does(tmp_path: Path) -> None:
    found = [
        fresh(GENERATED, tmp_path / "c", body).told[2]  # it uses no global
        for body in ("x * 2.0", "x * 2.0", "x * 3.0", "x * 2.0")
    ]
    assert all(one["same"] for one in found)
    assert [one["warm"] for one in found] == [False, True, False, True]
    assert "code of __main__:space_made has changed" in found[2]["plan_miss"]


@pytest.mark.slow
def test_a_source_that_was_removed_is_named_and_not_taken_as_unchanged(site: Path) -> None:
    # compiled files alone, as some images ship them
    code = "import compileall, sys\ncompileall.compile_dir(sys.argv[1], quiet=1, legacy=True)\n"
    fresh(code, site)
    for source in ("subject_helper.py", "subject_model.py"):
        (site / source).unlink()
    told = [fresh(RUN, site.parent / "c", paths=[site]).told[0] for _ in range(2)]
    for one in told:
        assert one["same"]
    again = [line for line in told[1]["log"] if "the next start has to trace again" in line]
    assert told[1]["warm"] or again, told[1]["log"]
    # the same names with other code in them
    (site / "subject_helper.pyc").unlink()
    (site / "subject_helper.py").write_text("def shifted(x):\n    return x + 0.75\n")
    changed = fresh(RUN, site.parent / "c", paths=[site]).told[0]
    assert changed["same"]
    assert not changed["warm"]
    assert os.path.exists(site / "subject_model.pyc")
