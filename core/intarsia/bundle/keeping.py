"""Plans in the cache: looked up without tracing, told apart by what tracing read, kept."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping

from intarsia.bundle.bundle import Bundle
from intarsia.bundle.codec import NotHere
from intarsia.bundle.loading import Changed, Loaded, Target, load_bundle
from intarsia.bundle.lookup import Asked, NoKey, lookup_factors
from intarsia.cache.cache import Cache
from intarsia.cache.entry import Entry, Unusable
from intarsia.cache.journal import Journal
from intarsia.cache.key import key_of
from intarsia.interfaces import Tier
from intarsia.job import CompileJob, Job
from intarsia.torch_compat import traced_function

KIND = "bundle"
log = logging.getLogger("intarsia")
_DEPTH = 8
"""How many plans of one look-up key, told apart by what tracing read, are tried."""
_FIRST = "first"


class PlanCache:
    """The plans of one compile in a cache.

    Several plans may share what is known without tracing and differ in what tracing read (`self.scale`).
    The first is at the look-up key. Where it does not fit, the present values of all that it had read make
    the key of the next, so that each value has a plan of its own, found by reading one more file.

    Attributes:
        why_not: why nothing can be looked up or kept, or "".
        bundle: what was found.
    """

    def __init__(self, job: Job, cache: Cache) -> None:
        self.job = job
        self.cache = cache
        self.why_not = ""
        self.bundle: Bundle | None = None
        self.tier: Tier = "quick"
        self._differs: tuple[str, ...] = ()
        self._missed = False
        self._read = {"quick": _FIRST, "package": _FIRST}
        try:
            self._base = lookup_factors(asked_of(job))
        except NoKey as error:
            self.why_not = str(error)
            self._base = {}

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """Which artifacts are looked for, the best first."""
        return tiers_of(self.job)

    # -- find

    def find(self) -> Loaded | None:
        """Return the compiled model, loaded; None where no plan fits, with one line that says why."""
        config = self.job.config
        if self.why_not or config.dump is not None or config.verify:
            return None  # a loaded plan has no graphs to dump, and none to compare with
        with self.job.events.phase("load"):
            for tier in self.tiers:
                found = self._search(tier)
                if found is not None:
                    self.tier = tier
                    return found
        if not self._missed:  # it is looked for again after waiting for another process
            self._missed = True
            self.job.events.miss(KIND, self.job.name, self.why_missed)
        return None

    def why_missed(self) -> str:
        """Return why no plan fits, after `find`."""
        if self.why_not:
            return self.why_not
        if self._differs:
            return "; ".join(self._differs[:3])
        return self.cache.explain_miss(KIND, self.factors("quick"))

    def factors(self, tier: Tier) -> Mapping[str, str]:
        """Return the factors of this compile's plan, as far as they are known by now."""
        return {**self._base, "tier": tier, "what tracing read": self._read[tier]}

    def _search(self, tier: Tier) -> Loaded | None:
        self._read[tier] = _FIRST
        for _ in range(_DEPTH):
            self._changed: Changed | None = None
            found = self.cache.load(KIND, self.factors(tier), self._use)
            if found is not None or not self._note_change(tier):
                return found
        return None

    def _note_change(self, tier: Tier) -> bool:
        """Go on to the plan for what is there now, if the last one was for something else."""
        if self._changed is None:
            return False
        present = self._changed.present
        self._read[tier], self._differs = present.digest, present.lines
        return True

    def _use(self, entry: Entry) -> Loaded:
        bundle = Bundle.of(entry)
        try:
            found = load_bundle(bundle, target_of(self.job, self.cache.journal()))
        except Changed as error:
            self._changed = error
            raise Unusable(str(error)) from error
        except NotHere as error:
            raise Unusable(str(error)) from error
        self.bundle = bundle
        return found

    # -- keep

    @contextlib.contextmanager
    def claim(self) -> Iterator[bool]:
        """Lead the compile of this plan among all processes, or wait for the one that does."""
        if self.why_not:
            yield True
            return
        key = key_of(KIND, self.factors("quick"))
        with self.cache.claim(key, self.job.config.cache_wait) as leads:
            yield leads

    def keep(self, bundle: Bundle, tier: Tier) -> bool:
        """Keep a plan."""
        if self.why_not:
            return False
        payload, meta = bundle.payload()
        return self.cache.save(KIND, self.factors(tier), payload, meta=meta)

    def tell_unkept(self, why: str) -> None:
        """Say why the next start has to trace again."""
        self.why_not = self.why_not or why
        line = f"the next start has to trace again: {self.why_not}"
        log.info("%s: %s", self.job.name, line)
        self.job.events.send("unkept", message=line)


def tiers_of(job: CompileJob) -> tuple[Tier, ...]:
    """Return which artifacts a compile looks for, the best first.

    With `deterministic` there is one only: two tiers are equal within the dtype's tolerance, not bit for
    bit.
    """
    artifact = job.config.artifact
    if artifact == "quick" or (artifact == "tiered" and job.config.deterministic):
        return ("quick",)
    return ("package",) if job.config.deterministic else ("package", "quick")


def asked_of(job: Job) -> Asked:
    """Return what a key is made of.

    Raises:
        NoKey: the model is no Python function.
    """
    place = job.place
    function, _ = traced_function(job.model)
    if not hasattr(function, "__globals__"):
        raise NoKey(f"{job.name} is not a Python function or module", subject=job.name)
    return Asked(
        job.model, job.call, job.dynamic, job.named, job.config, job.host, place.platform,
        place.device,
    )  # fmt: skip


def target_of(job: Job, journal: Journal | None) -> Target:
    """Return what a bundle is loaded for."""
    return Target(
        job.model, job.name, job.host, job.place.device, job.events, job.config.check,
        {p.name: p.default for p in job.call.parameters if p.has_default}, job.call.complete(), journal,
    )  # fmt: skip
