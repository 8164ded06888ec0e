"""The front door: `intarsia.compile`."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from intarsia import torch_compat
from intarsia.bundle.start import start
from intarsia.capture.dynamic import Dynamic
from intarsia.compiled import Compiled
from intarsia.config import Config, ResolvedConfig, load_config
from intarsia.host import Host
from intarsia.interfaces import Event
from intarsia.job import Job
from intarsia.ranks.agreement import agreeing
from intarsia.ranks.checking import PlanCheck, manifest_of
from intarsia.ranks.protocol import Exchange

__all__ = ["Compiled", "compile", "load"]


def compile(
    model: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic: Dynamic | None = None,
    config: ResolvedConfig | Config | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    name: str | None = None,
    dump: str | os.PathLike[str] | None = None,
    on_event: Callable[[Event], None] | Iterable[Callable[[Event], None]] = (),
    host: Host | None = None,
    exchange: Exchange | Literal["torch"] | None = None,
    expect: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> Compiled:
    """Capture a model as one graph, cut it into pieces, compile every piece, and return a callable.

    This is a phase: nothing compiles later. It is inference: the model is captured and called under
    `no_grad`, and an input that requires grad is refused while grad is enabled.

    Args:
        model: a module, a function or a bound method.
        args, kwargs: an example call. Nothing runs on it; only shapes, dtypes and Python values matter.
        dynamic: argument name (or path, "past.layers[0].keys") -> {dimension: symbol name}. The ranges
            and sizes of the symbols come from config (`boxes`, `sizes`, `dynamic_ranges`).
        config: a settings file, or settings; None reads no file unless INTARSIA_CONFIG names one.
        name: what logs, reports and dumps call the model; None: its class.
        dump: a folder to write graphs, pieces and generated code to.
        on_event: called with every event: a progress bar, a supervisor that extends its deadline.
        host: plugins that are already loaded; None loads them.
        exchange: how the ranks of a job compare their plans before they compile and before they use them:
            "torch" for all ranks of `torch.distributed`, `TorchExchange.of_group(group)` for some; None
            compares nothing.
        expect: the manifest of another process' compiled model (`Compiled.manifest`), which this one must
            be able to make again; None compares nothing.
        overrides: settings in snake_case, which win over everything: `compilers=["eager"]`.

    Raises:
        ConfigError: a setting is wrong, or names something that does not exist.
        PluginError: a plugin that was asked for cannot be used.
        CaptureError: the model cannot be captured as one graph.
        ShapeError: a requested box is not contained in what the graph is valid for.
        SplitError: a split rule cannot be followed.
        CompileFailed: no compiler could compile a piece.
        MismatchError: another rank has another plan, has failed or is late; or the plan is not that of
            `expect`. What differs is named.
        UnsupportedTorchError: this torch is outside the supported range.
    """
    begun = time.monotonic()
    torch_compat.require_supported_torch()
    extra: dict[str, Any] = {"name": name, "dump": None if dump is None else os.fspath(dump)}
    listeners = (on_event,) if callable(on_event) else tuple(on_event)
    with agreeing(exchange, name) as ranks:
        resolved = load_config(config, **overrides, **extra)
        job = Job(model, tuple(args), dict(kwargs or {}), dynamic or {}, resolved, host, listeners)
        job.events.spent("setup", time.monotonic() - begun)
        check = PlanCheck(job, model, ranks, expect)
        check.setup()
        compiled = start(job)
        with _closed_if_refused(compiled):
            check.plan(compiled._engine.make_report)
    compiled._engine.manifest = functools.partial(manifest_of, job, model)
    return compiled


@contextlib.contextmanager
def _closed_if_refused(compiled: Compiled) -> Iterator[None]:
    try:
        yield
    except BaseException:
        compiled.close()
        raise


def load(
    path: str | os.PathLike[str],
    model: Any,
    *,
    config: ResolvedConfig | Config | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    host: Host | None = None,
    exchange: Exchange | Literal["torch"] | None = None,
    **overrides: Any,
) -> Compiled:
    """Return the compiled model of a file that `Compiled.save` wrote. Nothing is traced or compiled.

    The file holds code, so load only files that you trust.

    Args:
        path: the file.
        model: the model, with its weights; they are not in the file.
        config: settings; those of the compile are in the file, so this is about plugins and the platform.
        host: plugins that are already loaded; None loads them.
        exchange: as for `compile`: the ranks make sure that they have loaded the same plan.
        overrides: settings in snake_case, which win over everything.

    Raises:
        MismatchError: another rank has another plan, has failed or is late.
        CacheError: the file is damaged, or is for another model, device or version; the message says what
            differs.
        OSError: the file cannot be read.
    """
    from intarsia.bundle.file import load_file

    torch_compat.require_supported_torch()
    with agreeing(exchange, None, first="plan") as ranks:
        resolved = load_config(config, **overrides)
        compiled = load_file(path, model, resolved, host)
        with _closed_if_refused(compiled):
            ranks.plan_of(compiled._engine.make_report, resolved.config.exchange_deadline)
    return compiled
