from __future__ import annotations

import json
import logging
import multiprocessing
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import intarsia
from intarsia.config import load_config
from intarsia.entry_points import plugin_entries
from intarsia.errors import ConfigError, PluginError
from intarsia.host import Host, list_plugins, resolve_reference
from intarsia.interfaces import (
    Capabilities,
    Check,
    CompilerSpec,
    ConfigChange,
    Decision,
    Event,
    OpSafety,
    Option,
    PassSpec,
    PieceView,
    PlatformSpec,
    SplitRuleSpec,
    StaticGraphSpec,
    StoreSpec,
)
from intarsia.plugin_manifest import check_manifest, manifest
from tests.toys import host_in_child, write_distribution, write_good

MakeHost = Callable[..., Host]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on sys.path; modules imported from it are forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def make_host(site: Path) -> MakeHost:
    """Return a function that makes a host of what is installed in the site folder."""

    def make(*extras: object, environ: dict[str, str] | None = None, **settings: Any) -> Host:
        config = load_config(environ=environ or {}, **settings)
        return Host(config, extra_plugins=extras, entries=plugin_entries([str(site)]))

    return make


def plugin(**hooks: Any) -> SimpleNamespace:
    """Return a plugin given as an object."""
    return SimpleNamespace(
        __name__=hooks.pop("name", "toy"),
        intarsia_api_version=(1, 0),
        **{f"intarsia_{name}": hook for name, hook in hooks.items()},
    )


def states(host: Host) -> dict[str, str]:
    return {status.name: status.state for status in host.plugins}


def spec(name: str, **more: Any) -> CompilerSpec:
    return CompilerSpec(name=name, version="1", factory="nowhere:Nothing", **more)


# What is installed


def test_good_plugin_loads_and_its_compiler_is_found(site: Path, make_host: MakeHost) -> None:
    write_good(site, "acme")
    host = make_host()
    assert states(host) == {"acme": "loaded"}
    assert host.compiler("acme").factory == "acme_heavy:Compiler"
    status = host.provider(host.compiler("acme"))
    assert (status.distribution, status.version) == ("intarsia-acme", "1.0")


def test_listing_imports_no_plugin(site: Path) -> None:
    write_good(site, "acme")
    write_distribution(site, "broken", {"broken": "broken_plugin"}, {"broken_plugin": "1 / 0"})
    entries = plugin_entries([str(site)])
    config = load_config(environ={}, plugins={"block": ["acme"]})
    listed = {status.name: status for status in list_plugins(config, entries)}
    assert listed["acme"].state == "blocked"
    assert listed["acme"].error == "named by plugins.block in code"
    assert listed["broken"].state == "unloaded"
    assert "acme_plugin" not in sys.modules
    assert "broken_plugin" not in sys.modules


def test_metadata_is_read_from_the_header_only(site: Path) -> None:
    write_distribution(site, "My.Dist", {"a": "mod_a [extra]", "b": "mod_b"}, version="2.0rc1")
    found = plugin_entries([str(site)])
    assert [(entry.name, entry.module) for entry in found] == [("a", "mod_a"), ("b", "mod_b")]
    assert {(entry.distribution, entry.version) for entry in found} == {("My.Dist", "2.0rc1")}


@pytest.mark.parametrize("name", ["acme", "intarsia-acme", "Intarsia_Acme"])
def test_blocked_plugin_is_never_imported(site: Path, make_host: MakeHost, name: str) -> None:
    write_good(site, "acme")
    host = make_host(plugins={"block": [name]})
    assert states(host) == {"acme": "blocked"}
    assert "acme_plugin" not in sys.modules
    with pytest.raises(PluginError, match='plugin "acme" .* is blocked: named by plugins.block'):
        host.compiler("acme")


def test_autoload_off_leaves_only_what_is_allowed(site: Path, make_host: MakeHost) -> None:
    write_good(site, "acme")
    write_good(site, "other")
    off = {"INTARSIA_PLUGINS_AUTOLOAD": "0"}
    assert states(make_host(environ=off)) == {"acme": "blocked", "other": "blocked"}
    host = make_host(environ=off, plugins={"allow": ["acme"]})
    assert states(host) == {"acme": "loaded", "other": "blocked"}
    assert "other_plugin" not in sys.modules


