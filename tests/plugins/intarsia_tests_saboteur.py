"""A plugin whose compiler "saboteur" compiles as eager does, or does what its option `how` says.

- hang: waits for ever; hold: the same without giving up Python's lock.
- exit, null, abort: takes the process down.
- raise, reject: raises.
- kill: kills itself as the system does where memory runs out.
- children: starts a process that outlives it, and waits for ever.
- dumb: compiles, and leaves no artifact.
- exit when called, null when called: compiles, and what it made takes the process down.

While the environment variable SABOTEUR_IMPORT is "hang except 123", importing it hangs in every process
but 123.

With the option `once`, a path, it does so the first time only; it appends its process id to that file.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import evolve

from intarsia.errors import CompileRejected
from intarsia.interfaces import (
    Capabilities,
    CompileRequest,
    CompileResult,
    CompilerSpec,
    Option,
    PieceSignature,
)

intarsia_api_version = (1, 0)

if os.environ.get("SABOTEUR_IMPORT", str(os.getpid())).split()[-1] != str(os.getpid()):
    time.sleep(1000)


def _raise() -> None:
    raise RuntimeError("sabotage")


def _reject() -> None:
    raise CompileRejected("sabotage")


def _children() -> None:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    time.sleep(1000)


DEEDS: Mapping[str, Any] = {
    "hang": lambda: time.sleep(1000),
    "hold": lambda: ctypes.PyDLL(None).sleep(1000),  # PyDLL keeps the lock
    "exit": lambda: os._exit(3),
    "null": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "raise": _raise,
    "reject": _reject,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "children": _children,
    "slow": lambda: time.sleep(0.3),
}


def saboteur(options: Mapping[str, Any], device: int | None) -> Any:
    """Return the compiler."""
    from intarsia_eager.adaptor import EagerCompiler

    class Saboteur(EagerCompiler):
        def compile(self, request: CompileRequest) -> CompileResult:
            once = Path(options["once"]) if options["once"] else None
            is_first = once is None or not once.exists() or options["how"] == "slow"
            if once is not None:
                with once.open("a") as file:
                    file.write(f"{os.getpid()} {request.name}\n")
            if is_first:
                DEEDS.get(options["how"], lambda: None)()
            made = super().compile(request)
            made = evolve(made, callable=self._spoilt(made.callable))
            return evolve(made, artifact=None) if options["how"] == "dumb" else made

        def load(self, artifact: bytes, signature: PieceSignature, device: int | None) -> Any:
            return self._spoilt(super().load(artifact, signature, device))

        def _spoilt(self, function: Any) -> Any:
            how, _, when = options["how"].partition(" when ")
            return (lambda *inputs: DEEDS[how]()) if when == "called" else function

        def factors(self) -> Mapping[str, str]:
            factor = os.environ.get("SABOTEUR_FACTOR", "")
            here = factor.split()[-1:] in ([], [str(os.getpid())])
            return {"mode": factor if here else "not here"}

    return Saboteur(options, device)


def intarsia_compilers() -> list[CompilerSpec]:
    """Bring the saboteur."""
    return [
        CompilerSpec(
            name="saboteur",
            version="1",
            factory=saboteur,
            options={"how": Option("", str), "once": Option("", str)},
            capabilities=Capabilities(dynamic_shapes=True, mutation=True, custom_ops=True),
            environment=("SABOTEUR_MODE",),
        )
    ]
