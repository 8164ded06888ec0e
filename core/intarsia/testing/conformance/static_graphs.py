"""What a static-graph backend must do, through the core's stage and the compiler "eager"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from attrs import evolve
from torch import Tensor, nn

import intarsia
from intarsia.testing.conformance.subject import Requirement, Subject

__all__ = ["REQUIREMENTS"]

CUT = "intarsia_conformance::attend"
_LIBRARY = torch.library.Library("intarsia_conformance", "FRAGMENT")
MADE: list[Any] = []
"""What a requirement compiled, which is closed at its end: a device may have little that recordings take."""
FAULT: dict[str, bool] = {"raise": False}
"""Whether the operator raises: a fault in the middle of a recording."""


def _attend(x: Tensor, cache: Tensor, out: Tensor) -> None:
    if FAULT["raise"]:
        raise ValueError("a fault in a recording")
    cache.add_(x.sum())
    out.copy_(x * 2 + cache[0, 0])


if not hasattr(torch.ops.intarsia_conformance, "attend"):
    _LIBRARY.define("attend(Tensor x, Tensor(a!) cache, Tensor(b!) out) -> ()")
    _LIBRARY.impl("attend", _attend, "CompositeExplicitAutograd")
    torch.library.register_fake(CUT, lambda x, cache, out: None, lib=_LIBRARY)


class Decoder(nn.Module):
    """Layers around an operator that writes to a cache of the caller's."""

    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(layers))

    def forward(self, x: Tensor, cache: Tensor) -> Tensor:
        """Return [n, 8]; the cache [4, 8] is written to."""
        for layer in self.layers:
            y = layer(x).sigmoid()
            out = torch.empty_like(y)
            torch.ops.intarsia_conformance.attend(y, cache, out)
            x = x + out
        return x


def _made(
    subject: Subject, mode: str = "piecewise", layers: int = 3, **settings: Any
) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = Decoder(layers).requires_grad_(False).to(subject.device)
    resolved, host = subject.host(
        compilers=["eager"], split_at=[CUT], static_graph=mode, static_graph_backend=subject.name,
        op_safety={CUT: "safe"}, boxes={"n": [1, 16]}, **settings,
    )  # fmt: skip
    compiled = intarsia.compile(
        model, _inputs(subject, 2), dynamic={"x": {0: "n"}}, config=resolved, host=host
    )
    MADE.append(compiled)
    return compiled, model


def _inputs(subject: Subject, n: int) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 8).to(subject.device), torch.randn(4, 8).to(subject.device)


def _record(subject: Subject, compiled: Any, *sizes: int, **more: Any) -> Any:
    def make_inputs(wanted: Mapping[str, int], key: Any) -> Any:
        return _inputs(subject, wanted["n"]), {}

    return compiled.record(make_inputs, sizes={"n": list(sizes)}, **more)


def _recorded(subject: Subject, compiled: Any, *sizes: int) -> None:
    """Record sizes; the largest must be, and others may be dropped where the device has no more room."""
    table = _record(subject, compiled, *sizes)
    wrong = [row for row in table.rows if row.status != "recorded"]
    wrong = [row for row in wrong if row.status != "dropped" or row.sizes["n"] == max(sizes)]
    assert not wrong, f"it was not recorded: {wrong[0].reason}"


def _agrees(subject: Subject, compiled: Any, model: Any, n: int) -> Tensor:
    x, cache = _inputs(subject, n)
    other = cache.clone()
    made, expected = compiled(x, cache), model(x, other)
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(cache, other, rtol=1e-4, atol=1e-4)
    return made


def _replays(subject: Subject, folder: Path, mode: str = "piecewise") -> None:
    """Every call has inputs at new addresses, and a cache of its own that is written to."""
    compiled, model = _made(subject, mode)
    _recorded(subject, compiled, 4, 2, 1)
    for seed, n in enumerate((4, 1, 2, 3, 4, 2)):
        torch.manual_seed(seed)
        _agrees(subject, compiled, model, n)


