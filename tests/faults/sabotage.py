"""What the fault tests of the compile phase share: a model, the compiler that misbehaves, and a clean run."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import intarsia
from tests.processes import children_of, eventually

PLUGINS = Path(__file__).resolve().parents[1] / "plugins"


class Model(torch.nn.Module):
    """Different compiled pieces, each before a splitting op."""

    def __init__(self, pieces: int) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(8 + i, 9 + i) for i in range(pieces))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run them."""
        for layer in self.layers:
            x = torch.sigmoid(layer(x))
        return x


def compiled(how: str, *, once: Path | str = "", pieces: int = 1, **settings: Any) -> Any:
    """Compile the model with the saboteur first and eager last, and check the result."""
    torch.manual_seed(0)
    model, x = Model(pieces), torch.randn(3, 8)
    chosen = {
        "compilers": ["saboteur", "eager"],
        "workers": 1,
        "compile_timeout": 60.0,
        "cache": False,
        **settings,
    }
    made = intarsia.compile(
        model, (x,), dynamic={"x": {0: "n"}}, split_at=["torch.sigmoid"],
        options={"saboteur": {"how": how, "once": str(once)}}, **chosen,
    )  # fmt: skip
    with torch.no_grad():
        torch.testing.assert_close(made(x), model(x))
    return made


def compilers(made: Any) -> list[list[str]]:
    """Return "compiler outcome" of everybody who was asked, for each compiled piece."""
    boxes = [box for piece in made.report.piece_reports for box in piece.boxes]
    return [[f"{a.compiler} {a.outcome}" for a in box.attempts] for box in boxes if box.attempts]


def warnings(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    """Return the warnings that have a text."""
    found = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    return [line for line in found if text in line]


def no_worker_is_left() -> bool:
    """Say whether a second later there is no worker, and nothing that one has started."""
    return eventually(lambda: not workers_and_theirs(), 1.0)


def workers_and_theirs() -> set[int]:
    """Return the worker processes of this one, and what they have started."""
    mine = {pid for pid in children_of(os.getpid()) if b"compiling/worker.py" in command(pid)}
    return mine.union(*map(children_of, mine))


def command(pid: int) -> bytes:
    """Return a process's command line; empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
