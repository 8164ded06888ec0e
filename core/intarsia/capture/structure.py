"""Arguments and results as trees: paths to values, copies that share tensors, and templates.

A tree is made of lists, tuples, dicts, dataclasses and plain objects; its leaves are tensors, numbers
and everything else. Nothing needs to be registered for it, unlike with torch's pytree: a cache object
that a model takes or returns is walked like a dict of its attributes.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeAlias

import torch
from attrs import Factory, frozen

Step: TypeAlias = "tuple[Literal['.', '[]'], Any]"
"""An attribute (".", name) or an item ("[]", index or key)."""

_SCALARS = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device,
            torch.layout, torch.memory_format, enum.Enum, range, slice)  # fmt: skip
_OPAQUE = (torch.nn.Module, type, types.ModuleType, types.FunctionType, types.MethodType,
           types.BuiltinFunctionType, torch.Generator)  # fmt: skip


@frozen
class Path:
    """The way from a call's arguments to a value: `past.layers[0].keys`."""

    root: str
    steps: tuple[Step, ...] = ()

    def attribute(self, name: str) -> Path:
        """Return the path of an attribute of this value."""
        return Path(self.root, (*self.steps, (".", name)))

    def item(self, key: Any) -> Path:
        """Return the path of an item of this value."""
        return Path(self.root, (*self.steps, ("[]", key)))

    def __str__(self) -> str:
        return self.root + "".join(
            f".{step}" if kind == "." else f"[{step!r}]" for kind, step in self.steps
        )


def is_scalar(value: Any) -> bool:
    """Say whether a value is compared by equality rather than walked."""
    return isinstance(value, _SCALARS)


def is_opaque(value: Any) -> bool:
    """Say whether a value is kept as it is: modules, classes, functions."""
    return isinstance(value, _OPAQUE) or (
        not is_scalar(value)
        and not isinstance(value, torch.Tensor | list | tuple | Mapping)
        and not hasattr(value, "__dict__")
    )


