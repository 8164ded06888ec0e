"""Split rules: the built-in forms, and how a rule named in config or code is found.

Forms, all usable from config:

- "ns::op" or "ns::op.overload": a torch operator;
- "torch.nn.functional.silu": a Python function, by the path users write;
- ".sigmoid": a tensor method;
- "module:layers.*.attn": everything under modules whose path matches the glob;
- "class:LlamaAttention": everything under modules of that class (a glob over class names);
- "tag:cudagraph_unsafe": operators with that `torch.Tag`;
- any other word: a rule that a plugin registered.
"""

from __future__ import annotations

import difflib
import fnmatch
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from attrs import field, frozen
from torch import fx

from intarsia import torch_compat
from intarsia.capture import nodes
from intarsia.errors import ConfigError
from intarsia.interfaces import Cut, Decision, OpView, SplitRule

_STRUCTURAL = ("placeholder", "get_attr", "output")


@frozen
class CapturedGraph:
    """The captured graph as rules see it (the `GraphView` Protocol)."""

    graph_module: fx.GraphModule
    ops: tuple[OpView, ...]
    _modules: Mapping[fx.Node, tuple[tuple[str, str], ...]] = field(repr=False, alias="_modules")

    def module_of(self, node: fx.Node) -> tuple[tuple[str, str], ...]:
        """Return the modules around a node, outermost first: (path, class name)."""
        return self._modules.get(node, ())


def view_of(module: fx.GraphModule) -> CapturedGraph:
    """Return what rules may see of a graph."""
    ops = tuple(op_view(n) for n in module.graph.nodes if n.op not in _STRUCTURAL)
    return CapturedGraph(module, ops, {op.node: modules_around(op.node) for op in ops})


def op_view(node: fx.Node) -> OpView:
    """Return one operation with its dtypes and devices."""
    tensors = [v for v in map(nodes.value_of, [node, *node.all_input_nodes])
               if isinstance(v, torch.Tensor)]  # fmt: skip
    return OpView(
        name=nodes.operation(node),
        node=node,
        dtypes=tuple(sorted({str(t.dtype).removeprefix("torch.") for t in tensors})),
        device_types=tuple(sorted({t.device.type for t in tensors})),
        mutates=nodes.writes(node),
        dynamic=any(isinstance(s, torch.SymInt) for t in tensors for s in t.shape),
    )


def modules_around(node: fx.Node) -> tuple[tuple[str, str], ...]:
    """Return (path, class name) of the modules whose forward made a node, outermost first."""
    found = []
    for path, cls in (node.meta.get("nn_module_stack") or {}).values():
        name = cls if isinstance(cls, str) else cls.__qualname__
        found.append((clean_path(str(path)), name.rsplit(".", 1)[-1]))
    return tuple(found)


def clean_path(path: str) -> str:
    """Return "layers.0.attn" for Dynamo's spellings of a module's path."""
    text = path
    for prefix in ("L['self']", "L['fn']"):
        text = text.removeprefix(prefix)
    text = text.replace(".forward.__self__", "")  # a method that regional capture looked up by name
    text = text.replace("._modules['", ".").replace("['", ".").replace("']", "")
    text = text.replace("[", ".").replace("]", "")
    return text.strip(".")


# ------------------------------------------------------------------------------------ built-in forms


@frozen
class OperatorRule:
    """Cut at a torch operator, one overload or all."""

    name: str

    def assign(self, graph: Any) -> Mapping[fx.Node, Cut]:
        """Return a cut for every call of the operator."""
        with_overload = "." in self.name.partition("::")[2]
        found = {}
        for op in graph.ops:
            here = op.name if with_overload else _packet(op.name)
            if "::" in op.name and here == self.name:
                found[op.node] = Cut(reason=f"rule {self.name}")
        return found

    def factors(self) -> Mapping[str, str]:
        """Return the rule's name."""
        return {"op": self.name}


