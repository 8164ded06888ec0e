"""The parts of the command line: tables, progress, timing, log lines."""

from __future__ import annotations

import logging
import os
import pty
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

from intarsia.cli import progress
from intarsia.cli.logs import readable_logs
from intarsia.cli.progress import Progress
from intarsia.cli.report_table import box_text, pieces_table
from intarsia.cli.table import render_table
from intarsia.cli.timing import interleaved, measured
from intarsia.interfaces import Event
from intarsia.report.records import Attempt, BoxReport, PieceReport

# ----------------------------------------------------------------------------------- tables


def test_numbers_stand_to_the_right() -> None:
    text = render_table(("name", "ms"), [("a", 1.5), ("long name", 123.456)])
    assert text == "name         ms\na          1.50\nlong name   123"


def test_empty_columns_are_left_out() -> None:
    assert render_table(("a", "b", "c"), [("x", "", 1), ("y", None, 2)]) == "a  c\nx  1\ny  2"


def test_cells_stay_on_one_line() -> None:
    assert render_table(("a",), [("two\nlines",)]) == "a\ntwo lines"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1.7e-7, "1.7e-07"),
        (0.25, "0.250"),
        (2.5, "2.50"),
        (1234.5, "1234"),
        (True, "yes"),
    ],
)
def test_values_are_short(value: object, text: str) -> None:
    assert render_table(("a",), [(value,)]).splitlines()[1].strip() == text


def test_boxes_are_written_as_ranges() -> None:
    assert box_text({"n": (1, 8), "m": (4, 4), "k": (1, 2**63 - 1)}) == "n=1..8,m=4,k=1.."


def piece(index: int, modules: tuple[str, ...], **more: Any) -> PieceReport:
    """Return the report of a piece of no importance."""
    known = {"kind": "compiled", "ops": ("operator.add",), "key": "", "requested": ("eager",)}
    known |= {"compiler": "eager", "reason": "", "boxes": (), "inputs": 1, "outputs": 1, "nodes": 1}
    return PieceReport(index=index, name=f"piece_{index}", modules=modules, **{**known, **more})


def origins(*pieces: PieceReport) -> list[str]:
    """Return the last column of the table."""
    header, *rows = pieces_table(pieces).splitlines()
    start = header.index("from")
    return [row[start:].split("  ")[0] for row in rows]


def test_piece_comes_from_its_first_and_last_innermost_modules() -> None:
    inner = ("m", "m.layers", "m.layers.0", "m.layers.0.q", "m.layers.0.k", "m.layers.1.q")
    assert origins(piece(0, inner), piece(1, ("m", "m.layers", "m.layers.1", "m.layers.1.o"))) == [
        "0.q .. 1.q",
        "1.o",
    ]


def test_splitting_piece_comes_from_its_operation() -> None:
    ops = ("torch._C._nn.attend", "acme::paged.default")
    assert origins(piece(0, (), kind="splitting", ops=ops)) == ["attend, acme::paged.default"]


def test_piece_outside_modules_comes_from_its_source_line() -> None:
    source = ('File "/far/away/model.py", line 8, in forward: return x + 1',)
    assert origins(piece(0, (), source=source)) == ["model.py:8: return x + 1"]


def test_equal_pieces_name_the_first_and_declined_ones_the_reason() -> None:
    tried = (Attempt("acme", "rejected", "has no sine"), Attempt("eager", "compiled"))
    box = BoxReport({"n": (1, 8)}, "eager", attempts=tried)
    text = pieces_table((piece(0, ("a",), key="k", boxes=(box,)), piece(1, ("b",), key="k")))
    header, first, second = text.splitlines()
    assert "n=1..8" in first
    assert first.endswith("acme rejected: has no sine")
    assert second[header.index("equal to") :].startswith("piece 0")


# --------------------------------------------------------------------------------- progress


@define
class Shown:
    """Keeps what would be displayed."""

    states: list[tuple[str, int, int]] = field(factory=list)
    closed: bool = False

    def show(self, text: str, done: int, total: int) -> None:
        self.states.append((text, done, total))

    def close(self) -> None:
        self.closed = True


def test_what_is_quick_shows_nothing() -> None:
    shown = Shown()
    told = Progress(shown)
    told.step("working", 1, 3)
    told.close()
    assert shown.states == []
    assert shown.closed


def test_events_are_shown_after_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "QUIET_FOR", 0.0)
    shown = Shown()
    told = Progress(shown)
    told(Event("progress", "decoder", "compile", 1, 3, message="piece_0 by eager"))
    told(Event("warning", "decoder", message="not for the bar"))
    told.close()
    assert set(shown.states) == {("decoder: compile piece_0 by eager", 1, 3)}


SLOW = """
import time
from intarsia.cli import progress
progress.QUIET_FOR, progress.LINE_EVERY = 0.2, 0.4
with progress.progress() as told:
    told.step("a long step", 1, 2)
    time.sleep({seconds})
print("done")
"""


def test_long_step_is_told_again_where_stderr_is_no_terminal() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SLOW.format(seconds=2.2)], capture_output=True, text=True, check=True
    )
    lines = done.stderr.splitlines()
    assert len(lines) >= 3
    assert all(line.endswith("s] a long step (1 of 2)") for line in lines)
    assert done.stdout == "done\n"


def test_terminal_gets_a_bar_that_goes_away(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW.format(seconds=1.2)],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:  # the other end is closed
        pass
    process.communicate()
    os.close(ours)
    assert b"a long step" in shown
    assert b"1/2" in shown
    after = shown.rpartition(b"a long step")[2]
    assert b"\x1b[2K" in after, "the bar's line was not erased"


# ----------------------------------------------------------------------------------- timing


def test_every_round_measures_every_call_in_turn() -> None:
    order: list[str] = []

    def slow(name: str) -> object:
        order.append(name)
        time.sleep(0.006)
        return None

    told: list[tuple[int, int]] = []
    times = interleaved(
        {"a": lambda: slow("a"), "b": lambda: slow("b")},
        rounds=4,
        tell=lambda done, total: told.append((done, total)),
    )
    assert order[-8:] == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert times["a"].samples == 4
    assert times["a"].wall >= 0.006
    assert times["a"].cpu < times["a"].wall


def test_short_calls_are_repeated_until_a_clock_sees_them() -> None:
    calls = 0

    def short() -> None:
        nonlocal calls
        calls += 1

    interleaved({"short": short}, rounds=3)
    assert calls > 1000


def test_measuring_ends_in_time() -> None:
    started = time.monotonic()
    times = interleaved({"a": lambda: time.sleep(0.02)}, rounds=1000, seconds=0.2)
    assert 3 <= times["a"].samples < 30
    assert time.monotonic() - started < 2


def test_cpu_time_of_children_counts() -> None:
    with measured() as spent:
        subprocess.run([sys.executable, "-c", "sum(range(10**7))"], check=True)
    assert spent.cpu > 0.05


# ------------------------------------------------------------------------------------- logs


def failing_log() -> None:
    log = logging.getLogger("intarsia")
    try:
        raise OSError("disk")
    except OSError:
        log.warning("a plugin failed", exc_info=True)


def test_log_lines_have_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with readable_logs():
        failing_log()
    assert capsys.readouterr().err == "intarsia: warning: a plugin failed\n"


def test_log_lines_have_a_traceback_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    with readable_logs(with_traceback=True):
        failing_log()
    assert "OSError: disk" in capsys.readouterr().err


def test_handler_is_taken_away() -> None:
    before = list(logging.getLogger("intarsia").handlers)
    with readable_logs(silent=True):
        pass
    assert logging.getLogger("intarsia").handlers == before
