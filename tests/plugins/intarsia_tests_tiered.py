"""A plugin with the compiler "tiered", which makes quick artifacts and packages, both of them fast.

Its options say what becomes of a package: `seconds` to sleep, `refuse` it, `die` in the worker, or
`loads = False` where none could be loaded here.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from typing import Any

from attrs import evolve

from intarsia.errors import CompileRejected
from intarsia.interfaces import (
    Capabilities,
    CompileRequest,
    CompileResult,
    CompilerSpec,
    Decision,
    Option,
    PieceSignature,
)
from intarsia_eager.adaptor import EagerCompiler

intarsia_api_version = (1, 0)

NICENESS = "niceness"
"""A file in the folder of the option `folder`: the priorities of those who made packages."""


class Tiered(EagerCompiler):
    """The eager compiler, with a tier in front of its artifacts."""

    def compile(self, request: CompileRequest) -> CompileResult:
        if request.tier == "package":
            self._hinder()
        made = super().compile(request)
        assert made.artifact is not None
        return evolve(made, artifact=f"{request.tier}:".encode() + made.artifact, tier=request.tier)

    def _hinder(self) -> None:
        with open(os.path.join(self.options["folder"], NICENESS), "a") as file:
            file.write(f"{os.nice(0)}\n")
        time.sleep(self.options["seconds"])
        if self.options["refuse"]:
            raise CompileRejected("no package of this")
        if self.options["die"]:
            os.kill(os.getpid(), signal.SIGKILL)

    def load(self, artifact: bytes, signature: PieceSignature, device: int | None) -> Any:
        return super().load(artifact.partition(b":")[2], signature, device)

    def loads(self, tier: str) -> Decision:
        return Decision(self.options["loads"], "nothing can be executed here")

    def factors(self) -> Mapping[str, str]:
        return {}


def intarsia_compilers() -> list[CompilerSpec]:
    """Bring the compiler, and one that keeps to the process that asks."""
    options = {
        "folder": Option("", str, in_key=False), "seconds": Option(0.0, (int, float), in_key=False),
        "refuse": Option(False, bool, in_key=False), "die": Option(False, bool, in_key=False),
        "loads": Option(True, bool, in_key=False),
    }  # fmt: skip
    can = Capabilities(dynamic_shapes=True, mutation=True, custom_ops=True, concurrent=True)
    tiered = CompilerSpec("tiered", "1", Tiered, options=options, capabilities=can,
                          tiers=("quick", "package"))  # fmt: skip
    homely = evolve(tiered, name="homely", capabilities=evolve(can, workers=False))
    return [tiered, homely]
