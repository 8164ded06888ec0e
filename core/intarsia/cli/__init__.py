"""The command `intarsia`.

Each subcommand is a module with `add_arguments(parser)` and `run(options) -> int`; only the one that was
asked for is imported, so that `intarsia plugins` imports neither torch nor any plugin.

Exit codes: 0 fine, 1 a check failed, 2 usage or settings are wrong, 3 a plugin failed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any

from intarsia.errors import CompileFailed, CompileRejected, ConfigError, IntarsiaError, PluginError

__all__ = ["CHECK_FAILED", "FINE", "PLUGIN_FAILED", "USAGE", "UsageError", "main"]

FINE, CHECK_FAILED, USAGE, PLUGIN_FAILED = 0, 1, 2, 3
_INTERRUPTED = 130

COMMANDS = {
    "demo": "compile a real model with real weights, and compare it with eager",
    "plugins": "list the installed plugins, importing none of them",
    "config": "show the settings in effect and where each comes from",
    "doctor": "check torch, the plugins and the tools that compilers need",
    "compile": "compile a model and show which piece went where",
    "explain": "compile a model and explain every choice",
    "bisect": "find the piece, box or pass that makes a result wrong",
    "bench": "time a model: eager, torch.compile, intarsia",
    "conformance": "run the conformance kit over a compiler, platform or other component",
    "cache": "list, explain, check, collect and carry the entries of the compile cache",
    "new": "write a distribution with a plugin that works, to start from",
}
"""Subcommand -> what it is for; the module of each has its name."""

_EXIT_CODES = (
    "Exit codes: 0 fine, 1 a check failed, 2 usage or settings are wrong, 3 a plugin failed."
)


class UsageError(IntarsiaError):
    """The command line asks for something that is not there."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    Args:
        argv: the arguments; None: those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        options = _parser(arguments).parse_args(arguments)
    except SystemExit as ended:  # argparse has printed its help or its complaint
        return int(ended.code or 0)
    return _guarded(options)


def _guarded(options: argparse.Namespace) -> int:
    try:
        with _logs(options):
            code: int = _module(options.command).run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (`intarsia plugins | head`); nothing can be told to it any more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FINE
    except Exception as error:
        return _tell(error, options.traceback)
    return code


def _logs(options: argparse.Namespace) -> AbstractContextManager[None]:
    if options.command in ("plugins", "config") and not getattr(options, "load", False):
        return nullcontext()  # they load nothing that logs, and stay cheap without `logging`
    from intarsia.cli.logs import readable_logs

    # The tables of these two say of each plugin what the log would say.
    silent = options.command in ("plugins", "doctor") and not options.traceback
    return readable_logs(options.traceback, silent=silent)


def _tell(error: Exception, with_traceback: bool) -> int:
    """Print one readable message and return the exit code."""
    if with_traceback:
        import traceback

        traceback.print_exception(error)
        return exit_code(error)
    if isinstance(error, IntarsiaError):
        print(f"intarsia: {error}", file=sys.stderr)
    else:
        print(
            f"intarsia: unexpected {type(error).__name__}: {error}\n"
            "This is a defect, or an error of the model. Run again with --traceback to see where.",
            file=sys.stderr,
        )
    return exit_code(error)


def exit_code(error: Exception) -> int:
    """Return the exit code for an error."""
    if isinstance(error, ConfigError | UsageError):
        return USAGE
    if isinstance(error, PluginError | CompileFailed | CompileRejected):
        return PLUGIN_FAILED
    return CHECK_FAILED


def _module(command: str) -> Any:
    return import_module(f"intarsia.cli.{command}")


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser; only the subcommand that is asked for gets its arguments."""
    from intarsia import __version__

    parser = argparse.ArgumentParser(
        prog="intarsia",
        description="Cut a captured PyTorch graph into pieces, each for the compiler that suits it.",
        epilog=_EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"intarsia {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, purpose in COMMANDS.items():
        sub = subparsers.add_parser(
            name, help=purpose, description=_sentence(purpose), epilog=_EXIT_CODES
        )
        if name in arguments:
            _module(name).add_arguments(sub)
            sub.add_argument(
                "--traceback", action="store_true", help="show the whole traceback of an error"
            )
    return parser


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
