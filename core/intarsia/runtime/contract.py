"""The input contract, as code that is cheap enough for every call, and as a diagnosis when it fails.

The generated entry has the model's own signature, so Python itself matches arguments with parameters.
It compares everything that tracing fixed, reads the sizes, and looks the bound plan up. Anything that
does not fit leaves through one slow path, which finds out what it was.
"""

from __future__ import annotations

import builtins
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from attrs import define, evolve, field, frozen

from intarsia import torch_compat
from intarsia.capture import nodes
from intarsia.capture.graph import ArgumentTree, Expected, Graph, Parameter
from intarsia.capture.structure import Path, Step
from intarsia.compiling.signature import size_of
from intarsia.dtypes import dtype_name
from intarsia.errors import ContractError
from intarsia.runtime.memory import overlap, overlapping, repeats
from intarsia.runtime.source import Namespace, identifier


@frozen
class TensorContract:
    """What a tensor argument must be.

    Attributes:
        shape: ints, or expressions over the symbols.
        contiguous: whether it was contiguous; if not, its strides are compared.
        mutated: whether the graph writes to it, so that it can never be copied into another layout.
        subclass: its exact type, where that is neither Tensor nor Parameter.
    """

    path: Path
    dtype: torch.dtype
    device: torch.device
    shape: tuple[int | str, ...]
    stride: tuple[int | str, ...]
    contiguous: bool
    mutated: bool
    layout: torch.layout = torch.strided
    subclass: type | None = None

    @property
    def strided(self) -> bool:
        """Whether it has strides."""
        return self.layout is torch.strided

    @property
    def bits(self) -> tuple[str, ...]:
        """The lazy bits that such a tensor can have, as torch's methods that tell."""
        if not self.strided:
            return ()
        if self.dtype.is_complex:
            return "is_conj", "is_neg"
        return ("is_neg",) if self.dtype.is_floating_point else ()


def tensor_contracts(
    graphs: Sequence[Graph], mutated: set[str], named: Mapping[tuple[str, int], str]
) -> list[TensorContract]:
    """Return the contract of every tensor argument that one of the graphs uses.

    `named` gives the user's name of (path, dimension), which a graph made for one size does not show.
    """
    found: dict[str, TensorContract] = {}
    for graph in graphs:
        subclasses = dict(graph.arguments.subclasses) if graph.arguments is not None else {}
        holes = [n for n in graph.module.graph.nodes if n.op == "placeholder"]
        for hole, entry in zip(holes, graph.inputs, strict=True):
            if entry.kind != "argument" or str(entry.path) in found:
                continue
            assert entry.path is not None
            value = nodes.value_of(hole)
            key = str(entry.path)
            sizes = [size_of(s, graph.names) for s in value.shape]
            shape = tuple(
                named.get((key, d), s) if isinstance(s, int) else s for d, s in enumerate(sizes)
            )
            strided = value.layout == torch.strided
            found[key] = TensorContract(
                entry.path, value.dtype, value.device, shape,
                tuple(size_of(s, graph.names) for s in value.stride()) if strided else (),
                strided and torch_compat.is_contiguous(value), key in mutated, value.layout,
                subclasses.get(entry.path),
            )  # fmt: skip
    return list(found.values())


@frozen
class Entry:
    """The generated entry: source, the names that it uses, and the order of what it passes on."""

    source: str
    space: Namespace
    tensors: tuple[Path, ...]
    roots: tuple[str, ...]
    symbols: tuple[str, ...]


class NoSymbol(Exception):
    """A dispatch symbol's value cannot be read from any argument."""


