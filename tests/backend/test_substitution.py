"""Every built-in plugin can be taken away: the rest works, and its name gives a clear error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import intarsia
from intarsia.config import load_config
from intarsia.host import Host
from tests.checks import compare_call
from tests.models import randn

X = {"x": {0: "n"}}


def model(x: Tensor) -> Tensor:
    """Have a splitting op in the middle."""
    return torch.sigmoid(x * 2 + 1).cos() * 3


def compiled(**config: Any) -> Any:
    """Compile the model above, cut at the sigmoid."""
    config = {"split_at": ["torch.sigmoid"], **config}
    return intarsia.compile(model, args=(randn(6, 4),), dynamic=X, **config)


def right(made: Any) -> None:
    """Compare with eager at two sizes."""
    for n in (6, 3):
        compare_call(made, model, model, ((randn(n, 4, seed=n),), {}))


def built_in() -> list[str]:
    """Return the names of the plugins that intarsia brings."""
    host = Host(load_config(environ={}))
    return [s.name for s in host.plugins if s.distribution == "intarsia"]


def test_the_built_in_plugins_are_found_like_anybodys() -> None:
    assert {"cpu", "eager", "inductor"} <= set(built_in())


@pytest.mark.parametrize(
    ("blocked", "works"),
    [
        ("eager", {"compilers": ["inductor"]}),
        ("inductor", {"compilers": ["eager"]}),
    ],
)
def test_without_one_compiler_the_other_works(blocked: str, works: dict[str, Any]) -> None:
    made = compiled(plugins={"block": [blocked]}, **works)
    right(made)
    assert {p.compiler for p in made.report.piece_reports if p.kind == "compiled"} == set(
        works["compilers"]
    )


@pytest.mark.parametrize("blocked", ["eager", "inductor"])
def test_a_blocked_compiler_asked_for_by_name_is_a_clear_error(blocked: str) -> None:
    with pytest.raises(intarsia.IntarsiaError) as caught:
        compiled(plugins={"block": [blocked]}, compilers=[blocked])
    text = str(caught.value)
    assert f'"{blocked}"' in text
    assert "block" in text


def test_without_the_platform_its_name_is_a_clear_error() -> None:
    for config in ({}, {"platform": "cpu"}):
        with pytest.raises(intarsia.IntarsiaError) as caught:
            compiled(plugins={"block": ["cpu"]}, compilers=["eager"], **config)
        assert "cpu" in str(caught.value)
        assert "platform" in str(caught.value)


def test_a_blocked_plugin_is_said_to_be_blocked() -> None:
    host = Host(load_config(None, plugins={"block": ["inductor"]}, environ={}))
    statuses = {s.name: s.state for s in host.plugins}
    assert statuses["inductor"] == "blocked"
    assert statuses["eager"] == "loaded"


def test_with_every_other_plugin_blocked_eager_on_the_cpu_still_works() -> None:
    others = [name for name in built_in() if name not in ("cpu", "eager")]
    right(compiled(plugins={"block": others}, compilers=["eager"]))


def test_the_platforms_default_leaves_out_a_blocked_compiler_or_says_so() -> None:
    try:
        made = compiled(plugins={"block": ["inductor"]})
    except intarsia.IntarsiaError as error:
        text = str(error)
        assert '"inductor"' in text
        assert "block" in text
        return
    right(made)
    assert "inductor" in made.explain()
