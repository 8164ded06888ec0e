"""Plans in the cache: looked up without tracing, compared with what tracing had read, loaded, kept."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import evolve

from intarsia.assemble import assemble
from intarsia.bundle.codec import Known, NotHere
from intarsia.bundle.front import front_from_data, front_to_data
from intarsia.bundle.lookup import Asked, NoKey, lookup_factors
from intarsia.bundle.needs import ensure
from intarsia.bundle.plans import NoArtifact, PlanReader, PlanWriter
from intarsia.bundle.reading import (
    CannotRead,
    Present,
    Reading,
    compare,
    frozen_again,
    reading_of,
    scope_for,
)
from intarsia.bundle.sections import pack_sections, section
from intarsia.cache.cache import Cache
from intarsia.cache.entry import Entry, Unusable
from intarsia.cache.key import key_of
from intarsia.compiled import Compiled
from intarsia.errors import ContractError
from intarsia.job import Job
from intarsia.report.records import Report, report_from_dict
from intarsia.runtime.contract import values_problem
from intarsia.runtime.weights import live_weights, module_of
from intarsia.split.encode import CannotEncode
from intarsia.torch_compat import traced_function

if TYPE_CHECKING:
    from intarsia.cold import Made

KIND = "bundle"
log = logging.getLogger("intarsia")
_DEPTH = 8
"""How many plans of one look-up key, told apart by what tracing read, are tried."""


class PlanCache:
    """The plans of one compile in a cache.

    Several plans may share what is known without tracing and differ in what tracing read (`self.scale`).
    The first is at the look-up key. Where it does not fit, the present values of all that it had read make
    the key of the next, so that each value has a plan of its own, found by reading one more file.

    Attributes:
        why_not: why nothing can be looked up or kept, or "".
    """

    def __init__(self, job: Job, cache: Cache) -> None:
        self.job = job
        self.cache = cache
        self.why_not = ""
        self._factors: dict[str, str] | None = None
        self._differs: list[str] = []
        self._present: Present | None = None
        try:
            self._base = lookup_factors(_asked(job))
        except NoKey as error:
            self.why_not = str(error)
            self._base = {}

    # -- find

    def find(self) -> Compiled | None:
        """Return the compiled model, loaded; None where no plan fits, with one line that says why."""
        if self.why_not or self.job.config.dump is not None:
            return None
        with self.job.events.phase("load"):
            found = self._search()
        if found is None:
            self.job.events.miss(KIND, self.job.name, self.why_missed)
        return found

    def why_missed(self) -> str:
        """Return why no plan fits, after `find`."""
        if self.why_not:
            return self.why_not
        if self._differs:
            return "; ".join(self._differs[:3])
        return self.cache.explain_miss(KIND, self._factors or self._base)

    def _search(self) -> Compiled | None:
        self._differs, read = [], ""
        for _ in range(_DEPTH):
            self._factors = {**self._base, "what tracing read": read or "first"}
            found, present = self._load()
            if found is not None or present is None:
                return found
            read = present.digest
        return None

    def _load(self) -> tuple[Compiled | None, Present | None]:
        self._present = None
        found = self.cache.load(KIND, self._factors or self._base, self._use)
        return found, self._present

    def _use(self, entry: Entry) -> Compiled:
        try:
            return self._compiled(entry)
        except NotHere as error:
            raise Unusable(str(error)) from error

    def _compiled(self, entry: Entry) -> Compiled:
        job = self.job
        data = json.loads(section(entry, "plan"))
        reading = Reading.from_data(data["reading"])
        missing = ensure(reading.needs, reading.imported)
        if missing:
            raise Unusable(f"it needs {missing}, which is not to be found in this process")
        scope = scope_for(job.model, reading.aliases)
        self._refuse_changed(compare(reading, scope, job.model))
        defaults = {p.name: p.default for p in job.call.parameters if p.has_default}
        front = front_from_data(data["front"], defaults, job.place.device)
        wrong = values_problem(job.name, front.tree, job.call.values)
        if wrong is not None:
            self._refuse_changed(Present((wrong.why,), key_of("values", {"why": wrong.why})))
        reader = PlanReader(
            data["plans"], lambda i: section(entry, f"artifact {i}"), job.host, job.place.device,
            module_of(job.model), lambda text: eval(text, scope), defaults,
        )  # fmt: skip
        check = {"values": "always"}.get(job.config.check, job.config.check)
        boxes = reader.boxes(check, job.name)
        self._bind(boxes)
        return self._assembled(entry, front, boxes, reading, scope)

    def _refuse_changed(self, present: Present | None) -> None:
        if present is not None:
            self._present = present
            self._differs += present.lines
            raise Unusable("; ".join(present.lines[:3]))

    def _bind(self, boxes: Sequence[Any]) -> None:
        weights: dict[int, list[Any]] = {}
        for box in boxes:
            if id(box.plan) not in weights:
                try:
                    found = live_weights(box.plan.inputs, self.job.model, self.job.name)
                except ContractError as error:
                    raise Unusable(str(error)) from error
                weights[id(box.plan)] = found
            box.bind(weights[id(box.plan)])

    def _assembled(
        self, entry: Entry, front: Any, boxes: Sequence[Any], reading: Reading, scope: Any
    ) -> Compiled:
        from intarsia.report.text import explain

        job = self.job

        def report() -> Report:
            made = report_from_dict(json.loads(section(entry, "report")))
            return evolve(made, name=job.name, captures=0, traces=0, compiler_calls=0, bundle_reads=1,
                          warnings=(), settings=made.settings)  # fmt: skip

        engine = assemble(
            front, boxes, model=job.model, name=job.name, events=job.events,
            make_frozen=lambda: frozen_again(reading, scope, job.model), make_report=report,
            explain=lambda now, sources: explain(now, entry.meta["symbols"], sources),
        )  # fmt: skip
        job.events.send("done", message=f"loaded from {entry.key[:12]}")
        return Compiled(engine)

    # -- keep

    @contextlib.contextmanager
    def claim(self) -> Iterator[bool]:
        """Lead the compile of this plan among all processes, or wait for the one that does."""
        if self.why_not:
            yield True
            return
        key = key_of(KIND, self._factors or self._base)
        with self.cache.claim(key, self.job.config.cache_wait) as leads:
            yield leads

    def keep(self, made: Made, imported: Sequence[str]) -> bool:
        """Keep the plan of a cold compile; where that is not possible, say why."""
        try:
            if self.why_not:
                raise NoKey(self.why_not)
            payload, sections = self._payload(made, imported)
        except (NoKey, NoArtifact, CannotRead, CannotEncode) as error:
            self.why_not = self.why_not or str(error)
            line = f"the next start has to trace again: {self.why_not}"
            log.info("%s: %s", self.job.name, line)
            self.job.events.send("unkept", message=line)
            return False
        meta = {"name": self.job.name, "sections": sections, "symbols": list(made.symbols)}
        return self.cache.save(KIND, self._factors or self._base, payload, meta=meta)

    def _payload(self, made: Made, imported: Sequence[str]) -> tuple[bytes, Mapping[str, Any]]:
        known = Known({p.name: p.default for p in self.job.call.parameters if p.has_default})
        writer = PlanWriter(known)
        plans = writer.data(made.boxes)
        needs = dict.fromkeys(n for b in made.boxes for f in b.functions.values() for n in f.needs)
        needs.update(dict.fromkeys(_needs(made)))
        own = [name for name in imported if name.split(".")[0] not in _NOT_THEIRS]
        reading = reading_of(made.graphs, self.job.model, needs, own)
        plan = {
            "plans": plans, "front": front_to_data(made.front, known), "reading": reading.to_data(),
        }  # fmt: skip
        named: dict[str, bytes] = {
            "plan": json.dumps(plan).encode(),
            "report": json.dumps(made.report.to_dict(), default=str).encode(),
        }
        named.update({f"artifact {i}": blob for i, blob in enumerate(writer.blobs)})
        return pack_sections(named)


_NOT_THEIRS = ("torch", "intarsia", "sympy", "mpmath", "numpy", "triton")


def _needs(made: Made) -> list[str]:
    from intarsia.compiling.transport import needs_of

    return [need for graph in made.graphs for need in needs_of(graph.module)]


def _asked(job: Job) -> Asked:
    place = job.place
    function, _ = traced_function(job.model)
    if not hasattr(function, "__globals__"):
        raise NoKey(f"{job.name} is not a Python function or module", subject=job.name)
    return Asked(
        job.model, job.call, job.dynamic, job.named, job.config, job.host, place.platform,
        place.device,
    )  # fmt: skip