@define
class _EntryWriter:
    tree: ArgumentTree
    tensors: Sequence[TensorContract]
    symbols: Sequence[str]
    by_value: bool
    space: Namespace = field(factory=Namespace)
    lines: list[str] = field(factory=list)

    def entry(self) -> Entry:
        roots = [p.name for p in self.tree.parameters]
        # Own variables begin with an underscore, so that no parameter's name can hide them.
        self.space.taken.update(roots)
        signature = _signature(self.tree.parameters, self.space)
        refuse = f"return _refuse({', '.join(f'{r}={r}' for r in roots)})"
        self._values(refuse)
        self._autocast(refuse)
        names = self._tensors(refuse)
        self._same(names, refuse)  # before anything is copied
        self._sizes(names, refuse)
        self._run(names, roots)
        text = "\n    ".join(self.lines)
        return Entry(
            f"def call({signature}):\n    {text}\n", self.space,
            tuple(t.path for t in self.tensors), tuple(roots), tuple(self.symbols),
        )  # fmt: skip

    def _values(self, refuse: str) -> None:
        tests = [t for path, expected in self.tree.values for t in self._value(path, expected)]
        used = {str(t.path) for t in self.tensors}
        tests += [f"not _isinstance({p}, _Tensor)" for p in map(str, self.tree.tensors)
                  if p not in used]  # fmt: skip
        if tests:
            self._guarded(tests, refuse)

    def _autocast(self, refuse: str) -> None:
        tests = []
        for kind, dtype in self.tree.autocast:
            if dtype is None:
                tests.append(f"_autocast({kind!r})")
            else:
                wanted = self.space.bind(dtype, dtype_name(dtype))
                tests += [f"not _autocast({kind!r})", f"_autocast_dtype({kind!r}) is not {wanted}"]
        if tests:
            self.lines += [f"if {' or '.join(tests)}:", f"    {refuse}"]

    def _guarded(self, tests: Sequence[str], refuse: str) -> None:
        # Looking into an argument that is something else entirely may raise; that is a refusal too.
        self.lines += ["try:", f"    _bad = {' or '.join(tests)}"]
        self.lines += [f"except {_ODD}:", "    _bad = True"]
        self.lines += ["if _bad:", f"    {refuse}"]

    def _value(self, path: Path, expected: Expected) -> list[str]:
        value = expected.value
        if expected.kind == "length":
            return [f"_len({path}) != {value}"]
        if expected.kind == "keys":
            plain = all(type(k) in (str, int) for k in value)
            keys = repr(value) if plain else self.space.bind(value, "keys")
            return [f"_tuple({path}) != {keys}"] if value else [f"_len({path}) != 0"]
        if expected.kind == "attribute":
            name, present = value
            return [f"{'not ' if present else ''}_hasattr({path}, {name!r})"]
        if expected.kind == "own attribute":
            name, present = value
            return [f"{name!r} {'not in' if present else 'in'} {path}.__dict__"]
        if expected.kind == "class":
            return [f"_type({path}) is not {self._class(value)}"]
        if value is None or isinstance(value, bool):
            return [f"{path} is not {value!r}"]
        if type(value) is float and (not math.isfinite(value) or not value):
            return [f"_repr({path}) != {repr(value)!r}", f"_type({path}) is not _float"]
        if type(value) in (int, str, float):
            return [f"{path} != {value!r}", f"_type({path}) is not _{type(value).__name__}"]
        bound = self.space.bind(value, "expected")
        return [f"({path} is not {bound} and not _same_value({path}, {bound}))"]

    def _class(self, value: type) -> str:
        if getattr(builtins, value.__name__, None) is value:
            return f"_{value.__name__}"
        return self.space.bind(value, value.__name__)

    def _tensors(self, refuse: str) -> dict[str, str]:
        names: dict[str, str] = {}
        for number, contract in enumerate(self.tensors):
            names[str(contract.path)] = f"_t{number}"
        if not names:
            return names
        reads = [f"{n} = {p}" for p, n in names.items()]
        nested = any(t.path.steps for t in self.tensors)
        if nested:
            self.lines += ["try:", *(f"    {line}" for line in reads)]
            self.lines += [f"except {_ODD}:", f"    {refuse}"]
        else:
            self.lines += reads
        kinds = [
            f"_type({names[str(c.path)]}) not in _tensor_types" if c.subclass is None
            else f"_type({names[str(c.path)]}) is not {self._class(c.subclass)}"
            for c in self.tensors
        ]  # fmt: skip
        self.lines += [f"if {' or '.join(kinds)}:", f"    {refuse}"]
        tests = [t for c in self.tensors for t in self._tensor(names[str(c.path)], c)]
        self.lines += [f"if {' or '.join(tests)}:", f"    {refuse}"]
        return names

    def _tensor(self, name: str, contract: TensorContract) -> list[str]:
        dtype = self.space.bind(contract.dtype, dtype_name(contract.dtype))
        device = self.space.bind(contract.device, f"device_{contract.device}")
        layout = self.space.bind(contract.layout, str(contract.layout))
        return [
            f"{name}.layout is not {layout}",
            f"{name}.dtype is not {dtype}",
            f"{name}.device != {device}",
            f"{name}.dim() != {len(contract.shape)}",
            f"({name}.requires_grad and _is_grad_enabled())",
        ]

    def _sizes(self, names: Mapping[str, str], refuse: str) -> None:
        known: set[str] = set()
        tests: list[str] = []
        later: list[tuple[str, str]] = []
        for contract in self.tensors:
            if not contract.shape:
                continue
            name = names[str(contract.path)]
            self.lines.append(f"{name}_s = {name}.shape")
            for dim, size in enumerate(contract.shape):
                place = f"{name}_s[{dim}]"
                if isinstance(size, int):
                    tests.append(f"{place} != {size}")
                elif size in self.symbols and size not in known:
                    self.lines.append(f"{_var(size)} = {place}")
                    known.add(size)
                else:
                    later.append((place, size))
        missing = [s for s in self.symbols if s not in known]
        if missing:
            raise NoSymbol(missing[0])
        tests += [f"{place} != {self._size(size)}" for place, size in later
                  if self._readable(size, known)]  # fmt: skip
        if tests:
            self.lines += [f"if {' or '.join(tests)}:", f"    {refuse}"]
        for contract in self.tensors:
            self._layout(names[str(contract.path)], contract, refuse, known)

    def _readable(self, size: str, known: set[str]) -> bool:
        return set(torch_compat.free_names(size)) <= known

    def _size(self, size: str) -> str:
        if size in self.symbols:
            return _var(size)
        source = torch_compat.size_source(size, {s: _var(s) for s in self.symbols})
        return f"({_BUILTIN_CALL.sub(r'_', source)})"

    def _layout(self, name: str, contract: TensorContract, refuse: str, known: set[str]) -> None:
        tests = [f"{name}.{bit}()" for bit in contract.bits]
        wanted = ""
        readable = all(isinstance(s, int) or self._readable(s, known) for s in contract.stride)
        if contract.strided and contract.shape and (contract.contiguous or readable):
            test = f"not {name}.is_contiguous()"
            if not contract.contiguous:
                sizes = [self._size(s) if isinstance(s, str) else str(s) for s in contract.stride]
                wanted = f", ({', '.join(sizes)},)"
                test = f"{name}.stride() != {wanted[2:]}"
            tests.append(f"{test} and {name}.numel()" if contract.mutated else test)
        if not tests:
            return
        self.lines.append(f"if {' or '.join(tests)}:")
        if contract.mutated:
            self.lines.append(f"    {refuse}")
        else:
            self.lines.append(f"    {name} = _relayout({name}, {str(contract.path)!r}{wanted})")

    def _same(self, names: Mapping[str, str], refuse: str) -> None:
        tests = []
        for group in self.tree.same:
            first, *others = map(str, group)
            tests += [f"{other} is not {first}" for other in others]
        written = [t for t in self.tensors if t.mutated and t.strided]
        if written:
            mine = "".join(f"{names[str(t.path)]}, " for t in written)
            rest = "".join(f"{names[str(t.path)]}, " for t in self.tensors if t not in written)
            tests += [f"_overlapping(({mine}), ({rest}))", f"_own_weight(({mine}))"]
        if tests:
            self.lines += [f"if {' or '.join(tests)}:", f"    {refuse}"]

    def _run(self, names: Mapping[str, str], roots: Sequence[str]) -> None:
        if self.by_value:
            self.lines.append("_compare_values()")
        key = ", ".join(_var(s) for s in self.symbols)
        key = "0" if not key else key if len(self.symbols) == 1 else f"({key})"
        arguments = [*names.values(), *roots, *(_var(s) for s in self.symbols)]
        self.lines += [
            f"_run = _table.get({key}) or _miss({key})",
            "if _is_grad_enabled():",
            "    _set_grad_enabled(False)",
            "    try:",
            f"        return _run({', '.join(arguments)})",
            "    finally:",
            "        _set_grad_enabled(True)",
            f"return _run({', '.join(arguments)})",
        ]


