"""Python values that tracing baked in: noticed when they change, as each `check` mode promises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import intarsia
from tests import models
from tests.models import by_name, randn

Change = Callable[[Any], None]


def attribute(model: Any) -> None:
    model.scale = 2.0


def config_attribute(model: Any) -> None:
    model.settings.mode = "none"


def config_number(model: Any) -> None:
    model.settings.offset = 0.5


def mode(model: Any) -> None:
    model.train()


CHANGES: dict[str, tuple[Change, tuple[str, ...]]] = {
    "attribute": (attribute, ("self.scale", "1.5", "2.0")),
    "config-attribute": (config_attribute, ("settings.mode", "'add'", "'none'")),
    "config-number": (config_number, ("settings.offset", "0.25", "0.5")),
    "mode": (mode, ("self.training", "False", "True")),
}


def compiled_attributes(check: str) -> tuple[Any, Any]:
    """Return the zoo's model that reads attributes, and what it compiles to."""
    model = by_name("attributes").build()
    compiled = intarsia.compile(
        model, args=(randn(6, 4),), dynamic={"x": {0: "n"}}, compilers=["eager"], check=check
    )
    return model, compiled


@pytest.mark.parametrize("name", CHANGES)
def test_with_check_values_the_next_call_names_the_value_and_both_values(name: str) -> None:
    change, words = CHANGES[name]
    model, compiled = compiled_attributes("values")
    compiled(randn(6, 4))
    change(model)
    for _ in range(2):
        with pytest.raises(intarsia.ContractError) as caught:
            compiled(randn(6, 4))
        assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("check", ["first", "always", "none"])
@pytest.mark.parametrize("name", CHANGES)
def test_the_other_modes_keep_the_captured_values_and_notice_at_rebind(
    name: str, check: str
) -> None:
    change, words = CHANGES[name]
    model, compiled = compiled_attributes(check)
    x = randn(6, 4)
    before = compiled(x)
    change(model)
    assert torch.equal(compiled(x), before), "documented: the values of the capture stay"
    with pytest.raises(intarsia.ContractError) as caught:
        compiled.rebind()
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_value_that_is_put_back_is_fine_again() -> None:
    model, compiled = compiled_attributes("values")
    before = compiled(randn(6, 4))
    model.scale = 9.0
    with pytest.raises(intarsia.ContractError):
        compiled(randn(6, 4))
    model.scale = 1.5
    assert torch.equal(compiled(randn(6, 4)), before)
    compiled.rebind()


def test_values_that_tracing_did_not_read_may_change() -> None:
    model, compiled = compiled_attributes("values")
    model.settings.unread = 3
    model.note = "hello"
    compiled(randn(6, 4))
    compiled.rebind()


