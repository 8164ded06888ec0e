"""What the tests of a compiled model have in common: compile, call, compare, look at the report."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import intarsia
from tests.models import Inputs, Sizes, assert_same, clone


def piece_records(report: Any) -> list[Mapping[str, Any]]:
    """Return the report's records of single pieces, as plain data."""
    for value in report.to_dict().values():
        if (
            isinstance(value, list | tuple)
            and value
            and all(isinstance(one, Mapping) and {"index", "ops"} <= set(one) for one in value)
        ):
            return list(value)
    raise AssertionError(f"no records of pieces in {report.to_dict()}")


def no_fallbacks(report: Any) -> bool:
    """Say whether every piece went to the first compiler asked and every call found its box."""
    return not report.fallbacks and not report.counters.get("uncovered")


def twin(model: Callable[..., Any]) -> Callable[..., Any]:
    """Return a copy of a module with the same weights, tied where they were tied; functions as is."""
    return copy.deepcopy(model) if isinstance(model, nn.Module) else model


def state(model: Callable[..., Any]) -> dict[str, Tensor]:
    """Return a copy of all parameters and buffers."""
    if not isinstance(model, nn.Module):
        return {}
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in tensors}


def same_as_eager(
    model: Callable[..., Any],
    inputs: Callable[[Sizes, int], Inputs],
    sizes: Iterable[Sizes],
    dynamic: Mapping[str, Mapping[int, str]],
    /,  # "sizes" is a setting too
    *,
    scale: float = 1.0,
    **config: Any,
) -> Any:
    """Compile a model, compare it with eager at every size and return the compiled model.

    Results, what a call writes to its arguments, and what it writes to the model's state are compared.
    The model is compiled with inputs of the first size, and called twice at the first and last.
    """
    reference, sizes = twin(model), list(sizes)
    before = state(model)
    args, kwargs = inputs(sizes[0], 100)
    kept = clone((args, kwargs))
    compiled = intarsia.compile(model, args=args, kwargs=kwargs, dynamic=dynamic, **config)
    assert_same((args, kwargs), kept, where="arguments after compile")
    assert_same(state(model), before, where="state after compile")
    for seed, size in enumerate([*sizes, sizes[0], sizes[-1]]):
        compare_call(compiled, model, reference, inputs(size, seed), scale=scale, where=str(size))
    return compiled


def compare_call(
    compiled: Callable[..., Any],
    model: Callable[..., Any],
    reference: Callable[..., Any],
    call: Inputs,
    *,
    scale: float = 1.0,
    where: str = "",
) -> None:
    """Compare one call with the reference's, with the arguments and state that each leaves."""
    (args, kwargs), (other_args, other_kwargs) = call, clone(call)
    torch.manual_seed(1)
    actual = compiled(*args, **kwargs)
    torch.manual_seed(1)
    with torch.no_grad():
        expected = reference(*other_args, **other_kwargs)
    assert_same(actual, detached(expected), scale=scale, where=f"output at {where}")
    assert_same(
        (args, kwargs), (other_args, other_kwargs), scale=scale, where=f"arguments at {where}"
    )
    assert_same(state(model), state(reference), scale=scale, where=f"state at {where}")


def detached(value: Any) -> Any:
    """Detach every tensor: eager returns a weight as it is, which requires grad."""
    return torch.utils._pytree.tree_map(
        lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, value
    )