def _var(symbol: str) -> str:
    return f"_n_{identifier(symbol)}"


_ODD = "(AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError)"
_BUILTIN_CALL = re.compile(r"\b(?=(?:abs|bool|float|int|max|min|round|sum)\(|math\.)")
_TENSOR_TYPES = frozenset({torch.Tensor, torch.nn.Parameter})
_BUILTINS = {
    f"_{name}": getattr(builtins, name) for name in (
        "abs", "bool", "bytearray", "dict", "float", "frozenset", "hasattr", "int", "isinstance", "len",
        "list", "max", "min", "repr", "round", "set", "str", "sum", "tuple", "type",
    )
}  # fmt: skip


def _signature(parameters: Sequence[Parameter], space: Namespace) -> str:
    parts: list[str] = []
    star = False
    for position, parameter in enumerate(parameters):
        if parameter.kind == "args":
            parts.append(f"*{parameter.name}")
            star = True
            continue
        if parameter.kind == "kwargs":
            parts.append(f"**{parameter.name}")
            continue
        if parameter.kind == "keyword" and not star:
            parts.append("*")
            star = True
        text = parameter.name
        if parameter.has_default:
            space.values[f"_default_{parameter.name}"] = parameter.default
            text += f"=_default_{parameter.name}"
        parts.append(text)
        following = parameters[position + 1].kind if position + 1 < len(parameters) else ""
        if parameter.kind == "positional-only" and following != "positional-only":
            parts.append("/")
    return ", ".join(parts)


