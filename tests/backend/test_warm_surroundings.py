"""What tracing depends on beside the model's code and weights: a start that differs in it compiles anew."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.modules import module as everywhere
from torch.overrides import TorchFunctionMode

import intarsia

VARIABLE = "surroundings_of_a_test"


def read(name: str) -> str | None:
    return os.environ.get(name)


class Inner(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


class Model(torch.nn.Module):
    factor = 2.0

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner = torch.nn.Linear(4, 4), Inner()
        self.table, self.names = {"a": 1.0, "b": 2.0}, {"x"}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.inner(self.first(x)) * self.factor + torch.ones(4)
        if read("surroundings_of_a_test") == "1":
            y = y * 9
        if "flag" in self.table:
            y = y * 5
        if "z" in self.names:
            y = y * 7
        if hasattr(self, "extra"):
            y = y + 100
        for name in self.table:
            y = y * 2 + self.table[name]
        return y


def doubled(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.first(x) * 3


def tripled(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.first(x) * 5


class Louder(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def adding(amount: float) -> Callable[..., torch.Tensor]:
    return lambda module, args, output: output + amount


@contextmanager
def hook(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def nothing() -> Iterator[None]:
    yield


@contextmanager
def having(target: Any, name: str, value: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, name, value, raising=False)
        yield


@contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def variable() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, "1")
        yield


CHANGES: dict[str, Callable[[Model], AbstractContextManager[Any]]] = {
    "a hook of the model": lambda m: hook(m.register_forward_hook(adding(1.0))),
    "the same hook with another value": lambda m: hook(m.register_forward_hook(adding(2.0))),
    "a hook of a part": lambda m: hook(m.inner.register_forward_hook(adding(1.0))),
    "a hook before a part": lambda m: hook(
        m.inner.register_forward_pre_hook(lambda module, args: (args[0] + 100,))
    ),
    "a hook of every module": lambda m: hook(everywhere.register_module_forward_hook(adding(1.0))),
    "a forward of its own": lambda m: having(m, "forward", types.MethodType(doubled, m)),
    "another forward of its own": lambda m: having(m, "forward", types.MethodType(tripled, m)),
    "a part's forward of its own": lambda m: having(m.inner, "forward", lambda x: x * 7),
    "the class's forward": lambda m: having(Inner, "forward", lambda self, x: x * 11),
    "an attribute that hides the class's": lambda m: having(m, "factor", 3.0),
    "an attribute that was not there": lambda m: having(m, "extra", 1),
    "a key that was not there": lambda m: having(m, "table", {"a": 1.0, "b": 2.0, "flag": 1.0}),
    "a member that was not there": lambda m: having(m, "names", {"x", "z"}),
    "the order of keys": lambda m: having(m, "table", {"b": 2.0, "a": 1.0}),
    "the default dtype": lambda m: default_dtype(),
    "a mode of functions": lambda m: Louder(),
    "a variable of the environment": lambda m: variable(),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("surroundings"))


def start(model: torch.nn.Module, cache: str) -> Any:
    x = torch.randn(3, 4, dtype=torch.float32)
    compiled = intarsia.compile(model, (x,), compilers=["eager"], cache=cache, artifact="quick")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))
    return compiled.report


@pytest.mark.parametrize("change", CHANGES)
def test_a_start_in_other_surroundings_is_right(change: str, cache: str, tmp_path: Path) -> None:
    model = Model().eval()
    start(model, cache)
    assert start(model, cache).bundle_reads == 1
    with CHANGES[change](model):
        start(model, cache)
    assert start(model, cache).bundle_reads == 1


class Holder:
    """An argument that is an object of the user."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x

    def scaled(self) -> torch.Tensor:
        return self.x * 2


class Asking(torch.nn.Module):
    def forward(self, holder: Holder, y: torch.Tensor) -> torch.Tensor:
        return holder.scaled() * getattr(holder, "factor", 3.0) + y


