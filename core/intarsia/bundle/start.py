"""How a compile starts: from a bundle where there is one, else cold, and then a bundle is left."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from intarsia.bundle.keeping import PlanCache
from intarsia.cache.opening import open_cache
from intarsia.compiled import Compiled
from intarsia.job import Job

if TYPE_CHECKING:
    from intarsia.cache.cache import Cache
    from intarsia.cold import Made


def start(job: Job) -> Compiled:
    """Return a compiled model: loaded where it was kept, else compiled and kept.

    Raises:
        CacheError: an entry is bad, and `strict` is on.
        CaptureError, ShapeError, SplitError, CompileFailed: as a cold compile does.
    """
    cache = cache_of(job)
    if cache is None:
        return _cold(job, None).compiled
    plans = PlanCache(job, cache)
    found = plans.find()
    if found is not None:
        return found
    with plans.claim() as leads:
        found = None if leads else plans.find()  # somebody else may have made it meanwhile
        if found is not None:
            return found
        before = set(sys.modules)
        made = _cold(job, cache)
        with job.events.phase("keep"):
            plans.keep(made, sorted(set(sys.modules) - before))
    return made.compiled


def cache_of(job: Job) -> Cache | None:
    """Return the cache that the settings ask for, open; None where they ask for none."""
    config = job.config
    if config.cache is False:
        return None
    return open_cache(
        config.cache, key_file=config.cache_key_file, strict=config.strict, warn=job.events.warn,
        stores=job.host.store,
    )  # fmt: skip


def _cold(job: Job, cache: Cache | None) -> Made:
    begun = time.monotonic()
    from intarsia import torch_compat
    from intarsia.cold import ColdCompile  # a warm start must not pay for what it imports
    from intarsia.compiling.kept import KeptPieces

    torch_compat.import_tracer()
    job.events.spent("import", time.monotonic() - begun)
    pieces = None
    if cache is not None:
        place = job.place
        passes = [job.host.pass_(name) for name in place.platform.passes]
        pieces = KeptPieces(
            cache, job.host, place.platform, place.device, job.events, job.config.cache_wait, passes
        )
    return ColdCompile(job, pieces).run()