def write_entry(
    tree: ArgumentTree, tensors: Sequence[TensorContract], symbols: Sequence[str], *, by_value: bool
) -> Entry:
    """Return the entry of a compiled model, with the model's own signature.

    Its names `_refuse`, `_relayout`, `_miss`, `_table`, `_compare_values` and `_own_weight` are for the
    caller to bind.

    Raises:
        NoSymbol: a symbol's value cannot be read from any tensor argument.
    """
    made = _EntryWriter(_with_defaults(tree), tensors, symbols, by_value).entry()
    made.space.values.update(entry_names())
    return made


def entry_names() -> dict[str, Any]:
    """Return the names that every entry uses, beside those that the caller of `write_entry` binds."""
    return {
        "_is_grad_enabled": torch.is_grad_enabled,
        "_set_grad_enabled": torch_compat.set_grad_enabled, "_overlapping": overlapping,
        "_same_value": same_value, "_autocast": torch.is_autocast_enabled,
        "_autocast_dtype": torch.get_autocast_dtype, "_Tensor": torch.Tensor,
        "_tensor_types": _TENSOR_TYPES, "_math": math, **_BUILTINS,
    }  # fmt: skip


def _with_defaults(tree: ArgumentTree) -> ArgumentTree:
    """Add what the call left out: such a parameter must keep its default."""
    seen = {path.root for path, _ in tree.values} | {path.root for path in tree.tensors}
    extra: list[tuple[Path, Expected]] = []
    for parameter in tree.parameters:
        if parameter.name in seen:
            continue
        if parameter.kind == "args":
            extra.append((Path(parameter.name), Expected("length", 0)))
        elif parameter.kind == "kwargs":
            extra.append((Path(parameter.name), Expected("keys", ())))
        elif parameter.has_default:
            extra.append((Path(parameter.name), Expected("equal", parameter.default)))
    return evolve(tree, values=(*tree.values, *extra))


