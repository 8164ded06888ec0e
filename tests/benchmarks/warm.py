"""Warm start: a new process with kept caches, from an imported torch to the first result.

    python tests/benchmarks/warm.py [--layers 2 8 32] [--llama 16] [--repeat 3] [--json FILE]

Every way first runs once cold in caches of its own, which are kept; then in new processes, in turns. The
decoder's attention is an op of a `torch.library.Library` (the first call of a `torch.library.custom_op`
imports Dynamo and Inductor by itself; its cost is measured beside, `custom op`). Importing and building the
model are timed apart. `process` is the whole process from its start, less importing and building the
model; `import torch` is a process that does only that.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.common import fresh_caches, run_child, table, write_json

WAYS = ("intarsia package", "intarsia quick", "stock per-layer", "stock whole-graph")
TOKENS = 16


def measure(way: str, kind: str, layers: int, cache: str) -> dict[str, Any]:
    """Start once, in this process; the times are CPU seconds unless they say otherwise."""
    import torch

    import intarsia

    imported = time.process_time()
    torch.set_num_threads(1)
    model, call, dynamic, split = _model(kind, layers)
    built = time.process_time()
    before = set(sys.modules)
    wall = time.perf_counter()
    with torch.no_grad():
        run = _compiled(way, model, call, dynamic, split, cache)
        result = run(**call)
    done, wall = time.process_time(), time.perf_counter() - wall
    added = {name.partition(".")[2].partition(".")[0] for name in set(sys.modules) - before}
    report = run.report if way.startswith("intarsia") else None
    if report is not None and way == "intarsia package":
        run.wait_packages()
    value = result if isinstance(result, torch.Tensor) else result[0]
    with torch.no_grad():
        expected = model(**call)
    expected = expected if isinstance(expected, torch.Tensor) else expected[0]
    torch.testing.assert_close(value, expected, rtol=2e-4, atol=2e-4)
    return {
        "start": done - built, "wall": wall, "imports": imported, "model": built - imported,
        "process": done - (built - imported), "value": value.double().sum().item(),
        "heavy": sorted({"_dynamo", "_inductor"} & added),
        "captures": None if report is None else report.captures,
        "calls": None if report is None else report.compiler_calls,
        "reads": None if report is None else report.bundle_reads,
        "intarsia": intarsia.__version__,
    }  # fmt: skip


def _model(kind: str, layers: int) -> tuple[Any, dict[str, Any], Any, list[str]]:
    import torch

    if kind == "decoder":
        from tests.models import ATTENTION, DECODER_DYNAMIC, decoder, decoder_inputs

        return decoder(layers, 256), decoder_inputs(TOKENS, 1), DECODER_DYNAMIC, [ATTENTION]
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=1000,
    )  # fmt: skip
    call = {
        "input_ids": torch.randint(0, 1000, (2, TOKENS)),
        "use_cache": False,
        "return_dict": False,
    }
    dynamic = {"input_ids": {1: "tokens"}}
    split = ["torch.nn.functional.scaled_dot_product_attention"]
    return LlamaForCausalLM(config).eval(), call, dynamic, split


def _compiled(
    way: str, model: Any, call: dict[str, Any], dynamic: Any, split: list[str], cache: str
) -> Any:
    import torch

    if way.startswith("intarsia"):
        import intarsia

        return intarsia.compile(
            model, kwargs=call, dynamic=dynamic, compilers=["inductor", "eager"], split_at=split,
            cache=cache, artifact=way.partition(" ")[2],
        )  # fmt: skip
    for name, dims in dynamic.items():
        for dim in dims:
            torch._dynamo.mark_dynamic(call[name], dim)
    if way == "stock whole-graph":
        return torch.compile(model, fullgraph=True)
    for layer in model.layers if hasattr(model, "layers") else model.model.layers:
        layer.compile(fullgraph=True)
    return model


def custom_op() -> dict[str, Any]:
    """Measure the first call of a `torch.library.custom_op`."""
    import torch

    def double(x):  # type: ignore[no-untyped-def]
        return x * 2

    schema = "(Tensor x) -> Tensor"
    twice = torch.library.custom_op("intarsia_bench::twice", double, mutates_args=(), schema=schema)
    begun = time.process_time()
    twice(torch.ones(3))
    return {"start": time.process_time() - begun}


def only_torch() -> dict[str, Any]:
    """Measure a process that imports torch and nothing else."""
    import torch

    return {"start": time.process_time(), "torch": torch.__version__}


def medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the median of each number, and the rest as the first run had it."""
    numbers = ("start", "wall", "imports", "model", "process")
    return {**runs[0], **{n: statistics.median(r[n] for r in runs) for n in numbers}}


