"""Plans that were used although the model does something else now, and starts that failed with a cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.models import assert_same
from tests.warm import begin

pytestmark = pytest.mark.timeout(240)


class Times(nn.Module):
    factor: Any = 1

    def forward(self, x: Tensor) -> Tensor:
        return (x > 2) * self.factor


class TimesFirst(nn.Module):
    factors: Any = (1,)

    def forward(self, x: Tensor) -> Tensor:
        return (x > 2) * self.factors[0]


class Two(nn.Module):
    """Two attributes that may be one object."""

    def __init__(self, first: Any, second: Any) -> None:
        super().__init__()
        self.first = first
        self.second = second


class Same(Two):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if self.first is self.second else x + 1


class Sum(Two):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.first + self.second


class Holder:
    pass


def with_(model: nn.Module, **attributes: Any) -> nn.Module:
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


def tied(kind: type[Two], make: Callable[[], Any]) -> tuple[nn.Module, nn.Module]:
    one = make()
    return kind(one, one), kind(one, make())


CHANGES: dict[str, Callable[[], tuple[nn.Module, nn.Module]]] = {
    "1 and True": lambda: (with_(Times(), factor=1), with_(Times(), factor=True)),
    "in a tuple": lambda: (with_(TimesFirst(), factors=(1,)), with_(TimesFirst(), factors=(True,))),
    "one object": lambda: tied(Same, Holder),
    "one list": lambda: tied(Same, lambda: [1]),
    "one module": lambda: tied(Same, nn.ReLU),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_value_is_another_plan(name: str, tmp_path: Path) -> None:
    first, second = CHANGES[name]()
    x = torch.arange(6.0)
    for model in (first, second):
        start = begin(model, (x,), cache=str(tmp_path / "cache"))
        assert not start.was_warm
        assert_same(start.compiled(x), model(x))
    for model in (first, second):
        start = begin(model, (x,), cache=str(tmp_path / "cache"))
        assert start.was_warm, start.log
        assert_same(start.compiled(x), model(x))


def test_two_tensors_that_were_one(tmp_path: Path) -> None:
    x, one = torch.arange(6.0), torch.full((6,), 3.0)
    for model in (Sum(one, one), Sum(one, torch.full((6,), 5.0))):
        start = begin(model, (x,), cache=str(tmp_path / "cache"))
        assert not start.was_warm
        assert_same(start.compiled(x), model(x))


class OfNumpy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = np.ones(6, dtype=np.float32)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.from_numpy(self.table)


def test_an_array_of_numpy_is_not_kept(tmp_path: Path) -> None:
    x = torch.arange(6.0)
    for _ in range(
        2
    ):  # the second would find a plan that cannot be bound, and `strict` would raise
        start = begin(OfNumpy(), (x,), cache=str(tmp_path / "cache"), strict=True)
        assert any("the next start has to trace again" in line for line in start.log), start.log
        assert_same(start.compiled(x), x + 1)


class NoLength(Times):
    def __len__(self) -> int:
        raise NotImplementedError


def test_a_module_whose_length_raises(tmp_path: Path) -> None:
    x = torch.arange(6.0)
    begin(NoLength(), (x,), cache=str(tmp_path / "cache"))
    assert begin(NoLength(), (x,), cache=str(tmp_path / "cache")).was_warm