def same_value(value: Any, wanted: Any) -> bool:
    """Say whether a value is of the expected one's exact type, and equal to it."""
    if value is wanted:
        return True
    if type(value) is not type(wanted) or isinstance(value, torch.Tensor):
        return False
    if isinstance(value, float | complex):
        return repr(value) == repr(wanted)  # unlike ==, it tells -0.0 and finds NaN equal
    try:
        if hasattr(wanted, "__array__"):
            same = value.shape == wanted.shape and value.dtype == wanted.dtype
            return bool(same and (value == wanted).all())
        return bool(value == wanted)
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return False


def relayout(
    name: str, path: str, tensor: torch.Tensor, stride: Sequence[int] | None = None
) -> torch.Tensor:
    """Return a copy of an argument in the layout that the pieces were compiled for, without lazy bits.

    Raises:
        ContractError: that layout has several elements at one place, as an expanded tensor has.
    """
    tensor = tensor.resolve_neg().resolve_conj()
    if stride is None:
        return tensor.contiguous()
    if all(n == 1 or a == b for n, a, b in zip(tensor.shape, tensor.stride(), stride, strict=True)):
        return tensor
    made = torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=tensor.device)
    if repeats(made):
        raise _error(name, path, f"the strides {tuple(stride)} of an expanded tensor",
                     f"strides {tensor.stride()}")  # fmt: skip
    return made.copy_(tensor)


# ------------------------------------------------------------------------------------------ diagnosis


def diagnose(
    name: str, tree: ArgumentTree, tensors: Sequence[TensorContract], call: Mapping[str, Any],
    weights: Sequence[tuple[str, torch.Tensor]] = (),
) -> ContractError:  # fmt: skip
    """Return the error for a call that does not fit: what differs, where, and both values."""
    wrong = values_problem(name, tree, call)
    if wrong is not None:
        return wrong
    for kind, dtype in tree.autocast:
        now = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        if now is not dtype:
            return _autocast_error(name, kind, dtype, now)
    for path in tree.tensors:
        value = _at(path, call)
        if not isinstance(value, torch.Tensor):
            return _error(name, path, "a tensor", _shown(value))
    found: dict[str, int] = {}
    for contract in tensors:
        problem = _tensor_problem(contract, _at(contract.path, call), found)
        if problem is not None:
            return _error(name, contract.path, *problem)
    return _relation_problem(name, tree, tensors, call, weights)


def values_problem(name: str, tree: ArgumentTree, call: Mapping[str, Any]) -> ContractError | None:
    """Return what of a call that is no tensor does not fit, or None."""
    for path, expected in _with_defaults(tree).values:
        problem = _value_problem(path, expected, call)
        if problem is not None:
            return _error(name, path, *problem)
    return None


_GONE = object()


def _at(path: Path, call: Mapping[str, Any]) -> Any:
    value: Any = call.get(path.root, _GONE)
    for step in path.steps:
        value = _step(value, step)
    return value


def _step(value: Any, step: Step) -> Any:
    try:
        return getattr(value, step[1]) if step[0] == "." else value[step[1]]
    except (AttributeError, KeyError, IndexError, TypeError):
        return _GONE


def _shown(value: Any) -> str:
    if value is _GONE:
        return "nothing"
    if isinstance(value, torch.Tensor):
        return f"a tensor of {dtype_name(value.dtype)} {tuple(value.shape)}"
    return repr(value)[:80]


def _value_problem(
    path: Path, expected: Expected, call: Mapping[str, Any]
) -> tuple[str, str] | None:
    value = _at(path, call)
    wanted = expected.value
    if expected.kind == "length":
        same = hasattr(value, "__len__") and len(value) == wanted
        return None if same else (f"{wanted} items", _shown(value))
    if expected.kind == "keys":
        keys = tuple(value.keys()) if hasattr(value, "keys") else None
        listed = ", ".join(map(str, wanted)) or "no keys"
        got = _shown(value) if keys is None else ", ".join(map(str, keys)) or "no keys"
        return None if keys == wanted else (f"the keys {listed}", got)
    if expected.kind in ("attribute", "own attribute"):
        name, present = wanted
        has = hasattr(value, name) if expected.kind == "attribute" else name in vars(value)
        words = {True: f"{expected.kind} {name!r}", False: f"no {expected.kind} {name!r}"}
        return None if has is present else (words[present], words[has])
    if expected.kind == "class":
        same = type(value) is wanted
        return None if same else (f"a {wanted.__qualname__}", f"a {type(value).__qualname__}")
    if same_value(value, wanted):
        return None
    return repr(wanted)[:80], _shown(value)


