"""`intarsia new`: writes a distribution with a plugin that works, to start from."""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace
from pathlib import Path

from intarsia.cli import UsageError
from intarsia.cli.table import print_json
from intarsia.entry_points import normalized, plugin_entries
from intarsia.errors import nearest
from intarsia.templates import KINDS, render

__all__ = ["add_arguments", "run", "write"]

_SUMMARIES = {
    "compiler": "The compiler {name} for intarsia",
    "platform": "The platform {name} for intarsia",
    "passes": "Graph passes for intarsia",
}
_NAME = re.compile(r"[a-z0-9]([a-z0-9_-]{0,38}[a-z0-9])?")
_DEVICE_TYPE = re.compile(r"[a-z][a-z0-9_]{0,38}")
_TAKEN = ("auto",)
"""Words that mean something else where a compiler or platform is named."""


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of this subcommand."""
    parser.add_argument("kind", metavar="KIND", help=f"what it brings: {', '.join(KINDS)}")
    parser.add_argument("name", metavar="NAME", help="what settings call it, such as acme")
    parser.add_argument(
        "--to", type=Path, metavar="FOLDER", help="the new folder (default: intarsia-NAME)"
    )
    parser.add_argument(
        "--device-type", metavar="TYPE", help="of a platform, as torch spells it (default: cpu)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: Namespace) -> int:
    """Write a distribution and say what comes next."""
    folder, files = write(options.kind, options.name, options.to, options.device_type)
    if options.json:
        print_json({"folder": str(folder), "files": files})
        return 0
    print(f"{folder}:")
    print("\n".join(f"  {file}" for file in files))
    print(f'\nNext:\n  cd {folder}\n  pip install -e ".[test]"\n  intarsia plugins\n  pytest')
    print(f"  intarsia conformance {options.name}")
    return 0


def write(
    kind: str, name: str, folder: Path | None = None, device_type: str | None = None
) -> tuple[Path, list[str]]:
    """Write a distribution; return its folder, and the files in it.

    Args:
        kind: "compiler", "platform" or "passes".
        name: the plugin's name, and that of what it brings; the distribution is "intarsia-NAME".
        folder: a folder that does not exist yet; None: the distribution's name.
        device_type: the device type of a platform; None: "cpu".

    Raises:
        UsageError: the kind is unknown, the name cannot be used or is taken, or the folder exists.
    """
    words = _words(kind, name, device_type)
    where = Path(words["distribution"]) if folder is None else folder
    files = render(kind, words)
    files[f"src/{words['module']}/py.typed"] = ""
    _make(where)
    for path, text in files.items():
        file = where / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
    return where, sorted(files)


def _words(kind: str, name: str, device_type: str | None) -> dict[str, str]:
    _check_kind(kind, device_type)
    _check_name(name)
    distribution = f"intarsia-{normalized(name)}"
    _check_free(name, distribution)
    return {
        "plugin": name,
        "distribution": distribution,
        "module": distribution.replace("-", "_"),
        "summary": _SUMMARIES[kind].format(name=name),
        "device_type": device_type or "cpu",
    }


def _check_kind(kind: str, device_type: str | None) -> None:
    if kind not in KINDS:
        raise UsageError(f'there is no template "{kind}"', why=nearest(kind, KINDS), subject=kind)
    if device_type is None:
        return
    if kind != "platform":
        raise UsageError(f"--device-type makes no sense for {kind}", why="only a platform has one")
    if not _DEVICE_TYPE.fullmatch(device_type):
        raise UsageError(
            f"{device_type!r} is no device type",
            why="torch's are lower-case letters, digits and _, and start with a letter",
            subject=device_type,
        )


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the name of a plugin",
            why="a name is 1 to 40 lower-case letters, digits, - and _, with a letter or "
            "digit at both ends, so that it can name a distribution and a Python package",
            next_step="Choose one like acme or acme-npu",
            subject=name,
        )
    if name in _TAKEN:
        raise UsageError(
            f'"{name}" cannot be the name of a plugin',
            why="it means something else in settings",
            next_step="Choose another name",
            subject=name,
        )


def _check_free(name: str, distribution: str) -> None:
    """Refuse the name of a plugin that is installed: two of one name cannot be used together."""
    for entry in plugin_entries():
        if entry.name == name and normalized(entry.distribution) != distribution:
            raise UsageError(
                f'there is a plugin "{name}" already',
                why=f"{entry.distribution} {entry.version} brings it",
                next_step="Choose another name",
                subject=name,
            )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise UsageError(
            f"{folder} exists",
            why="nothing is overwritten",
            next_step="Name a folder that does not exist, with --to",
            subject=str(folder),
        ) from error
    except OSError as error:
        raise UsageError(f"{folder} cannot be made", why=str(error), subject=str(folder)) from error
