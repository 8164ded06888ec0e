"""Passes, a pass manager, a store, a platform and a static-graph backend that are broken on purpose."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from intarsia.interfaces import (
    PassManagerSpec,
    PassSpec,
    PlatformSpec,
    StaticGraphSpec,
    Store,
    StoreSpec,
    StoreStat,
)
from intarsia.passes.manager import BuiltInManager
from intarsia.testing.null_device import NullDevice


class Pass:
    """Does nothing, except for its defect."""

    def __init__(self, defect: str) -> None:
        self.defect = defect

    def __call__(self, graph: fx.Graph) -> int:
        """Run over a graph in torch's form."""
        if self.defect == "wrong-numbers":
            for node in graph.find_nodes(op="call_function", target=torch.sigmoid):
                node.target = torch.tanh
        if self.defect == "not-a-graph":
            raise ValueError("it cannot take this graph")
        return 0

    def uuid(self) -> str:
        """Return its identity."""
        return secrets.token_hex(8) if self.defect == "restless" else self.defect


class Manager(BuiltInManager):
    """Keeps no constraint and runs each pass twice."""

    def order(self, specs: Sequence[PassSpec], *rest: Any) -> Any:
        """Return passes without regard for their constraints."""
        return list(specs)

    def run(self, passes: Sequence[Any], *rest: Any) -> Any:
        """Run each twice."""
        return super().run([*passes, *passes], *rest)


class Forgetful(Store):
    """Writes over what is there, and lists nothing."""

    kept: dict[str, bytes] = {}

    def stat(self, key: str) -> StoreStat | None:
        """Know nothing."""
        return None

    def get(self, key: str) -> bytes | None:
        """Return what was stored last."""
        return self.kept.get(key)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Store in any case."""
        self.kept[key] = data
        return True

    def list(self) -> list[str]:
        """Return nothing."""
        return []

    def delete(self, key: str) -> None:
        """Keep it."""


class Graphs(NullDevice):
    """A null device whose recordings do nothing and cost nothing."""

    def __init__(self, options: Mapping[str, Any], device: int | None = None) -> None:
        super().__init__({})

    def end(self) -> Any:
        """Return a recording that replays nothing."""
        made = super().end()
        made.calls = ()
        return made

    def measure(self, recording: Any) -> Mapping[str, int]:
        """Say that recordings are free."""
        return {"slots": 0}


class Plugin:
    """Brings all of them; "quiet" is a pass that is as it should be."""

    intarsia_api_version = (1, 0)
    __name__ = "broken-kinds"

    def __init__(self, *defects: str) -> None:
        self.defects = defects

    def intarsia_passes(self) -> list[PassSpec]:
        """Bring a pass for each defect."""
        return [
            PassSpec(f"pass-{d}", "1", "piece", lambda options, d=d: Pass(d),  # type: ignore[misc]
                     before=("pass-quiet",) if d == "cycle" else (),
                     after=("pass-quiet",) if d == "cycle" else ())
            for d in self.defects
        ]  # fmt: skip

    def intarsia_pass_managers(self) -> list[PassManagerSpec]:
        """Bring the pass manager."""
        return [PassManagerSpec("unruly", "tests.conformance.broken_kinds:Manager")]

    def intarsia_stores(self) -> list[StoreSpec]:
        """Bring the store."""
        return [StoreSpec("forgetful", lambda url, options: Forgetful())]

    def intarsia_platforms(self) -> list[PlatformSpec]:
        """Bring a platform for CPU tensors whose traits are never the same."""
        return [
            PlatformSpec("restless", "cpu", traits=lambda device: {"day": secrets.token_hex(4)},
                         compilers=("nobody",), priority=-1)
        ]  # fmt: skip

    def intarsia_static_graphs(self) -> list[StaticGraphSpec]:
        """Bring the static-graph backend."""
        return [
            StaticGraphSpec("careless", "tests.conformance.broken_kinds:Graphs", devices=("cpu",))
        ]


def restless() -> list[Plugin]:
    """Return the plugin with a pass whose identity changes."""
    return [Plugin("quiet", "restless")]


def wrong() -> list[Plugin]:
    """Return the plugin with a pass that changes numbers."""
    return [Plugin("quiet", "wrong-numbers")]


def raising() -> list[Plugin]:
    """Return the plugin with a pass that raises."""
    return [Plugin("quiet", "not-a-graph")]


def cycle() -> list[Plugin]:
    """Return the plugin with passes that cannot be ordered."""
    return [Plugin("quiet", "cycle")]


def quiet() -> list[Plugin]:
    """Return the plugin with a pass that has no defect."""
    return [Plugin("quiet")]