def _tensor_problem(
    contract: TensorContract, value: Any, found: dict[str, int]
) -> tuple[str, str] | None:
    if not isinstance(value, torch.Tensor):
        return "a tensor", _shown(value)
    kind = contract.subclass or torch.Tensor
    if type(value) is not kind and (contract.subclass or type(value) not in _TENSOR_TYPES):
        return f"a {kind.__name__}", f"a {type(value).__name__}"
    if value.layout is not contract.layout:
        return f"layout {contract.layout}", str(value.layout)
    if value.dtype is not contract.dtype:
        return dtype_name(contract.dtype), dtype_name(value.dtype)
    if value.device != contract.device:
        return f"device {contract.device}", str(value.device)
    if value.requires_grad and torch.is_grad_enabled():
        return "no input that requires grad (intarsia is inference)", "requires_grad=True"
    if value.dim() != len(contract.shape):
        return f"{len(contract.shape)} dimensions", f"{value.dim()}"
    for dim, (wanted, actual) in enumerate(zip(contract.shape, value.shape, strict=True)):
        if isinstance(wanted, str):
            wanted = found.setdefault(wanted, actual) if wanted.isidentifier() else actual
        if wanted != actual:
            return f"size {wanted} at dimension {dim}", str(actual)
    return _written_problem(contract, value) if contract.mutated and contract.strided else None


def _written_problem(contract: TensorContract, value: torch.Tensor) -> tuple[str, str] | None:
    why = "since the model writes to it"
    if value.is_neg():
        return (
            f"a tensor as it is in memory, {why}",
            "one with the negative bit (as conj().imag has)",
        )
    if value.is_conj():
        return f"a tensor as it is in memory, {why}", "one with the conjugate bit"
    if contract.contiguous and not value.is_contiguous():
        return f"a contiguous tensor, {why}", f"strides {value.stride()}"
    return None


def _relation_problem(
    name: str, tree: ArgumentTree, tensors: Sequence[TensorContract], call: Mapping[str, Any],
    weights: Sequence[tuple[str, torch.Tensor]],
) -> ContractError:  # fmt: skip
    for group in tree.same:
        first, *others = group
        for other in others:
            if _at(other, call) is not _at(first, call):
                return _error(name, other, f"the same tensor as {first}", "another tensor")
    for contract in tensors:
        for entry in tensors if contract.mutated else ():
            if entry is not contract and overlap(_at(contract.path, call), _at(entry.path, call)):
                return _error(name, contract.path, "memory of its own, since the model writes to it",
                              f"an overlap with {entry.path}")  # fmt: skip
        for label, weight in weights if contract.mutated else ():
            if overlap(_at(contract.path, call), weight):
                return _error(name, contract.path, "memory of its own, since the model writes to it",
                              f"the model's own weight {label}")  # fmt: skip
    return ContractError(f"a call of {name} does not fit what was captured",
                         why="its sizes are not in the relation that was captured", subject=name)  # fmt: skip


def _autocast_error(
    name: str, kind: str, then: torch.dtype | None, now: torch.dtype | None
) -> ContractError:
    def state(dtype: torch.dtype | None) -> str:
        return "no autocast" if dtype is None else f"torch.autocast({kind!r}, {dtype})"

    return ContractError(
        f"a call of {name} does not fit what was captured",
        why=f"expected {state(then)}, got {state(now)}: tracing has baked autocast in",
        next_step="Call it in the state of autocast in which it was compiled, or compile it in this one.",
        subject="autocast",
    )


def _error(name: str, path: Path | str, expected: str, got: str) -> ContractError:
    return ContractError(
        f"a call of {name} does not fit what was captured",
        why=f"{path}: expected {expected}, got {got}",
        next_step="Call it as in the example, or compile it again with this call.",
        subject=str(path),
    )


Miss = Callable[[Any], Callable[..., Any]]
