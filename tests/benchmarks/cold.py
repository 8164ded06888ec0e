"""Cold compile: from an imported torch and a built model to the first result, in fresh processes.

    python tests/benchmarks/cold.py [--layers 2 8 32] [--repeat 3] [--json FILE]

The decoder of the tests (hidden 256, an opaque attention op that writes into its output), its token
count marked dynamic for everybody. Every measurement is a new process with empty caches, except that
Inductor's precompiled header (9-13 CPU s, once per machine) is made first and reported apart. `compiler`
is the part of the CPU seconds that the C++ compiler used.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.common import Measured, fresh_caches, run_child, table, write_json

WAYS = ("intarsia", "stock per-layer", "stock whole-graph")
TOKENS = 16


def measure(way: str, layers: int) -> dict[str, Any]:
    """Compile and call once, in this process."""
    import torch

    import intarsia
    from tests.models import ATTENTION, DECODER_DYNAMIC, decoder, decoder_inputs

    torch.set_num_threads(1)
    model = decoder(layers, 256)
    call = decoder_inputs(TOKENS, 1)
    with torch.no_grad():
        expected = model(**call)
    report: dict[str, Any] = {}
    intarsia.compile
    with Measured() as measured, torch.no_grad():
        if way == "intarsia":
            compiled = intarsia.compile(
                model, kwargs=call, dynamic=DECODER_DYNAMIC, compilers=["inductor"],
                split_at=[ATTENTION], strict=True, artifact="quick",
                cache=os.environ["TORCHINDUCTOR_CACHE_DIR"] + "-intarsia",
            )  # fmt: skip
            result = compiled(**call)
        else:
            for value in call.values():
                torch._dynamo.mark_dynamic(value, 0)
            result = _stock(way, model)(**call)
    torch.testing.assert_close(result, expected, rtol=2e-4, atol=2e-4)
    if way == "intarsia":
        report = {"seconds": dict(compiled.report.seconds), "calls": compiled.report.compiler_calls}
    return {**measured.to_dict(), **report}


def _stock(way: str, model: Any) -> Any:
    import torch

    if (
        way == "floor"
    ):  # one layer, one graph, no tests of instruction sets: the least Inductor can cost
        import torch._inductor.config

        torch._inductor.config.cpp.vec_isa_ok = True
        model.layers[0].compile(fullgraph=True)
        return model
    if way == "stock whole-graph":
        return torch.compile(model, fullgraph=True)
    for layer in model.layers:
        layer.compile(fullgraph=True)  # one code object: the first layer's code serves all
    return model


def main() -> None:
    """Run every way at every depth and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 8, 32])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    parser.add_argument("--json")
    parser.add_argument("--child", nargs=2)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child[0], int(options.child[1]))))
        return
    template = fresh_caches(None)
    first = run_child(Path(__file__), ["--child", "stock per-layer", "1"], template)
    again = run_child(Path(__file__), ["--child", "stock per-layer", "1"], fresh_caches(template))
    header = first["compiler"] - again["compiler"]
    print(f"precompiled header, once per machine: {header:.1f} CPU s\n", flush=True)
    found: dict[str, Any] = {}
    for layers in options.layers:
        for way in options.ways:
            runs = [run_child(Path(__file__), ["--child", way, str(layers)], fresh_caches(template))
                    for _ in range(options.repeat)]  # fmt: skip
            found[f"{way} {layers}"] = {
                key: statistics.median(r[key] for r in runs) for key in ("wall", "cpu", "compiler")
            }
            seconds = [r["seconds"] for r in runs if "seconds" in r]
            if seconds:
                found[f"{way} {layers}"]["phases"] = seconds[0]
            print(f"  {way}, {layers} layers: {found[f'{way} {layers}']}", flush=True)
    rows = []
    for layers in options.layers:
        for way in options.ways:
            entry = found[f"{way} {layers}"]
            mine = found.get(f"intarsia {layers}", entry)
            rows.append([way, layers, entry["cpu"], entry["cpu"] - entry["compiler"], entry["wall"],
                         mine["cpu"] / entry["cpu"]])  # fmt: skip
    print(
        "\n" + table(["way", "layers", "CPU s", "without C++", "wall s", "intarsia / this"], rows)
    )
    write_json(options.json, {"header_cpu": header, "results": found})


if __name__ == "__main__":
    main()
