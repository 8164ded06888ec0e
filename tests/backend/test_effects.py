"""What a model writes to its arguments and buffers: old values, swaps and results that read them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import intarsia

Make = Callable[[], Any]


def swap(x: Tensor, d: dict[str, Any]) -> Tensor:
    d["a"], d["b"] = d["b"], d["a"]
    return x + 1


def prepend(x: Tensor, d: dict[str, Any]) -> Tensor:
    d["list"].insert(0, x * 2)
    d["list"].pop()
    return x + 1


def rotate(x: Tensor, d: dict[str, Any]) -> Tensor:
    d["list"].append(d["list"].pop(0))
    return x + 1


def old_returned(x: Tensor, d: dict[str, Any]) -> Tensor:
    old: Tensor = d["a"]
    d["a"] = x + 1
    return old


def old_kept(x: Tensor, d: dict[str, Any]) -> dict[str, Any]:
    old = d["a"]
    d["a"] = x + 1
    d["old"] = [old, d["a"]]
    return d


def new_container(x: Tensor, d: dict[str, Any]) -> Any:
    d["new"] = {"k": x * 2}
    return d["new"]


def emptied(x: Tensor, d: dict[str, Any]) -> Tensor:
    last: Tensor = d["list"][-1]
    d["list"].clear()
    d["a"] = last
    return last * x


def shrunk(x: Tensor, d: dict[str, Any]) -> Tensor:
    d["b"] = d.pop("a")
    return x + 1


def inside_and_longer(x: Tensor, d: dict[str, Any]) -> Tensor:
    d["dicts"][0]["k"] = x * 2
    d["dicts"].append({"k": x * 3})
    return x + 1


def replaced_and_kept(x: Tensor, d: dict[str, Any]) -> Tensor:
    d["c"] = d["dicts"][0]
    d["dicts"][0] = {"k": x}
    return x + 1


def swapped_and_written(x: Tensor, d: dict[str, Any]) -> Tensor:
    d["dicts"].reverse()
    d["dicts"][0]["k"] = x
    return x + 1


def arguments() -> dict[str, Any]:
    return {"a": torch.tensor([1.0]), "b": torch.tensor([2.0]),
            "dicts": [{"k": torch.tensor([6.0])}, {"k": torch.tensor([7.0])}],
            "list": [torch.tensor([3.0]), torch.tensor([4.0]), torch.tensor([5.0])]}  # fmt: skip


def plain(value: Any) -> Any:
    """Return a tree with its tensors as lists of numbers."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize(
    "function",
    [
        swap,
        prepend,
        rotate,
        old_returned,
        old_kept,
        new_container,
        emptied,
        shrunk,
        inside_and_longer,
        replaced_and_kept,
        swapped_and_written,
    ],
    ids=lambda f: f.__name__,
)
def test_writes_to_an_argument_read_what_was_there_before(function: Callable[..., Any]) -> None:
    compiled = intarsia.compile(function, (torch.ones(1), arguments()), compilers=["eager"])
    for _ in range(2):
        mine, wanted = arguments(), arguments()
        tensors, dicts = dict(mine), list(mine["dicts"])
        result = compiled(torch.ones(1), mine)
        expected = function(torch.ones(1), wanted)
        assert plain(result) == plain(expected)
        assert plain(mine) == plain(wanted)
        if function is swap:
            assert mine["a"] is tensors["b"]
            assert mine["b"] is tensors["a"]
        if function is replaced_and_kept:
            assert mine["c"] is dicts[0]
        if function is swapped_and_written:
            assert mine["dicts"][0] is dicts[1]
        if isinstance(expected, dict):
            assert (result is mine) == (expected is wanted)
            assert (result is mine.get("new")) == (expected is wanted.get("new"))


def test_a_parameter_with_the_name_of_a_builtin_hides_nothing_in_the_stitching() -> None:
    def function(x: Tensor, slice: dict[str, Tensor]) -> Tensor:
        slice["last"] = slice["a"]
        return x[:, 1:3].clone() + slice["a"]

    def call() -> tuple[Tensor, dict[str, Tensor]]:
        return torch.ones(2, 4), {"a": torch.ones(1)}

    compiled = intarsia.compile(function, call(), compilers=["eager"])
    x, values = call()
    assert torch.equal(compiled(x, values), torch.full((2, 2), 2.0))
    assert values["last"] is values["a"]


class Replaces(nn.Module):
    a: Tensor
    b: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("a", torch.zeros(3))
        self.register_buffer("b", torch.arange(3.0))


class Accumulates(Replaces):
    def forward(self, x: Tensor) -> Tensor:
        self.b = self.b + x
        return self.b * 2


class OldReturned(Replaces):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        old = self.b
        self.b = self.b + x
        return old * 1.0, old


class OldViewReturned(Replaces):
    def forward(self, x: Tensor) -> Tensor:
        old = self.b[:2]
        self.b = self.b + x
        return old


class OldKept(Replaces):
    def forward(self, x: Tensor) -> Tensor:
        old = self.b
        self.b = self.b + x
        self.a = old
        return x + 1


class SwapsViews(Replaces):
    def forward(self, x: Tensor) -> Tensor:
        self.a, self.b = self.b.view(3), self.a.view(3)
        return x + 1


class Swaps(Replaces):
    def forward(self, x: Tensor) -> Tensor:
        self.a, self.b = self.b, self.a
        return x + 1


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Accumulates()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + 1  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "model",
    [Accumulates, OldReturned, OldViewReturned, OldKept, SwapsViews, Swaps, Nested],
    ids=lambda m: m.__name__,
)
def test_a_buffer_that_the_model_replaces(model: Make) -> None:
    mine = model()
    wanted = copy.deepcopy(mine)
    compiled = intarsia.compile(mine, (torch.ones(3),), compilers=["eager"])
    kept = []
    for _ in range(3):
        result, expected = compiled(torch.ones(3)), wanted(torch.ones(3))
        assert plain(result) == plain(expected)
        assert plain(mine.state_dict()) == plain(wanted.state_dict())
        kept.append((result, plain(expected)))
    for result, expected in kept:  # a later call must not write into an earlier call's result
        assert plain(result) == expected


def test_an_argument_of_another_shape_as_a_buffer_is_refused_by_name() -> None:
    class Widens(Replaces):
        def forward(self, x: Tensor) -> Tensor:
            self.b = torch.cat([self.b, x])
            return x + 1

    with pytest.raises(intarsia.CaptureError, match="self.b"):
        intarsia.compile(Widens(), (torch.ones(3),), compilers=["eager"])


def test_a_write_to_a_module_outside_the_model_is_still_refused() -> None:
    outside = Replaces()

    def function(x: Tensor) -> Tensor:
        outside.b = outside.b + x
        return x + 1

    with pytest.raises(intarsia.CaptureError):
        intarsia.compile(function, (torch.ones(3),), compilers=["eager"])