def test_allow_blocks_the_others_but_never_the_built_in_ones(
    site: Path, make_host: MakeHost
) -> None:
    write_good(site, "acme")
    write_good(site, "other")
    write_good(site, "eager", "intarsia")
    host = make_host(plugins={"allow": ["acme"]})
    assert states(host) == {"eager": "loaded", "acme": "loaded", "other": "blocked"}


def test_allowed_plugin_that_is_not_installed_is_an_error(site: Path, make_host: MakeHost) -> None:
    write_good(site, "acme")
    with pytest.raises(ConfigError, match='unknown plugin "acm" in plugins.allow in code; did you'):
        make_host(plugins={"allow": ["acm"]})


# What breaks

BROKEN = {
    "import": "raise ImportError('no acme driver')",
    "oserror": "raise OSError('libacme.so')",
    "exit": "import sys; sys.exit(3)",
    "base": "raise BaseException('odd')",
    "missing": "import a_module_that_nobody_has",
    "hook": "intarsia_api_version = (1, 0)\ndef intarsia_compilers(): raise RuntimeError('in hook')",
    "lazily": "intarsia_api_version = (1, 0)\ndef intarsia_compilers():\n    yield 1 / 0",
    "record": "intarsia_api_version = (1, 0)\ndef intarsia_compilers(): return ['acme']",
    "word": """
from intarsia.interfaces import PassSpec
intarsia_api_version = (1, 0)
def intarsia_passes(): return [PassSpec("fuse", "1", "piece_aten", "acme:fuse")]
""",
    "misspelt": "intarsia_api_version = (1, 0)\ndef intarsia_compiler(): return []",
    "parameter": "intarsia_api_version = (1, 0)\ndef intarsia_event(evnt): pass",
}
ERRORS = {
    "import": "ImportError: no acme driver",
    "oserror": "OSError: libacme.so",
    "exit": "SystemExit: 3",
    "base": "BaseException: odd",
    "missing": "ModuleNotFoundError: No module named 'a_module_that_nobody_has'",
    "hook": "RuntimeError: in hook",
    "lazily": "ZeroDivisionError: division by zero",
    "record": "intarsia_compilers returned 'acme': every item must be a CompilerSpec",
    "word": """PassSpec "fuse": stage is 'piece_aten'; did you mean "piece-aten"?""",
    "misspelt": 'unknown hook "intarsia_compiler"; did you mean "intarsia_compilers"?',
    "parameter": 'hook "intarsia_event" has an unknown parameter "evnt"; did you mean "event"?',
}


