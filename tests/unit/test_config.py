from __future__ import annotations

import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intarsia.config import (
    Config,
    Level,
    PieceMatch,
    Plugins,
    Route,
    load_config,
    search_upward,
)
from intarsia.config.sources import variables
from intarsia.errors import ConfigError

FULL = """
platform = "cpu"
compilers = ["inductor", "eager"]
split-at = ["torch.nn.functional.scaled_dot_product_attention", "acme::paged_attention", ".sigmoid"]
boxes = { tokens = [8, 256, 8192] }
sizes = { tokens = [4, 2, 1] }
uncovered = "pad"
static-graph = "piecewise"
[[route]]
piece = { contains = "aten::_scaled_mm", min-nodes = 3 }
compilers = ["acme", "inductor"]
[options.inductor]
max-autotune = false
[plugins]
block = ["other"]
"""


def write(folder: Path, text: str, name: str = "intarsia.toml") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def fail(folder: Path, text: str, name: str = "intarsia.toml") -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(write(folder, text, name), environ={})
    return str(caught.value).replace(f"{folder}{os.sep}", "")


def test_file_sets_every_form_of_value(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, FULL), environ={}).config
    assert config.compilers == ("inductor", "eager")
    assert config.boxes == {"tokens": (8, 256, 8192)}
    assert config.sizes == {"tokens": (1, 2, 4)}
    match = PieceMatch(contains="aten::_scaled_mm", min_nodes=3)
    assert config.routes == (Route(piece=match, compilers=("acme", "inductor")),)
    assert config.options == {"inductor": {"max_autotune": False}}
    assert config.plugins == Plugins(block=("other",))


def test_route_and_box_are_written_in_the_singular(tmp_path: Path) -> None:
    text = FULL.replace("boxes =", "# boxes =") + "[[box]]\ntokens = [1, 8]\nbatch = 4\n"
    config = load_config(write(tmp_path, text), environ={}).config
    assert len(config.routes) == 1
    assert config.box == ({"tokens": (1, 8), "batch": (4, 4)},)


def test_each_layer_wins_over_the_one_below(tmp_path: Path) -> None:
    file = write(
        tmp_path, 'uncovered = "eager"\ncheck = "always"\nstrict = true\nartifact = "package"'
    )
    environ = {"INTARSIA_CHECK": "values", "INTARSIA_STRICT": "0", "INTARSIA_ARTIFACT": "tiered"}
    resolved = load_config(file, environ=environ, artifact="quick")
    resolved = resolved.with_layer({"uncovered": "pad", "static_graph": "full"}, "platform acme")
    assert resolved.config.static_graph == "full"
    assert resolved.origin("static_graph") == "platform acme"
    assert (resolved.config.uncovered, resolved.origin("uncovered")) == ("eager", str(file))
    assert (resolved.config.check, resolved.origin("check")) == ("values", "INTARSIA_CHECK")
    assert resolved.config.strict is False
    assert (resolved.config.artifact, resolved.origin("artifact")) == ("quick", "code")
    assert resolved.origin("dedupe") == "default"


def test_tables_merge_key_by_key_and_keep_each_origin(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        '[tool.intarsia.options.acme]\nlevel = 1\nfast-math = true\n[tool.intarsia.plugins]\nblock = ["a"]',
        "pyproject.toml",
    )
    environ = {"INTARSIA_OPTIONS": "acme.level=2", "INTARSIA_PLUGINS_AUTOLOAD": "false"}
    resolved = load_config(file, environ=environ, options={"other": {"x": "y"}})
    options = {"acme": {"level": 2, "fast_math": True}, "other": {"x": "y"}}
    assert resolved.config.options == options
    rows = {key: (value, origin) for key, value, origin in resolved.rows()}
    assert rows["options.acme.level"] == (2, "INTARSIA_OPTIONS")
    assert rows["options.acme.fast-math"] == (True, f"{file} [tool.intarsia.options.acme]")
    assert rows["options.other.x"] == ("y", "code")
    assert rows["plugins.block"] == (["a"], f"{file} [tool.intarsia.plugins]")
    assert rows["plugins.autoload"] == (False, "INTARSIA_PLUGINS_AUTOLOAD")


