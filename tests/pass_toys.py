"""Plugins whose passes do what a test gives them, and compiles with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

import intarsia
from intarsia.config import load_config
from intarsia.host import Host
from intarsia.interfaces import PassSpec, Stage

aten = torch.ops.aten

STAGES: tuple[Stage, ...] = (
    "graph", "piece", "piece-aten", "inductor-pre-grad", "inductor-joint",
    "inductor-post-grad-before", "inductor-post-grad-after",
)  # fmt: skip

Deed = Callable[[fx.Graph], Any]


class Do:
    """A pass that does what it is given."""

    def __init__(self, deed: Deed, identity: Any = "1") -> None:
        self.deed, self.identity = deed, identity

    def __call__(self, graph: fx.Graph) -> Any:
        return self.deed(graph)

    def uuid(self) -> Any:
        return self.identity


def does(name: str, deed: Deed, stage: Stage = "piece-aten", **more: Any) -> PassSpec:
    """Return the spec of a pass that does something."""
    identity = more.pop("identity", "1")
    return PassSpec(
        name, more.pop("version", "1"), stage, lambda options: Do(deed, identity), **more
    )


class Plugin:
    """A plugin with passes and whatever else a test gives it."""

    intarsia_api_version = (1, 0)

    def __init__(self, *passes: PassSpec, name: str = "toys", **hooks: Sequence[Any]) -> None:
        self.__name__ = name
        self.passes = passes
        for hook, records in hooks.items():
            setattr(self, f"intarsia_{hook}", lambda records=records: list(records))

    def intarsia_passes(self) -> list[PassSpec]:
        return list(self.passes)


def compiled(
    model: Any, args: tuple[Any, ...], *plugins: Plugin, enable: Iterable[str] | None = None,
    dynamic: Any = None, **settings: Any,
) -> Any:  # fmt: skip
    """Compile with plugins whose passes are all on, in the order of the plugins, unless told otherwise."""
    settings.setdefault("compilers", ["eager"])
    names = [one.name for plugin in plugins for one in plugin.passes]
    table = {"enable": list(names if enable is None else enable), **settings.pop("passes", {})}
    config = load_config(None, passes=table, **settings)
    host = Host(config, extra_plugins=list(plugins))
    return intarsia.compile(model, args, dynamic=dynamic or {}, config=config, host=host)


def matches(made: Any) -> dict[str, Any]:
    """Return how often each pass matched."""
    return {total.name: total.matches for total in made.report.passes}


def failures(made: Any) -> dict[str, str]:
    """Return why what passes did was undone."""
    return {t.name: "; ".join(t.failures) for t in made.report.passes if t.failures}


def calls(graph: fx.Graph, target: Any) -> list[fx.Node]:
    return [n for n in graph.nodes if n.op == "call_function" and n.target is target]


def results(graph: fx.Graph) -> list[Any]:
    return list(graph.output_node().args[0])


def replaced(old: Any, new: Any) -> Deed:
    """Return a pass that calls something else with the same arguments; it counts."""

    def deed(graph: fx.Graph) -> int:
        found = calls(graph, old)
        for node in found:
            node.target = new
        return len(found)

    return deed


def fail(graph: fx.Graph) -> None:
    raise ValueError("no such luck")


def last_through(target: Any, *more: Any) -> Deed:
    """Return a pass that puts a call behind the first result."""

    def deed(graph: fx.Graph) -> int:
        first, *rest = results(graph)
        with graph.inserting_before(graph.output_node()):
            new = graph.call_function(target, (first, *more))
        graph.output_node().args = ((new, *rest),)
        return 1

    return deed


def affine(x: Tensor) -> Tensor:
    return torch.relu(x) + 1


class Blocks(nn.Module):
    """Six blocks with a relu each, in three equal pieces."""

    def forward(self, x: Tensor) -> Tensor:
        """Run."""
        for _ in range(3):
            x = torch.sigmoid(torch.relu(torch.relu(x) - 1))
        return x


X = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
