"""`intarsia compile TARGET`: compile a model and show which piece went where."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

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
    add_config_arguments(parser)


def run(options: Namespace) -> int:
    """Compile the target and print its report."""

    def show(compiled: Compiled) -> None:
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
        target = load_target(options)
        compiled = compile_target(target, read_config(options, in_target=target.config), told)
    try:
        use(compiled)
    finally:
        compiled.close()


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
