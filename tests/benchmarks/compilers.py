"""One model under each installed compiler, and under "auto", which chooses among eager and Inductor by time.

    OMP_NUM_THREADS=1 python tests/benchmarks/compilers.py [--compilers eager,inductor,auto] [--json FILE]

MiniLM takes 4 sentences of 32 tokens, the decoder 32 tokens. Calls of all compilers take turns; medians.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import nn

import intarsia
from intarsia.cli.demo_minilm import load_encoder
from intarsia.config import load_config
from tests.benchmarks.common import interleaved, table, write_json
from tests.models import decoder, decoder_inputs


def minilm() -> tuple[nn.Module, tuple[Any, ...]]:
    """Return the sentence encoder and a batch of random tokens."""
    model, _ = load_encoder()
    ids = torch.randint(1000, 2000, (4, 32), generator=torch.Generator().manual_seed(0))
    return model, (ids, torch.ones_like(ids))


def small_decoder() -> tuple[nn.Module, tuple[Any, ...]]:
    """Return the tests' decoder and its inputs."""
    return decoder(4, hidden=256), tuple(decoder_inputs(32).values())


MODELS = {"MiniLM": minilm, "decoder": small_decoder}


def measured(
    model: nn.Module, args: tuple[Any, ...], compilers: Sequence[str], rounds: int, cache: str
) -> dict[str, Any]:
    """Return the microseconds of a call under each compiler, and whom "auto" chose."""
    calls: dict[str, Callable[[], Any]] = {}
    report: dict[str, Any] = {}
    with torch.no_grad():
        expected = model(*args)
        for name in compilers:
            config = load_config(None, compilers=[name], cache=cache)
            made = intarsia.compile(model, args, config=config)
            torch.testing.assert_close(made(*args), expected, rtol=1e-3, atol=1e-4)
            calls[name] = lambda made=made: made(*args)  # type: ignore[misc]
            report[name] = {"explain": str(made.explain())}
        calls["torch"] = lambda: model(*args)
        times = interleaved(calls, rounds=rounds, calls=5)
    return {name: {**report.get(name, {}), **found} for name, found in times.items()}


def rows(results: Mapping[str, Mapping[str, Any]]) -> list[list[Any]]:
    """Return the table's rows: each compiler's time, and its ratio to the best single compiler."""
    found = []
    for model, times in results.items():
        singles = [t["median_us"] for name, t in times.items() if name not in ("auto", "torch")]
        best = min(singles)
        for name, t in times.items():
            found.append([model, name, round(t["median_us"]), f"{t['median_us'] / best:.2f}"])
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compilers", default="eager,inductor,auto")
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        results = {
            name: measured(*make(), given.compilers.split(","), given.rounds, cache)
            for name, make in MODELS.items()
        }
    print(table(["model", "compiler", "us per call", "/ best single"], rows(results)))
    if given.json:
        write_json(given.json, results)


if __name__ == "__main__":
    main()
