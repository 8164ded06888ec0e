"""F9: a compiler hangs, also with Python's lock held, or waits for a process that it started."""

from __future__ import annotations

import os
import time

import pytest

from tests.faults.sabotage import (
    compiled,
    compilers,
    needs_linux,
    no_worker_is_left,
    warnings,
)

pytestmark = [pytest.mark.timeout(240), pytest.mark.usefixtures("saboteur"), needs_linux]

NEXT = ["saboteur failed", "eager compiled"]


@pytest.mark.parametrize(
    ("how", "frame"),
    [
        ("hold", "<lambda>"),
        pytest.param("hang", "<lambda>", marks=pytest.mark.slow),
        pytest.param("children", "_children", marks=pytest.mark.slow),
    ],
)
def test_a_compiler_that_hangs_is_ended_and_the_next_one_is_asked(
    how: str, frame: str, caplog: pytest.LogCaptureFixture
) -> None:
    begun = time.monotonic()
    made = compiled(how, compile_timeout=1.5, workers=2, pieces=2)
    assert time.monotonic() - begun < 30
    assert compilers(made) == [NEXT, NEXT]
    (first, second) = warnings(
        caplog, "took longer than 1.5 s in a compile worker, which was ended"
    )
    for line in (first, second):
        assert f"in {frame}" in line  # the stacks say where it was
        assert "by saboteur" in line
    assert no_worker_is_left()
    assert compilers(compiled("")) == [["saboteur compiled"]]


def test_a_plugin_that_hangs_while_a_worker_imports_it_is_ended(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert no_worker_is_left()  # one that the test before has left has imported it
    monkeypatch.setenv("SABOTEUR_IMPORT", f"hang except {os.getpid()}")
    made = compiled("", compile_timeout=1.5)
    assert compilers(made) == [NEXT]
    (line,) = warnings(caplog, "took longer than 1.5 s in a compile worker, which was ended")
    assert "intarsia_tests_saboteur.py" in line
    assert no_worker_is_left()
    monkeypatch.delenv("SABOTEUR_IMPORT")
    assert compilers(compiled("")) == [["saboteur compiled"]]


def test_a_hang_is_an_error_where_strict_is_on() -> None:
    import intarsia

    with pytest.raises(intarsia.CompileFailed, match=r'"saboteur" failed .*took longer than 1.5 s'):
        compiled("hang", compile_timeout=1.5, strict=True, pieces=2)
    assert no_worker_is_left()
    assert compilers(compiled("", strict=True)) == [["saboteur compiled"]]
