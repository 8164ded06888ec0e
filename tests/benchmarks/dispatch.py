"""Run-time overhead: what a forward costs beside the kernels.

    python tests/benchmarks/dispatch.py [--layers 2 32] [--rounds 30] [--json FILE]

Two measurements, one thread, interleaved. First the framework alone: 2L+1 pieces that do nothing (a
compiler whose callables return prepared tensors), against stock `torch.compile` with a backend that does
nothing, guards kept and guards dropped. Then a tiny model (hidden 8) with Inductor: intarsia's pieces
against stock whole-graph, stock per-layer, and eager.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

import intarsia
from intarsia.interfaces import Capabilities, CompileRequest, CompileResult, CompilerSpec
from tests.benchmarks.common import interleaved, table, write_json
from tests.models import ATTENTION, DECODER_DYNAMIC, decoder, decoder_inputs

TOKENS = 4


class NothingCompiler:
    """Makes callables that return the same prepared tensors on every call."""

    def __init__(self, options: Mapping[str, Any], device: int | None) -> None:
        self.made: list[tuple[torch.Tensor, ...]] = []

    def compile(self, request: CompileRequest) -> CompileResult:
        """Prepare tensors of the outputs' shapes for TOKENS tokens."""
        outputs = []
        for info in request.signature.outputs:
            shape = [s if isinstance(s, int) else TOKENS for s in info.shape]  # type: ignore[union-attr]
            outputs.append(torch.zeros(shape))
        prepared = tuple(outputs)

        def piece(*_inputs: Any) -> tuple[torch.Tensor, ...]:
            return prepared

        return CompileResult(piece)

    def load(self, artifact: bytes, signature: Any, device: int | None) -> Any:
        """Nothing is ever kept."""
        raise NotImplementedError

    def factors(self) -> None:
        """Never cached."""
        return

    def supports(self, op: Any) -> Any:
        """Take everything."""
        return True


class Plugin:
    """The compiler "nothing", as a plugin given in code."""

    intarsia_api_version = (1, 0)
    __name__ = "nothing"

    @staticmethod
    def intarsia_compilers() -> list[CompilerSpec]:
        """Bring the compiler."""
        return [CompilerSpec("nothing", "1", NothingCompiler, capabilities=Capabilities(
            dynamic_shapes=True, mutation=True, custom_ops=True))]  # fmt: skip


def framework(layers: int, rounds: int) -> dict[str, Any]:
    """Measure pieces that do nothing."""
    from intarsia.config import load_config
    from intarsia.host import Host

    model = decoder(layers, 64)
    call = decoder_inputs(TOKENS, 1)
    settings = load_config(
        None, compilers=["nothing"], split_at=[ATTENTION], check="none", cache=False
    )
    host = Host(settings, extra_plugins=[Plugin()])
    # The attention op is routed to the compiler too: every one of the 2L+1 pieces does nothing.
    compiled = intarsia.compile(
        model, kwargs=call, dynamic=DECODER_DYNAMIC, config=settings, host=host,
        routes=[{"piece": {}, "compilers": ["nothing"]}],
    )  # fmt: skip
    forward = next(iter(compiled._engine.dispatcher.boxes)).forward
    names = [n for n in forward.__globals__ if n.startswith("piece_")]
    piece = forward.__globals__[names[0]]
    marked = {k: v.clone() for k, v in call.items()}
    for value in marked.values():
        torch._dynamo.mark_dynamic(value, 0)

    def nothing_backend(module: Any, inputs: Any) -> Callable[..., Any]:
        output = next(iter(reversed(module.graph.nodes))).args[0]
        prepared = tuple(torch.zeros(TOKENS, 64) for _ in output)
        return lambda *args: prepared

    kept = torch.compile(model, backend=nothing_backend, fullgraph=True)
    other = decoder(layers, 64)
    dropped = torch.compile(other, backend=nothing_backend, fullgraph=True, options={
        "guard_filter_fn": torch.compiler.skip_all_guards_unsafe}) if hasattr(
        torch.compiler, "skip_all_guards_unsafe") else None  # fmt: skip
    with torch.no_grad():
        functions: dict[str, Callable[[], Any]] = {
            "intarsia": lambda: compiled(**call),
            "one piece called directly": lambda: piece(1, 2, 3, 4, 5, 6, 7, 8),
            "stock, guards kept": lambda: kept(**marked),
        }
        if dropped is not None:
            try:
                dropped(**marked)
                functions["stock, guards dropped"] = lambda: dropped(**marked)
            except TypeError:
                pass  # this torch passes options on to the backend instead
        found = interleaved(functions, rounds=rounds, calls=200)
    direct = found["one piece called directly"]["min_us"]
    pieces = compiled.report.pieces
    found["intarsia"]["per_piece_us"] = (found["intarsia"]["min_us"] - direct * pieces) / pieces
    found["intarsia"]["framework_us"] = found["intarsia"]["min_us"] - direct * pieces
    return found


def tiny(layers: int, rounds: int) -> dict[str, Any]:
    """Measure a tiny model with Inductor."""
    model = decoder(layers, 8, 2)
    call = decoder_inputs(TOKENS, 1)
    compiled = intarsia.compile(
        model, kwargs=call, dynamic=DECODER_DYNAMIC, compilers=["inductor"], split_at=[ATTENTION],
        cache=False,
        strict=True,
    )  # fmt: skip
    whole, layered = decoder(layers, 8, 2), decoder(layers, 8, 2)
    marked = {k: v.clone() for k, v in call.items()}
    for value in marked.values():
        torch._dynamo.mark_dynamic(value, 0)
    whole_compiled = torch.compile(whole, fullgraph=True)
    for layer in layered.layers:
        layer.compile(fullgraph=True)
    with torch.no_grad():
        expected = model(**call)
        for function in (compiled, whole_compiled, layered):
            torch.testing.assert_close(function(**marked), expected, rtol=1e-3, atol=1e-3)
        return interleaved(
            {
                "intarsia": lambda: compiled(**call),
                "stock whole-graph": lambda: whole_compiled(**marked),
                "stock per-layer": lambda: layered(**marked),
                "eager": lambda: model(**call),
            },
            rounds=rounds, calls=10,
        )  # fmt: skip


def main() -> None:
    """Measure and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 32])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--only", choices=["framework", "tiny"])
    parser.add_argument("--json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for layers in options.layers:
        if options.only != "tiny":
            found[f"framework {layers}"] = framework(layers, options.rounds)
        if options.only != "framework":
            found[f"tiny {layers}"] = tiny(layers, options.rounds)
    for title, entries in found.items():
        mine = entries["intarsia"]["min_us"]
        rows = [[name, e["min_us"], e["median_us"], e["min_cpu_us"], mine / e["min_us"]]
                for name, e in entries.items()]  # fmt: skip
        print(f"\n{title} layers, microseconds per call")
        print(table(["way", "min", "median", "min CPU", "intarsia / this"], rows))
        if "framework_us" in entries["intarsia"]:
            print(f"framework per forward: {entries['intarsia']['framework_us']:.2f}, "
                  f"per piece {entries['intarsia']['per_piece_us']:.3f}")  # fmt: skip
    write_json(options.json, found)


if __name__ == "__main__":
    main()
