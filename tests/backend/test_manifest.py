"""The resolved plan goes to another process, which makes the same one or names the difference."""

from __future__ import annotations

import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import intarsia
from tests.models import by_name, randn
from tests.rank_cases import PLUGIN
from tests.toys import write_distribution

pytestmark = pytest.mark.timeout(120)
CHOSEN: dict[str, Any] = {
    "compilers": ["acme", "eager"],
    "cache": False,
    "dynamic": {"x": {0: "n"}},
}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    plugin = {"acme_plugin": PLUGIN}
    write_distribution(tmp_path / "site", "intarsia-acme", {"acme": "acme_plugin"}, plugin)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "acme_plugin", raising=False)
    return tmp_path / "site"


def compiled(**settings: Any) -> Any:
    model = by_name("attributes").build()
    return intarsia.compile(model, (randn(6, 4),), **{**CHOSEN, **settings})


def in_child(connection: Any, path: list[str], text: str, settings: dict[str, Any]) -> None:
    """Run in a spawned process: compile as the manifest says, and send the numbers or the error."""
    sys.path[:] = path
    try:
        made = compiled(expect=json.loads(text), **settings)
        connection.send(made(randn(5, 4, seed=2)).tolist())
    except intarsia.IntarsiaError as error:
        connection.send(f"{type(error).__name__}: {error}")


def sent(method: str, text: str, path: list[str], **settings: Any) -> Any:
    context = multiprocessing.get_context(method)
    here, there = context.Pipe()
    process = context.Process(target=in_child, args=(there, path, text, settings))
    process.start()
    try:
        assert here.poll(100)
        return here.recv()
    finally:
        process.kill()
        process.join()


def test_what_differs_is_named(site: Path) -> None:
    text = json.loads(json.dumps(compiled().manifest()))
    compiled(expect=text)
    with pytest.raises(intarsia.MismatchError, match="setting check: .first. in .* and .values"):
        compiled(expect=text, check="values")
    with pytest.raises(intarsia.MismatchError, match="compilers: "):
        compiled(expect=text, compilers=["eager"])
    import acme_plugin

    acme_plugin.BROKEN = True
    told = r"compiler of piece 0: acme in the manifest's process and eager in this one"
    with pytest.raises(intarsia.MismatchError, match=told):
        compiled(expect=text)


def test_another_version_of_a_plugin_is_named(site: Path) -> None:
    text = compiled().manifest()
    text["setup"]['plugin "acme"'] = "intarsia-acme 0.9"
    told = (
        'plugin "acme": intarsia-acme 0.9 in the manifest.s process and intarsia-acme 1.0 in this'
    )
    with pytest.raises(intarsia.MismatchError, match=told):
        compiled(expect=text)


def test_torch_compile_compares_what_is_asked_for(site: Path) -> None:
    text = compiled(cache=False, dynamic={}).manifest()
    text["setup"].pop("model")  # the graph is not the model
    model, x = by_name("attributes").build(), randn(6, 4)
    options = {"compilers": ["acme", "eager"], "cache": False, "expect": text}
    with torch.no_grad():
        function = torch.compile(model, backend="intarsia", options={**options, "check": "values"})
        with pytest.raises(Exception, match="setting check: "):
            function(x)


@pytest.mark.parametrize("method", ["spawn", pytest.param("forkserver", marks=pytest.mark.slow)])
def test_a_child_makes_the_same_plan_or_names_the_plugin_that_it_lacks(
    site: Path, method: str
) -> None:
    made = compiled()
    text = json.dumps(made.manifest())
    assert sent(method, text, list(sys.path)) == made(randn(5, 4, seed=2)).tolist()
    without = [entry for entry in sys.path if entry != str(site)]
    told = sent(method, text, without, compilers=["eager"])
    assert told.startswith("MismatchError: this process cannot make the plan of its manifest")
    assert (
        'plugin "acme": intarsia-acme 1.0 in the manifest\'s process and not there in this' in told
    )
