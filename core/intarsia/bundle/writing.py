"""From a cold compile to a bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from intarsia.bundle.bundle import Bundle
from intarsia.bundle.codec import Known
from intarsia.bundle.front import front_to_data
from intarsia.bundle.plans import PlanWriter
from intarsia.bundle.reading import reading_of
from intarsia.cold import Made
from intarsia.compiling.kept import KeptPieces
from intarsia.compiling.packages import tell_quick
from intarsia.compiling.tasks import Task
from intarsia.compiling.transport import needs_of, request_to_bytes
from intarsia.errors import CompileFailed, CompileRejected
from intarsia.interfaces import CompileRequest, CompilerSpec
from intarsia.job import CompileJob, Job

_NOT_THEIRS = ("torch", "intarsia", "sympy", "mpmath", "numpy", "triton")


def bundle_of(
    job: Job, made: Made, imported: Sequence[str], pieces: KeptPieces | None, *, packages: bool
) -> tuple[Bundle, dict[int, Any]]:
    """Return the bundle of a cold compile, and the callables of its pieces by number.

    Args:
        job: what was asked for.
        made: what came of it.
        imported: the modules that were imported while it was made.
        pieces: tells the keys of packages; None: none are made.
        packages: whether packages are wanted.

    Raises:
        NoArtifact: a piece leaves no artifact.
        CannotRead: tracing read something that another process cannot compare.
        CannotEncode: generated code uses a value without a plain form.
    """
    known = Known({p.name: p.default for p in job.call.parameters if p.has_default})
    writer = PlanWriter(known)
    plans = writer.data(made.boxes)
    needs = dict.fromkeys(n for b in made.boxes for f in b.functions.values() for n in f.needs)
    needs.update(dict.fromkeys(n for graph in made.graphs for n in needs_of(graph.module)))
    own = [name for name in imported if name.split(".")[0] not in _NOT_THEIRS]
    reading = reading_of(made.graphs, job.model, needs, own)
    requests: list[bytes] = []
    wanted = []
    if packages and pieces:
        wanted = packages_of(job, made.packages, writer, requests, pieces)
    plan = {
        "plans": plans, "front": front_to_data(made.front, known), "reading": reading.to_data(),
        "packages": wanted, "check": job.config.check,
    }  # fmt: skip
    report = json.dumps(made.report.to_dict(), default=str).encode()
    meta = {"name": job.name, "symbols": list(made.symbols)}
    bundle = Bundle(plan, report, writer.blobs, requests, meta)
    return bundle, {number: function for function, number in writer.numbered(made.boxes)}


def packages_of(
    job: CompileJob, packageable: Sequence[tuple[Any, Task, str]], writer: PlanWriter,
    requests: list[bytes], pieces: KeptPieces,
) -> list[Mapping[str, Any]]:  # fmt: skip
    """Return the packages that are to be made, as plain data; their requests are added to a list.

    `packageable` has what a package may be made of: (callable, task, compiler).
    """
    found: list[Mapping[str, Any]] = []
    quick: dict[str, list[str]] = {}  # reason -> pieces
    for function, task, compiler in packageable:
        spec = job.host.compiler(compiler)
        number = writer.number(function)
        if number is None:
            continue  # no plan calls it
        try:
            factors, data = _package_request(job, task, spec, pieces)
        except CompileRejected as error:
            quick.setdefault(str(error), []).append(task.name)
            continue
        found.append({"function": number, "name": task.name, "compiler": compiler,
                      "request": len(requests), "factors": factors})  # fmt: skip
        requests.append(data)
    tell_quick(job.events, quick)
    return found


def _package_request(
    job: CompileJob, task: Task, spec: CompilerSpec, pieces: KeptPieces
) -> tuple[Mapping[str, str], bytes]:
    """Return the factors of a package, and the request for it.

    Raises:
        CompileRejected: none can be made of this piece.
    """
    if not spec.capabilities.workers:
        raise CompileRejected(
            f'compiler "{spec.name}" does not run in the workers that make packages'
        )
    factors = pieces.factors(task, spec, "package")
    if factors is None:
        raise CompileRejected("it has no key in the cache")
    try:
        return factors, request_to_bytes(_request(job, task, spec))
    except CompileFailed as error:
        raise CompileRejected(str(error)) from error


def _request(job: CompileJob, task: Any, spec: Any) -> CompileRequest:
    # Without fake inputs: they do not travel, the worker makes its own.
    return CompileRequest(
        graph=task.piece.module, fake_inputs=(),
        signature=task.canonical.signature(task.box, job.host.options(spec)),
        device_type=job.place.device_type, device=job.place.device, name=task.name,
        kind=task.piece.kind, key=task.canonical.digest, hints=dict(task.hints), tier="package",
        **job.place.components.passes.for_request(task.box, job.config.compile_timeout),
    )  # fmt: skip