def _packet(name: str) -> str:
    namespace, _, rest = name.partition("::")
    return f"{namespace}::{rest.partition('.')[0]}"


@frozen
class FunctionRule:
    """Cut at calls of one Python function."""

    name: str
    function: Any = field(eq=False)

    def assign(self, graph: Any) -> Mapping[fx.Node, Cut]:
        """Return a cut for every call of the function."""
        return {
            op.node: Cut(reason=f"rule {self.name}")
            for op in graph.ops
            if op.node.op == "call_function" and op.node.target is self.function
        }

    def factors(self) -> Mapping[str, str]:
        """Return the function's name."""
        return {"function": self.name}


@frozen
class MethodRule:
    """Cut at calls of a tensor method; `x.sigmoid()` and `torch.sigmoid(x)` are different nodes."""

    name: str

    def assign(self, graph: Any) -> Mapping[fx.Node, Cut]:
        """Return a cut for every call of the method."""
        return {
            op.node: Cut(reason=f"rule {self.name}") for op in graph.ops if op.name == self.name
        }

    def factors(self) -> Mapping[str, str]:
        """Return the method's name."""
        return {"method": self.name}


@frozen
class ModuleRule:
    """Cut at everything that modules of a path or class do."""

    pattern: str
    by_class: bool = False

    def assign(self, graph: Any) -> Mapping[fx.Node, Cut]:
        """Return a cut for every operation inside a matching module."""
        found = {}
        for op in graph.ops:
            for path, cls in graph.module_of(op.node):
                if fnmatch.fnmatchcase(cls if self.by_class else path, self.pattern):
                    found[op.node] = Cut(reason=f"module {path} ({cls})")
                    break
        return found

    def factors(self) -> Mapping[str, str]:
        """Return the pattern."""
        return {"class" if self.by_class else "module": self.pattern}


@frozen
class TagRule:
    """Cut at operators that carry a `torch.Tag`."""

    tag: str

    def assign(self, graph: Any) -> Mapping[fx.Node, Cut]:
        """Return a cut for every call of a tagged operator."""
        wanted = getattr(torch.Tag, self.tag)
        return {
            op.node: Cut(reason=f"tag {self.tag}")
            for op in graph.ops
            if wanted in operator_tags(op.node.target)
        }

    def factors(self) -> Mapping[str, str]:
        """Return the tag."""
        return {"tag": self.tag}


def operator_tags(target: Any) -> set[Any]:
    """Return the tags of an operator; those of all overloads for a packet."""
    if not torch_compat.is_operator(target):
        return set()
    overloads = [target] if hasattr(target, "tags") else torch_compat.packet_overloads(target)
    return {tag for overload in overloads for tag in overload.tags}


@frozen
class NodeRule:
    """A plain `(node) -> bool` function as a rule."""

    function: Callable[[fx.Node], bool] = field(eq=False)
    name: str = ""

    def assign(self, graph: Any) -> Mapping[fx.Node, Cut]:
        """Return a cut for every node that the function says yes to."""
        return {
            op.node: Cut(reason=f"rule {self.name}") for op in graph.ops if self.function(op.node)
        }

    def factors(self) -> Mapping[str, str]:
        """Return the function's name."""
        return {"predicate": self.name}


@frozen
class SupportRule:
    """Group what a compiler supports into regions, and leave the rest as it is."""

    compiler: str
    supports: Callable[[OpView], Decision] = field(eq=False)

    def assign(self, graph: Any) -> Mapping[fx.Node, Cut]:
        """Return a region cut for each run of supported operations.

        Regions are runs in program order, so they cannot be cyclic and no write moves; an operation
        that does no device work (a view, a size) never ends a run.
        """
        found: dict[fx.Node, Cut] = {}
        number, open_run = 0, False
        for op in graph.ops:
            if nodes.is_light(op.node):
                continue
            if self.supports(op):
                number += not open_run
                open_run = True
                found[op.node] = Cut("region", f"{self.compiler}-{number}", (self.compiler,),
                                     f"supported by {self.compiler}")  # fmt: skip
            else:
                open_run = False
        return found

    def factors(self) -> Mapping[str, str]:
        """Return the compiler's name."""
        return {"support": self.compiler}


