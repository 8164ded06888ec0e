"""What a person reads when something is wrong: settings, compilers that fail or lie, and dumps."""

from __future__ import annotations

import logging
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import intarsia
from tests.checks import compare_call
from tests.models import ATTENTION, DECODER_DYNAMIC, decoder, decoder_inputs, randn

X = {"x": {0: "n"}}


def model(x: Tensor) -> Tensor:
    """Have one splitting op between two other pieces."""
    return torch.sigmoid(x * 2 + 1).cos() * 3


def compiled(**config: Any) -> Any:
    """Compile the model above."""
    config = {"compilers": ["eager"], **config}
    return intarsia.compile(model, args=(randn(6, 4),), dynamic=X, **config)


# -------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"compilers": ["nope"]}, ("compiler", '"nope"', "eager", "inductor")),
        ({"compilers": ["indcutor"]}, ("indcutor", 'did you mean "inductor"')),
        ({"compilers": []}, ("compilers", "empty")),
        ({"compilers": 3}, ("compilers", "3")),
        ({"strict": "yes please"}, ("strict", "yes please")),
        ({"boxes": {"n": "8"}}, ("boxes", "8")),
        ({"uncovered": "pads"}, ("uncovered", "pads", "pad", "eager", "error", "general")),
        ({"compiler": ["eager"]}, ("compiler", 'did you mean "compilers"')),
        ({"split_rule": ["nope"]}, ("split rule", "nope")),
        ({"platform": "nope"}, ("platform", "nope", "cpu")),
        ({"boxes": {"m": [8]}}, ('"m"', "n", "dynamic")),
        ({"split_at": ["nope"]}, ("nope",)),
        ({"routes": [{"piece": {"contians": "x"}, "compilers": ["eager"]}]}, ("contians",)),
        ({"routes": [{"piece": {}, "compilers": ["nope"]}]}, ("nope", "eager")),
        ({"options": {"inductor": {"max_autotine": 1}}, "compilers": ["inductor"]},
         ("max_autotine", "max_autotune")),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_wrong_setting_is_named_with_what_would_be_right(
    config: dict[str, Any], says: tuple[str, ...]
) -> None:
    with pytest.raises(intarsia.IntarsiaError) as caught:
        compiled(**{"strict": True, **config})
    text = str(caught.value)
    assert all(word in text for word in says), text
    assert len(text) < 800, text


def test_a_dynamic_argument_that_does_not_exist_is_named() -> None:
    with pytest.raises(intarsia.ConfigError, match='"y"') as caught:
        intarsia.compile(model, args=(randn(6, 4),), dynamic={"y": {0: "n"}}, compilers=["eager"])
    assert "x" in str(caught.value)
    with pytest.raises(intarsia.ConfigError, match="dimension 2"):
        intarsia.compile(model, args=(randn(6, 4),), dynamic={"x": {2: "n"}}, compilers=["eager"])


def test_a_rule_that_matches_nothing_warns_with_near_names(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "intarsia"):
        made = compiled(split_at=["torch.sigmoid", "aten::sigmoid", "torch.sinh"])
    assert made.report.pieces == 3
    warnings = [w for w in made.report.warnings if "matches nothing" in w]
    assert len(warnings) == 2
    assert any("aten::sigmoid" in w and "torch.sigmoid" in w for w in warnings), warnings
    assert any('"torch.sinh"' in w for w in warnings)
    assert all(w in caplog.text for w in warnings)
    assert all(w in made.explain() for w in warnings)


def test_a_route_that_matches_no_piece_warns() -> None:
    made = compiled(routes=[{"piece": {"contains": "torch.sinh"}, "compilers": ["eager"]}])
    assert "route 1 matches no piece" in made.report.warnings


# ------------------------------------------------------------------------------------ compilers that fail


def test_a_route_to_a_compiler_that_rejects_goes_on_and_says_why(toys: ModuleType) -> None:
    route = {"piece": {"index": 0}, "compilers": ["pointwise", "eager"]}
    made = intarsia.compile(
        lambda x: torch.sigmoid(x.cumsum(0)), args=(randn(6, 4),), dynamic=X,
        compilers=["eager"], routes=[route],
    )  # fmt: skip
    piece = made.report.piece_reports[0]
    assert piece.compiler == "eager"
    outcomes = [(a.compiler, a.outcome) for a in piece.boxes[0].attempts]
    assert outcomes == [("pointwise", "rejected"), ("eager", "compiled")]
    assert "cumsum is not pointwise" in made.explain()
    assert made.report.fallbacks == 1


def test_a_route_with_only_a_compiler_that_rejects_is_an_error_with_the_reason(
    toys: ModuleType,
) -> None:
    with pytest.raises(intarsia.CompileFailed) as caught:
        intarsia.compile(
            lambda x: x.cumsum(0), args=(randn(6, 4),), dynamic=X, compilers=["pointwise"]
        )
    text = str(caught.value)
    assert "cumsum is not pointwise" in text
    assert "pointwise" in text
    assert "eager" in text, "says what would work"


@pytest.mark.parametrize("name", ["raiser", "pointwise"])
def test_strict_raises_for_a_failure_and_for_a_rejection(name: str, toys: ModuleType) -> None:
    with pytest.raises(intarsia.CompileFailed, match=name) as caught:
        compiled(compilers=[name, "eager"], strict=True)
    assert "strict" in str(caught.value)
    assert caught.value.__cause__ is not None


