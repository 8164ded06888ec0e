"""AOTInductor packages against quick artifacts: making, loading in a new process, and calling.

    python tests/benchmarks/packages.py [--layers 32] [--rounds 30] [--json FILE]

One process makes both artifacts of the decoder's distinct pieces, with the C++ headers compiled already,
and reports CPU seconds. For each tier a new process loads the artifacts after `import torch` and calls each
once, and tells which modules of torch that brought in. Then the tiny model (hidden 8) runs on packages, on
quick artifacts, and with stock `torch.compile` in one process, one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from attrs import evolve

import intarsia
from intarsia.config import load_config
from intarsia.host import Host
from intarsia.interfaces import CompileRequest, CompileResult, CompilerSpec, PieceSignature
from intarsia_inductor.adaptor import InductorCompiler
from tests.benchmarks.common import (
    Measured,
    fresh_caches,
    interleaved,
    run_child,
    table,
    write_json,
)
from tests.models import ATTENTION, DECODER_DYNAMIC, decoder, decoder_inputs

TOKENS = 4


class OneTier(InductorCompiler):
    """Makes artifacts of one tier, and keeps them with what they cost."""

    def __init__(self, tier: Any) -> None:
        super().__init__({}, None)
        self.tier = tier
        self.made: list[tuple[bytes, PieceSignature]] = []
        self.costs: list[dict[str, float]] = []

    def compile(self, request: CompileRequest) -> CompileResult:
        """Compile as Inductor does, in this tier."""
        with Measured() as measured:
            result = super().compile(evolve(request, tier=self.tier, wants_artifact=True))
        assert result.artifact is not None, request.name
        self.costs.append(measured.to_dict())
        self.made.append((result.artifact, request.signature))
        return result


def compiled(model: Any, call: Mapping[str, torch.Tensor], maker: OneTier) -> Any:
    """Compile a decoder with a maker of artifacts."""
    inductor = Host().compiler("inductor")
    spec: CompilerSpec = evolve(inductor, name="one-tier", factory=lambda options, device: maker)
    plugin = SimpleNamespace(
        __name__="one_tier", intarsia_api_version=(1, 0), intarsia_compilers=lambda: [spec]
    )
    settings = load_config(
        None, compilers=["one-tier"], split_at=[ATTENTION], strict=True, cache=False
    )
    host = Host(settings, extra_plugins=[plugin])
    return intarsia.compile(model, kwargs=call, dynamic=DECODER_DYNAMIC, config=settings, host=host)


def make(folder: Path, layers: int, rounds: int) -> dict[str, Any]:
    """Make both tiers' artifacts, keep them in a folder, and time calls."""
    torch.set_num_threads(1)
    call = decoder_inputs(TOKENS, 1)
    models: dict[str, Any] = {}
    costs: dict[str, Any] = {}
    for tier in ("quick", "package"):
        compiled(decoder(2, 16, 2), call, OneTier(tier))  # imports, and the headers
        maker = OneTier(tier)
        models[tier] = compiled(decoder(layers, 8, 2), call, maker)
        costs[tier] = {"pieces": len(maker.costs), "bytes": sum(len(a) for a, _ in maker.made)}
        for kind in ("cpu", "compiler"):
            costs[tier][kind] = sum(c[kind] for c in maker.costs) / len(maker.costs)
        for number, (artifact, signature) in enumerate(maker.made):
            (folder / f"{tier}-{number}.bin").write_bytes(artifact)
            (folder / f"{tier}-{number}.json").write_text(json.dumps(signature.to_dict()))
    whole = torch.compile(decoder(layers, 8, 2), fullgraph=True)
    eager = decoder(layers, 8, 2)
    marked = {k: v.clone() for k, v in call.items()}
    for value in marked.values():
        torch._dynamo.mark_dynamic(value, 0)
    with torch.no_grad():
        expected = eager(**call)
        for function in (*models.values(), whole):
            torch.testing.assert_close(function(**marked), expected, rtol=1e-3, atol=1e-3)
        times = interleaved(
            {
                "packages": lambda: models["package"](**call),
                "quick artifacts": lambda: models["quick"](**call),
                "stock whole-graph": lambda: whole(**marked),
                "eager": lambda: eager(**call),
            },
            rounds=rounds, calls=10,
        )  # fmt: skip
    return {"costs": costs, "calls": times}


