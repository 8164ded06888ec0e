"""`intarsia config`: the settings in effect, and where each comes from."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace

from intarsia.cli.config_options import add_config_arguments, read_config
from intarsia.cli.table import print_json, print_table

__all__ = ["add_arguments", "run"]


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of this subcommand."""
    parser.add_argument("--show-origin", action="store_true", help="tell where each comes from")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_config_arguments(parser)


def run(options: Namespace) -> int:
    """Print every setting. Those of the platform are added when a model is compiled: see explain."""
    rows = read_config(options).rows()
    if options.json:
        print_json([dict(zip(("key", "value", "origin"), row, strict=True)) for row in rows])
    elif options.show_origin:
        print_table(
            ("key", "value", "origin"), ((key, _shown(value), at) for key, value, at in rows)
        )
    else:
        print_table(("key", "value"), ((key, _shown(value)) for key, value, _ in rows))
    return 0


def _shown(value: object) -> str:
    return "not set" if value is None else json.dumps(value)
