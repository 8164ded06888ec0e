"""`intarsia bench TARGET`: the same model run in several ways, side by side, in one table."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

from attrs import define, evolve

from intarsia.cli.compile import compile_target
from intarsia.cli.config_options import add_config_arguments, positive, read_config
from intarsia.cli.progress import Progress, progress
from intarsia.cli.table import print_json, print_table
from intarsia.cli.target import Target, add_target_argument, load_target
from intarsia.cli.timing import Spent, Timing, interleaved, measured
from intarsia.config import ResolvedConfig
from intarsia.errors import IntarsiaError

__all__ = ["add_arguments", "run"]

EAGER, STOCK = "eager", "torch.compile"


@define
class Way:
    """One way to run the model.

    Attributes:
        run: takes inputs, runs the model on them.
        call: runs it on inputs of its own; what is timed.
    """

    name: str
    run: Callable[[Target], Any] | None = None
    call: Callable[[], Any] | None = None
    compiling: Spent | None = None
    difference: float | None = None
    error: str = ""
    close: Callable[[], None] = lambda: None


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of this subcommand."""
    add_target_argument(parser)
    parser.description = (
        "Time a model: eager, torch.compile, and intarsia. Each --compilers makes a row of its own: "
        "--compilers inductor --compilers acme,inductor compares two lists."
    )
    parser.add_argument(
        "--no-stock", action="store_true", help="leave the row of stock torch.compile out"
    )
    parser.add_argument(
        "--rounds", type=positive, default=15, help="samples of each way; default 15"
    )
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="time for all samples; default 10"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_config_arguments(parser)


def run(options: Namespace) -> int:
    """Measure and print the table; return 1 where a way failed."""
    import torch

    with progress() as told, torch.no_grad():
        told.step("making the model")
        target = load_target(options)
        ways = [*_reference(target), *_stock(target, options, told)]
        ways += [_intarsia(target, *chosen, told) for chosen in _chosen(options, target)]
        _compare(ways, target)
        times = interleaved(
            {way.name: way.call for way in ways if way.call is not None},
            rounds=options.rounds,
            seconds=options.seconds,
            tell=lambda done, total: told.step("measuring calls", done, total),
        )
    for way in ways:
        way.close()
    _print([_record(way, times) for way in ways], options.json)
    failures = [way.error for way in ways if way.error]
    return 1 if failures else 0


# ------------------------------------------------------------------------------------ the ways


def _reference(target: Target) -> list[Way]:
    inputs = _copied(target)
    return [Way(EAGER, run=_on(target.model), call=lambda: _on(target.model)(inputs))]


def _stock(target: Target, options: Namespace, told: Progress) -> list[Way]:
    if options.no_stock:
        return []
    import torch

    from intarsia import torch_compat

    told.step(f"{STOCK}: compiling")
    torch_compat.reset_tracer()
    compiled = torch.compile(target.model)
    return [_first_call(STOCK, target, lambda: _on(compiled), _mark_dynamic)]


def _intarsia(target: Target, name: str, config: ResolvedConfig, told: Progress) -> Way:
    opened: list[Any] = []

    def prepare() -> Callable[[Target], Any]:
        opened.append(compile_target(target, config, told))
        return _on(opened[0])

    def close() -> None:
        for compiled in opened:
            compiled.close()

    way = _first_call(name, target, prepare)
    way.close = close
    return way


def _chosen(options: Namespace, target: Target) -> list[tuple[str, ResolvedConfig]]:
    """Return a name and settings for each row of ours."""
    lists = options.compilers or [None]
    found = []
    for chosen in lists:
        single = Namespace(**{**vars(options), "compilers": [chosen] if chosen else []})
        # Packages would be made while the benchmark takes its times.
        defaults = ("the benchmark", {"artifact": "quick"})
        config = read_config(single, in_target=target.config, defaults=defaults)
        compilers = config.config.compilers or ("platform's choice",)
        found.append((f"intarsia: {', '.join(compilers)}", config))
    return found


def _on(model: Any) -> Callable[[Target], Any]:
    return lambda inputs: model(*inputs.args, **inputs.kwargs)