def load(folder: Path, tier: str) -> dict[str, Any]:
    """Load a tier's artifacts in this new process, and call each once."""
    torch.set_num_threads(1)
    files = sorted(folder.glob(f"{tier}-*.bin"))
    signatures = [
        PieceSignature.from_dict(json.loads(f.with_suffix(".json").read_text())) for f in files
    ]
    artifacts = [f.read_bytes() for f in files]
    before = set(sys.modules)
    with Measured() as loading:
        compiler = InductorCompiler({}, None)
        functions = [compiler.load(a, s, None) for a, s in zip(artifacts, signatures, strict=True)]
    heavy = ("torch._inductor", "torch._dynamo", "sympy")
    new = [m for m in set(sys.modules) - before if m.startswith(heavy)]
    call_inputs = [_inputs(s) for s in signatures]
    with Measured() as calling, torch.no_grad():
        for function, inputs in zip(functions, call_inputs, strict=True):
            boxed = getattr(function, "boxed_call", False)
            function(list(inputs)) if boxed else function(*inputs)
    return {
        "pieces": len(files), "load": loading.to_dict(), "first calls": calling.to_dict(),
        "heavy modules": len(new),
    }  # fmt: skip


def _inputs(signature: PieceSignature) -> list[Any]:
    made: list[Any] = []
    for info in signature.inputs:
        shape = getattr(info, "shape", None)
        if shape is None:
            made.append(TOKENS)
            continue
        sizes = [s if isinstance(s, int) else TOKENS for s in shape]
        made.append(torch.ones(sizes, dtype=getattr(torch, info.dtype)))  # type: ignore[union-attr]
    return made


def _ours() -> dict[str, str]:
    """Let a child import what this process imported."""
    return {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--make")
    parser.add_argument("--load", nargs=2)
    parser.add_argument("--json")
    options = parser.parse_args()
    if options.make:
        print(json.dumps(make(Path(options.make), options.layers, options.rounds)))
        return
    if options.load:
        print(json.dumps(load(Path(options.load[0]), options.load[1])))
        return
    here, folder = Path(__file__).resolve(), Path(tempfile.mkdtemp(prefix="intarsia-packages-"))
    counts = ["--layers", str(options.layers), "--rounds", str(options.rounds)]
    found = run_child(here, ["--make", str(folder), *counts], fresh_caches(None), _ours())
    found["loads"] = {
        tier: run_child(here, ["--load", str(folder), tier], fresh_caches(None), _ours())
        for tier in ("package", "quick")
    }
    rows = [
        [t, c["pieces"], c["bytes"], c["cpu"], c["compiler"]] for t, c in found["costs"].items()
    ]
    print(table(["making", "pieces", "bytes", "CPU s per piece", "of it C++ compiler"], rows))
    rows = [[t, e["pieces"], e["load"]["cpu"] * 1e3, e["first calls"]["cpu"] * 1e3, e["heavy modules"]]
            for t, e in found["loads"].items()]  # fmt: skip
    print(
        "\n" + table(["loading", "pieces", "CPU ms", "first calls, CPU ms", "heavy modules"], rows)
    )
    stock = found["calls"]["stock whole-graph"]["min_us"]
    rows = [
        [n, e["min_us"], e["median_us"], e["min_us"] / stock] for n, e in found["calls"].items()
    ]
    print(f"\ntiny model, {options.layers} layers, microseconds per call")
    print(table(["way", "min", "median", "of stock"], rows))
    write_json(options.json, found)


if __name__ == "__main__":
    main()
