"""The compilers of a host, as a compiler sees them that compiles by others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from attrs import evolve, frozen

from intarsia.compiling.instances import built_for
from intarsia.compiling.routes import refuse_unfit
from intarsia.compiling.soundness import compile_soundly
from intarsia.compiling.tasks import bakes
from intarsia.compiling.transport import make_request
from intarsia.errors import CompileRejected, ConfigError
from intarsia.host import Host
from intarsia.interfaces import (
    CompileRequest,
    CompileResult,
    CompilerSpec,
    Decision,
    DeviceOps,
    OpView,
    PieceSignature,
    PlatformSpec,
)
from intarsia.references import resolve_reference


@frozen
class HostCompilers:
    """The `OtherCompilers` of a host, on a device."""

    host: Host
    device: int | None

    def identity(self) -> str:
        """Return what tells these compilers from another host's: models that see the same share."""
        specs = [s for s in self.host.compilers() if not s.uses_others]
        told = [(s.name, s.version, repr(s.factory), repr(self.host.options(s))) for s in specs]
        listed = [(p.name, p.device_type, p.compilers) for p in self.host.platforms()]
        return repr((sorted(told), sorted(listed)))

    def names(self, device_type: str | None = None) -> tuple[str, ...]:
        """Return what the platforms list, in order; of one device type, or of all."""
        listed = [
            name for platform in self._platforms()
            if device_type in (None, platform.device_type) for name in platform.compilers
        ]  # fmt: skip
        return tuple(name for name in dict.fromkeys(listed) if not self._uses_others(name))

    def factors(self, name: str) -> Mapping[str, str] | None:
        """Return a compiler's whole identity."""
        from intarsia.compiling.identity import compiler_factors  # cycle: it builds compilers too

        return compiler_factors(self._spec(name), self.host, self.device)

    def compile(self, name: str, request: CompileRequest) -> CompileResult:
        """Compile a piece with another compiler."""
        spec = self._spec(name)
        if bakes(spec):
            raise CompileRejected(
                "it makes weights part of what it compiles, which only a route gives"
            )
        signature = request.signature
        is_fixed = all(low == high for low, high in signature.box.values())
        nodes = [n for n in request.graph.graph.nodes if n.op.startswith("call_")]
        values = (*signature.inputs, *signature.outputs)
        refuse_unfit(spec, values, nodes, mutates=bool(signature.mutated), is_fixed=is_fixed)
        made = built_for(self.host, spec, self.device)
        with made.turn(spec):
            return compile_soundly(made.compiler, self._request(spec, request))

    def _request(self, spec: CompilerSpec, request: CompileRequest) -> CompileRequest:
        # In a fake mode of its own: what one compiler notes about sizes is no condition of another's. The
        # passes over the piece in torch's form have run already.
        signature = evolve(request.signature, options=self.host.options(spec))
        left = tuple(one for one in request.passes if one.stage != "piece")
        return make_request(
            request.graph, signature, device_type=request.device_type, device=request.device,
            name=request.name, kind=request.kind, key=request.key, passes=left,
            wants_artifact=request.wants_artifact, hints=request.hints, pass_setup=request.pass_setup,
        )  # fmt: skip

    def load(
        self, name: str, artifact: bytes, signature: PieceSignature, device: int | None
    ) -> Callable[..., Sequence[Any]]:
        """Restore what another compiler made."""
        spec = self._spec(name)
        own = evolve(signature, options=self.host.options(spec))
        return built_for(self.host, spec, self.device).compiler.load(artifact, own, device)

    def bind(
        self, name: str, function: Callable[..., Any], weights: Mapping[int, torch.Tensor]
    ) -> Callable[..., Any]:
        """Return a callable bound to weights."""
        compiler = built_for(self.host, self._spec(name), self.device).compiler
        bind = getattr(compiler, "bind", None)
        return function if bind is None else bind(function, weights)

    def supports(self, name: str, op: OpView) -> Decision:
        """Say whether another compiler takes an operation."""
        spec = self._spec(name)
        if spec.supports is None:
            return built_for(self.host, spec, self.device).compiler.supports(op)
        return resolve_reference(spec.supports, owner=f'compiler "{name}"')(op)

    def device_ops(self, device_type: str) -> DeviceOps:
        """Return the device operations of the platform for a device type."""
        from intarsia.device_ops import device_ops  # only who times needs them

        found = next((p for p in self._platforms() if p.device_type == device_type), None)
        return device_ops(found or PlatformSpec(device_type, device_type), self.device)

    def _platforms(self) -> list[PlatformSpec]:
        return sorted(self.host.platforms(), key=lambda platform: -platform.priority)

    def _uses_others(self, name: str) -> bool:
        return any(s.name == name and s.uses_others for s in self.host.compilers())

    def _spec(self, name: str) -> CompilerSpec:
        spec = self.host.compiler(name)
        if spec.uses_others:
            raise ConfigError(
                f'"{name}" cannot be a candidate', why="it compiles by other compilers itself",
                next_step="Name the compilers that it would choose from.", subject=name,
            )  # fmt: skip
        return spec