def _first_call(
    name: str,
    target: Target,
    prepare: Callable[[], Callable[[Target], Any]],
    mark: Callable[[Target], None] = lambda inputs: None,
) -> Way:
    """Compile and call once, timed together: torch.compile compiles on the first call."""
    way = Way(name)
    inputs = _copied(target)
    mark(inputs)
    try:
        with measured() as spent, redirect_stdout(sys.stderr):
            run = prepare()
            run(inputs)
        way.run, way.call, way.compiling = run, lambda: run(inputs), spent
    except IntarsiaError as error:
        way.error = str(error)
    except Exception as error:  # whatever it was, the other ways are still worth a table
        way.error = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return way


# -------------------------------------------------------------------------------------- inputs


def _copied(target: Target) -> Target:
    """Return the target with input tensors of its own: a model may write to them."""
    import torch
    from torch.utils import _pytree as pytree

    def copy(leaf: Any) -> Any:
        return leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf

    args, kwargs = pytree.tree_map(copy, (tuple(target.args), dict(target.kwargs)))
    return evolve(target, args=args, kwargs=kwargs)


def _mark_dynamic(target: Target) -> None:
    """Mark the dynamic dimensions for stock torch.compile; `dynamic=True` would trace floats too."""
    import inspect

    from intarsia.torch_compat import mark_dynamic

    forward = getattr(target.model, "forward", target.model)
    bound = inspect.signature(forward).bind(*target.args, **target.kwargs)
    given = {**target.kwargs, **bound.arguments}
    for name, dims in (target.dynamic or {}).items():
        for dim in dims:
            mark_dynamic(given[name], dim)


# --------------------------------------------------------------------------------- the results


def _compare(ways: list[Way], target: Target) -> None:
    """Note each way's largest difference from eager, on equal inputs and equal buffers."""
    state = _State(target.model)
    with redirect_stdout(sys.stderr):
        expected = _on(target.model)(_copied(target))
        for way in ways:
            state.restore()
            if way.run is not None and way.name != EAGER:
                way.difference = difference(way.run(_copied(target)), expected)
    state.restore()


class _State:
    """The model's buffers as they are now: a model with a cache answers differently every time."""

    def __init__(self, model: Any) -> None:
        self._buffers = list(model.buffers()) if hasattr(model, "buffers") else []
        self._values = [buffer.clone() for buffer in self._buffers]

    def restore(self) -> None:
        for buffer, value in zip(self._buffers, self._values, strict=True):
            buffer.copy_(value)


def difference(actual: Any, expected: Any) -> float:
    """Return the largest absolute difference between the tensors of two results; inf: other shapes."""
    import torch
    from torch.utils import _pytree as pytree

    largest = 0.0
    pairs = zip(pytree.tree_leaves(actual), pytree.tree_leaves(expected), strict=True)
    for one, other in pairs:
        if not isinstance(other, torch.Tensor):
            continue
        if one.shape != other.shape or one.dtype != other.dtype:
            return float("inf")
        if other.numel():
            gap = (one.detach().double() - other.detach().double()).abs()
            largest = max(largest, float(gap.nan_to_num(nan=float("inf")).max()))
    return largest


def _record(way: Way, times: dict[str, Timing]) -> dict[str, Any]:
    time = times.get(way.name)
    spent = way.compiling
    return {
        "way": way.name,
        "compile_wall_s": spent.wall if spent else None,
        "compile_cpu_s": spent.cpu if spent else None,
        "call_wall_ms": time.wall * 1e3 if time else None,
        "call_cpu_ms": time.cpu * 1e3 if time else None,
        "ratio": time.wall / times[EAGER].wall if time else None,
        "difference": way.difference,
        "samples": time.samples if time else 0,
        "error": way.error,
    }


def _print(records: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(records)
        return
    columns = {
        "way": "way",
        "compile_wall_s": "compile s",
        "compile_cpu_s": "CPU s",
        "call_wall_ms": "call ms",
        "call_cpu_ms": "CPU ms",
        "ratio": "of eager",
        "difference": "difference",
        "error": "failed",
    }
    print_table(tuple(columns.values()), ([record[key] for key in columns] for record in records))
    print(
        "\ncompile: until the first answer; call: median of interleaved samples; difference: the "
        "largest\nfrom eager, absolute; CPU: of this process and the tools it ran"
    )
