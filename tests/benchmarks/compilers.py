"""One model under each compiler, and under "auto", which chooses among candidates of its own by time.

    OMP_NUM_THREADS=1 python tests/benchmarks/compilers.py [--compilers eager,iree:bake] [--json FILE]

`NAME:bake` is the compiler NAME with weights baked into its programs. A compiler that is not installed is
skipped, which is said. MiniLM takes 4 sentences of 32 tokens; the decoder takes 32 tokens, and is cut at its
attention, a custom operator. Calls of all compilers take turns; medians. The ratio is to the
fastest single compiler that does not bake, for "auto" chooses among those. "Pieces" says who runs the pieces:
what a compiler refuses, eager runs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import nn

import intarsia
from intarsia.cli.demo_minilm import load_encoder
from intarsia.config import load_config
from intarsia.errors import ConfigError, PluginError
from intarsia.host import Host
from tests.benchmarks.common import interleaved, table, write_json
from tests.models import ATTENTION, decoder, decoder_inputs


def minilm() -> tuple[nn.Module, tuple[Any, ...]]:
    """Return the sentence encoder and a batch of random tokens."""
    model, _ = load_encoder()
    ids = torch.randint(1000, 2000, (4, 32), generator=torch.Generator().manual_seed(0))
    return model, (ids, torch.ones_like(ids))


def small_decoder() -> tuple[nn.Module, tuple[Any, ...]]:
    """Return the tests' decoder and its inputs."""
    return decoder(4, hidden=256), tuple(decoder_inputs(32).values())


MODELS = {"MiniLM": minilm, "decoder": small_decoder}
COMPILERS = (
    "eager", "inductor", "onnxruntime", "onnxruntime:bake", "openvino", "openvino:bake", "iree",
    "iree:bake", "auto",
)  # fmt: skip


def usable(rows: Sequence[str]) -> list[str]:
    """Return the rows whose compilers can be used here, and print of each other one why it cannot."""
    host, found = Host(), []
    for row in rows:
        try:
            host.compiler(row.partition(":")[0])
        except (ConfigError, PluginError) as error:
            print(f"{row} is skipped: {error}", file=sys.stderr)
        else:
            found.append(row)
    return found


def settings(row: str, rows: Sequence[str]) -> dict[str, Any]:
    """Return the settings of a row; "auto" chooses among the other rows' compilers."""
    name, _, weights = row.partition(":")
    if name == "auto":
        candidates = list(dict.fromkeys(other.partition(":")[0] for other in rows))
        candidates.remove("auto")
        return {"compilers": ["auto"], "options": {"auto": {"candidates": candidates}}}
    # What it refuses runs eagerly, so that a table has a number for each.
    chosen: dict[str, Any] = {"compilers": [name] if name == "eager" else [name, "eager"]}
    return {**chosen, "options": {name: {"weights": weights}}} if weights else chosen


def pieces(made: Any) -> str:
    """Return who runs how many of the compiled pieces."""
    counted = Counter(
        piece.boxes[0].compiler for piece in made.report.piece_reports if piece.kind == "compiled"
    )
    return ", ".join(f"{count} {name}" for name, count in counted.most_common())


def measured(
    model: nn.Module, args: tuple[Any, ...], compilers: Sequence[str], rounds: int, cache: str
) -> dict[str, Any]:
    """Return the microseconds of a call under each compiler, and whom "auto" chose."""
    calls: dict[str, Callable[[], Any]] = {}
    report: dict[str, Any] = {}
    with torch.no_grad():
        expected = model(*args)
        for name in compilers:
            config = load_config(
                None, cache=cache, split_at=[ATTENTION], **settings(name, compilers)
            )
            made = intarsia.compile(model, args, config=config)
            torch.testing.assert_close(made(*args), expected, rtol=1e-3, atol=1e-4)
            calls[name] = lambda made=made: made(*args)  # type: ignore[misc]
            report[name] = {"explain": str(made.explain()), "pieces": pieces(made)}
        calls["torch"] = lambda: model(*args)
        times = interleaved(calls, rounds=rounds, calls=5)
    return {name: {**report.get(name, {}), **found} for name, found in times.items()}


def rows(results: Mapping[str, Mapping[str, Any]]) -> list[list[Any]]:
    """Return the table's rows: each compiler's time, and its ratio to the best single compiler."""
    found = []
    for model, times in results.items():
        best = min(
            t["median_us"] for name, t in times.items()
            if ":" not in name and name not in ("auto", "torch")
        )  # fmt: skip
        for name, t in times.items():
            ratio = f"{t['median_us'] / best:.2f}"
            found.append([model, name, round(t["median_us"]), ratio, t.get("pieces", "")])
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compilers", default=",".join(COMPILERS))
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--json")
    given = parser.parse_args()
    rows_here = usable(given.compilers.split(","))
    with tempfile.TemporaryDirectory() as cache:
        results = {
            name: measured(*make(), rows_here, given.rounds, cache) for name, make in MODELS.items()
        }
    print(table(["model", "compiler", "us per call", "/ best single", "pieces"], rows(results)))
    if given.json:
        write_json(given.json, results)


if __name__ == "__main__":
    main()
