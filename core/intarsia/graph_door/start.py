"""How a graph of Dynamo's starts: from a bundle where there is one, else cold, and then a bundle is left."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from intarsia.bundle.bundle import Bundle
from intarsia.bundle.codec import Known, NotHere
from intarsia.bundle.keeping import tiers_of
from intarsia.bundle.lookup import NoKey
from intarsia.bundle.packaging import start_packages
from intarsia.bundle.plans import PlanWriter
from intarsia.bundle.start import cache_of, pieces_of, refuse_crashed, saving
from intarsia.cache.cache import Cache
from intarsia.cache.entry import Entry, Unusable
from intarsia.cache.journal import Journal
from intarsia.cache.key import key_of
from intarsia.errors import IntarsiaError
from intarsia.graph_door.callable import GraphCallable, artifact_of
from intarsia.graph_door.front import GraphPlan
from intarsia.graph_door.job import GraphJob
from intarsia.graph_door.key import graph_factors
from intarsia.graph_door.loading import KIND, GraphParts, bundle_of_graph, load_graph, report_of
from intarsia.graph_door.recent import add_report
from intarsia.interfaces import Tier
from intarsia.job import CompileJob
from intarsia.report.records import Report, with_counters
from intarsia.runtime.bound import Dispatcher, PieceFunction
from intarsia.split.encode import CannotEncode, Encoded, encode_graph

if TYPE_CHECKING:
    from intarsia.compiling.kept import KeptPieces
    from intarsia.graph_door.cold import MadeGraph

log = logging.getLogger("intarsia")


def start_graph(job: GraphJob) -> GraphCallable:
    """Return the callable of a graph: loaded where it was kept, else compiled and kept.

    Raises:
        CacheError: an entry is bad, and `strict` is on.
        SplitError, ConfigError, PluginError, CompileFailed: as a cold compile does.
    """
    return _Start(job).run()


class _Start:
    """One graph, step by step.

    Attributes:
        encoded: the graph as plain data, or None.
        factors: what its key is made of; empty where it has none.
        why_not: why it cannot be kept or saved, or "".
        tier: which artifacts the bundle that was found holds.
        journal: the crash journal, or None.
    """

    def __init__(self, job: GraphJob) -> None:
        self.job = job
        with job.events.phase("capture"):
            self.graph = job.graph()
            self.boxes = job.boxes(self.graph)
        self.encoded: Encoded = None
        self.factors: dict[str, str] = {}
        self.why_not = ""
        self.tier: Tier = "quick"
        self.journal: Journal | None = None

    def run(self) -> GraphCallable:
        made = self._run()
        if self.job.config.static_graph != "none" and isinstance(made.plan, GraphPlan):
            _add_static_graphs(self.job, made.plan, len(self.job.holes))
        return made

    def _run(self) -> GraphCallable:
        cache = cache_of(self.job)
        self.journal = None if cache is None else cache.journal()
        with self.job.events.phase("load"):
            self._encode(with_key=cache is not None)
        if cache is None:
            return self._made(None)
        found = self._find(cache)
        if found is not None:
            return found
        with self._claim(cache) as leads:
            # Somebody else may have made it meanwhile.
            return (None if leads else self._find(cache)) or self._made(cache)

    def _encode(self, *, with_key: bool) -> None:
        try:
            self.encoded = encode_graph(self.graph.module.graph, self.graph.module)
            if with_key:
                self.factors = graph_factors(self.job, self.graph, self.encoded, self.boxes)
        except (CannotEncode, NoKey) as error:
            self.why_not = str(error)

    def _key(self, tier: Tier) -> dict[str, str]:
        return {**self.factors, "tier": tier}

    # -- find

    def _find(self, cache: Cache) -> GraphCallable | None:
        job = self.job
        if not self.factors or job.config.dump is not None or job.config.verify:
            return None  # a loaded plan has no pieces to dump, and none to compare with
        with job.events.phase("load"):
            for tier in tiers_of(job):
                found = cache.load(KIND, self._key(tier), self._use)
                if found is not None:
                    return self._loaded(cache, tier, *found)
        job.events.miss(KIND, job.name, lambda: cache.explain_miss(KIND, self._key("quick")))
        return None

    def _use(self, entry: Entry) -> tuple[Bundle, GraphPlan, Mapping[int, PieceFunction]]:
        job = self.job
        bundle = Bundle.of(entry)
        try:
            plan, functions = load_graph(
                bundle, name=job.name, host=job.host, device=job.place.device, events=job.events,
                journal=self.journal,
            )  # fmt: skip
        except NotHere as error:
            raise Unusable(str(error)) from error
        return bundle, plan, functions

    def _loaded(
        self, cache: Cache, tier: Tier, bundle: Bundle, plan: GraphPlan,
        functions: Mapping[int, PieceFunction],
    ) -> GraphCallable:  # fmt: skip
        job, report = self.job, bundle.report
        name, events = job.name, job.events
        plan.report = lambda: with_counters(report_of(report, name, captures=1), events)
        add_report(plan.report)
        events.send("done", message=f"loaded with {tier} artifacts")
        light = job.without_graph()
        plan.write = lambda: artifact_of(bundle, light)
        made = GraphCallable(plan)
        if bundle.plan["packages"] and "package" in tiers_of(job):
            self._package(cache, bundle, plan, {i: f.callable for i, f in functions.items()})
        return made

    # -- make

    @contextlib.contextmanager
    def _claim(self, cache: Cache) -> Iterator[bool]:
        """Lead the compile of this graph among all processes, or wait for the one that does."""
        if not self.factors:
            yield True
            return
        key = key_of(KIND, self._key("quick"))
        with cache.claim(key, self.job.config.cache_wait) as leads:
            yield leads

    def _made(self, cache: Cache | None) -> GraphCallable:
        from intarsia.graph_door.cold import compile_graph, parts_of  # a hit must not pay for it

        job = self.job
        pieces = None if cache is None else pieces_of(job, cache)
        made = compile_graph(job, self.graph, self.boxes, pieces, self.journal)
        report, events = made.report, job.events
        made.plan.report = lambda: with_counters(report, events)
        add_report(made.plan.report)
        function = GraphCallable(made.plan)
        parts = None
        if self.encoded is not None:
            parts = parts_of(job, self.graph, made.front, self.encoded)
        dispatcher, light = made.plan.dispatcher, job.without_graph()
        made.plan.write = _writing(light, dispatcher, report, parts, self.why_not)
        if cache is not None:
            assert pieces is not None
            with events.phase("keep"):
                self._keep(cache, made, parts, pieces)
        return function

    def _keep(
        self, cache: Cache, made: MadeGraph, parts: GraphParts | None, pieces: KeptPieces
    ) -> None:
        from intarsia.bundle.writing import packages_of

        job = self.job
        if parts is None or not self.factors:
            self._tell_unkept(self.why_not)
            return
        wanted = "package" in tiers_of(job) and job.config.workers != 0
        writer = PlanWriter(Known())
        try:
            refuse_crashed(made.crashed)
            bundle = bundle_of_graph(parts, made.plan.dispatcher.boxes, made.report, writer)
        except IntarsiaError as error:
            self._tell_unkept(str(error))
            return
        requests: list[bytes] = []
        if wanted:
            waiting = packages_of(job, made.packages, writer, requests, pieces)
            bundle = bundle.waiting_for(waiting, requests)
        tier: Tier = "package" if wanted and not bundle.plan["packages"] else "quick"
        _save(cache, self._key(tier), bundle)
        light = job.without_graph()
        made.plan.write = lambda: artifact_of(bundle, light)
        if bundle.plan["packages"]:
            numbered = writer.numbered(made.plan.dispatcher.boxes)
            self._package(cache, bundle, made.plan, {n: f for f, n in numbered})

    def _tell_unkept(self, why: str) -> None:
        line = f"the next start has to compile it again: {why}"
        log.info("%s: %s", self.job.name, line)
        self.job.events.send("unkept", message=line)

    def _package(
        self, cache: Cache, bundle: Bundle, plan: GraphPlan, functions: Mapping[int, Any]
    ) -> None:
        job, factors = self.job.without_graph(), self._key("package")  # no graph waits for packages

        def keep(whole: Bundle, live: GraphPlan | None) -> None:
            _save(cache, factors, whole)
            if live is not None:
                live.write = lambda: artifact_of(whole, job)

        start_packages(job, cache, bundle, plan, functions, keep)


def _add_static_graphs(job: CompileJob, plan: GraphPlan, arguments: int) -> None:
    # Who records nothing need not import them.
    from intarsia.static_graph.lazily import LazyRecording
    from intarsia.static_graph.setup import add_static_graphs

    paths = [f"a{index}" for index in range(arguments)]
    graphs = add_static_graphs(plan, job.place, job.host, job.name, paths, plan.report)
    if graphs is not None:
        plan.dispatcher.lazily = LazyRecording(graphs)


def _save(cache: Cache, factors: Mapping[str, str], bundle: Bundle) -> None:
    payload, meta = bundle.payload()
    cache.save(KIND, factors, payload, meta=meta)


def _writing(
    job: CompileJob, dispatcher: Dispatcher, report: Report, parts: GraphParts | None, why_not: str
) -> Callable[[], bytes]:
    """Return what writes a graph's plan, for one that was kept nowhere."""

    def write() -> bytes:
        with saving(job.name):
            if parts is None:
                raise CannotEncode(why_not)
            return artifact_of(bundle_of_graph(parts, dispatcher.boxes, report), job)

    return write
