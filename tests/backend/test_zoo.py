"""The small models of `tests.models`, through both front doors."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import intarsia
from tests import models
from tests.checks import compare_call, detached, no_fallbacks, same_as_eager, state, twin
from tests.models import GRAPH_BREAKS, ZOO, Example, assert_same, by_name, randn, random_

SPLIT = ["torch.sigmoid", "intarsia_tests::add_into", "torch.tanh", ".mul_", ".index_copy_"]
INDUCTOR_SLOW = (
    "in-place", "mutating-op", "kv-cache", "dataclass-output", "tied-weights", "two-symbols",
    "aliased", "half-precision", "nested-output", "multiple-outputs",
)  # fmt: skip


@pytest.mark.parametrize("example", ZOO, ids=[one.name for one in ZOO])
@pytest.mark.parametrize("split_at", [[], SPLIT], ids=["whole", "split"])
def test_the_compile_door_gives_eagers_results(example: Example, split_at: list[str]) -> None:
    compiled = same_as_eager(
        example.build(),
        example.inputs,
        example.sizes,
        example.dynamic,
        compilers=["eager"],
        split_at=split_at,
        check="always",
    )
    assert no_fallbacks(compiled.report)


@pytest.mark.slow
@pytest.mark.parametrize("name", INDUCTOR_SLOW)
def test_the_compile_door_through_inductor(name: str) -> None:
    example = by_name(name)
    compiled = same_as_eager(
        example.build(),
        example.inputs,
        example.sizes,
        example.dynamic,
        scale=50.0 if name == "half-precision" else 5.0,
        compilers=["inductor"],
        split_at=SPLIT,
        strict=True,
    )
    assert no_fallbacks(compiled.report)


@pytest.mark.parametrize("example", [*ZOO, *GRAPH_BREAKS], ids=lambda one: one.name)
def test_the_jit_door_gives_eagers_results(example: Example) -> None:
    model = example.build()
    reference, before = twin(model), len(intarsia.reports())
    compiled = torch.compile(
        model, backend="intarsia", options={"compilers": ["eager"], "split_at": SPLIT}
    )

    def call(*args: Any, **kwargs: Any) -> Any:
        return detached(compiled(*args, **kwargs))  # one example returns a weight

    with torch.no_grad():
        for seed, size in enumerate(example.sizes):
            compare_call(call, model, reference, example.inputs(size, seed), where=str(size))
    reports = list(intarsia.reports())[before:]
    assert reports
    assert all(not report.fallbacks for report in reports)


def test_graph_breaks_give_several_reports() -> None:
    example = by_name("print")
    model, before = example.build(), len(intarsia.reports())
    compiled = torch.compile(
        model, backend="intarsia", options={"compilers": ["eager"], "split_at": ["torch.sigmoid"]}
    )
    with torch.no_grad():
        compare_call(compiled, model, twin(model), example.inputs({"n": 6}, 0))
    assert sorted(r.pieces for r in list(intarsia.reports())[before:]) == [1, 2]


@pytest.mark.parametrize("example", GRAPH_BREAKS, ids=lambda one: one.name)
def test_the_compile_door_refuses_graph_breaks_with_their_line(example: Example) -> None:
    args, kwargs = example.inputs(example.sizes[0], 0)
    with pytest.raises(intarsia.CaptureError, match=r"models\.py") as caught:
        intarsia.compile(
            example.build(), args=args, kwargs=kwargs, dynamic=example.dynamic, compilers=["eager"]
        )
    assert caught.value.why


def test_a_buffer_that_is_assigned_is_kept_or_refused() -> None:
    # torch's own capture drops the assignment with no more than a warning
    model = random_(models.RunningMean()).eval()
    reference, x = twin(model), randn(6, 4)
    try:
        compiled = intarsia.compile(model, args=(x,), compilers=["eager"])
    except intarsia.CaptureError as error:
        assert "mean" in str(error)  # noqa: PT017 - both outcomes are fine, silence is not
        return
    for seed in range(3):
        compare_call(compiled, model, reference, ((randn(6, 4, seed=seed),), {}))


class Counting(nn.Module):
    """Counts its calls in a Python int, as sliding-window caches do."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


