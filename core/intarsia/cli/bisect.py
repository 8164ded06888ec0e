"""`intarsia bisect TARGET`: find the piece, box or pass that makes a result wrong."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace

from attrs import asdict

from intarsia.cli import CHECK_FAILED, FINE
from intarsia.cli.config_options import add_config_arguments, read_config
from intarsia.cli.table import print_json
from intarsia.cli.target import add_target_argument, load_target

__all__ = ["add_arguments", "run"]


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of this subcommand."""
    add_target_argument(parser)
    parser.add_argument("--json", action="store_true", help="print the finding as JSON")
    add_config_arguments(parser)


def run(options: Namespace) -> int:
    """Bisect the target, and print what was found; the exit code says whether something was."""
    from intarsia.bisect import Subject, bisect

    target = load_target(options)
    config = read_config(options, in_target=target.config)
    subject = Subject(
        target.model, tuple(target.args), dict(target.kwargs), target.dynamic, config,
        name=target.name,
    )  # fmt: skip
    found = bisect(subject, lambda line: print(line, file=sys.stderr))
    if options.json:
        print_json(asdict(found))
    else:
        print(found)
        for line in found.source:
            print(f"  {line}")
    return FINE if found.kind == "nothing" else CHECK_FAILED