# -------------------------------------------------------------------------------------- compilers that lie


LIES = {
    "dtype": ("dtype", "float32", "float64"),
    "shape": ("shape", "(6, 4)", "(6, 1)"),
    "rank": ("shape", "(6, 4)", "(1, 6, 4)"),
    "stride": ("stride", "(4, 1)", "(1, 6)"),
    "arity": ("number of values", "1", "2"),
    "bare": ("number of values", "1", "Tensor"),
    "none": ("no tensor", "NoneType"),
    "alias": ("shares memory with input 0", "alias"),
}


@pytest.mark.parametrize("check", ["first", "always"])
@pytest.mark.parametrize("lie", LIES)
def test_a_result_that_is_not_what_was_recorded_is_a_metadata_error(
    lie: str, check: str, toys: ModuleType
) -> None:
    made = compiled(compilers=["liar"], options={"liar": {"lie": lie}}, check=check, name="victim")
    for _ in range(2):  # a failed first call does not count as checked
        with pytest.raises(intarsia.MetadataError) as caught:
            made(randn(6, 4))
        text = str(caught.value)
        assert all(word in text for word in LIES[lie]), text
        assert "victim.piece_0" in text
        assert "liar" in text


def test_a_lie_in_one_box_does_not_hide_behind_the_check_of_another(toys: ModuleType) -> None:
    made = compiled(
        compilers=["liar"], options={"liar": {"lie": "shape"}}, boxes={"n": [8, 16]},
        uncovered="error",
    )  # fmt: skip
    for n in (3, 12):
        with pytest.raises(intarsia.MetadataError):
            made(randn(n, 4))


def test_without_a_check_nothing_is_compared(toys: ModuleType) -> None:
    made = compiled(compilers=["liar"], options={"liar": {"lie": "dtype"}}, check="none")
    assert made(randn(6, 4)).dtype is torch.float64


# ---------------------------------------------------------------------------------- dumps, logs and times


def test_a_dump_is_one_ordered_readable_index(tmp_path: Path) -> None:
    net = decoder(2, hidden=32)
    intarsia.compile(
        net, kwargs=decoder_inputs(7), dynamic=DECODER_DYNAMIC, compilers=["eager"],
        split_at=[ATTENTION], name="net", dump=tmp_path,
    )  # fmt: skip
    (folder,) = tmp_path.iterdir()
    assert folder.name == "net"
    names = sorted(p.name for p in folder.iterdir() if p.name != "index.md")
    assert [name.split("_", 1)[0] for name in names] == [f"{i:02d}" for i in range(len(names))]
    titles = [name.split("_", 1)[1] for name in names]
    assert titles[0] == "graph.py"
    assert titles[1:6] == [f"piece_{i}.py" for i in range(5)]
    assert {"routes_factors_times.txt", "entry.py", "report.json"} <= set(titles)
    index = folder.joinpath("index.md").read_text()
    assert [line.split(":")[0].removeprefix("- ") for line in index.splitlines()[2:]] == names
    for name in names:
        if name.endswith(".py"):
            compile(folder.joinpath(name).read_text(), name, "exec")  # real Python
    piece = folder.joinpath("02_piece_1.py").read_text()
    assert "attention" in piece
    stitching = next(n for n in names if "stitching" in n)
    assert "piece_0" in folder.joinpath(stitching).read_text()


def test_a_second_model_of_one_name_does_not_overwrite_the_first(tmp_path: Path) -> None:
    for _ in range(2):
        compiled(name="same", dump=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["same", "same-2"]


def test_phases_sum_to_the_wall_time_and_logs_are_few(caplog: pytest.LogCaptureFixture) -> None:
    import time

    net = decoder(8, hidden=32)
    inputs = decoder_inputs(7)
    settings: dict[str, Any] = {"compilers": ["eager"], "split_at": [ATTENTION]}
    intarsia.compile(net, kwargs=inputs, dynamic=DECODER_DYNAMIC, **settings)  # imports done
    torch._dynamo.reset()
    with caplog.at_level(logging.INFO, "intarsia"):
        begun = time.perf_counter()
        made = intarsia.compile(net, kwargs=inputs, dynamic=DECODER_DYNAMIC, **settings)
        wall = time.perf_counter() - begun
    seconds = made.report.seconds
    assert {"setup", "capture", "split", "compile", "bind"} <= set(seconds)
    assert sum(seconds.values()) == pytest.approx(wall, rel=0.05)
    lines = [r for r in caplog.records if r.name.startswith("intarsia")]
    assert len(lines) <= 10


def test_events_arrive_in_order_and_a_bad_listener_stops_nothing() -> None:
    events: list[Any] = []

    def bad(event: Any) -> None:
        raise RuntimeError("listener")

    made = compiled(on_event=[bad, events.append], split_at=["torch.sigmoid"])
    starts = [e.phase for e in events if e.kind == "phase-start"]
    ends = [e.phase for e in events if e.kind == "phase-end"]
    assert starts == ends
    named = [phase for phase in dict.fromkeys(starts) if phase != "import"]
    assert named == ["capture", "split", "compile", "bind", "report"]
    assert events[-1].kind == "done"
    times = [e.seconds for e in events]
    assert times == sorted(times)
    compare_call(made, model, model, ((randn(5, 4),), {}))
