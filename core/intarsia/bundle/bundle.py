"""A bundle: one plan as plain data with the artifacts of its pieces, and its form as one payload."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import evolve, field, frozen

from intarsia.bundle.sections import pack_sections, section
from intarsia.cache.entry import Entry
from intarsia.runtime.bound import PieceFunction


@frozen
class Bundle:
    """Everything that a warm start needs.

    Attributes:
        plan: plans, front, what tracing had read, and the packages that are still to be made, as JSON-able
            data.
        report: the report of the compile, as JSON.
        artifacts: those of the pieces, by number.
        requests: the compile requests of packages that are still to be made, by number.
        meta: JSON-able data for listings: the model's name, the lines about its symbols.
    """

    plan: Mapping[str, Any]
    report: bytes
    artifacts: Sequence[bytes]
    requests: Sequence[bytes] = ()
    meta: Mapping[str, Any] = field(factory=dict)

    def payload(self) -> tuple[bytes, dict[str, Any]]:
        """Return it as one payload, and the meta data of its entry."""
        named = {"plan": json.dumps(self.plan).encode(), "report": self.report}
        named.update({f"artifact {i}": data for i, data in enumerate(self.artifacts)})
        named.update({f"request {i}": data for i, data in enumerate(self.requests)})
        payload, places = pack_sections(named)
        return payload, {**self.meta, "sections": places}

    @staticmethod
    def of(entry: Entry) -> Bundle:
        """Return the bundle of an entry that was checked."""
        places: Mapping[str, Any] = entry.meta["sections"]
        meta = {name: value for name, value in entry.meta.items() if name != "sections"}

        def numbered(what: str) -> list[bytes]:
            count = sum(name.startswith(f"{what} ") for name in places)
            return [section(entry, f"{what} {i}") for i in range(count)]

        plan = json.loads(section(entry, "plan"))
        return Bundle(
            plan, section(entry, "report"), numbered("artifact"), numbered("request"), meta
        )

    def waiting_for(
        self, packages: Sequence[Mapping[str, Any]], requests: Sequence[bytes]
    ) -> Bundle:
        """Return it with other packages that are still to be made, and their requests."""
        return evolve(self, plan={**self.plan, "packages": list(packages)}, requests=list(requests))

    def with_packages(self, made: Mapping[int, PieceFunction]) -> Bundle:
        """Return it with packages in the place of other artifacts, by the number of the piece."""
        plan = copy.deepcopy(dict(self.plan))
        artifacts = list(self.artifacts)
        for number, function in made.items():
            assert function.artifact is not None
            plan["plans"]["functions"][number].update(
                artifact=len(artifacts), needs=list(function.needs), note=function.note,
                tier=function.tier,
            )  # fmt: skip
            artifacts.append(function.artifact)
        plan["packages"] = []
        used = sorted({entry["artifact"] for entry in plan["plans"]["functions"]})
        for entry in plan["plans"]["functions"]:
            entry["artifact"] = used.index(entry["artifact"])
        return evolve(self, plan=plan, artifacts=[artifacts[i] for i in used], requests=())
