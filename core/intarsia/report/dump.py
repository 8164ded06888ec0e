"""Dump: one ordered, readable index of a compile on disk, and the same as tlparse artifacts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from intarsia import torch_compat


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