def _replays_whole(subject: Subject, folder: Path) -> None:
    compiled, model = _made(subject, "full")
    x, cache = _inputs(subject, 4)
    table = compiled.record(lambda sizes, key: ((x, cache), {}), sizes={"n": [4]})
    assert {row.status for row in table.rows} == {"recorded"}, str(table)
    for seed in range(3):
        torch.manual_seed(seed)
        fresh, other = torch.randn(4, 8).to(subject.device), cache.clone()
        torch.testing.assert_close(
            compiled(fresh, cache), model(fresh, other), rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(cache, other, rtol=1e-4, atol=1e-4)
        _agrees(subject, compiled, model, 4)  # a cache elsewhere: in general, and right


def _results_stay(subject: Subject, folder: Path) -> None:
    compiled, model = _made(subject)
    _recorded(subject, compiled, 4)
    held = [_agrees(subject, compiled, model, 4) for _ in range(3)]
    kept = [x.clone() for x in held]
    _agrees(subject, compiled, model, 4)
    assert all(torch.equal(a, b) for a, b in zip(held, kept, strict=True)), (
        "a later replay changed results that a caller holds"
    )


def _strange_inputs(subject: Subject, folder: Path) -> None:
    compiled, model = _made(subject)
    _recorded(subject, compiled, 4)
    wide = torch.randn(4, 16).to(subject.device)
    row = torch.randn(1, 8).to(subject.device)
    flat = torch.randn(40).to(subject.device)
    for x in (wide[:, ::2], row.expand(4, 8), torch.randn(8, 4).to(subject.device).t(),
              flat[1:33].view(4, 8)):  # fmt: skip
        cache = torch.randn(4, 8).to(subject.device)
        other = cache.clone()
        torch.testing.assert_close(compiled(x, cache), model(x, other), rtol=1e-4, atol=1e-4)


def _a_failed_recording(subject: Subject, folder: Path) -> None:
    """A fault in a recording costs that recording: the call is right, and a later one is recorded."""
    compiled, model = _made(subject, "full")
    _agrees(subject, compiled, model, 4)
    args = _inputs(subject, 4)
    calls = [0]

    def failing(sizes: Mapping[str, int], key: Any) -> Any:
        calls[0] += 1
        return args, {}

    FAULT["raise"] = True
    try:
        table = compiled.record(failing, sizes={"n": [4]})
        assert all(row.status != "recorded" for row in table.rows), "a fault was recorded"
    except ValueError:
        pass  # the work itself raises, recorded or not
    finally:
        FAULT["raise"] = False
    _agrees(subject, compiled, model, 4)
    again = compiled.record(lambda sizes, key: (args, {}), sizes={"n": [4]})
    assert {row.status for row in again.rows} == {"recorded"}, str(again)
    _agrees(subject, compiled, model, 4)


def _a_budget(subject: Subject, folder: Path) -> None:
    """What does not fit into the budget is not recorded, and said; calls are right all the same."""
    compiled, model = _made(subject)
    table = _record(subject, compiled, 1)
    used = {name: amount for name, amount in table.used.items() if amount}
    assert used, f"measure() says that recordings take nothing: {table.used}"
    name, amount = next(iter(used.items()))
    compiled.close()
    compiled, model = _made(subject)
    table = _record(subject, compiled, 16, 8, 4, 2, 1, budget={name: amount})
    assert table.used.get(name, 0) <= amount, f"{table.used} of {amount} {name} are used"
    dropped = [row for row in table.rows if row.status == "dropped"]
    assert dropped, "everything was recorded"
    assert all(row.reason for row in dropped), "a size was dropped without a reason"
    for n in (16, 1, 4):
        _agrees(subject, compiled, model, n)


def _gives_back(subject: Subject, folder: Path) -> None:
    """After the last recording is released there is as much of every resource as before."""
    first, _ = _made(subject)
    _recorded(subject, first, 2)
    first.close()
    one, model = _made(subject)
    before = _record(subject, one, 2).budget
    one.close()
    other, model = _made(subject)
    table = _record(subject, other, 2)
    short = {k: (v, table.budget[k]) for k, v in before.items() if table.budget[k] < 0.98 * v}
    assert not short, f"less is left after a release: {short}"
    _agrees(subject, other, model, 2)


def _two_models(subject: Subject, folder: Path) -> None:
    one, first = _made(subject)
    other, second = _made(subject, layers=2)
    _recorded(subject, one, 4)
    table = _record(subject, other, 4, pool=one.static_graph_pool)
    assert {row.status for row in table.rows} == {"recorded"}, str(table)
    for seed in range(3):
        torch.manual_seed(seed)
        _agrees(subject, one, first, 4)
        _agrees(subject, other, second, 4)


def _frozen(subject: Subject, folder: Path) -> None:
    compiled, model = _made(subject)
    _recorded(subject, compiled, 4, 1)
    compiled.freeze()
    recordings = compiled.report.recordings
    for seed, n in enumerate((4, 1, 3, 4, 9, 1)):
        torch.manual_seed(seed)
        _agrees(subject, compiled, model, n)
    assert compiled.report.recordings == recordings, "something was recorded after freeze()"


def _closing(run: Callable[[Subject, Path], None]) -> Callable[[Subject, Path], None]:
    """Return a requirement that closes what it compiled, whatever came of it."""

    def closing(subject: Subject, folder: Path) -> None:
        try:
            run(subject, folder)
        finally:
            while MADE:
                MADE.pop().close()

    return closing


_ALL = (
    Requirement("piecewise", "", "pieces are replayed on inputs that are elsewhere", _replays),
    Requirement("full", "", "a whole forward is replayed", _replays_whole),
    Requirement("results", "", "results that a caller holds stay", _results_stay),
    Requirement("strange-inputs", "", "expanded, transposed and misaligned inputs", _strange_inputs),
    Requirement("failed-recording", "", "a fault in a recording is undone", _a_failed_recording),
    Requirement("budget", "", "resources are counted, and the budget kept", _a_budget),
    Requirement("release", "", "what recordings took is given back", _gives_back),
    Requirement("shared-pool", "", "two models record into one pool", _two_models),
    Requirement("frozen", "", "nothing is recorded after freeze()", _frozen),
)  # fmt: skip

REQUIREMENTS: tuple[Requirement, ...] = tuple(evolve(one, run=_closing(one.run)) for one in _ALL)
