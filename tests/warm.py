"""What tests of the cache at the level of whole compiles share: a start, and what it had to say.

`begin` works in the test's own process and in the children that `fresh` starts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import define

from tests.stores import child, files_of

HEAVY = ("torch._dynamo", "torch._inductor", "sympy", "fsspec", "triton")
"""What a warm start must not import."""


class Lines(logging.Handler):
    """Keeps what intarsia logs."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.kept: list[str] = []
        self.warnings: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append(record.getMessage())
        if record.levelno >= logging.WARNING:
            self.warnings.append(record.getMessage())


@define
class Start:
    """A compiled model, and what was logged on the way."""

    compiled: Any
    log: list[str]
    warnings: list[str]

    @property
    def report(self) -> Any:
        return self.compiled.report

    @property
    def counts(self) -> tuple[int, int, int]:
        """Captures, compiler calls, bundles read."""
        report = self.compiled.report
        return report.captures, report.compiler_calls, report.bundle_reads

    @property
    def was_warm(self) -> bool:
        return self.counts == (0, 0, 1)

    @property
    def misses(self) -> list[str]:
        """The lines about plans and pieces that the cache did not have."""
        return [line for line in self.log if "cache miss for the" in line]

    @property
    def plan_miss(self) -> str:
        """The one line about the plan, "" where it was found."""
        found = [line for line in self.misses if "for the bundle" in line]
        assert len(found) <= 1, found
        return found[0] if found else ""


def begin(
    model: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **settings: Any
) -> Start:
    """Compile a model with eager and a cache that the settings name, and keep what is logged."""
    import intarsia

    settings = {"compilers": ["eager"], "workers": 0, **settings}
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()}
    log, lines = logging.getLogger("intarsia"), Lines()
    level = log.level
    log.addHandler(lines)
    log.setLevel(logging.INFO)
    try:
        compiled = intarsia.compile(model, args=args, kwargs=kwargs, **settings)
    finally:
        log.removeHandler(lines)
        log.setLevel(level)
    return Start(compiled, lines.kept, lines.warnings)


def why_missed(model: Any, args: Sequence[Any] = (), **settings: Any) -> str:
    """Return what `intarsia cache why-miss` prints for a model."""
    from intarsia.bundle.start import why_miss
    from intarsia.config import load_config
    from intarsia.job import Job

    dynamic = settings.pop("dynamic", {})
    host = settings.pop("host", None)
    settings = {"compilers": ["eager"], "workers": 0, **settings}
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()}
    resolved = load_config(None, **settings)
    return why_miss(Job(model, tuple(args), {}, dynamic, resolved, host, ()))


def fingerprint(value: Any) -> str:
    """Return a hash of every bit of the tensors in a result."""
    import torch

    made = hashlib.sha256()
    for leaf in torch.utils._pytree.tree_leaves(value):
        if isinstance(leaf, torch.Tensor):
            made.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
            made.update(leaf.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            made.update(repr(leaf).encode())
    return made.hexdigest()


_TOLD = """
def tell(start, result=None, **more):
    import json, sys
    from tests.warm import HEAVY, fingerprint
    heavy = [name for name in HEAVY if name in sys.modules]
    print("TOLD", json.dumps(dict(
        counts=start.counts, warm=start.was_warm, log=start.log, warnings=start.warnings,
        plan_miss=start.plan_miss, misses=start.misses, hits=start.report.hits, heavy=heavy,
        result=None if result is None else fingerprint(result), **more)), flush=True)
import torch
from tests.warm import begin
"""


@define
class Fresh:
    """What a process told about its starts, in order."""

    told: list[dict[str, Any]]
    out: str
    err: str

    @property
    def one(self) -> dict[str, Any]:
        (found,) = self.told
        return found


def fresh(code: str, *arguments: object, paths: Sequence[Path] = (), **options: Any) -> Fresh:
    """Run code in a process of its own: it calls `begin`, and `tell(start, result)` for each start."""
    environment = dict(options.pop("env", None) or os.environ)
    seconds = options.pop("seconds", 120)
    before = list(sys.path)
    sys.path[:0] = [str(path) for path in paths]
    try:
        process = child(_TOLD + code, *arguments, env=environment, **options)
    finally:
        sys.path[:] = before
    return ended(process, seconds)


def ended(process: Any, seconds: float = 120) -> Fresh:
    """Wait for such a process, which must end well."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 0, err
    told = [json.loads(line[5:]) for line in out.splitlines() if line.startswith("TOLD ")]
    return Fresh(told, out, err)


def began(code: str, *arguments: object, paths: Sequence[Path] = (), **options: Any) -> Any:
    """Start such a process and return it while it runs."""
    before = list(sys.path)
    sys.path[:0] = [str(path) for path in paths]
    try:
        return child(_TOLD + code, *arguments, **options)
    finally:
        sys.path[:] = before


def headers(root: Path) -> dict[Path, Any]:
    """Return the header of every entry below a root."""
    from intarsia.cache.entry import read_header

    found = {}
    for name in files_of(root):
        header = read_header((root / name).read_bytes())
        if header is not None and not name.startswith("bad"):
            found[root / name] = header
    return found


def entries_of(root: Path, kind: str) -> list[Path]:
    """Return the files of the entries of a kind."""
    return [path for path, header in headers(root).items() if header.kind == kind]


def copied(root: Path, target: Path) -> Path:
    """Copy a cache to another place, as another machine would have it."""
    shutil.copytree(root, target)
    target.chmod(0o700)
    return target


def same_length_edit(path: Path, old: str, new: str) -> None:
    """Change a source without changing its length or times."""
    assert len(old) == len(new)
    stat = path.stat()
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
