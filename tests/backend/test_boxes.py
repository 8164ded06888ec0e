"""Shape boxes against what a graph is valid for, and the policies for calls outside every box."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import intarsia
from tests.checks import compare_call, no_fallbacks, same_as_eager
from tests.models import (
    Inputs,
    MoreThanTen,
    MultipleOf128,
    Sizes,
    TwoSymbols,
    assert_same,
    randn,
    random_,
)

X = {"x": {0: "n"}}


def rows(s: Sizes, seed: int) -> Inputs:
    """Return one [n, 4] argument."""
    return (randn(s["n"], 4, seed=seed),), {}


def sized(*sizes: int) -> list[Sizes]:
    """Return sizes of the symbol n."""
    return [{"n": n} for n in sizes]


def branch_line(cls: type) -> str:
    """Return file:line of the branch in a model's forward."""
    lines, start = inspect.getsourcelines(cls)
    offset = next(i for i, line in enumerate(lines) if "a refusal must name" in line)
    return f"models.py:{start + offset}"


@pytest.mark.parametrize("door", ["boxes", "sizes", "box"])
@pytest.mark.parametrize(
    ("cls", "example", "fits", "refused"),
    [
        (MultipleOf128, 6, 127, 128),
        (MultipleOf128, 6, 127, 300),
        (MoreThanTen, 6, 10, 11),
        (MoreThanTen, 6, 10, 4096),
    ],
)
def test_a_box_that_the_captured_branch_does_not_cover_is_refused_with_its_line(
    cls: Callable[[], Any], example: int, fits: int, refused: int, door: str
) -> None:
    def config(end: int) -> dict[str, Any]:
        if door == "box":
            return {"box": [{"n": (1, end)}]}
        return {door: {"n": [end]}}

    shared: dict[str, Any] = {"compilers": ["eager"], "uncovered": "error"}
    sizes = sized(fits) if door == "sizes" else sized(example, fits, 1, 2)
    if door != "sizes":
        same_as_eager(cls(), rows, sizes, X, **shared, **config(fits))
    if door == "sizes" and refused == 300:
        return  # 300 is no multiple of 128: the captured branch is the right one
    with pytest.raises(intarsia.ShapeError) as caught:
        intarsia.compile(
            cls(), args=rows({"n": example}, 0)[0], dynamic=X, **shared, **config(refused)
        )
    assert branch_line(cls) in str(caught.value)  # type: ignore[arg-type]
    assert "n" in str(caught.value)


def test_a_box_on_the_other_side_of_a_branch_is_fine_when_captured_there() -> None:
    shared: dict[str, Any] = {"compilers": ["eager"], "uncovered": "error"}
    same_as_eager(MoreThanTen(), rows, sized(20, 11, 32), X, box=[{"n": (11, 32)}], **shared)
    with pytest.raises(intarsia.ShapeError):
        same_as_eager(MoreThanTen(), rows, sized(20), X, box=[{"n": (10, 32)}], **shared)


@pytest.mark.parametrize("cls", [MultipleOf128, MoreThanTen])
def test_without_boxes_a_call_on_the_other_branch_is_never_silently_wrong(
    cls: Callable[[], Any],
) -> None:
    model = cls()
    compiled = intarsia.compile(
        model, args=rows({"n": 6}, 0)[0], dynamic=X, compilers=["eager"], uncovered="eager"
    )
    for n in (6, 10, 11, 127, 128, 129, 256):
        compare_call(compiled, model, model, rows({"n": n}, n), where=str(n))


def test_a_fixed_dim_is_not_taken_for_a_dynamic_one() -> None:
    compiled = same_as_eager(lambda x: x * 2 + 1, rows, sized(6, 3), X, compilers=["eager"])
    with pytest.raises(intarsia.ContractError, match="x"):
        compiled(randn(6, 5))
    with pytest.raises(intarsia.ContractError, match="x"):
        compiled(randn(6, 4, 1))
    with pytest.raises(intarsia.ContractError, match="float"):
        compiled(randn(6, 4, dtype=torch.float64))


