"""`intarsia plugins`: what is installed, read from metadata alone."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from intarsia.cli.config_options import add_config_arguments, read_config
from intarsia.cli.table import print_json, print_table
from intarsia.plugin_status import PluginStatus, list_plugins

__all__ = ["add_arguments", "run"]

_BROKEN = ("failed", "incompatible")


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of this subcommand."""
    parser.add_argument(
        "--load", action="store_true", help="import the plugins, to see which of them work"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_config_arguments(parser, shortcuts=False)


def run(options: Namespace) -> int:
    """List the plugins; with --load return 3 if one of them is broken."""
    config = read_config(options)
    if options.load:
        from intarsia.host import Host  # only here: listing must stay cheap

        statuses = list(Host(config).plugins)
    else:
        statuses = list_plugins(config)
    show(statuses, options.json)
    broken = options.load and any(status.state in _BROKEN for status in statuses)
    return 3 if broken else 0


def show(statuses: list[PluginStatus], as_json: bool) -> None:
    """Print one row for each plugin."""
    if as_json:
        print_json([status.to_dict() for status in statuses])
        return
    print_table(
        ("plugin", "distribution", "version", "module", "status", "reason"),
        (
            (item.name, item.distribution, item.version, item.module, item.state, item.error)
            for item in statuses
        ),
    )