def test_unknown_key_names_file_table_and_nearest(tmp_path: Path) -> None:
    text = fail(tmp_path, '[tool.intarsia]\ncompiler = ["eager"]', "pyproject.toml")
    assert text == (
        'unknown key "compiler" in pyproject.toml [tool.intarsia]; did you mean "compilers"?'
    )
    text = fail(tmp_path, "[plugins]\nblocked = []")
    assert text == 'unknown key "blocked" in intarsia.toml [plugins]; did you mean "block"?'


def test_key_in_snake_case_is_corrected_in_a_file(tmp_path: Path) -> None:
    assert 'did you mean "split-at"?' in fail(tmp_path, "split_at = []")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("compilers = 3", '"compilers" in intarsia.toml: expected a list of names, got 3'),
        ('uncovered = "genral"', 'expected one of "general", "pad", "eager", "error"'),
        ("strict = 1", "expected true or false, got 1"),
        ("boxes = { tokens = [8, 4] }", "rising"),
        ("boxes = { tokens = [0, 4] }", "from 1"),
        ("max-tasks-warning = -1", "0 or more"),
        ("dynamic-ranges = { tokens = [9, 2] }", "[lowest, highest]"),
        ("plugins = 3", '"plugins" in intarsia.toml: expected a table, got 3'),
        ("route = [{ piece = { min_nodes = 2 } }]", 'did you mean "min-nodes"?'),
        ('route = [{ piece = { index = "x" } }]', '"index": expected a whole number'),
        ("executor = 1", "from Python only"),
    ],
)
def test_wrong_value_names_key_and_what_was_expected(
    tmp_path: Path, text: str, expected: str
) -> None:
    assert expected in fail(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    [
        'compilers = ["acme.adaptor:Compiler"]',
        'split-at = ["acme.rules:cut"]',
        'split-rule = "acme.rules:cut"',
        'pass-manager = "acme:Manager"',
        'static-graph-backend = "acme:Graphs"',
        'route = [{ compilers = ["acme:Compiler"] }]',
        'passes = { enable = ["acme:Pass"] }',
    ],
)
def test_file_cannot_name_python_code(tmp_path: Path, text: str) -> None:
    assert "accepted from code and plugins only" in fail(tmp_path, text)


def test_variable_cannot_name_python_code_but_code_can() -> None:
    with pytest.raises(ConfigError, match="accepted from code and plugins only") as caught:
        load_config(environ={"INTARSIA_SPLIT_AT": "acme.rules:cut"})
    assert "INTARSIA_SPLIT_AT" in str(caught.value)
    assert load_config(environ={}, split_at=["acme.rules:cut"]).config.split_at == (
        "acme.rules:cut",
    )


@pytest.mark.parametrize("value", ["dask", 4, object()])
def test_what_is_no_executor_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=r'"executor".*expected a `concurrent.futures.Executor`'):
        load_config(environ={}, executor=value)


def test_code_takes_functions_and_rules() -> None:
    config = load_config(environ={}, split_at=[json.dumps, "ns::op"]).config
    assert config.split_at == (json.dumps, "ns::op")
    assert config.to_dict()["split_at"] == ["json:dumps", "ns::op"]
    assert load_config(environ={}, split_at=json.dumps).config.split_at == (json.dumps,)


