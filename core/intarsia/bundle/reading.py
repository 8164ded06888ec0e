"""What tracing had read, so that a plan may be used again only where all of it is still the same.

The frozen Python values, the sources of everything that was inlined, the modules and operators that a plan
needs. All of it is compared before a plan is used: in one evaluation where nothing has changed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from attrs import field, frozen

from intarsia.bundle.codec import NotHere, decode, encode
from intarsia.bundle.sources import inlined_sources, present_code, present_file
from intarsia.capture.frozen import (
    FrozenKind,
    FrozenValue,
    change_line,
    keys_of,
    process_group_text,
    type_name,
)
from intarsia.capture.graph import Graph
from intarsia.capture.scope import (
    aliases_in,
    compiled_source,
    is_elsewhere,
    is_ours,
    scope_of,
    with_aliases,
)
from intarsia.capture.subclasses import tensor_kind
from intarsia.capture.surroundings import globals_of, ties_of
from intarsia.classes import class_digest
from intarsia.digests import function_identity, plain_digest
from intarsia.errors import IntarsiaError
from intarsia.ranks.state import asks_for_rank, present_rank
from intarsia.split.encode import CannotEncode, Encoded
from intarsia.torch_compat import traced_function

_GONE = "<gone>"
_NOT_SOURCES = ("file", "code", "variable", "training", "rank")
"""The kinds of facts that are not read by evaluating a source."""
_NOT_OF_CALLS = ("file", "code", "variable", "rank", "methods", "ties", "globals", "tensor")
"""The kinds of facts that are compared when a plan is loaded, and not on calls."""


class CannotRead(IntarsiaError):
    """Something that tracing read cannot be read again in another process; the text names it."""


@frozen
class Fact:
    """One thing that must be as it was.

    Attributes:
        kind: how `source` is read: a kind of frozen value, "file" (a module's source), "code" (the loaded
            code at a place), or "variable" (of the environment).
        label: the thing for a reader.
        value: what it was, as plain data.
    """

    kind: str
    source: str
    label: str
    value: Encoded


@frozen
class Reading:
    """Everything that tracing had read.

    Attributes:
        facts: what must be equal.
        aliases: the names that Dynamo made up -> the module that each stands for.
        needs: modules and operators that must be there: "module:x", "op:ns::name".
        imported: modules that tracing imported; some of them may register what is needed.
    """

    facts: tuple[Fact, ...]
    aliases: Mapping[str, str] = field(factory=dict)
    needs: tuple[str, ...] = ()
    imported: tuple[str, ...] = ()

    def to_data(self) -> Encoded:
        """Return it as plain data."""
        facts = [[f.kind, f.source, f.label, f.value] for f in self.facts]
        return {"facts": facts, "aliases": dict(self.aliases), "needs": list(self.needs),
                "imported": list(self.imported)}  # fmt: skip

    @staticmethod
    def from_data(data: Mapping[str, Any]) -> Reading:
        """Return the reading of plain data."""
        return Reading(tuple(Fact(*fact) for fact in data["facts"]), data["aliases"],
                       tuple(data["needs"]), tuple(data["imported"]))  # fmt: skip


# ------------------------------------------------------------------------------------------- writing


def reading_of(
    graphs: Sequence[Graph], model: Any, needs: Iterable[str], imported: Iterable[str]
) -> Reading:
    """Return what the traces of a compile had read.

    Raises:
        CannotRead: a value cannot be compared in another process, or a source cannot be read.
    """
    facts: dict[tuple[str, str], Fact] = {}
    aliases: dict[str, str] = {}
    for graph in graphs:
        if graph.opaque:
            raise CannotRead(
                f"{graph.opaque[0]} cannot be compared in another process",
                why="tracing read it, and it is neither a plain value nor a function or class",
                subject=graph.opaque[0],
            )
        made = [i.name for i in graph.inputs if i.kind == "constant" and i.read is None]
        if made:
            raise CannotRead(
                f"{made[0]} cannot be read in another process",
                why="tracing made a tensor of something that is none", subject=made[0],
            )  # fmt: skip
        for fact in _facts(graph):
            facts.setdefault((fact.kind, fact.source), fact)
        used = [f.source for f in facts.values()] + [i.source for i in graph.inputs]
        aliases.update(_aliases(used, graph))
    codes = [code for graph in graphs for code in graph.codes]
    try:
        files, loaded = inlined_sources(codes, model)
    except LookupError as error:
        raise CannotRead(str(error.args[0])) from error
    for name, value in files.items():
        facts["file", name] = Fact("file", name, f"source of {name}", value)
    for place, value in loaded.items():
        facts["code", place] = Fact("code", place, f"code of {place}", value)
    for name in dict.fromkeys(name for graph in graphs for name in graph.variables):
        facts["variable", name] = Fact("variable", name, f"variable {name}", os.environ.get(name))
    if asks_for_rank(codes):
        facts["rank", ""] = Fact("rank", "", "rank", present_rank())
    return Reading(tuple(facts.values()), aliases, tuple(needs), tuple(imported))


def _facts(graph: Graph) -> Iterable[Fact]:
    for entry in (*graph.frozen, *graph.surroundings):
        if not is_elsewhere(entry.source):
            continue
        value = entry.value
        if entry.kind == "function":
            value = function_identity(eval(entry.source, dict(graph.scope)))
        try:
            yield Fact(entry.kind, entry.source, entry.label, encode(value))
        except CannotEncode as error:
            raise CannotRead(
                f"{entry.label} cannot be compared in another process", why=str(error)
            ) from error


def _aliases(sources: Iterable[str], graph: Graph) -> dict[str, str]:
    try:
        return aliases_in((s for s in sources if not is_ours(s)), graph.scope.get("G", {}))
    except KeyError as error:
        raise CannotRead(
            f"the name {error} of Dynamo's means nothing in another process"
        ) from error


# ------------------------------------------------------------------------------------------- reading


def scope_for(model: Any, aliases: Mapping[str, str]) -> dict[str, Any]:
    """Return what sources are evaluated in, for a model that was not traced in this process.

    Raises:
        NotHere: a module is not to be found.
    """
    function, root = traced_function(model)
    try:
        return scope_of(function, root, with_aliases(function.__globals__, aliases))
    except ImportError as error:
        raise NotHere(f"a module that tracing read is not to be found: {error}") from error


@frozen
class Present:
    """What is there now of the things that tracing had read.

    Attributes:
        lines: one line for each that differs.
        digest: a hash of all the present values: the key of the plan that fits them.
    """

    lines: tuple[str, ...]
    digest: str


def compare(reading: Reading, scope: Mapping[str, Any], model: Any) -> Present | None:
    """Compare what tracing had read with what is there now; None where all of it is the same."""
    now = _present(reading.facts, scope, model)
    if _text(now) == _text([fact.value for fact in reading.facts]):
        return None
    pairs = [(f, v) for f, v in zip(reading.facts, now, strict=True) if _text(v) != _text(f.value)]
    pairs.sort(key=lambda pair: pair[0].kind not in ("file", "code"))  # an edit explains the others
    return Present(tuple(_line(fact, value) for fact, value in pairs), plain_digest(now))


def _text(value: Encoded) -> str:
    # To Python 1 and True are equal, also within lists; a graph with one is not that with the other.
    return json.dumps(value)


def _line(fact: Fact, value: Encoded) -> str:
    if fact.kind in ("file", "code"):
        return f"{fact.label} has changed"
    return change_line(fact.label, _shown(fact.value), _shown(value))


def _shown(value: Encoded) -> Any:
    try:
        return decode(value)
    except NotHere:
        return value


def _present(facts: Sequence[Fact], scope: Mapping[str, Any], model: Any) -> list[Encoded]:
    values = [fact for fact in facts if fact.kind not in _NOT_SOURCES]
    try:
        found = iter(_all_at_once([(f.kind, f.source) for f in values], scope))
    except Exception:  # one of them is gone: find out which
        found = iter([_one(f, scope) for f in values])
    flags = _training(model)
    return [_other(f, flags) if f.kind in _NOT_SOURCES else next(found) for f in facts]


def _training(model: Any) -> dict[str, bool]:
    if not isinstance(model, torch.nn.Module):
        return {}
    return {f"training:{name}": module.training for name, module in model.named_modules()}


def _other(fact: Fact, flags: Mapping[str, bool]) -> Encoded:
    if fact.kind == "training":
        return flags.get(fact.source, _GONE)
    if fact.kind == "rank":
        return present_rank()
    if fact.kind == "variable":
        return os.environ.get(fact.source)
    try:
        return present_file(fact.source) if fact.kind == "file" else present_code(fact.source)
    except (ImportError, AttributeError):
        return _GONE


_READERS: Mapping[str, Callable[[Any], Encoded]] = {
    "value": encode, "length": len, "keys": lambda value: encode(keys_of(value)), "class": type_name,
    "function": function_identity, "methods": class_digest, "ties": lambda value: encode(ties_of(value)),
    "globals": lambda value: encode(globals_of(value)), "tensor": tensor_kind,
    "process group": process_group_text,
}  # fmt: skip


def _all_at_once(entries: Sequence[tuple[str, str]], scope: Mapping[str, Any]) -> list[Encoded]:
    """Evaluate all sources as one expression, which is much cheaper than one by one."""
    text = "\n,".join(f"{_helper(kind)}({source})" for kind, source in entries)
    readers = {_helper(kind): reader for kind, reader in _READERS.items()}
    return list(eval(compile(f"[{text}]", "<frozen values>", "eval"), {**scope, **readers}))


def _helper(kind: str) -> str:
    return f"_{kind.replace(' ', '_')}_"


def _one(fact: Fact, scope: Mapping[str, Any]) -> Encoded:
    try:
        return _all_at_once([(fact.kind, fact.source)], scope)[0]
    except Exception as error:
        return f"{_GONE[:-1]}: {type(error).__name__}>"


def frozen_again(reading: Reading, scope: dict[str, Any], model: Any) -> list[FrozenValue]:
    """Return the frozen values of a loaded plan, for comparison on calls."""
    modules = dict(model.named_modules()) if isinstance(model, torch.nn.Module) else {}
    made = []
    for fact in reading.facts:
        if fact.kind in _NOT_OF_CALLS:
            continue
        value = decode(fact.value)
        made.append(
            FrozenValue(fact.source, fact.label, value, _reader(fact, scope, modules), _kind(fact))
        )
    return made


def _kind(fact: Fact) -> FrozenKind:
    kind: Any = fact.kind
    return kind


def _reader(
    fact: Fact, scope: dict[str, Any], modules: Mapping[str, torch.nn.Module]
) -> Callable[[], Any]:
    if fact.kind == "training":
        module = modules[fact.source.partition(":")[2]]
        return lambda: module.training
    code = compiled_source(fact.source)
    assert code is not None, fact.source
    read: Mapping[str, Callable[[Any], Any]] = {
        **_READERS, "value": lambda value: value, "keys": keys_of,
    }  # fmt: skip
    convert = read[fact.kind]
    return lambda: convert(eval(code, scope))