def main() -> None:
    """Run every way on every model and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, nargs="*", default=[2, 8, 32])
    parser.add_argument("--llama", type=int, nargs="*", default=[16])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    parser.add_argument("--json")
    parser.add_argument("--child", nargs="+")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(_child(options.child)))
        return
    script = Path(__file__)
    empty = fresh_caches(None)
    torch_alone = statistics.median(
        run_child(script, ["--child", "torch"], empty)["start"]
        for _ in range(max(3, options.repeat))
    )
    op = run_child(script, ["--child", "custom-op"], empty)["start"]
    print(
        f"import torch alone: {torch_alone:.2f} CPU s; first call of a custom_op: {op:.2f} CPU s\n"
    )
    template = fresh_caches(None)
    run_child(
        script, ["--child", "stock per-layer", "decoder", "1", str(template / "own")], template
    )
    cases = [("decoder", n) for n in options.layers] + [("llama", n) for n in options.llama]
    found: dict[str, Any] = {}
    for kind, layers in cases:
        found.update(_case(script, kind, layers, options, template))
    _print(found, cases, options.ways, torch_alone)
    write_json(options.json, {"torch": torch_alone, "custom_op": op, "results": found})
    shutil.rmtree(template, ignore_errors=True)


def _child(arguments: list[str]) -> dict[str, Any]:
    if arguments[0] == "torch":
        return only_torch()
    if arguments[0] == "custom-op":
        return custom_op()
    way, kind, layers, cache = arguments
    return measure(way, kind, int(layers), cache)


def _case(script: Path, kind: str, layers: int, options: Any, template: Path) -> dict[str, Any]:
    caches = {way: fresh_caches(template) for way in options.ways}
    commands = {
        way: ["--child", way, kind, str(layers), str(caches[way] / "intarsia")]
        for way in options.ways
    }
    cold = {way: run_child(script, commands[way], caches[way]) for way in options.ways}
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in options.ways}
    for _ in range(options.repeat):
        for way in options.ways:
            runs[way].append(run_child(script, commands[way], caches[way]))
    found = {}
    for way in options.ways:
        entry = medians(runs[way])
        entry["cold"] = cold[way]["start"]
        entry["bit_equal"] = entry["value"] == cold[way]["value"]
        found[f"{way} {kind} {layers}"] = entry
        print(f"  {way}, {kind} {layers}: {json.dumps(entry)}", flush=True)
        shutil.rmtree(caches[way], ignore_errors=True)
    return found


def _print(
    found: dict[str, Any], cases: list[tuple[str, int]], ways: list[str], alone: float
) -> None:
    rows = []
    for kind, layers in cases:
        base = found.get(f"stock per-layer {kind} {layers}", {}).get("start")
        for way in ways:
            entry = found[f"{way} {kind} {layers}"]
            ratio = "" if base is None else f"{entry['start'] / base:.2f}"
            heavy = " ".join(entry["heavy"]) or "-"
            rows.append([way, f"{kind} {layers}", entry["start"], entry["wall"], ratio,
                         entry["process"] - alone, entry["model"], heavy])  # fmt: skip
    headers = ["way", "model", "start CPU s", "wall s", "of per-layer", "process - import torch",
               "model, apart", "imported"]  # fmt: skip
    print("\n" + table(headers, rows))


if __name__ == "__main__":
    main()
