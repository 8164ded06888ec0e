"""`intarsia explain TARGET`: compile a model and explain every choice."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from intarsia.cli.compile import with_compiled
from intarsia.cli.config_options import add_config_arguments
from intarsia.cli.table import print_json
from intarsia.cli.target import add_target_argument

if TYPE_CHECKING:
    from intarsia.api import Compiled

__all__ = ["add_arguments", "run"]


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of this subcommand."""
    add_target_argument(parser)
    parser.add_argument("--code", action="store_true", help="also show the stitching code")
    parser.add_argument("--json", action="store_true", help="print the report and the text as JSON")
    add_config_arguments(parser)


def run(options: Namespace) -> int:
    """Compile the target and print its explanation."""

    def show(compiled: Compiled) -> None:
        text = compiled.explain(code=options.code)
        if options.json:
            print_json({"report": compiled.report.to_dict(), "explanation": text})
        else:
            print(text)

    with_compiled(options, show)
    return 0
