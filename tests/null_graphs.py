"""What the tests of static graphs share: models, and how they are compiled on the null device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import intarsia
from intarsia.config import load_config
from intarsia.host import Host
from intarsia.testing.null_device import NullDevice, NullPlugin
from tests.models import assert_same, clone

__all__ = [
    "ROWS",
    "Chain",
    "check",
    "compiled",
    "jit",
    "make_rows",
    "rows",
    "same",
    "settings",
    "twin",
]

ROWS = {"x": {0: "n"}}
Inputs = tuple[tuple[Any, ...], dict[str, Any]]


class Chain(torch.nn.Module):
    """Three compiled pieces, with two operators between them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (torch.nn.Linear(8, n) for n in (8, 8, 4))
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Run them."""
        x = torch.sigmoid(self.a(x).relu())
        x = torch.sigmoid(self.b(x) * 2)
        return self.c(x), x


def rows(n: int) -> Tensor:
    """Return random rows."""
    return torch.randn(n, 8)


def make_rows(sizes: Mapping[str, int], key: Any = None) -> Inputs:
    """Make the inputs of `Chain` and of models like it."""
    return (rows(sizes["n"]),), {}


def settings(**chosen: Any) -> dict[str, Any]:
    """Return the settings of these tests."""
    return {
        "compilers": ["eager"], "split_at": ["torch.sigmoid"], "static_graph": "piecewise",
        "static_graph_backend": "null", "cache": False, **chosen,
    }  # fmt: skip


def compiled(
    model: Any, args: Sequence[Any] = (), *, plugin: NullPlugin | None = None,
    dynamic: Mapping[str, Mapping[int, str]] = ROWS, **chosen: Any,
) -> tuple[Any, NullDevice]:  # fmt: skip
    """Compile a model; returns it and its null device."""
    plugin = plugin or NullPlugin()
    resolved = load_config(None, environ={}, **settings(**{"boxes": {"n": [1, 64]}, **chosen}))
    host = Host(resolved, extra_plugins=[plugin])
    made = intarsia.compile(
        model, tuple(args) or (rows(4),), dynamic=dynamic, config=resolved, host=host
    )
    return made, plugin.device


def jit(
    model: Any, *, plugin: NullPlugin | None = None, dynamic: Mapping[str, Mapping[int, str]] = ROWS,
    every_size: bool | None = True, **chosen: Any,
) -> tuple[Any, NullDevice]:  # fmt: skip
    """Compile a model through `torch.compile`; returns it and its null device.

    `every_size` is its `dynamic`: whether all sizes are symbols.
    """
    plugin = plugin or NullPlugin()
    chosen = settings(**{"sizes": {"n": [2, 8]}, **chosen})
    host = Host(load_config(None, environ={}, **chosen), extra_plugins=[plugin])
    options = {**chosen, "host": host, "dynamic": dynamic}
    return torch.compile(
        model, backend="intarsia", dynamic=every_size, options=options
    ), plugin.device


def same(
    call: Callable[..., Any],
    reference: Callable[..., Any],
    *args: Any,
    exact: bool = True,
    **kwargs: Any,
) -> Any:
    """Assert that a call returns, and leaves in its arguments, what the reference does."""
    other_args, other_kwargs = clone((args, kwargs))
    found = call(*args, **kwargs)
    expected = reference(*other_args, **other_kwargs)
    for now, then in ((found, expected), ((args, kwargs), (other_args, other_kwargs))):
        check(now, then) if exact else assert_same(now, then)
    return found


def check(found: Any, expected: Any) -> None:
    """Assert that two structures of tensors are equal bit for bit."""
    leaves, form = torch.utils._pytree.tree_flatten(found)
    others, other_form = torch.utils._pytree.tree_flatten(expected)
    assert form == other_form
    for one, other in zip(leaves, others, strict=True):
        if isinstance(other, Tensor):
            assert one.dtype == other.dtype
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
        else:
            assert one == other


def twin(model: torch.nn.Module) -> torch.nn.Module:
    """Return a copy of a model, as a reference that keeps its own state."""
    return copy.deepcopy(model)