# ------------------------------------------------------------------------------------- finding a rule


def rule_from(
    value: Any, named: Callable[[str], SplitRule | Callable[[fx.Node], bool] | None]
) -> SplitRule:
    """Return the rule for what stands in `split_at`: a string, a function, a rule object.

    `named` looks a word up among registered rules.

    Raises:
        ConfigError: nothing goes by that name.
    """
    if isinstance(value, str):
        return _rule_from_text(value, named)
    if torch_compat.is_operator(value):
        return OperatorRule(str(torch_compat.operation_name(value)))
    if isinstance(value, SplitRule):
        return value
    if isinstance(value, type) and issubclass(value, torch.nn.Module):
        return ModuleRule(value.__qualname__, by_class=True)
    if callable(value):
        name = getattr(value, "__qualname__", repr(value))
        if _is_torch_function(value):
            return FunctionRule(f"{value.__module__}.{name}", value)
        return NodeRule(value, name)
    raise ConfigError(f"split_at holds {value!r}, which is no rule", subject=repr(value))


def _is_torch_function(value: Any) -> bool:
    # A function of torch is something a graph calls; anybody else's is a predicate over nodes.
    module = getattr(value, "__module__", None) or "torch"
    return module.split(".")[0] in ("torch", "_operator", "operator", "math")


def _rule_from_text(text: str, named: Callable[[str], Any]) -> SplitRule:
    if text.startswith("module:"):
        return ModuleRule(text.removeprefix("module:"))
    if text.startswith("class:"):
        return ModuleRule(text.removeprefix("class:"), by_class=True)
    if text.startswith("tag:"):
        return _tag_rule(text.removeprefix("tag:"))
    if "::" in text:
        return OperatorRule(text)
    if text.startswith("."):
        return MethodRule(text)
    if "." in text:
        return FunctionRule(text, _function(text))
    found = named(text)
    return rule_from(found, named)


def _tag_rule(name: str) -> TagRule:
    if not isinstance(getattr(torch.Tag, name, None), torch.Tag):
        known = [n for n in dir(torch.Tag) if not n.startswith("_")]
        match = difflib.get_close_matches(name, known, n=1)
        hint = f'did you mean "{match[0]}"?' if match else f"Known: {', '.join(known)}"
        raise ConfigError(f'torch has no tag "{name}"', next_step=hint, subject=name)
    return TagRule(name)


def _function(text: str) -> Any:
    parts = text.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        try:
            for part in parts[length:]:
                value = getattr(value, part)
        except AttributeError:
            break
        return value
    raise ConfigError(
        f'split_at names the function "{text}", which does not exist',
        next_step='Write it as you would import it, or use "ns::op" for an operator.',
        subject=text,
    )


def combine(rules: Sequence[SplitRule], graph: CapturedGraph) -> dict[fx.Node, Cut]:
    """Return the cuts of several rules; where two match one node, the first rule wins."""
    found: dict[fx.Node, Cut] = {}
    for rule in rules:
        for node, cut in rule.assign(graph).items():
            found.setdefault(node, cut)
    return found


def unmatched(
    rules: Iterable[tuple[str, SplitRule]], graph: CapturedGraph
) -> list[tuple[str, list[str]]]:
    """Return the rules that match nothing, each with the nearest names that the graph has."""
    names = sorted(
        {op.name for op in graph.ops} | {_packet(op.name) for op in graph.ops if "::" in op.name}
    )
    missing = []
    for text, rule in rules:
        if not rule.assign(graph):
            missing.append((text, difflib.get_close_matches(text, names, n=3, cutoff=0.4)))
    return missing
