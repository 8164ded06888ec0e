from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from attrs import fields, has

from intarsia import hook_reference, interfaces
from intarsia.hook_reference import documented, hooks, reference

PAGE = Path(__file__).resolve().parents[2] / "docs" / "hooks.md"


def test_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), (
        "run: python -m intarsia.hook_reference docs/hooks.md"
    )


def test_every_hook_is_there() -> None:
    assert set(hooks()) == {
        *("intarsia_platforms", "intarsia_compilers", "intarsia_split_rules", "intarsia_passes"),
        *("intarsia_pass_managers", "intarsia_static_graphs", "intarsia_op_safety"),
        *("intarsia_stores", "intarsia_doctor", "intarsia_choose_platform"),
        *("intarsia_choose_compiler", "intarsia_adjust_config", "intarsia_event"),
    }


@pytest.mark.parametrize("name", hooks())
def test_hook_is_documented_with_its_exact_parameters(name: str) -> None:
    section = re.search(rf"^### `{name}`$(.*?)(?=^##)", reference(), re.M | re.S)
    assert section, name
    shown = re.search(r"```python\n\w+\((.*?)\) -> ", section[1], re.S)
    assert shown, name
    parameters = inspect.signature(hooks()[name]).parameters
    assert re.findall(r"(\w+): ", shown[1]) == list(parameters)


VALUES: dict[str, Any] = {
    "device_type": "acme",
    "piece": interfaces.PieceView(0, "piece_0", "compiled", ("aten::_scaled_mm",), ("acme",)),
    "traits": {"memory": "small"},
    "event": interfaces.Event("progress", "decoder", "compile", 1, 3),
}


def example(name: str) -> Callable[..., Any]:
    """Return the function of a hook's example."""
    _, _, source = (inspect.getdoc(hooks()[name]) or "").partition("Example:")
    space: dict[str, Any] = dict(vars(interfaces))
    exec(dedent(source), space)
    found: Callable[..., Any] = space[name]
    return found


@pytest.mark.parametrize("name", hooks())
def test_example_of_a_hook_works(name: str) -> None:
    function = example(name)
    asked = list(inspect.signature(function).parameters)
    assert set(asked) <= set(inspect.signature(hooks()[name]).parameters)
    answer = function(**{key: VALUES[key] for key in asked})
    if name == "intarsia_event":
        assert answer is None
        return
    assert answer, name
    expected = str(inspect.signature(hooks()[name]).return_annotation)
    if isinstance(answer, list) and not isinstance(answer[0], str):
        assert f"Iterable[{type(answer[0]).__name__}]" in expected


@pytest.mark.parametrize("cls", documented(), ids=lambda cls: cls.__name__)
def test_record_is_documented_with_every_field(cls: type) -> None:
    section = re.search(rf"^### `{cls.__name__}`$(.*?)(?=^##|\Z)", reference(), re.M | re.S)
    assert section, cls
    names = set(re.findall(r"^(?:\| |- )`(\w+)", section[1], re.M))
    public = (
        {item.name for item in fields(cls)}
        if has(cls)
        else {name for name, value in vars(cls).items() if callable(value)}
    )
    assert names >= {name for name in public if not name.startswith("_")}


def test_page_is_written_to_a_file(tmp_path: Path) -> None:
    hook_reference.main([str(tmp_path / "hooks.md")])
    assert (tmp_path / "hooks.md").read_text(encoding="utf-8") == reference()
