"""`intarsia compile TARGET`: compile a model and show which piece went where."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

from attrs import evolve

from intarsia.cli.config_options import add_config_arguments, read_config
from intarsia.cli.progress import Progress, progress
from intarsia.cli.report_table import report_text
from intarsia.cli.table import print_json
from intarsia.cli.target import Target, add_target_argument, load_target

if TYPE_CHECKING:
    from intarsia.api import Compiled

__all__ = ["add_arguments", "compile_target", "run", "with_compiled"]


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of this subcommand."""
    add_target_argument(parser)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--offline",
        action="store_true",
        help="make the target without weights, compile it, make its packages too, and leave all of it "
        "in the cache: nothing is allocated, and nothing runs",
    )
    parser.add_argument(
        "--device",
        default="cpu",
        metavar="TYPE",
        help="with --offline: the device that the weights would be on (default: cpu)",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="write the plan and its artifacts to a file, for intarsia.load",
    )
    add_config_arguments(parser)


def run(options: Namespace) -> int:
    """Compile the target and print its report."""

    def show(compiled: Compiled) -> None:
        if options.offline:
            compiled.wait_packages()
        if options.output:
            compiled.save(options.output)
        if options.json:
            print_json(compiled.report.to_dict())
        else:
            print(report_text(compiled.report))

    with_compiled(options, show)
    return 0


def with_compiled(options: Namespace, use: Callable[[Compiled], None]) -> None:
    """Compile the target of a command line, use it, and close it."""
    with progress() as told:
        told.step("making the model")
        offline = getattr(options, "offline", False)
        target = _offline(options) if offline else load_target(options)
        compiled = compile_target(target, read_config(options, in_target=target.config), told)
    try:
        use(compiled)
    finally:
        compiled.close()


def _offline(options: Namespace) -> Target:
    """Make the target without weights."""
    from intarsia.offline import weightless, with_memory, without_weights

    made = without_weights(lambda: load_target(options))
    return evolve(
        made, model=weightless(made.model, options.device),
        args=with_memory(tuple(made.args), options.device),
        kwargs=with_memory(dict(made.kwargs), options.device),
    )  # fmt: skip


def compile_target(target: Target, config: Any, told: Progress) -> Compiled:
    """Compile a target. What the model prints while it is traced goes to standard error."""
    import intarsia

    with redirect_stdout(sys.stderr):
        return intarsia.compile(
            target.model,
            target.args,
            dict(target.kwargs),
            dynamic=target.dynamic,
            config=config,
            name=target.name,
            on_event=told,
        )
