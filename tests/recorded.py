"""Records the compile requests of a model, so that a compiler can be tested on real pieces alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from attrs import evolve

import intarsia
from intarsia.compiling.transport import make_request
from intarsia.config import load_config
from intarsia.host import Host
from intarsia.interfaces import (
    Capabilities,
    CompileRequest,
    CompileResult,
    CompilerSpec,
    Decision,
    Tier,
)


class Recorder:
    """Runs pieces as they are, and keeps every request."""

    def __init__(self) -> None:
        self.requests: list[CompileRequest] = []

    def compile(self, request: CompileRequest) -> CompileResult:
        self.requests.append(request)
        return CompileResult(request.graph.forward)

    def load(self, artifact: bytes, signature: Any, device: int | None) -> Any:
        raise NotImplementedError

    def factors(self) -> None:
        return None

    def supports(self, op: Any) -> Decision:
        return Decision(True)


def recorded(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    **settings: Any,
) -> list[CompileRequest]:
    """Return the requests for the compiled pieces of a model, in order."""
    recorder = Recorder()
    everything = Capabilities(dynamic_shapes=True, mutation=True, custom_ops=True)
    spec = CompilerSpec("keeps", "1", lambda options, device: recorder, capabilities=everything)
    plugin = SimpleNamespace(
        __name__="keeps", intarsia_api_version=(1, 0), intarsia_compilers=lambda: [spec]
    )
    config = load_config(None, compilers=["keeps"], **settings)
    host = Host(config, extra_plugins=[plugin])
    intarsia.compile(model, args=args, dynamic=dynamic or {}, config=config, host=host)
    return recorder.requests


def again(request: CompileRequest, tier: Tier = "quick", **changes: Any) -> CompileRequest:
    """Return a fresh request for the same piece, as another compiler would get it."""
    made = make_request(
        request.graph, request.signature, device_type=request.device_type, device=request.device,
        name=request.name, kind=request.kind, hints=request.hints, tier=tier,
    )  # fmt: skip
    return evolve(made, **changes)