def test_a_python_attribute_that_forward_changes_is_kept_or_refused() -> None:
    model, reference = Counting(), Counting()
    try:
        compiled = intarsia.compile(model, args=(randn(6, 4),), compilers=["eager"])
    except intarsia.CaptureError as error:
        assert "calls" in str(error)  # noqa: PT017 - as above
        return
    for seed in range(3):
        compare_call(compiled, model, reference, ((randn(6, 4, seed=seed),), {}))


def test_compiling_changes_neither_weights_nor_buffers_nor_modes() -> None:
    for example in ZOO:
        torch._dynamo.reset()
        model = example.build()
        before = state(model)
        training = isinstance(model, nn.Module) and model.training
        args, kwargs = example.inputs(example.sizes[0], 0)
        with torch.enable_grad():
            intarsia.compile(
                model, args=args, kwargs=kwargs, dynamic=example.dynamic, compilers=["eager"]
            )
            assert torch.is_grad_enabled()
        assert_same(state(model), before, where=example.name)
        if isinstance(model, nn.Module):
            assert model.training == training
            assert all(p.requires_grad for p in model.parameters()), example.name


def test_outputs_share_memory_as_eagers_do() -> None:
    example = by_name("aliased")
    model = example.build()
    args, _ = example.inputs({"n": 6}, 0)
    compiled = intarsia.compile(model, args=args, dynamic=example.dynamic, compilers=["eager"])
    x = randn(4, 4, seed=3)
    view, of_input, transposed = compiled(x)
    assert of_input.data_ptr() == x.data_ptr()
    assert view.untyped_storage().data_ptr() == transposed.untyped_storage().data_ptr()


def test_results_of_two_calls_do_not_share_memory() -> None:
    example = by_name("consumers")
    model = example.build()
    compiled = intarsia.compile(
        model,
        args=example.inputs({"n": 6}, 0)[0],
        dynamic=example.dynamic,
        compilers=["eager"],
        split_at=["torch.sigmoid"],
    )
    first = compiled(randn(6, 4, seed=1))
    kept = [one.clone() for one in first]
    compiled(randn(6, 4, seed=2))
    assert_same(list(first), kept)


def test_an_input_that_requires_grad_raises_while_grad_is_on() -> None:
    model = by_name("consumers").build()
    compiled = intarsia.compile(model, args=(randn(6, 4),), compilers=["eager"])
    with torch.enable_grad():
        assert not compiled(randn(6, 4))[0].requires_grad
        with pytest.raises(intarsia.IntarsiaError, match="grad"):
            compiled(randn(6, 4).requires_grad_())
    with torch.no_grad():
        assert_same(compiled(randn(6, 4).requires_grad_())[0], compiled(randn(6, 4))[0])


def test_the_jit_door_leaves_training_to_eager_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = by_name("consumers").build()
    reference = twin(model)
    options: dict[str, Any] = {"compilers": ["eager"], "split_at": ["torch.sigmoid"]}
    compiled = torch.compile(model, backend="intarsia", options=options)
    x = randn(6, 4)
    with torch.enable_grad(), caplog.at_level(logging.WARNING, "intarsia"):
        compiled(x)[0].square().sum().backward()
        compiled(x)
    reference(x)[0].square().sum().backward()
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad, other.grad)
    warnings = [r.getMessage() for r in caplog.records if r.name.startswith("intarsia")]
    assert len(warnings) == 1
    assert "grad" in warnings[0]


def test_other_plain_arguments_are_refused_and_not_ignored() -> None:
    example = by_name("plain-arguments")
    args, kwargs = example.inputs({"n": 6}, 0)
    compiled = intarsia.compile(
        example.build(), args=args, kwargs=kwargs, dynamic=example.dynamic, compilers=["eager"]
    )
    changes: list[dict[str, Any]] = [
        {"activation": "relu"},
        {"add": False},
        {"bias": randn(4)},
        {"order": [0, 1, 2, 3]},
        {"extra": kwargs["extra"][:1]},
    ]
    for change in changes:
        with pytest.raises(intarsia.ContractError, match=next(iter(change))):
            compiled(*args, **{**kwargs, **change})
    with pytest.raises(intarsia.ContractError, match="times"):
        compiled(args[0], 4, **kwargs)
    compiled(x=args[0], times=3, **kwargs)  # the same call, spelt with names