@pytest.mark.parametrize(
    ("place", "key", "value", "words"),
    [
        ("GLOBAL_FACTOR", None, 4.0, ("GLOBAL_FACTOR", "3.0", "4.0")),
        ("GLOBAL_TABLE", "shift", 0.75, ("GLOBAL_TABLE", "shift", "0.5", "0.75")),
    ],
)
@pytest.mark.parametrize("check", ["values", "first"])
def test_a_changed_global_is_noticed(
    place: str, key: str | None, value: float, words: tuple[str, ...], check: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    compiled = intarsia.compile(
        models.closure(), args=(randn(6, 4),), dynamic={"x": {0: "n"}}, compilers=["eager"],
        check=check,
    )  # fmt: skip
    compiled(randn(6, 4))
    if key is None:
        monkeypatch.setattr(models, place, value)
    else:
        monkeypatch.setitem(getattr(models, place), key, value)
    with pytest.raises(intarsia.ContractError) as caught:
        compiled(randn(6, 4)) if check == "values" else compiled.rebind()
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_changed_closure_variable_is_noticed() -> None:
    offset = 0.75

    def model(x: Tensor) -> Tensor:
        return x + offset

    def move() -> None:
        nonlocal offset
        offset = 1.25

    compiled = intarsia.compile(model, args=(randn(6, 4),), compilers=["eager"], check="values")
    compiled(randn(6, 4))
    move()
    with pytest.raises(intarsia.ContractError, match="offset") as caught:
        compiled(randn(6, 4))
    assert "0.75" in str(caught.value)
    assert "1.25" in str(caught.value)


def test_a_submodules_own_mode_is_noticed() -> None:
    model = by_name("training-flag").build()
    compiled = intarsia.compile(model, args=(randn(6, 4),), compilers=["eager"], check="values")
    compiled(randn(6, 4))
    model.dropout.train()
    with pytest.raises(intarsia.ContractError, match=r"dropout\.training"):
        compiled(randn(6, 4))


def test_the_wrapper_refuses_another_mode() -> None:
    model, compiled = compiled_attributes("first")
    assert compiled.eval() is compiled
    with pytest.raises(intarsia.ContractError, match="training"):
        compiled.train()
    assert not model.training


# ------------------------------------------------------------------- what tracing writes is undone


class Held:
    """A plain object with state, as a cache is."""

    def __init__(self) -> None:
        self.count, self.items, self.table = 0, [1], {"a": 1}


class Writes(nn.Module):
    """Writes to an object that it holds, in one of several ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.held = how, Held()

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "count":
            self.held.count += 1
            return x * self.held.count
        if self.how == "items":
            self.held.items.append(2)
            return x * len(self.held.items)
        if self.how == "table":
            self.held.table["b"] = 2
            return x * len(self.held.table)
        self.held.kept = x * 2
        return self.held.kept + 1


COUNT = 0
SEEN: list[int] = []


def writes_global(x: Tensor) -> Tensor:
    global COUNT
    COUNT += 1
    return x * COUNT


def appends_to_global(x: Tensor) -> Tensor:
    SEEN.append(1)
    return x * len(SEEN)


@pytest.mark.parametrize("how", ["count", "items", "table", "kept"])
def test_a_write_to_an_object_that_the_model_holds_is_refused_and_undone(how: str) -> None:
    model = Writes(how)
    before = {k: repr(v) for k, v in vars(model.held).items()}
    with pytest.raises(intarsia.CaptureError, match=rf"self\.held\.{how}"):
        intarsia.compile(model, args=(randn(6, 4),), compilers=["eager"])
    assert {k: repr(v) for k, v in vars(model.held).items()} == before


def test_a_write_to_a_global_is_refused_and_undone() -> None:
    with pytest.raises(intarsia.CaptureError, match="COUNT"):
        intarsia.compile(writes_global, args=(randn(6, 4),), compilers=["eager"])
    with pytest.raises(intarsia.CaptureError, match="SEEN"):
        intarsia.compile(appends_to_global, args=(randn(6, 4),), compilers=["eager"])
    assert (COUNT, SEEN) == (0, [])


def test_a_write_to_a_closure_variable_is_refused_and_undone() -> None:
    calls = 0

    def model(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return x * calls

    with pytest.raises(intarsia.CaptureError, match="calls"):
        intarsia.compile(model, args=(randn(6, 4),), compilers=["eager"])
    assert calls == 0


@pytest.mark.parametrize("name", ["_run", "t0", "run", "bad", "n_n", "float32", "key", "forward"])
def test_a_parameter_may_be_called_like_a_generated_name(name: str) -> None:
    scope: dict[str, Any] = {}
    exec(f"def model({name}, x): return x.sin() - 2 * {name}", scope)
    model = scope["model"]
    compiled = intarsia.compile(
        model, args=(randn(6, 4), randn(6, 4, seed=1)), compilers=["eager"],
        dynamic={name: {0: "n"}, "x": {0: "n"}},
    )  # fmt: skip
    for n in (6, 3):
        args = (randn(n, 4, seed=2), randn(n, 4, seed=3))
        torch.testing.assert_close(compiled(*args), model(*args))