@pytest.mark.parametrize(
    ("name", "text", "key", "value"),
    [
        ("COMPILERS", "inductor, eager", "compilers", ("inductor", "eager")),
        ("COMPILERS", '["inductor"]', "compilers", ("inductor",)),
        ("BOXES", "tokens=8,256,8192", "boxes", {"tokens": (8, 256, 8192)}),
        ("BOXES", "{ tokens = [8] }", "boxes", {"tokens": (8,)}),
        ("SIZES", "a=1,2; b=3", "sizes", {"a": (1, 2), "b": (3,)}),
        ("STRICT", "1", "strict", True),
        ("STRICT", "TRUE", "strict", True),
        ("NAME", "7", "name", "7"),
        ("NAME", '"quoted"', "name", "quoted"),
        ("CACHE", "/some/path", "cache", "/some/path"),
        ("CACHE", "true", "cache", True),
        ("DUMP", "graphs", "dump", "graphs"),
        ("MAX_TASKS_WARNING", "9", "max_tasks_warning", 9),
        ("BOX", "[{ t = [1, 2] }]", "box", ({"t": (1, 2)},)),
        ("ROUTES", '[{ compilers = ["eager"] }]', "routes", (Route(compilers=("eager",)),)),
        ("OPTIONS", "{ acme = { a-b = 1 } }", "options", {"acme": {"a_b": 1}}),
    ],
)
def test_variable_is_read(name: str, text: str, key: str, value: object) -> None:
    config = load_config(environ={f"INTARSIA_{name}": text}).config
    assert getattr(config, key) == value


def test_table_in_a_variable_reaches_nested_keys() -> None:
    environ = {"INTARSIA_PLUGINS_PREFER": "inductor=acme-dist", "INTARSIA_PASSES_LIMIT": "3"}
    config = load_config(environ=environ).config
    assert config.plugins.prefer == {"inductor": "acme-dist"}
    assert config.passes.limit == 3


def test_unknown_variable_names_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(environ={"INTARSIA_COMPILER": "eager"})
    assert str(caught.value) == (
        'unknown variable "INTARSIA_COMPILER" in the environment; did you mean "INTARSIA_COMPILERS"?'
    )


def test_wrong_variable_names_itself() -> None:
    with pytest.raises(ConfigError, match='wrong value for "boxes" in INTARSIA_BOXES: expected'):
        load_config(environ={"INTARSIA_BOXES": "tokens"})


def test_reserved_and_empty_variables_are_no_settings() -> None:
    environ = {"INTARSIA_LOG": "debug", "INTARSIA_CHECK": "1", "INTARSIA_COMPILERS": " "}
    assert load_config(environ=environ).config == Config()


def test_variable_cannot_add_keys_by_a_line_break() -> None:
    with pytest.raises(ConfigError, match="INTARSIA_MAX_TASKS_WARNING"):
        load_config(environ={"INTARSIA_MAX_TASKS_WARNING": "1\nstrict = true"})


def test_library_reads_no_file_unless_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, "strict = true")
    folder = tmp_path / "deep" / "down"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert load_config(environ={}).config.strict is False
    assert load_config(environ={}, search=True).config.strict is True
    assert load_config(environ={"INTARSIA_CONFIG": str(file)}).config.strict is True
    assert load_config({"dedupe": False}, environ={"INTARSIA_CONFIG": str(file)}).config.strict


def test_search_takes_the_nearest_file_that_has_settings(tmp_path: Path) -> None:
    outer = write(tmp_path, "[tool.intarsia]\nstrict = true", "pyproject.toml")
    inner = tmp_path / "inner"
    inner.mkdir()
    write(inner, "[tool.other]\nx = 1", "pyproject.toml")
    assert search_upward(inner) == outer.resolve()


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("pyproject.toml", "[tool.other]", r"no table \[tool.intarsia\]"),
        ("intarsia.toml", "not toml", "is not TOML"),
        ("absent", None, "cannot be read: No such file"),
    ],
)
def test_file_that_cannot_be_used_is_an_error(
    tmp_path: Path, name: str, text: str | None, expected: str
) -> None:
    file = tmp_path / name if text is None else write(tmp_path, text, name)
    with pytest.raises(ConfigError, match=expected):
        load_config(file, environ={})


