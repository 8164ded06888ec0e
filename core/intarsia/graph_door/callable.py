"""What Dynamo gets for a graph: a callable that torch can save, and that comes back without a trace."""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attrs import frozen

from intarsia import torch_compat
from intarsia.bundle.bundle import Bundle
from intarsia.cache.entry import BadEntry, Entry, decode_entry, encode_entry, read_header
from intarsia.cache.key import differences, key_of
from intarsia.compiling.identity import platform_factors, torch_factors
from intarsia.config import load_config
from intarsia.errors import CacheError
from intarsia.graph_door.front import GraphPlan
from intarsia.graph_door.loading import load_graph, report_of
from intarsia.graph_door.recent import add_report, numbered
from intarsia.host import Host
from intarsia.interfaces import CompilerSpec, PlatformSpec
from intarsia.job import CompileJob
from intarsia.report.events import EventStream
from intarsia.report.records import Report, with_counters
from intarsia.runtime.bound import Forward

if TYPE_CHECKING:
    _Serializable = object
else:
    _Serializable = torch_compat.serializable_callable()

KIND = "graph artifact"


@frozen(eq=False)
class EagerGraph:
    """A graph that runs as it is, because gradients are needed."""

    name: str
    forward: Forward

    def write(self) -> bytes:
        """Refuse: there is no plan.

        Raises:
            CacheError: always.
        """
        raise CacheError(
            f"{self.name} cannot be saved", why="something requires gradients, so it runs eagerly",
            next_step="Compile it under torch.no_grad().", subject=self.name,
        )  # fmt: skip

    def end(self) -> None:
        """Do nothing: nothing is on its way."""


class GraphCallable(_Serializable):
    """The compiled graph that Dynamo calls; `aot_compile` saves it, and a new process loads it.

    Attributes:
        plan: what is behind it.
    """

    # As a slot, `__call__` is looked up on the type and gives each graph its own generated function: the
    # call costs what the bare function costs, where a method that passes its arguments on adds 0.1 us.
    __slots__ = ("__call__", "plan")

    def __init__(self, plan: GraphPlan | EagerGraph) -> None:
        self.plan = plan
        self.__call__ = plan.forward
        weakref.finalize(self, plan.end)

    @classmethod
    def serialize_compile_artifacts(cls, fn: GraphCallable) -> bytes:
        """Return the graph's plan and the artifacts of its pieces as bytes. Nothing in them is pickled.

        Raises:
            CacheError: a piece leaves no artifact, or something has no plain form; the message says which.
        """
        return fn.plan.write()

    @classmethod
    def deserialize_compile_artifacts(cls, data: bytes) -> GraphCallable:
        """Return the callable of such bytes. Nothing is traced and nothing compiles.

        Raises:
            CacheError: they are damaged, were made for another torch, device or version, or need something
                that is not to be found; the message says what.
        """
        return cls(restored(data))

    def report(self) -> Report:
        """Return the report of the compile; only a compiled graph has one."""
        assert not isinstance(self.plan, EagerGraph), self.plan.name
        return self.plan.report()

    def __copy__(self) -> GraphCallable:
        """Return itself, as a function does: it holds no weights."""
        return self

    def __deepcopy__(self, memo: Any) -> GraphCallable:
        """Return itself, as a function does: it holds no weights."""
        return self

    def __reduce__(self) -> Any:
        """Say how it is pickled: as the same bytes that torch saves."""
        return GraphCallable.deserialize_compile_artifacts, (
            GraphCallable.serialize_compile_artifacts(self),
        )

    def __repr__(self) -> str:
        return f"GraphCallable({self.plan.name})"


# -------------------------------------------------------------------------------------------- writing


def artifact_of(bundle: Bundle, job: CompileJob) -> bytes:
    """Return a graph's bundle as bytes for another process, with what it takes to load the same plugins.

    Raises:
        CacheError: an option has no plain form.
    """
    place = job.place
    specs = {e["compiler"] for e in bundle.plan["plans"]["functions"]}
    factors = {
        **torch_factors(), **platform_factors(place.platform, place.device),
        **_versions(job.host, [job.host.compiler(name) for name in sorted(specs)]),
    }  # fmt: skip
    payload, meta = bundle.waiting_for((), ()).payload()
    meta["place"] = [place.device_type, place.device]
    meta["settings"] = _settings(job)
    return encode_entry(Entry(KIND, key_of(KIND, factors), factors, meta, payload))


def _versions(host: Host, specs: list[CompilerSpec]) -> dict[str, str]:
    found = {}
    for spec in specs:
        plugin = host.provider(spec)
        found[f"compiler {spec.name}"] = f"{spec.version} {plugin.distribution} {plugin.version}"
    return found


def _settings(job: CompileJob) -> dict[str, Any]:
    plugins = {k: v for k, v in job.config.plugins.to_dict().items() if v is not None}
    options = {name: dict(table) for name, table in job.config.options.items()}
    try:
        json.dumps(options)
    except TypeError as error:
        raise CacheError(
            f"{job.name} cannot be saved", why=f"an option has no plain form: {error}",
            next_step="Give options as plain numbers and text.", subject="options",
        ) from error  # fmt: skip
    return {"options": options, "plugins": plugins}


# -------------------------------------------------------------------------------------------- reading


def restored(data: bytes) -> GraphPlan:
    """Return the bound plans of a graph that another process saved.

    Raises:
        CacheError: see `GraphCallable.deserialize_compile_artifacts`.
    """
    entry = _checked(data)
    bundle = Bundle.of(entry)
    name = numbered(str(entry.meta["name"]))
    try:
        host = Host(load_config(entry.meta["settings"], environ={}))
        kind, device = entry.meta["place"]
        _compare(entry, name, host, host.choose_platform(kind), device)
        events = EventStream(name, (host.emit,))
        plan, _ = load_graph(bundle, name=name, host=host, device=device, events=events,
                             journal=None)  # fmt: skip
    except CacheError:
        raise
    except Exception as error:  # of a plugin that is missing, or of a compiler's load
        why = str(error) or type(error).__name__
        raise _unfit(name, why) from error
    plan.write = lambda: data
    report = bundle.report
    add_report(lambda: with_counters(report_of(report, name, captures=0), events))
    events.send("done", message="loaded from a saved graph")
    return plan


def _checked(data: bytes) -> Entry:
    header = read_header(data)
    if header is None or header.kind != KIND:
        raise BadEntry("the bytes are no saved graph")
    return decode_entry(data, key=header.key)


def _compare(
    entry: Entry, name: str, host: Host, platform: PlatformSpec, device: int | None
) -> None:
    """Refuse what was made for another torch, device or compiler.

    Raises:
        CacheError: the message has the factor that differs.
    """
    here: Mapping[str, str] = {
        **torch_factors(), **platform_factors(platform, device),
    }  # fmt: skip
    differs = differences(here, {k: v for k, v in entry.factors.items() if not _of_compiler(k)})
    if differs:
        raise _unfit(name, str(differs[0]))
    wanted = {k: v for k, v in entry.factors.items() if _of_compiler(k)}
    specs = [host.compiler(k.removeprefix("compiler ")) for k in wanted]
    differs = differences(_versions(host, specs), wanted)
    if differs:
        raise _unfit(name, str(differs[0]))


def _of_compiler(factor: str) -> bool:
    return factor.startswith("compiler ")


def _unfit(name: str, why: str) -> CacheError:
    return CacheError(
        f"the saved graph {name} cannot be used here", why=why,
        next_step="Compile it again with aot_compile, and save it.", subject=name,
    )  # fmt: skip