def children(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    """Yield the parts of a container or object with their paths; nothing for a leaf."""
    if isinstance(value, torch.Tensor) or is_scalar(value) or is_opaque(value):
        return
    if isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield path.item(index), part
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield (
                path.item(key),
                part,
            )  # of a dataclass that is a dict too, its items are its fields
    else:
        for name, part in vars(value).items():
            yield path.attribute(name), part


def walk(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    """Yield every value of a tree, parents first; an object met twice is yielded once."""
    seen: set[int] = set()
    stack = [(path, value)]
    while stack:
        here, part = stack.pop()
        yield here, part
        if id(part) in seen and not isinstance(part, torch.Tensor) and not is_scalar(part):
            continue
        seen.add(id(part))
        stack.extend(reversed(list(children(part, here))))


def structural_copy(value: Any, memo: dict[int, Any] | None = None) -> Any:
    """Copy the containers and objects of a tree; leaves, tensors included, stay the same objects."""
    memo = {} if memo is None else memo
    if isinstance(value, torch.Tensor) or is_scalar(value) or is_opaque(value):
        return value
    if id(value) in memo:
        return memo[id(value)]
    made: Any
    if isinstance(value, list):
        made = memo[id(value)] = copy.copy(value)
        made[:] = [structural_copy(part, memo) for part in value]
    elif isinstance(value, tuple):
        parts = [structural_copy(part, memo) for part in value]
        made = type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    elif isinstance(value, Mapping):
        made = memo[id(value)] = copy.copy(value)
        for key, part in value.items():
            made[key] = structural_copy(part, memo)
    else:
        made = memo[id(value)] = copy.copy(value)
        for name, part in vars(value).items():
            made.__dict__[name] = structural_copy(part, memo)
    memo[id(value)] = made
    # The memo must keep what it knows by id alive, or a freed object's id could be met again.
    memo.setdefault(-1, []).append(value)
    return made


# ------------------------------------------------------------------------------------------ templates


@frozen
class Template:
    """How to build one value of a result.

    Attributes:
        kind: "value" (the graph's output `ref`), "argument" (a path in `ref`, as it was before the call),
            "written" (a path in `ref` after the call's writes), "weight" (a qualified name in `ref`),
            "constant" (`ref` itself), or a container: "list", "tuple", "dict", "namedtuple",
            "dataclass", "mapping", "object".
        cls: the container's class, where it is not a builtin.
        parts: (key, template) of a container's parts.
    """

    kind: str
    ref: Any = None
    cls: type | None = None
    parts: tuple[tuple[Any, Template], ...] = ()


@frozen
class Effect:
    """A write to an object that outlives the call: `target = template`.

    `kind` is "attribute" or "item" for one place, "contents" for a whole list or dict.
    """

    target: Path
    template: Template
    kind: Literal["attribute", "item", "contents"]


Known: TypeAlias = "Callable[[Any], Template | None]"


def template_of(value: Any, known: Known) -> Template:
    """Return how to build a value; `known` recognises outputs, arguments and weights."""
    found = known(value)
    if found is not None:
        return found
    if isinstance(value, torch.Tensor) or is_scalar(value) or is_opaque(value):
        return Template("constant", value)

    def each(items: Any) -> tuple[tuple[Any, Template], ...]:
        return tuple((key, template_of(part, known)) for key, part in items)

    cls = type(value)
    if cls is list:
        return Template("list", parts=each(enumerate(value)))
    if isinstance(value, tuple):
        kind = "namedtuple" if hasattr(value, "_fields") else "tuple"
        return Template(kind, cls=cls, parts=each(enumerate(value)))
    if cls is dict:
        return Template("dict", parts=each(value.items()))
    if dataclasses.is_dataclass(value):
        fields = [f.name for f in dataclasses.fields(value) if f.init]
        if isinstance(value, Mapping) or set(fields) == set(vars(value)):
            return Template(
                "dataclass", cls=cls, parts=each((f, getattr(value, f)) for f in fields)
            )
    if isinstance(value, Mapping):
        return Template("mapping", cls=cls, parts=each(value.items()))
    return Template("object", cls=cls, parts=each(vars(value).items()))


def make_object(cls: type, attributes: Mapping[str, Any]) -> Any:
    """Build a plain object from its attributes, without calling its constructor."""
    made: Any = object.__new__(cls)
    made.__dict__.update(attributes)
    return made


@frozen
class Source:
    """Python source for a template, and the objects that its names stand for."""

    text: str
    names: Mapping[str, Any] = Factory(dict)


def template_source(
    template: Template, value_name: Callable[[int], str], prefix: str = ""
) -> Source:
    """Return an expression that builds the template's value.

    `value_name` gives the variable of a graph output. An object that cannot be written as a literal
    stands in the text as its key in `names` between NUL characters, for the caller to replace.
    """
    names: dict[str, Any] = {}

    def name_for(value: Any) -> str:
        name = f"{prefix}{len(names)}"
        names[name] = value
        return f"\0{name}\0"  # marked, so that renaming cannot touch anything else

    def text(part: Template) -> str:
        if part.kind == "value":
            return value_name(part.ref)
        if part.kind in ("argument", "written"):
            return str(part.ref)
        if part.kind == "constant":
            plain = type(part.ref) in (int, str, bool, type(None))
            return repr(part.ref) if plain else name_for(part.ref)
        return container(part)

    def container(part: Template) -> str:
        items = [text(p) for _, p in part.parts]
        if part.kind == "list":
            return f"[{', '.join(items)}]"
        if part.kind == "tuple":
            return f"({', '.join(items)}{',' if len(items) == 1 else ''})"
        if part.kind == "namedtuple":
            return f"{name_for(part.cls)}({', '.join(items)})"
        if part.kind == "dataclass":
            pairs = zip(part.parts, items, strict=True)
            return f"{name_for(part.cls)}({', '.join(f'{k}={i}' for (k, _), i in pairs)})"
        keys = [repr(k) if isinstance(k, int | str) else name_for(k) for k, _ in part.parts]
        pairs_text = ", ".join(f"{k}: {i}" for k, i in zip(keys, items, strict=True))
        if part.kind == "dict":
            return f"{{{pairs_text}}}"
        if part.kind == "mapping":
            return f"{name_for(part.cls)}({{{pairs_text}}})"
        return f"{name_for(make_object)}({name_for(part.cls)}, {{{pairs_text}}})"

    return Source(text(template), names)


# -------------------------------------------------------------------------------------------- effects


def effects_on(
    before: Any, after: Any, path: Path, known: Known, twins: Mapping[int, Any]
) -> list[Effect]:
    """Return the writes to one container or object itself, not to what is inside its parts.

    `before` is its structural copy from before the writes; `twins` gives the copy of each object by id.
    """
    old, new = _places(before), _places(after)
    if isinstance(after, list) and len(old) != len(new):
        return [Effect(path, template_of(list(after), known), "contents")]
    if isinstance(after, Mapping) and set(old) - set(new):
        return [Effect(path, template_of(dict(after), known), "contents")]
    kind: Literal["attribute", "item"] = (
        "item" if isinstance(after, list | Mapping) else "attribute"
    )
    return [
        Effect(
            path.item(key) if kind == "item" else path.attribute(key),
            template_of(value, known),
            kind,
        )
        for key, value in new.items()
        if key not in old or not _same_place(old[key], value, twins)
    ]


def _places(value: Any) -> dict[Any, Any]:
    if isinstance(value, list):
        return dict(enumerate(value))
    return dict(value) if isinstance(value, Mapping) else dict(vars(value))


def _same_place(old: Any, new: Any, twins: Mapping[int, Any]) -> bool:
    if isinstance(new, torch.Tensor) or isinstance(old, torch.Tensor) or is_opaque(new):
        return old is new
    if is_scalar(new):
        return type(old) is type(new) and bool(old == new)
    if isinstance(new, tuple):
        return type(old) is type(new) and len(old) == len(new) and all(
            _same_place(o, n, twins) for o, n in zip(old, new, strict=True)
        )  # fmt: skip
    return twins.get(id(new)) is old
