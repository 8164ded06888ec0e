"""The input contract, as code that is cheap enough for every call, and as a diagnosis when it fails.

The generated entry has the model's own signature, so Python itself matches arguments with parameters.
It compares everything that tracing fixed, reads the sizes, and looks the bound plan up. Anything that
does not fit leaves through one slow path, which finds out what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from attrs import define, field, frozen

from intarsia import torch_compat
from intarsia.capture import nodes
from intarsia.capture.graph import ArgumentTree, Expected, Graph, Parameter
from intarsia.capture.structure import Path, Step
from intarsia.compiling.signature import dtype_name, size_of
from intarsia.errors import ContractError
from intarsia.runtime.source import Namespace, identifier


@frozen
class TensorContract:
    """What a tensor argument must be.

    Attributes:
        shape: ints, or expressions over the symbols.
        contiguous: whether it was contiguous; if not, its strides are compared.
        mutated: whether the graph writes to it, so that it can never be copied into another layout.
        symbols: dimension -> the symbol whose value is read from it.
    """

    path: Path
    dtype: torch.dtype
    device: torch.device
    shape: tuple[int | str, ...]
    stride: tuple[int | str, ...]
    contiguous: bool
    mutated: bool
    strided: bool = True


def tensor_contracts(
    graphs: Sequence[Graph], mutated: set[str], named: Mapping[tuple[str, int], str]
) -> list[TensorContract]:
    """Return the contract of every tensor argument that one of the graphs uses.

    `named` gives the user's name of (path, dimension), which a graph made for one size does not show.
    """
    found: dict[str, TensorContract] = {}
    for graph in graphs:
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
                strided and torch_compat.is_contiguous(value), key in mutated, strided,
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
        names = self._tensors(refuse)
        self._sizes(names, refuse)
        self._same(names, refuse)
        self._run(names, roots)
        text = "\n    ".join(self.lines)
        return Entry(
            f"def call({signature}):\n    {text}\n", self.space,
            tuple(t.path for t in self.tensors), tuple(roots), tuple(self.symbols),
        )  # fmt: skip

    def _values(self, refuse: str) -> None:
        tests = [t for path, expected in self.tree.values for t in self._value(path, expected)]
        used = {str(t.path) for t in self.tensors}
        tests += [f"not isinstance({p}, _Tensor)" for p in map(str, self.tree.tensors)
                  if p not in used]  # fmt: skip
        if tests:
            self.space.values["_Tensor"] = torch.Tensor
            self._guarded(tests, refuse)

    def _guarded(self, tests: Sequence[str], refuse: str) -> None:
        # Looking into an argument that is something else entirely may raise; that is a refusal too.
        self.lines += ["try:", f"    _bad = {' or '.join(tests)}"]
        self.lines += ["except (AttributeError, KeyError, IndexError, TypeError):", "    _bad = True"]
        self.lines += ["if _bad:", f"    {refuse}"]

    def _value(self, path: Path, expected: Expected) -> list[str]:
        value = expected.value
        if expected.kind == "length":
            return [f"len({path}) != {value}"]
        if expected.kind == "keys":
            if not value:
                return [f"len({path}) != 0"]
            return [f"len({path}) != {len(value)}"] + [f"{k!r} not in {path}" for k in value
                                                        if isinstance(k, str | int)]  # fmt: skip
        if expected.kind == "class":
            return [f"type({path}) is not {self.space.bind(value, value.__name__)}"]
        if value is None or isinstance(value, bool):
            return [f"{path} is not {value!r}"]
        if type(value) in (int, str):
            return [f"{path} != {value!r}", f"type({path}) is not {type(value).__name__}"]
        bound = self.space.bind(value, "expected")
        return [f"({path} is not {bound} and {path} != {bound})"]

    def _tensors(self, refuse: str) -> dict[str, str]:
        names: dict[str, str] = {}
        for number, contract in enumerate(self.tensors):
            names[str(contract.path)] = f"_t{number}"
        if not names:
            return names
        self.space.values["_Tensor"] = torch.Tensor
        reads = [f"{n} = {p}" for p, n in names.items()]
        nested = any(t.path.steps for t in self.tensors)
        if nested:
            self.lines += ["try:", *(f"    {line}" for line in reads)]
            self.lines += ["except (AttributeError, KeyError, IndexError, TypeError):", f"    {refuse}"]
        else:
            self.lines += reads
        kinds = [f"not isinstance({n}, _Tensor)" for n in names.values()]
        self.lines += [f"if {' or '.join(kinds)}:", f"    {refuse}"]
        tests = [t for c in self.tensors for t in self._tensor(names[str(c.path)], c)]
        self.lines += [f"if {' or '.join(tests)}:", f"    {refuse}"]
        return names

    def _tensor(self, name: str, contract: TensorContract) -> list[str]:
        dtype = self.space.bind(contract.dtype, dtype_name(contract.dtype))
        device = self.space.bind(contract.device, f"device_{contract.device}")
        return [
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
        return f"({torch_compat.size_source(size, {s: _var(s) for s in self.symbols})})"

    def _layout(self, name: str, contract: TensorContract, refuse: str, known: set[str]) -> None:
        if not contract.strided or not contract.shape:
            return
        if contract.contiguous:
            test = f"not {name}.is_contiguous()"
        else:
            if not all(isinstance(s, int) or self._readable(s, known) for s in contract.stride):
                return
            wanted = ", ".join(s if isinstance(s, str) else str(s) for s in
                               (self._size(s) if isinstance(s, str) else s
                                for s in contract.stride))  # fmt: skip
            test = f"{name}.stride() != ({wanted},)"
        if contract.mutated:
            self.lines += [f"if {test} and {name}.numel():", f"    {refuse}"]
            return
        wanted = "" if contract.contiguous else f", ({wanted},)"
        self.lines += [f"if {test}:", f"    {name} = _relayout({name}, {str(contract.path)!r}{wanted})"]

    def _same(self, names: Mapping[str, str], refuse: str) -> None:
        tests = []
        for group in self.tree.same:
            first, *others = map(str, group)
            tests += [f"{other} is not {first}" for other in others]
        written = [t for t in self.tensors if t.mutated and t.strided]
        for contract in written:
            mine = names[str(contract.path)]
            tests += [f"_overlap({mine}, {names[str(t.path)]})" for t in self.tensors if t is not contract]
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

    Its names `_refuse`, `_relayout`, `_miss`, `_table`, `_compare_values` are for the caller to bind.

    Raises:
        NoSymbol: a symbol's value cannot be read from any tensor argument.
    """
    made = _EntryWriter(_with_defaults(tree), tensors, symbols, by_value).entry()
    made.space.values.update(
        _is_grad_enabled=torch.is_grad_enabled, _set_grad_enabled=torch_compat.set_grad_enabled,
        _overlap=overlap,
    )  # fmt: skip
    return made


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
    return ArgumentTree(tree.parameters, (*tree.values, *extra), tree.tensors, tree.same)


