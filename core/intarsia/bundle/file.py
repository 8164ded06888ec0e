"""A bundle as a file of its own: `compiled.save(path)` and `intarsia.load(path, model)`."""

from __future__ import annotations

import contextlib
import inspect
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from intarsia.bundle.bundle import Bundle
from intarsia.bundle.codec import NotHere
from intarsia.bundle.loading import Changed, Target, load_bundle, weight_problem
from intarsia.bundle.lookup import model_factors
from intarsia.cache.entry import BadEntry, Entry, decode_entry, encode_entry, read_header
from intarsia.cache.journal import Journal
from intarsia.cache.key import Difference, differences, key_of
from intarsia.cache.opening import open_cache
from intarsia.capture.call import describe
from intarsia.compiled import Compiled
from intarsia.compiling.identity import platform_factors, torch_factors
from intarsia.config import ResolvedConfig
from intarsia.errors import CacheError
from intarsia.host import Host
from intarsia.place import effective_settings
from intarsia.report.events import EventStream

KIND = "bundle"


def write_file(path: str, bundle: Bundle, factors: Mapping[str, str]) -> None:
    """Write a bundle to a file, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    payload, meta = bundle.payload()
    data = encode_entry(Entry(KIND, key_of(KIND, factors), dict(factors), meta, payload))
    target = Path(path)
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def load_file(
    path: str | os.PathLike[str], model: Any, resolved: ResolvedConfig, host: Host | None = None
) -> Compiled:
    """Return the compiled model of a file that `Compiled.save` wrote.

    Raises:
        CacheError: the file is damaged, was written for another model, device or version, or needs
            something that is not to be found; the message names the factor that differs.
        OSError: it cannot be read.
    """
    entry = _entry_of(path)
    plugins = Host(resolved) if host is None else host
    tensors = [*model.parameters(), *model.buffers()] if hasattr(model, "parameters") else []
    place = effective_settings(resolved, plugins, tensors)
    name = resolved.config.name or describe(model)
    here = {
        **torch_factors(), **platform_factors(place.platform, place.device),
        **model_factors(model),
    }  # fmt: skip

    journal = _journal(place.resolved, plugins)

    def target(bundle: Bundle) -> Target:
        events = EventStream(name, (plugins.emit,))
        check = str(bundle.plan["check"])
        return Target(
            model, name, plugins, place.device, events, check, _defaults(model), journal=journal
        )

    differs = differences(here, {k: v for k, v in entry.factors.items() if k in here})
    if differs:
        raise _unfit(path, name, _words(differs[0], entry, target))
    bundle = Bundle.of(entry)
    try:
        found = load_bundle(bundle, target(bundle))
    except (Changed, NotHere) as error:
        raise _unfit(path, name, str(error)) from error
    engine = found.compiled._engine
    engine.write = lambda to: write_file(to, bundle, entry.factors)
    if place.resolved.config.static_graph != "none":
        from intarsia.static_graph.setup import add_static_graphs

        paths = [str(tensor) for tensor in engine.entry.tensors]
        add_static_graphs(engine, place, plugins, name, paths, engine.make_report, engine.padding())
    return found.compiled


def _journal(resolved: ResolvedConfig, host: Host) -> Journal | None:
    config = resolved.config
    cache = open_cache(config.cache, key_file=config.cache_key_file, stores=host.store)
    return None if cache is None else cache.journal()


def _entry_of(path: str | os.PathLike[str]) -> Entry:
    data = Path(path).read_bytes()
    try:
        header = read_header(data)
        return decode_entry(data, key="" if header is None else header.key)
    except BadEntry as error:
        raise CacheError(
            f"{os.fspath(path)} cannot be used", why=str(error),
            next_step="Save the compiled model again.", subject=os.fspath(path),
        ) from error  # fmt: skip


def _words(difference: Difference, entry: Entry, target: Callable[[Bundle], Target]) -> str:
    if difference.name.startswith("weights"):  # a digest of all, which tells a reader nothing
        bundle = Bundle.of(entry)
        named = weight_problem(bundle, target(bundle))
        if named:
            return f"{difference.name} differs: {named}"
    return str(difference)


def _unfit(path: Any, name: str, why: str) -> CacheError:
    return CacheError(
        f"{os.fspath(path)} does not fit {name}", why=why,
        next_step="Compile the model again and save it.", subject=os.fspath(path),
    )  # fmt: skip


def _defaults(model: Any) -> dict[str, Any]:
    function = model.forward if hasattr(model, "forward") else model
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}
