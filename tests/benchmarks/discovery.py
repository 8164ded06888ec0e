"""Measures what `intarsia plugins --json` costs: CPU time above `import importlib_metadata, attrs, pluggy`.

    python tests/benchmarks/discovery.py [--json FILE] [--plugins 0 25 50] [--repeat N]

Each measurement is a process of its own with N toy distributions on its path, and what is reported is the
median. The baseline is measured in the same process, just before. Every toy module writes a file when it
is imported, and raises, so a single import would be seen.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

GOAL_MS = 30.0
GOAL_MS_PER_PLUGIN = 0.5

MEASURED = """
import sys, time
sys.path.insert(0, sys.argv[1])
start = time.process_time()
import importlib_metadata, attrs, pluggy
base = time.process_time()
from intarsia.cli import main
code = main(["plugins", "--json"])
end = time.process_time()
import json
print(json.dumps({
    "baseline_ms": (base - start) * 1e3,
    "above_ms": (end - base) * 1e3,
    "code": code,
    "torch": "torch" in sys.modules,
}), file=sys.stderr)
"""


def install(site: Path, count: int) -> None:
    """Write toy distributions the way an installer leaves them."""
    for number in range(count):
        info = site / f"toy_{number}-1.0.dist-info"
        info.mkdir()
        description = "A line of the long description.\n" * 60
        info.joinpath("METADATA").write_text(
            f"Metadata-Version: 2.1\nName: toy-{number}\nVersion: 1.0\n\n{description}"
        )
        info.joinpath("entry_points.txt").write_text(f"[intarsia]\ntoy{number} = toy_{number}\n")
        site.joinpath(f"toy_{number}.py").write_text(
            f"import pathlib\npathlib.Path(__file__).with_name('imported-{number}').touch()\n"
            "raise RuntimeError('broken')\n"
        )


def measure(count: int, repeat: int) -> dict[str, Any]:
    """Return the medians over `repeat` processes, and what must not have happened."""
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder)
        install(site, count)
        runs = [_run(site) for _ in range(repeat + 1)][1:]  # the first fills caches
        imported = len(list(site.glob("imported-*")))
    return {
        "plugins": count,
        "listed": runs[0]["listed"],
        "baseline_ms": statistics.median(run["baseline_ms"] for run in runs),
        "above_ms": statistics.median(run["above_ms"] for run in runs),
        "plugin_modules_imported": imported,
        "torch_imported": any(run["torch"] for run in runs),
    }


def _run(site: Path) -> dict[str, Any]:
    # Compiled bytecode is what an installed package has.
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environ = {k: v for k, v in environ.items() if not k.startswith("INTARSIA_")}
    command = [sys.executable, "-c", MEASURED, str(site)]
    done = subprocess.run(
        command, env=environ, capture_output=True, text=True, check=True, cwd=site
    )
    result: dict[str, Any] = json.loads(done.stderr)
    assert result["code"] == 0
    listed = json.loads(done.stdout)
    result["listed"] = sum(status["distribution"].startswith("toy-") for status in listed)
    return result


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return all rows, the growth per plugin, and whether every goal is met."""
    first, last = rows[0], rows[-1]
    span = last["plugins"] - first["plugins"]
    growth = (last["above_ms"] - first["above_ms"]) / span if span else 0.0
    met = (
        last["above_ms"] <= GOAL_MS
        and growth <= GOAL_MS_PER_PLUGIN
        and all(row["listed"] == row["plugins"] for row in rows)
        and not any(row["plugin_modules_imported"] or row["torch_imported"] for row in rows)
    )
    return {"rows": rows, "growth_ms_per_plugin": growth, "goals_met": met}


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    print(f"{'plugins':>8} {'baseline ms':>12} {'above ms':>9} {'imported':>9} {'torch':>6}")
    for row in result["rows"]:
        print(
            f"{row['plugins']:>8} {row['baseline_ms']:>12.1f} {row['above_ms']:>9.1f} "
            f"{row['plugin_modules_imported']:>9} {'yes' if row['torch_imported'] else 'no':>6}"
        )
    print(
        f"growth: {result['growth_ms_per_plugin']:.3f} ms per plugin (goal {GOAL_MS_PER_PLUGIN}); "
        f"goal above the baseline: {GOAL_MS:.0f} ms; "
        f"{'met' if result['goals_met'] else 'NOT met'}"
    )


def main() -> int:
    """Measure, print, and return 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plugins", type=int, nargs="+", default=[0, 25, 50])
    parser.add_argument("--repeat", type=int, default=9)
    options = parser.parse_args()
    result = summary([measure(count, options.repeat) for count in sorted(options.plugins)])
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if result["goals_met"] else 1


if __name__ == "__main__":
    sys.exit(main())