@pytest.mark.parametrize("how", BROKEN)
def test_broken_plugin_that_was_only_found_is_one_warning(
    site: Path, make_host: MakeHost, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_distribution(site, "dist-bad", {"bad": "bad_plugin"}, {"bad_plugin": BROKEN[how]})
    write_good(site, "good")
    with caplog.at_level(logging.WARNING, "intarsia"):
        host = make_host()
    assert states(host) == {"bad": "failed", "good": "loaded"}
    assert host.compiler("good").name == "good"
    status = next(status for status in host.plugins if status.name == "bad")
    assert ERRORS[how] in status.error
    assert "Traceback" in status.traceback
    assert len(caplog.records) == 1
    assert 'plugin "bad" (dist-bad 1.0) is skipped' in caplog.text
    assert "Traceback" in caplog.text


@pytest.mark.parametrize("how", BROKEN)
def test_broken_plugin_that_was_asked_for_raises_from_its_own_error(
    site: Path, make_host: MakeHost, how: str
) -> None:
    write_distribution(site, "dist-bad", {"bad": "bad_plugin"}, {"bad_plugin": BROKEN[how]})
    with pytest.raises(PluginError) as caught:
        make_host().compiler("bad")
    assert ERRORS[how] in str(caught.value)
    frames = []
    step = caught.value.__cause__.__traceback__ if caught.value.__cause__ else None
    while step is not None:
        frames.append(step.tb_frame.f_code.co_filename)
        step = step.tb_next
    assert frames
    if how not in ("record", "misspelt", "parameter"):
        assert any(name.endswith("bad_plugin.py") for name in frames)
    with pytest.raises(PluginError, match="was asked for and cannot be used"):
        make_host(plugins={"allow": ["bad"]})


def test_plugin_that_fails_in_a_late_hook_leaves_nothing_behind(
    site: Path, make_host: MakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    source = """
        from intarsia.interfaces import CompilerSpec
        intarsia_api_version = (1, 0)
        def intarsia_compilers():
            return [CompilerSpec(name="half", version="1", factory="x:y")]
        def intarsia_doctor():
            raise RuntimeError("late")
        def intarsia_event(event):
            raise AssertionError("must not be called")
    """
    write_distribution(site, "half-dist", {"half": "half_plugin"}, {"half_plugin": source})
    host = make_host()
    assert host.compilers() == ()
    caplog.clear()
    host.emit(Event("done", "m"))
    assert caplog.records == []


def test_interrupt_is_not_swallowed(site: Path, make_host: MakeHost) -> None:
    write_distribution(
        site, "d", {"p": "interrupting"}, {"interrupting": "raise KeyboardInterrupt"}
    )
    with pytest.raises(KeyboardInterrupt):
        make_host()


@pytest.mark.parametrize(
    ("version", "state"),
    [
        ((1, 0), "loaded"),
        ((1, 1), "incompatible"),
        ((2, 0), "incompatible"),
        ((0, 9), "incompatible"),
        ("1.0", "incompatible"),
        (None, "incompatible"),
    ],
)
def test_api_version_decides(site: Path, make_host: MakeHost, version: Any, state: str) -> None:
    source = "" if version is None else f"intarsia_api_version = {version!r}"
    write_distribution(site, "d", {"versioned": "versioned_plugin"}, {"versioned_plugin": source})
    host = make_host()
    assert states(host) == {"versioned": state}
    if state == "incompatible":
        assert "this intarsia speaks 1.0" in host.plugins[0].error
        with pytest.raises(PluginError, match="is incompatible"):
            host.compiler("versioned")


def test_unknown_compiler_names_the_nearest_and_where_it_was_asked_for(
    site: Path, make_host: MakeHost
) -> None:
    write_good(site, "inductor")
    host = make_host(environ={"INTARSIA_COMPILERS": "inductr"})
    with pytest.raises(ConfigError) as caught:
        host.compiler("inductr")
    assert str(caught.value) == (
        'unknown compiler "inductr" in "compilers" (INTARSIA_COMPILERS); '
        'did you mean "inductor"? Known: inductor'
    )


def test_unknown_compiler_tells_of_plugins_that_did_not_load(
    site: Path, make_host: MakeHost
) -> None:
    write_distribution(site, "suite", {"suite": "suite_plugin"}, {"suite_plugin": "1 / 0"})
    with pytest.raises(ConfigError, match='may bring it: plugin "suite" .*ZeroDivisionError'):
        make_host().compiler("acme")


# Names


def test_two_plugins_of_one_name_are_an_error_that_names_both(
    site: Path, make_host: MakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    write_good(site, "acme", "dist-one")
    write_distribution(site, "dist-two", {"acme": "acme_two"}, {"acme_two": "1 / 0"})
    host = make_host()
    assert [status.state for status in host.plugins] == ["failed", "failed"]
    assert "acme_plugin" not in sys.modules
    with pytest.raises(PluginError) as caught:
        host.compiler("acme")
    assert "dist-one 1.0" in str(caught.value)
    assert "dist-two 1.0" in str(caught.value)
    assert 'prefer = { acme = "dist-one" }' in str(caught.value)


def test_prefer_settles_a_clash_of_plugins(site: Path, make_host: MakeHost) -> None:
    write_good(site, "acme", "dist-one")
    write_distribution(site, "dist-two", {"acme": "acme_two"}, {"acme_two": "1 / 0"})
    host = make_host(plugins={"prefer": {"acme": "dist_one"}})
    assert [status.state for status in host.plugins] == ["loaded", "shadowed"]
    assert host.compiler("acme").name == "acme"
    blocked = make_host(plugins={"block": ["dist-two"]})
    assert [status.state for status in blocked.plugins] == ["loaded", "blocked"]


def test_two_versions_of_one_distribution_are_an_error_that_names_both(
    tmp_path: Path, site: Path
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    write_distribution(old, "acme-dist", {"acme": "acme_plugin"}, version="1.0")
    write_distribution(new, "acme_dist", {"acme": "acme_plugin"}, version="2.0")
    entries = plugin_entries([str(old), str(new)])
    host = Host(load_config(environ={}), entries=entries)
    with pytest.raises(PluginError) as caught:
        host.compiler("acme")
    for part in ("two versions of one distribution", f"1.0 in {old}", f"2.0 in {new}"):
        assert part in str(caught.value)


def test_distribution_that_is_visible_twice_in_one_version_loads_once(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write_distribution(tmp_path / folder, "acme", {"acme": "acme_plugin"})
    assert len(plugin_entries([str(tmp_path / "one"), str(tmp_path / "two")])) == 1


def test_two_compilers_of_one_name_are_an_error_that_names_both(
    make_host: MakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    one = plugin(name="one", compilers=lambda: [spec("x"), spec("only-one")])
    two = plugin(name="two", compilers=lambda: [spec("x")])
    host = make_host(one, two)
    with pytest.raises(PluginError, match='compiler "x" is claimed by plugin "one".*plugin "two"'):
        host.compiler("x")
    assert host.compiler("only-one").name == "only-one"
    assert "is claimed by" in caplog.text


def test_prefer_settles_a_clash_of_compilers(site: Path, make_host: MakeHost) -> None:
    write_good(site, "acme")
    mine = plugin(compilers=lambda: [spec("acme")])
    host = make_host(mine, plugins={"prefer": {"acme": "code"}})
    assert host.provider(host.compiler("acme")).distribution == "code"
    assert states(host) == {"acme": "shadowed", "toy": "loaded"}


def test_clash_of_passes_is_never_silent(make_host: MakeHost) -> None:
    fuse = PassSpec(name="fuse", version="1", stage="piece", factory="x:y")
    one = plugin(name="one", passes=lambda: [fuse])
    two = plugin(name="two", passes=lambda: [fuse])
    assert make_host(one).passes() == (fuse,)
    with pytest.raises(PluginError, match='pass "fuse" is claimed by'):
        make_host(one, two).passes()


# Plugins given in code


def test_plugin_given_as_object_brings_all_kinds(make_host: MakeHost) -> None:
    given = plugin(
        compilers=lambda: [spec("c")],
        platforms=lambda: [PlatformSpec(name="p", device_type="cpu")],
        split_rules=lambda: [SplitRuleSpec("r", bool)],
        op_safety=lambda: [OpSafety("ns::op", "safe"), OpSafety("ns::other", "break")],
        stores=lambda: [StoreSpec("toy", "x:y")],
        doctor=lambda: [Check("driver", lambda: Decision(True))],
        pass_managers=lambda: None,
    )
    host = make_host(given)
    assert host.platform("p").device_type == "cpu"
    assert host.split_rule("r").rule is bool
    assert [safety.op for safety in host.op_safety()] == ["ns::op", "ns::other"]
    assert host.store("toy").scheme == "toy"
    assert [check.name for check in host.doctor_checks()] == ["driver"]
    assert host.pass_managers() == ()


def test_plugin_given_in_code_that_fails_raises(make_host: MakeHost) -> None:
    def broken() -> None:
        raise RuntimeError("broken")

    with pytest.raises(PluginError, match='plugin "toy" .*RuntimeError: broken') as caught:
        make_host(plugin(compilers=broken))
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_hook_wrappers_are_refused(make_host: MakeHost) -> None:
    import pluggy

    def wrapper() -> Any:
        return (yield)

    marked = pluggy.HookimplMarker("intarsia")(wrapper=True)(wrapper)
    with pytest.raises(PluginError, match="wrappers are not supported"):
        make_host(plugin(compilers=marked))


def test_hosts_live_side_by_side(site: Path, make_host: MakeHost) -> None:
    write_good(site, "acme")
    first, second = make_host(), make_host(plugins={"block": ["acme"]})
    assert (states(first), states(second)) == ({"acme": "loaded"}, {"acme": "blocked"})
    assert first.compiler("acme") is not None


# Availability and options


def test_installed_without_hardware_is_an_answer_of_its_own(make_host: MakeHost) -> None:
    absent = spec("x", available=lambda: Decision(False, "no device"), install_hint="Plug it in")
    host = make_host(plugin(compilers=lambda: [absent]))
    with pytest.raises(PluginError) as caught:
        host.compiler("x")
    assert str(caught.value) == (
        'compiler "x" is installed (code -), but cannot be used here: no device. Plug it in'
    )
    assert host.compiler("x", usable=False) is absent


def test_broken_availability_check_raises(make_host: MakeHost) -> None:
    host = make_host(plugin(compilers=lambda: [spec("x", available="nowhere_at_all:check")]))
    with pytest.raises(PluginError, match="nowhere_at_all:check.*cannot be loaded"):
        host.compiler("x")
    host = make_host(plugin(compilers=lambda: [spec("x", available=lambda: "yes")]))
    with pytest.raises(PluginError, match="returned 'yes', not a Decision"):
        host.compiler("x")


def test_options_are_checked_and_defaults_filled_in(make_host: MakeHost) -> None:
    options = {"max-autotune": Option(False, bool), "level": Option(1, int)}
    toy = plugin(compilers=lambda: [spec("x", options=options)])
    host = make_host(toy, environ={"INTARSIA_OPTIONS": "x.max-autotune=true"})
    assert host.options(host.compiler("x")) == {"max_autotune": True, "level": 1}
    with pytest.raises(ConfigError, match='unknown option "levl" in options of "x".*"level"'):
        host.options(host.compiler("x"), {"levl": 1})
    wrong = make_host(toy, environ={"INTARSIA_OPTIONS": "x.level='a'"})
    with pytest.raises(ConfigError, match=r'option "level" .*INTARSIA_OPTIONS.*expected int, got'):
        wrong.options(wrong.compiler("x"))


def test_the_option_weights_says_whether_a_compiler_bakes_them(make_host: MakeHost) -> None:
    toy = plugin(compilers=lambda: [spec("x", options={"weights": Option("input", str)})])
    made = {
        chosen: make_host(toy, options={"x": {"weights": chosen}}) for chosen in ("input", "bake")
    }
    for chosen, host in made.items():
        assert host.compiler("x").capabilities.weights == chosen
        assert host.provider(host.compiler("x"))
    with pytest.raises(ConfigError, match='x has no weights = "melt"'):
        make_host(toy, options={"x": {"weights": "melt"}})


def test_a_compiler_and_a_backend_of_one_name_share_a_table_of_options(make_host: MakeHost) -> None:
    backend = StaticGraphSpec("x", object, options={"slots": Option(4, int)})
    toy = plugin(
        compilers=lambda: [spec("x", options={"level": Option(1, int)})],
        static_graphs=lambda: [backend],
    )
    host = make_host(toy, options={"x": {"level": 3, "slots": 5}})
    assert host.options(host.compiler("x")) == {"level": 3}
    assert host.options(host.static_graph("x")) == {"slots": 5}
    host.check_options()
    wrong = make_host(toy, options={"x": {"slot": 5}})
    with pytest.raises(ConfigError, match='unknown option "slot" in options of "x"'):
        wrong.check_options()


def test_an_option_that_does_not_exist_is_an_error_before_another_compiler_is_asked() -> None:
    toy = plugin(compilers=lambda: [spec("x", options={"level": Option(1, int)})])
    config = load_config(
        None, environ={}, compilers=["x", "eager"], options={"x": {"levle": 2}}, cache=False
    )
    with pytest.raises(ConfigError, match='unknown option "levle" in options of "x".*"level"'):
        intarsia.compile(
            lambda x: x + 1, (torch.ones(2),), config=config, host=Host(config, extra_plugins=[toy])
        )


def test_heavy_part_is_loaded_when_it_is_needed(site: Path) -> None:
    site.joinpath("heavy_part.py").write_text("class A:\n    b = 7\n")
    assert "heavy_part" not in sys.modules
    assert resolve_reference("heavy_part:A.b") == 7
    assert resolve_reference(len) is len


@pytest.mark.parametrize("text", ["no_such_module:x", "json:no_such_name", "json", ":x", "json:"])
def test_reference_that_leads_nowhere_is_an_error(text: str) -> None:
    with pytest.raises(PluginError, match=f"the toy names '{text}'"):
        resolve_reference(text, owner="the toy")


# Choosing


def platforms(*specs: PlatformSpec) -> SimpleNamespace:
    return plugin(platforms=lambda: specs)


def test_platform_follows_the_device_and_then_the_priority(make_host: MakeHost) -> None:
    host = make_host(
        platforms(
            PlatformSpec(name="cpu", device_type="cpu"),
            PlatformSpec(name="old", device_type="acme", priority=1),
            PlatformSpec(name="new", device_type="acme", priority=2),
        )
    )
    assert host.choose_platform("cpu").name == "cpu"
    assert host.choose_platform("acme").name == "new"
    assert host.choose_platform(None).name == "new"


def test_device_without_platform_never_becomes_another_device(make_host: MakeHost) -> None:
    absent = PlatformSpec(
        name="acme", device_type="acme", available=lambda: Decision(False, "no driver")
    )
    host = make_host(platforms(PlatformSpec(name="cpu", device_type="cpu"), absent))
    with pytest.raises(PluginError, match='for device type "acme": platform "acme": no driver'):
        host.choose_platform("acme")
    with pytest.raises(PluginError, match='for device type "zap": installed platforms: acme, cpu'):
        host.choose_platform("zap")


def test_failed_plugin_is_named_where_its_platform_is_missing(
    site: Path, make_host: MakeHost
) -> None:
    write_distribution(site, "d", {"acme": "acme_broken"}, {"acme_broken": "1 / 0"})
    with pytest.raises(PluginError, match='plugin "acme" .d 1.0. failed: ZeroDivisionError'):
        make_host().choose_platform("acme")


def test_equal_platforms_and_clashes_must_be_settled(make_host: MakeHost) -> None:
    one = PlatformSpec(name="one", device_type="acme")
    two = PlatformSpec(name="two", device_type="acme")
    with pytest.raises(ConfigError, match="equally good"):
        make_host(platforms(one, two)).choose_platform("acme")
    assert make_host(platforms(one, two), platform="two").choose_platform("acme") is two
    other = plugin(name="other", platforms=lambda: [one])
    with pytest.raises(PluginError, match='platform "one" is claimed by'):
        make_host(platforms(one), other).choose_platform(None)


def test_plugin_may_choose_the_platform(make_host: MakeHost) -> None:
    specs = [PlatformSpec(name=name, device_type="acme") for name in ("one", "two")]
    asked: list[Any] = []

    def choose(device_type: str | None, available: Any) -> str | None:
        asked.append((device_type, [item.name for item in available]))
        return "two"

    host = make_host(plugin(platforms=lambda: specs, choose_platform=choose))
    assert host.choose_platform("acme").name == "two"
    assert asked == [("acme", ["one", "two"])]


def test_plugin_that_fails_while_choosing_raises(make_host: MakeHost) -> None:
    def choose() -> str:
        raise RuntimeError("cannot choose")

    cpu = PlatformSpec(name="cpu", device_type="cpu")
    host = make_host(plugin(platforms=lambda: [cpu], choose_platform=choose))
    with pytest.raises(PluginError, match='plugin "toy" failed in intarsia_choose_platform'):
        host.choose_platform("cpu")


def test_built_in_plugin_is_asked_last(site: Path, make_host: MakeHost) -> None:
    for name, distribution in (("eager", "intarsia"), ("acme", "a-dist")):
        source = f"""
            intarsia_api_version = (1, 0)
            def intarsia_choose_compiler(piece):
                return ["{name}"]
        """
        write_distribution(site, distribution, {name: f"{name}_c"}, {f"{name}_c": source})
    piece = PieceView(0, "p", "compiled", (), ("cpu",))
    cpu = PlatformSpec(name="cpu", device_type="cpu")
    assert make_host().choose_compiler(piece, cpu, ()) == ("acme",)
    assert make_host(plugins={"block": ["acme"]}).choose_compiler(piece, cpu, ()) == ("eager",)
    assert make_host(plugins={"block": ["acme", "eager"]}).choose_compiler(piece, cpu, ()) is None


def test_plugin_adjusts_settings_that_the_user_left_alone(make_host: MakeHost) -> None:
    def adjust(traits: dict[str, str]) -> list[ConfigChange] | None:
        small = traits["memory"] == "small"
        return [ConfigChange("uncovered", "eager", "no room")] if small else None

    host = make_host(plugin(adjust_config=adjust))
    config, changes = host.adjust_config({"memory": "small"})
    assert (config.config.uncovered, config.origin("uncovered")) == ("eager", "plugin toy")
    assert [(name, change.reason) for name, change in changes] == [("toy", "no room")]
    assert host.adjust_config({"memory": "large"}) == (host.config, ())
    with pytest.raises(ConfigError, match='plugin "toy" wants to change "uncovered"'):
        make_host(plugin(adjust_config=adjust), uncovered="pad").adjust_config({"memory": "small"})


def test_failing_event_hook_is_logged_and_stops_nothing(
    make_host: MakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []

    def broken(event: Event) -> None:
        raise RuntimeError("broken listener")

    host = make_host(
        plugin(name="first", event=lambda event: seen.append(event.kind)),
        plugin(name="second", event=broken),
    )
    host.emit(Event("done", "model"))
    assert seen == ["done"]
    assert 'plugin "second" failed in intarsia_event' in caplog.text


def test_record_defaults_are_safe() -> None:
    # A compiler that claims nothing is asked for nothing.
    assert spec("x").capabilities == Capabilities()
    assert not Capabilities().dynamic_shapes


# Other processes


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_child_process_has_the_same_plugins_or_names_the_difference(
    site: Path, make_host: MakeHost, method: str
) -> None:
    write_good(site, "acme")
    host = make_host(boxes={"t": [4]})
    paths = [str(site)]
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        same = pool.submit(host_in_child, host.config, manifest(host), paths)
        assert same.result(60) == ["acme"]
        other = {"gone": {"distribution": "gone-dist", "version": "3"}} | manifest(host)
        other["acme"] = other["acme"] | {"version": "0.9"}
        wrong = pool.submit(host_in_child, host.config, other, paths)
        with pytest.raises(PluginError) as caught:
            wrong.result(60)
    assert 'plugin "acme" (intarsia-acme 0.9) is version 1.0 here' in str(caught.value)
    assert 'plugin "gone" (gone-dist 3) is not installed here' in str(caught.value)


def test_plugin_that_is_blocked_or_broken_here_is_a_difference(
    site: Path, make_host: MakeHost
) -> None:
    write_good(site, "acme")
    expected = manifest(make_host())
    with pytest.raises(PluginError, match='"acme" .* is blocked here: named by plugins.block'):
        check_manifest(make_host(plugins={"block": ["acme"]}), expected)
    check_manifest(make_host(), {})


# Imports

QUIET = """
    import json, sys
    import intarsia, intarsia.config, intarsia.host, intarsia.hookspecs, intarsia.entry_points
    from intarsia.host import list_plugins
    list_plugins()
    roots = {name.split(".")[0] for name in sys.modules}
    print(json.dumps(sorted(roots & {"torch", "sympy", "numpy", "rich", "intarsia_eager"})))
"""


def test_importing_and_listing_import_no_torch_and_no_plugin() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(QUIET)], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == []


def test_public_names_are_found_lazily() -> None:
    import intarsia

    assert intarsia.API_VERSION == (1, 0)
    assert "compile" in dir(intarsia)
    with pytest.raises(AttributeError, match="no attribute 'compil'"):
        _ = intarsia.compil
