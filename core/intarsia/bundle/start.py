"""How a compile starts: from a bundle where there is one, else cold, and then a bundle is left."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import evolve

from intarsia.bundle.bundle import Bundle
from intarsia.bundle.file import write_file
from intarsia.bundle.keeping import PlanCache, tiers_of
from intarsia.bundle.loading import Loaded
from intarsia.bundle.packaging import start_packages
from intarsia.cache.opening import open_cache
from intarsia.compiled import Compiled, Engine
from intarsia.errors import CacheError, IntarsiaError
from intarsia.job import CompileJob, Job

if TYPE_CHECKING:
    from intarsia.cache.cache import Cache
    from intarsia.cold import Made
    from intarsia.compiling.kept import KeptPieces


def start(job: Job) -> Compiled:
    """Return a compiled model: loaded where it was kept, else compiled and kept.

    Raises:
        CacheError: an entry is bad, and `strict` is on.
        CaptureError, ShapeError, SplitError, CompileFailed: as a cold compile does.
    """
    compiled = _started(job)
    if job.config.static_graph != "none":
        _add_static_graphs(job, compiled._engine)
    return compiled


def _add_static_graphs(job: Job, engine: Engine) -> None:
    from intarsia.static_graph.setup import (
        add_static_graphs,  # who records nothing need not import it
    )

    paths = [str(path) for path in engine.entry.tensors]
    add_static_graphs(
        engine, job.place, job.host, job.name, paths, engine.make_report, engine.padding()
    )


def _started(job: Job) -> Compiled:
    cache = cache_of(job)
    if cache is None:
        return _made(job, None, None)
    plans = PlanCache(job, cache)
    found = plans.find()
    if found is not None:
        return _loaded(job, plans, found)
    with plans.claim() as leads:
        found = None if leads else plans.find()  # somebody else may have made it meanwhile
        if found is not None:
            return _loaded(job, plans, found)
        return _made(job, cache, plans)


def why_miss(job: Job) -> str:
    """Return why a compile would not find its plan in the cache; "" where it would.

    Raises:
        CacheError: there is no cache.
    """
    cache = cache_of(job)
    if cache is None:
        raise CacheError(
            "there is no cache", why="cache = false", next_step="Name one: cache = PATH"
        )
    plans = PlanCache(job, cache)
    found = plans.find()
    if found is None:
        return plans.why_missed()
    found.compiled.close()
    return ""


def cache_of(job: CompileJob) -> Cache | None:
    """Return the cache that the settings ask for, open; None where they ask for none."""
    config = job.config
    if config.cache is False:
        return None
    return open_cache(
        config.cache, key_file=config.cache_key_file, strict=config.strict, warn=job.events.warn,
        stores=job.host.store,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------- loaded


def _loaded(job: Job, plans: PlanCache, found: Loaded) -> Compiled:
    bundle = plans.bundle
    assert bundle is not None
    engine: Engine = found.compiled._engine
    engine.write = lambda path: write_file(path, bundle, plans.factors(plans.tier))
    job.events.send("done", message=f"loaded with {plans.tier} artifacts")
    if bundle.plan["packages"] and "package" in plans.tiers:
        functions = {number: function.callable for number, function in found.functions.items()}
        _start_packages(job, plans, plans.cache, bundle, engine, functions)
    return found.compiled


# --------------------------------------------------------------------------------------------- made


def _made(job: Job, cache: Cache | None, plans: PlanCache | None) -> Compiled:
    from intarsia.cold import ColdCompile  # a warm start must not pay for what it imports

    before = set(sys.modules)
    pieces = None if cache is None else pieces_of(job, cache)
    journal = None if cache is None else cache.journal()
    made = ColdCompile(job, pieces, journal).run()
    imported = sorted(set(sys.modules) - before)
    engine: Engine = made.compiled._engine
    without = evolve(
        made, compiled=None
    )  # what the engine holds must not hold the model that has it
    engine.write = lambda path: _write(path, job, without, imported, plans)
    if cache is not None and plans is not None:
        with job.events.phase("keep"):
            _keep(job, plans, cache, made, imported, pieces)
    return made.compiled


def pieces_of(job: CompileJob, cache: Cache) -> KeptPieces:
    """Return the compiled pieces that a cache has for a compile."""
    from intarsia.compiling.kept import KeptPieces

    place = job.place
    return KeptPieces(cache, job.host, place.platform, place.device, job.events,
                      job.config.cache_wait, place.components.passes, tiers_of(job))  # fmt: skip


def _keep(
    job: Job, plans: PlanCache, cache: Cache, made: Made, imported: Sequence[str],
    pieces: KeptPieces | None,
) -> None:  # fmt: skip
    from intarsia.bundle.writing import bundle_of

    wanted = "package" in tiers_of(job) and job.config.workers != 0
    try:
        refuse_crashed(made.crashed)
        bundle, functions = bundle_of(job, made, imported, pieces, packages=wanted)
    except IntarsiaError as error:
        plans.tell_unkept(str(error))
        return
    if plans.why_not:
        plans.tell_unkept(plans.why_not)
    waiting = bool(bundle.plan["packages"])
    plans.keep(bundle, "package" if wanted and not waiting else "quick")
    if waiting:
        _start_packages(job, plans, cache, bundle, made.compiled._engine, functions)


def refuse_crashed(crashed: Sequence[str]) -> None:
    """Refuse to keep a plan without a compiler's work that took down a process of this machine.

    A cache may be shared with machines where it does not, and is there when the crash is forgotten.

    Raises:
        CacheError: there is such work.
    """
    if crashed:
        raise CacheError(f"it is without {', '.join(crashed)}, which took down a process")


@contextlib.contextmanager
def saving(name: str) -> Iterator[None]:
    """Make one error, with the reason, of everything that keeps a plan from being written."""
    try:
        yield
    except CacheError:
        raise
    except IntarsiaError as error:
        raise CacheError(f"{name} cannot be saved", why=str(error), subject=name) from error


def _write(
    path: str, job: Job, made: Made, imported: Sequence[str], plans: PlanCache | None
) -> None:
    from intarsia.bundle.keeping import asked_of
    from intarsia.bundle.lookup import lookup_factors
    from intarsia.bundle.writing import bundle_of

    with saving(job.name):
        factors = plans.factors("quick") if plans else lookup_factors(asked_of(job))
        bundle, _ = bundle_of(job, made, imported, None, packages=False)
    write_file(path, bundle, factors)


# ------------------------------------------------------------------------------------------ packages


def _start_packages(
    job: Job, plans: PlanCache, cache: Cache, bundle: Bundle, engine: Engine,
    functions: Mapping[int, Any],
) -> None:  # fmt: skip
    def keep(whole: Bundle, live: Engine | None) -> None:
        plans.keep(whole, "package")
        if live is not None:
            live.write = lambda path: write_file(path, whole, plans.factors("package"))

    start_packages(job, cache, bundle, engine, functions, keep)
