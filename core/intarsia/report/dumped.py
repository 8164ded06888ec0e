"""Dump: one ordered, readable index of a compile on disk, and the same as tlparse artifacts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from intarsia import torch_compat
from intarsia.capture.graph import Graph
from intarsia.report.explain import symbol_lines
from intarsia.report.records import Report
from intarsia.report.text import explain
from intarsia.runtime.source import graph_source
from intarsia.split.partition import Partition


def write_dump(folder: str, name: str, files: Mapping[str, str]) -> Path:
    """Write a compile's files, in order, under DIR/NAME, with an index; returns that folder.

    A second model of the same name gets a folder of its own: "model", "model-2".
    """
    root = _fresh(Path(folder), re.sub(r"[^\w.-]+", "_", name))
    lines = [f"# {name}", ""]
    for number, (title, text) in enumerate(files.items()):
        path = root / f"{number:02d}_{title}"
        path.write_text(text, encoding="utf-8")
        lines.append(f"- {path.name}: {_first_line(text)}")
    (root / "index.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def _fresh(parent: Path, name: str) -> Path:
    number = 1
    while True:
        root = parent / (name if number == 1 else f"{name}-{number}")
        try:
            root.mkdir(parents=True)
            return root
        except FileExistsError:
            number += 1


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")[:100]


def write_trace(name: str, files: Mapping[str, str]) -> None:
    """Write the same files as `trace_structured` artifacts; free when tracing is off."""
    for title, text in files.items():
        encoding = "json" if title.endswith(".json") else "string"
        torch_compat.trace_artifact(f"intarsia_{name}_{title}", text, encoding)


def dump_compile(
    folder: str | None, report: Report, graphs: Sequence[Graph], partitions: Sequence[Partition],
    sources: Mapping[str, str],
) -> None:  # fmt: skip
    """Dump a compile to a folder (None: to none) and to whoever collects torch's traces."""
    if folder is None and not torch_compat.is_tracing():
        return
    files: dict[str, str] = {}
    for number, graph in enumerate(graphs):
        files[f"graph{_suffix(number)}.py"] = graph.module.print_readable(print_output=False)
    for number, partition in enumerate(partitions):
        for piece in partition.pieces:
            files[f"{piece.name}{_suffix(number)}.py"] = graph_source(piece.module, piece.name)[0]
    files["routes_factors_times.txt"] = explain(report, symbol_lines(graphs), {})
    for title, source in sources.items():
        files[f"{title.replace(' ', '_')}.py"] = source
    files["report.json"] = json.dumps(report.to_dict(), indent=2, default=str)
    write_trace(report.name, files)
    if folder is not None:
        write_dump(folder, report.name, files)


def _suffix(number: int) -> str:
    return "" if number == 0 else f"_{number}"