def test_config_record_counts_as_code_where_it_differs() -> None:
    resolved = load_config(Config(strict=True, plugins=Plugins(block=["x"])), environ={})
    assert resolved.origin("strict") == resolved.origin("plugins.block") == "code"
    assert resolved.origin("plugins.allow") == resolved.origin("check") == "default"
    assert resolved.config.plugins.block == ("x",)


def test_config_record_checks_its_values() -> None:
    with pytest.raises(ConfigError, match='wrong value for "uncovered" in Config'):
        Config(uncovered="sometimes")


def test_resolved_settings_take_more_overrides() -> None:
    first = load_config({"strict": True}, environ={"INTARSIA_CHECK": "always"})
    second = load_config(first, environ={}, strict=False, name=None)
    assert (second.config.strict, second.config.check, second.config.name) == (
        False,
        "always",
        None,
    )


def test_unknown_override_is_an_error() -> None:
    with pytest.raises(ConfigError, match='unknown key "boxs" in code; did you mean "boxes"'):
        load_config(environ={}, boxs={})


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"enabled": []}, 'unknown key "passes.enabled" in code; did you mean "passes.enable"?'),
        ({"limit": "three"}, 'wrong value for "passes.limit" in code: expected a whole number'),
    ],
)
def test_a_wrong_key_of_a_table_is_named_with_its_table(table: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        load_config(environ={}, passes=table)


def test_boxes_and_box_together_are_an_error_that_names_both_places(tmp_path: Path) -> None:
    file = write(tmp_path, "boxes = { t = [8] }")
    with pytest.raises(ConfigError, match=r'both "box" and "boxes".*box in code, boxes in .*toml'):
        load_config(file, environ={}, box=[{"t": (1, 4)}])


def test_plugin_change_shows_and_never_overrides_the_user() -> None:
    resolved = load_config(environ={"INTARSIA_UNCOVERED": "error"})
    changed = resolved.with_change("options.acme.fast", True, plugin="acme")
    changed = changed.with_change("check", "always", plugin="acme")
    assert changed.config.options == {"acme": {"fast": True}}
    assert (changed.origin("check"), changed.level("check")) == ("plugin acme", Level.PLUGIN)
    assert changed.with_change("uncovered", "error", plugin="acme").config.uncovered == "error"
    with pytest.raises(ConfigError) as caught:
        changed.with_change("uncovered", "eager", plugin="acme")
    assert str(caught.value) == (
        "plugin \"acme\" wants to change \"uncovered\" to 'eager': it was set to 'error' in "
        'INTARSIA_UNCOVERED. Remove the setting, or block the plugin: [plugins] block = ["acme"]'
    )


def test_settings_are_plain_data_and_can_travel() -> None:
    resolved = load_config(
        environ={"INTARSIA_ROUTES": '[{ piece = { kind = "splitting" }, compilers = ["a"] }]'},
        boxes={"t": [4]},
    )
    data = json.loads(json.dumps(resolved.config.to_dict()))
    assert load_config(data, environ={}).config == resolved.config
    assert pickle.loads(pickle.dumps(resolved.config)) == resolved.config


def test_environment_is_left_alone() -> None:
    before = dict(os.environ)
    load_config(environ={"INTARSIA_STRICT": "1"})
    load_config(strict=True)
    assert dict(os.environ) == before


def test_every_variable_is_unique() -> None:
    found = variables()
    assert found["INTARSIA_SPLIT_AT"][0] == ("split_at",)
    assert found["INTARSIA_PLUGINS_BLOCK"][0] == ("plugins", "block")
    assert len({path for path, _ in found.values()}) == len(found)


@given(st.text(max_size=40), st.sampled_from(sorted(variables())))
def test_any_text_in_a_variable_is_taken_or_refused_as_config_error(text: str, name: str) -> None:
    try:
        load_config(environ={name: text})
    except ConfigError as error:
        assert name in str(error)  # noqa: PT017  # either outcome is fine
