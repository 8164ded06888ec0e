"""What to compile: `file.py:function` on the command line, a model and its example inputs in Python."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from attrs import field, fields, frozen

from intarsia.cli import UsageError
from intarsia.errors import IntarsiaError, nearest

__all__ = ["Target", "TargetFailed", "add_target_argument", "load_target"]


@frozen
class Target:
    """A model, inputs to capture it with, and what else `intarsia.compile` should know of it."""

    model: Any
    args: tuple[Any, ...] = field(default=(), converter=tuple)
    kwargs: Mapping[str, Any] = field(factory=dict)
    dynamic: Mapping[str, Any] | None = None
    config: Mapping[str, Any] | None = None
    name: str | None = None


class TargetFailed(IntarsiaError):
    """The target's own code raised; its exception is the `__cause__`."""


def add_target_argument(parser: ArgumentParser) -> None:
    """Add TARGET."""
    parser.add_argument(
        "target",
        metavar="TARGET",
        help="file.py:function, a function without parameters that returns (model, args), "
        "(model, args, kwargs), or a dict with model, args and, where needed, kwargs, dynamic, "
        "config and name",
    )


def load_target(options: Namespace) -> Target:
    """Run the target's function and return what it made. What it prints goes to standard error.

    Raises:
        UsageError: there is no such file or function, or it returned something else.
        TargetFailed: its code raised.
    """
    function = _function(options.target)
    with _own_code(options.target):
        made = function()
    return _as_target(made, options.target)


def _function(text: str) -> Callable[[], Any]:
    file, colon, name = text.rpartition(":")
    if not colon or not file or not name:
        raise UsageError(
            f'"{text}" is not a target',
            why="it needs a file and a function",
            next_step="For example: model.py:make",
            subject=text,
        )
    module = _import(Path(file), text)
    function = getattr(module, name, None)
    if not callable(function):
        public = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        raise UsageError(f'no function "{name}" in {file}; {nearest(name, public)}', subject=text)
    found: Callable[[], Any] = function
    return found


def _import(file: Path, target: str) -> ModuleType:
    if not file.is_file():
        raise UsageError(
            f"no file {file}",
            why=f"the target is {target}",
            next_step="Name a Python file and a function in it, for example: model.py:make",
            subject=target,
        )
    spec = spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise UsageError(f"{file} is not a Python file", subject=target)
    module = module_from_spec(spec)
    # As if the file were run: its neighbours can be imported, and its classes be pickled by name.
    sys.path.insert(0, str(file.resolve().parent))
    sys.modules.setdefault(file.stem, module)
    with _own_code(target):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _own_code(target: str) -> Iterator[None]:
    try:
        with redirect_stdout(sys.stderr):
            yield
    except Exception as error:
        raise TargetFailed(
            f"the target {target} raised {type(error).__name__}",
            why=str(error),
            next_step="Run again with --traceback to see where",
            subject=target,
        ) from error


def _as_target(made: Any, text: str) -> Target:
    known = [attribute.name for attribute in fields(Target)]
    if isinstance(made, tuple) and 2 <= len(made) <= 3:
        return Target(*made)
    if isinstance(made, Mapping) and "model" in made:
        for key in made:
            if key not in known:
                raise UsageError(
                    f'the target {text} returned an unknown key "{key}"; {nearest(key, known)}',
                    subject=text,
                )
        return Target(**made)
    raise UsageError(
        f"the target {text} returned {type(made).__name__}",
        why="expected (model, args), (model, args, kwargs), or a dict with model and args",
        subject=text,
    )
