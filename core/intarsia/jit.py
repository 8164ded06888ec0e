"""The other front door: `torch.compile(model, backend="intarsia", options={...})`.

Dynamo traces, guards and breaks graphs as always; each of its graphs gets a plan of its own, which the
cache keeps. Its guards keep a graph's conditions true, so nothing is captured again and no box is refused:
a box is cut to what the graph can be called with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from intarsia import torch_compat
from intarsia.config import ResolvedConfig, load_config
from intarsia.errors import ConfigError, ContractError
from intarsia.graph_door.job import GraphJob
from intarsia.graph_door.recent import numbered, reports
from intarsia.ranks.agreement import agreeing
from intarsia.ranks.checking import PlanCheck
from intarsia.report.events import EventStream

__all__ = ["intarsia_backend", "reports"]


def intarsia_backend(
    module: fx.GraphModule, example_inputs: Sequence[Any], *, mode: str | None = None,
    options: Mapping[str, Any] | None = None, **_: Any,
) -> Callable[..., Any]:  # fmt: skip
    """Compile one of Dynamo's graphs; the entry point `intarsia` of `torch_dynamo_backends`.

    Args:
        module: the graph.
        example_inputs: what it was traced with.
        options: settings in snake_case, and `dynamic`: argument name -> {dimension: symbol name}, matched
            with the names that the model's forward gives its arguments; `config`: a settings file;
            `on_event`: a listener; `host`: plugins that are already loaded; `exchange`: as for
            `intarsia.compile`, for each graph; `expect`: a manifest, of which the "setup" is compared.

    Raises:
        ConfigError, PluginError, SplitError, CompileFailed, MismatchError: as `intarsia.compile`. With
            `strict`, also ContractError where gradients are needed.
    """
    torch_compat.require_supported_torch()
    if mode is not None:
        raise ConfigError(
            f'torch.compile(..., mode="{mode}") means nothing to intarsia',
            next_step="Give settings as options={...}.", subject="mode",
        )  # fmt: skip
    given = dict(options or {})
    dynamic = given.pop("dynamic", None) or {}
    listener = given.pop("on_event", None)
    host = given.pop("host", None)
    exchange, expect = given.pop("exchange", None), given.pop("expect", None)
    with agreeing(exchange, given.get("name")) as ranks:
        resolved = load_config(given.pop("config", None), **given)
        name = numbered(resolved.config.name)
        eager = None
        if torch.is_grad_enabled() and _needs_grad(example_inputs):
            eager = _eager_for_grad(module, name, resolved)
            if ranks.exchange is None:
                return eager
        # It imports Dynamo, which is there by now.
        from intarsia.graph_door.start import start_graph

        job = GraphJob(module, list(example_inputs), dynamic, resolved, host, name, listener)
        setup = None if expect is None else {"setup": expect["setup"]}
        check = PlanCheck(job, module, ranks, setup)
        check.setup(runs="compiled" if eager is None else "eagerly, as gradients are needed")
        if eager is not None:
            return eager
        made = start_graph(job)
        check.plan(made.report)
        return made


def _needs_grad(values: Sequence[Any]) -> bool:
    return any(isinstance(v, torch.Tensor) and v.requires_grad for v in values)


def _eager_for_grad(
    module: fx.GraphModule, name: str, resolved: ResolvedConfig
) -> Callable[..., Any]:
    if resolved.config.strict:
        raise ContractError(
            f"{name} needs gradients, and intarsia is inference",
            why="grad is enabled and an input or weight requires it",
            next_step="Call the model under torch.no_grad().",
            subject=name,
        )
    EventStream(name).warn(
        "grad is enabled and something requires it, so this graph runs eagerly; "
        "call the model under torch.no_grad() to have it compiled"
    )
    from intarsia.graph_door.callable import EagerGraph, GraphCallable  # it imports Dynamo

    return GraphCallable(EagerGraph(name, module.forward))