def test_a_dim_that_the_model_makes_equal_to_another_is_checked() -> None:
    def model(x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def inputs(s: Sizes, seed: int) -> Inputs:
        return (randn(s["n"], 4, seed=seed), randn(s["n"], 4, seed=seed + 1)), {}

    compiled = same_as_eager(
        model, inputs, sized(6, 3, 1), {"x": {0: "n"}, "y": {0: "n"}}, compilers=["eager"]
    )
    with pytest.raises(intarsia.ContractError):
        compiled(randn(6, 4), randn(5, 4))
    with pytest.raises(
        intarsia.ContractError
    ):  # eager would broadcast, the graph must not pretend to
        compiled(randn(6, 4), randn(1, 4))


def test_size_one_is_not_special_without_a_branch_on_it() -> None:
    def model(x: Tensor) -> Tensor:
        return x.softmax(0) * x.shape[0]

    for example in (1, 2, 5):
        torch._dynamo.reset()
        compiled = same_as_eager(
            model, rows, sized(example, 1, 2, 7), X, compilers=["eager"], boxes={"n": [8]}
        )
        assert no_fallbacks(compiled.report)


def test_a_real_branch_on_one_is_right_on_both_sides() -> None:
    def model(x: Tensor) -> Tensor:
        return x.sin() if x.shape[0] == 1 else x.cos() * x.shape[0]

    for example in (1, 5):
        torch._dynamo.reset()
        same_as_eager(
            model,
            rows,
            sized(example, 1, 2, 5),
            X,
            compilers=["eager"],
            boxes={"n": [8]},
            uncovered="eager",
        )


def test_broadcasting_with_size_one_is_right() -> None:
    def model(x: Tensor, y: Tensor) -> Tensor:
        return x * y

    def inputs(s: Sizes, seed: int) -> Inputs:
        return (randn(s["n"], 4, seed=seed), randn(s["m"], 4, seed=seed + 1)), {}

    sizes = [{"n": 5, "m": 1}, {"n": 3, "m": 1}, {"n": 1, "m": 1}]
    dynamic = {"x": {0: "n"}}
    same_as_eager(model, inputs, sizes, dynamic, compilers=["eager"])


# ------------------------------------------------------------------------------- pad and static-only


def row_wise(x: Tensor) -> Tensor:
    """Work on each row alone."""
    return torch.sigmoid(x * 2).cumsum(1) - x.mean(1, keepdim=True)


@pytest.mark.parametrize("split_at", [[], ["torch.sigmoid"]])
def test_pad_serves_a_compiler_that_takes_static_shapes_only(
    split_at: list[str], toys: ModuleType
) -> None:
    compiled = same_as_eager(
        row_wise,
        rows,
        sized(4, 1, 2, 3, 5, 8),
        X,
        compilers=["static-only"],
        split_at=split_at,
        sizes={"n": [2, 4, 8]},
        uncovered="pad",
        rows_independent=["n"],
    )
    assert not compiled.report.fallbacks
    assert {request.box["n"] for request in toys.REQUESTS} == {(2, 2), (4, 4), (8, 8)}
    toys.RUNS.clear()
    assert_same(compiled(*rows({"n": 3}, 5)[0]), row_wise(*rows({"n": 3}, 5)[0]))
    assert {box["n"] for _, box in toys.RUNS} == {(4, 4)}, "3 rows are padded to the nearest size"
    with pytest.raises(intarsia.IntarsiaError):
        compiled(randn(9, 4))


def test_a_static_only_compiler_declines_a_range_and_the_next_one_takes_it(
    toys: ModuleType,
) -> None:
    compiled = same_as_eager(
        row_wise,
        rows,
        sized(4, 3, 8),
        X,
        compilers=["static-only", "eager"],
        boxes={"n": [8]},
        sizes={"n": [4]},
        uncovered="error",
    )
    assert [request.box["n"] for request in toys.REQUESTS] == [(4, 4)]
    assert "static-only" in compiled.explain()


def test_pad_without_declared_rows_is_refused() -> None:
    with pytest.raises(intarsia.IntarsiaError, match="rows"):
        intarsia.compile(
            row_wise,
            args=rows({"n": 4}, 0)[0],
            dynamic=X,
            compilers=["eager"],
            sizes={"n": [2, 4]},
            uncovered="pad",
        )


# --------------------------------------------------------------------------------------- two symbols


def test_two_symbols_of_a_module_in_all_boxes() -> None:
    compiled = same_as_eager(
        random_(TwoSymbols()).eval(),
        lambda s, seed: ((randn(s["b"], s["n"], 4, seed=seed),), {}),
        [{"b": b, "n": n} for b, n in ((3, 5), (2, 2), (5, 5), (4, 16), (7, 1), (1, 9), (1, 1))],
        {"x": {0: "b", 1: "n"}},
        compilers=["eager"],
        boxes={"b": [4, 8], "n": [16]},
        sizes={"n": [1]},
        uncovered="error",
    )
    assert compiled.report.compiler_calls == 4, "two ranges of b times a range and a size of n"
    assert no_fallbacks(compiled.report)


# ---------------------------------------------------------------------------------- failing compilers


def test_a_compiler_that_raises_falls_back_and_explain_says_so(toys: ModuleType) -> None:
    compiled = same_as_eager(row_wise, rows, sized(4, 3), X, compilers=["raiser", "eager"])
    assert compiled.report.fallbacks
    text = compiled.explain()
    assert "raiser" in text
    assert "does not like" in text


def test_a_compiler_that_raises_raises_with_strict(toys: ModuleType) -> None:
    with pytest.raises(intarsia.CompileFailed, match="raiser") as caught:
        intarsia.compile(
            row_wise,
            args=rows({"n": 4}, 0)[0],
            dynamic=X,
            compilers=["raiser", "eager"],
            strict=True,
        )
    assert isinstance(caught.value.__cause__, RuntimeError)