def overlap(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Say whether the bytes from the first to the last of two tensors overlap."""
    if left is right or right.layout != torch.strided or left.layout != torch.strided:
        return left is right
    first, last = byte_range(left)
    start, end = byte_range(right)
    return start < last and first < end and start != 0  # 0: no memory at all, as on "meta"


def byte_range(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the addresses of a strided tensor's first byte and after its last one."""
    start = tensor.data_ptr()
    if tensor.is_contiguous():
        return start, start + tensor.nbytes
    if not tensor.numel():
        return start, start
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (last + 1) * tensor.element_size()


def relayout(tensor: torch.Tensor, stride: Sequence[int] | None = None) -> torch.Tensor:
    """Return a copy of a tensor in the layout that the pieces were compiled for."""
    if stride is None:
        return tensor.contiguous()
    if all(n == 1 or a == b for n, a, b in zip(tensor.shape, tensor.stride(), stride, strict=True)):
        return tensor
    made = torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=tensor.device)
    return made.copy_(tensor)


# ------------------------------------------------------------------------------------------ diagnosis


def diagnose(
    name: str, tree: ArgumentTree, tensors: Sequence[TensorContract], call: Mapping[str, Any]
) -> ContractError:
    """Return the error for a call that does not fit: what differs, where, and both values."""
    tree = _with_defaults(tree)
    for path, expected in tree.values:
        problem = _value_problem(path, expected, call)
        if problem is not None:
            return _error(name, path, *problem)
    for path in tree.tensors:
        value = _at(path, call)
        if not isinstance(value, torch.Tensor):
            return _error(name, path, "a tensor", _shown(value))
    found: dict[str, int] = {}
    for contract in tensors:
        problem = _tensor_problem(contract, _at(contract.path, call), found)
        if problem is not None:
            return _error(name, contract.path, *problem)
    return _relation_problem(name, tree, tensors, call)


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


def _value_problem(path: Path, expected: Expected, call: Mapping[str, Any]) -> tuple[str, str] | None:
    value = _at(path, call)
    wanted = expected.value
    if expected.kind == "length":
        same = hasattr(value, "__len__") and len(value) == wanted
        return None if same else (f"{wanted} items", _shown(value))
    if expected.kind == "keys":
        same = hasattr(value, "keys") and set(value.keys()) == set(wanted)
        listed = ", ".join(map(str, wanted)) or "no keys"
        return None if same else (f"the keys {listed}", _shown(value))
    if expected.kind == "class":
        same = type(value) is wanted
        return None if same else (f"a {wanted.__qualname__}", f"a {type(value).__qualname__}")
    if value is wanted or (type(value) is type(wanted) and not isinstance(value, torch.Tensor)
                           and bool(value == wanted)):  # fmt: skip
        return None
    return repr(wanted)[:80], _shown(value)


def _tensor_problem(
    contract: TensorContract, value: Any, found: dict[str, int]
) -> tuple[str, str] | None:
    if not isinstance(value, torch.Tensor):
        return "a tensor", _shown(value)
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
    if contract.mutated and contract.contiguous and not value.is_contiguous():
        return "a contiguous tensor, since the model writes to it", f"strides {value.stride()}"
    return None


def _relation_problem(
    name: str, tree: ArgumentTree, tensors: Sequence[TensorContract], call: Mapping[str, Any]
) -> ContractError:
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
    return ContractError(f"a call of {name} does not fit what was captured",
                         why="its sizes are not in the relation that was captured", subject=name)  # fmt: skip


def _error(name: str, path: Path, expected: str, got: str) -> ContractError:
    return ContractError(
        f"a call of {name} does not fit what was captured",
        why=f"{path}: expected {expected}, got {got}",
        next_step="Call it as in the example, or compile it again with this call.",
        subject=str(path),
    )


Miss = Callable[[Any], Callable[..., Any]]