@pytest.mark.parametrize("name", ["factor", "scaled"])
def test_a_start_whose_argument_has_another_attribute_is_right(name: str, tmp_path: Path) -> None:
    x, model = torch.randn(3, 4), Asking()
    changed = Holder(x)
    setattr(changed, name, 7.0 if name == "factor" else lambda: x * 5)
    for reads, holder in ((0, Holder(x)), (0, changed), (1, Holder(x))):
        compiled = intarsia.compile(
            model, (holder, x), compilers=["eager"], cache=str(tmp_path), strict=True
        )
        assert compiled.report.bundle_reads == reads, name
        torch.testing.assert_close(compiled(holder, x), model(holder, x))


NAME = "SURROUNDINGS_OF_A_TEST"
ENVIRONMENT = os.environ
HERE = sys.modules[__name__]


class Plain:
    """What a model holds that is no module."""

    def scale(self) -> float:
        return 2.0

    @property
    def shift(self) -> float:
        return 0.25

    @staticmethod
    def step() -> float:
        return 0.5

    @classmethod
    def part(cls) -> float:
        return 0.75

    def __getattr__(self, name: str) -> float:
        return 0.125


class Derived(Plain):
    pass


SHARED = Derived()


class Holding(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.name = Derived(), Derived(), "NAME"
        self.first, self.second, self.relu = Inner(), Inner(), torch.nn.ReLU()

    @property
    def extent(self) -> float:
        return 1.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * self.one.scale() + self.one.shift + Derived.step() + self.one.part()
        y = y + self.one.elsewhere + self.extent + len((1, 2))
        if self.one is self.other:
            y = y * 3
        if self.one is SHARED:
            y = y * 5
        if self.first is self.second:
            y = y * 7
        if os.environ.get(NAME) == "1":
            y = y * 11
        if ENVIRONMENT.get(f"{self.name}_OF_A_TEST") == "1":
            y = y * 13
        return self.relu(y)


@contextmanager
def environment(name: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name, "1")
        yield


@contextmanager
def one_module(model: Holding) -> Iterator[None]:
    second = model.second
    model.second = model.first
    try:
        yield
    finally:
        model.second = second


HOLDING_CHANGES: dict[str, Callable[[Holding], AbstractContextManager[Any]]] = {
    "a method of a base": lambda m: having(Plain, "scale", lambda self: 3.0),
    "a method that hides a base's": lambda m: having(Derived, "scale", lambda self: 3.0),
    "a property that hides a base's": lambda m: having(Derived, "shift", property(lambda s: 3.0)),
    "a static method that hides a base's": lambda m: having(
        Derived, "step", staticmethod(lambda: 3.0)
    ),
    "a class method": lambda m: having(Plain, "part", classmethod(lambda cls: 3.0)),
    "an attribute of a class": lambda m: having(Derived, "elsewhere", 3.0),
    "a property of the model": lambda m: having(Holding, "extent", property(lambda self: 3.0)),
    "a forward of torch's": lambda m: having(torch.nn.ReLU, "forward", torch.nn.Tanh.forward),
    "a global that hides a name of Python": lambda m: having(HERE, "len", lambda value: 3.0),
    "two objects that are one": lambda m: having(m, "other", m.one),
    "a global that is an object of the model": lambda m: having(HERE, "SHARED", m.one),
    "two modules that are one": one_module,
    "a variable that a global names": lambda m: environment(NAME),
    "a variable whose name is computed": lambda m: environment("NAME_OF_A_TEST"),
}


@pytest.mark.parametrize("changed_first", [False, True])
@pytest.mark.parametrize("change", HOLDING_CHANGES)
def test_a_start_with_other_classes_and_objects_is_right(
    change: str, changed_first: bool, tmp_path: Path
) -> None:
    model, cache = Holding().eval(), str(tmp_path)
    if not changed_first:
        start(model, cache)
        assert start(model, cache).bundle_reads == 1
    with HOLDING_CHANGES[change](model):
        assert start(model, cache).bundle_reads == 0
        assert start(model, cache).bundle_reads == 1
    start(model, cache)
    assert start(model, cache).bundle_reads == 1


class Comparing(torch.nn.Module):
    def forward(self, one: Plain, other: Plain, y: torch.Tensor) -> torch.Tensor:
        return y * 2 if one is other else y * one.scale() * 3


@pytest.mark.parametrize("change", ["one object", "a method of its class"])
def test_a_start_whose_argument_is_another_object_is_right(change: str, tmp_path: Path) -> None:
    x, model, one = torch.randn(3, 4), Comparing(), Derived()
    patch = nothing() if change == "one object" else having(Derived, "scale", lambda self: 5.0)
    for reads, other, around in (
        (0, Derived(), nothing()),
        (0, one, patch),
        (1, Derived(), nothing()),
    ):
        other = Derived() if change != "one object" else other
        with around:
            compiled = intarsia.compile(
                model, (one, other, x), compilers=["eager"], cache=str(tmp_path), strict=True
            )
            assert compiled.report.bundle_reads == reads
            torch.testing.assert_close(compiled(one, other, x), model(one, other, x))


class Packed(torch.Tensor):
    """A wrapper whose dtype and shape do not tell those of the tensor inside."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Any:
        made = torch.Tensor._make_wrapper_subclass(cls, (4, 4), dtype=torch.float32)
        made.inner = inner
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner: Any, context: Any, size: Any, stride: Any) -> Packed:
        return Packed(inner["inner"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return Packed(args[0].inner)
        return func(
            *(a.inner.float() if isinstance(a, Packed) else a for a in args), **(kwargs or {})
        )


class Weighted(torch.nn.Module):
    def __init__(self, weight: torch.Tensor, registered: bool) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight, requires_grad=False) if registered else weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.mm(x, self.weight) * 2


@pytest.mark.parametrize("registered", [True, False])
def test_a_weight_of_another_class_is_another_plan(registered: bool, tmp_path: Path) -> None:
    values = torch.arange(16.0).reshape(4, 4)
    for weight in (values, Packed(values), Packed(values.half())):
        for reads in (0, 1):
            report = start(Weighted(weight, registered), str(tmp_path))
            assert report.bundle_reads == reads, type(weight)


def by_global() -> str | None:
    return os.environ.get(NAME)


def by_alias() -> str | None:
    return ENVIRONMENT.get(NAME)


def by_getenv() -> str | None:
    return os.getenv(NAMES["name"])


def by_computing() -> str | None:
    return os.environ.get("_".join(["SURROUNDINGS", "OF", "A", "TEST"]))


def by_presence() -> str | None:
    return "1" if NAME in os.environ else None


NAMES = {"name": NAME}


class Reading(torch.nn.Module):
    def __init__(self, read: Callable[[], str | None]) -> None:
        super().__init__()
        self.read = read

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 3 if self.read() == "1" else x * 2


@pytest.mark.parametrize(
    "reader",
    [by_global, by_alias, by_getenv, by_computing, by_presence, partial(os.environ.get, NAME)],
)
def test_a_variable_is_seen_however_it_is_named(reader: Any, tmp_path: Path) -> None:
    cache = str(tmp_path)
    start(Reading(reader), cache)
    assert start(Reading(reader), cache).bundle_reads == 1
    with environment(NAME):
        assert start(Reading(reader), cache).bundle_reads == 0


def test_a_method_that_a_library_adds_to_torchs_classes_does_not_matter(tmp_path: Path) -> None:
    model = Model().eval()
    start(model, str(tmp_path))
    with having(torch.nn.Module, "added_by_a_library", lambda self: None):
        assert start(model, str(tmp_path)).bundle_reads == 1
    with having(torch.nn.Module, "first", lambda self, x: x):  # hides the submodule of this name
        assert start(model, str(tmp_path)).bundle_reads == 0
    with having(torch.nn.Module, "train", lambda self, mode=True: self):
        assert start(model, str(tmp_path)).bundle_reads == 0
