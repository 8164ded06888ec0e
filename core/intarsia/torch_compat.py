"""The only module that touches names torch does not promise to keep.

Each private name is reached through a function here, and has a probe in `PROBES`, which
`intarsia doctor` runs. Supported torch: 2.11 to 2.15. Everything is imported inside the functions: the
Dynamo and Inductor imports cost seconds, and a warm start must not pay them.
"""

from __future__ import annotations

import builtins
import contextlib
import contextvars
import functools
import inspect
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import CodeType, FunctionType
from typing import Any

import torch
from attrs import field, frozen

from intarsia.boxes_text import UNBOUNDED
from intarsia.errors import UnsupportedTorchError
from intarsia.interfaces import Decision

OLDEST, NEWEST = (2, 11), (2, 15)

set_grad_enabled: Callable[[bool], None] = torch._C._set_grad_enabled
"""Switch grad mode without the context manager's cost (about 2 us); callers restore it themselves."""


def torch_version() -> tuple[int, int]:
    """Return torch's (major, minor)."""
    found = re.match(r"(\d+)\.(\d+)", torch.__version__)
    assert found is not None
    return int(found[1]), int(found[2])


def require_supported_torch() -> None:
    """Refuse a torch outside the supported range.

    Raises:
        UnsupportedTorchError: before anything is compiled.
    """
    version = torch_version()
    if not OLDEST <= version <= NEWEST:
        raise UnsupportedTorchError(
            f"torch {torch.__version__} is not supported",
            why=f"intarsia is made for torch {OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}",
            next_step="Install a torch in that range.",
            subject=torch.__version__,
        )


def borrowed(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor over the memory of a strided one that does not keep that memory allocated.

    For the memory of recordings, which their pool holds: who owns a tensor there also keeps later
    recordings from using its memory again. The caller sees to it that the pool outlives the tensor.
    """
    storage = tensor.untyped_storage()
    view = torch._C._construct_storage_from_data_pointer(
        storage.data_ptr(), tensor.device, storage.nbytes()
    )
    with torch.inference_mode(False):  # whoever replays may write to it outside inference mode too
        made = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        return made.set_(view, tensor.storage_offset(), tensor.shape, tensor.stride())


# ------------------------------------------------------------------------------------------ capture


@frozen
class FrameCapture:
    """What Dynamo says of one traced call.

    Attributes:
        module: the graph, or None where no tensor operation was traced.
        example_inputs: what the graph was traced with (fake tensors, SymInts).
        fake_mode: the mode of the fakes; its shape_env holds the guards on sizes.
        function: the Python function that was traced (the model's forward, with its decorators).
        root: the object it was bound to, or None.
        guards: `(source, kind)` of everything that tracing read.
        codes: the code objects that tracing went through.
        sources: Dynamo's source of each graph input ("L['ids']", "L['ids'].size()[0]").
        rebuild: `(graph function) -> callable` that takes the frame's own arguments, calls the graph
            function on the graph's inputs, and rebuilds the frame's result from what that returns.
        extra_inputs: the values of placeholders at the end that the frame's own Python does not pass.
        replicated: qualified names of the blocks of which only the first was traced.
        traced_root: what stood for `root` while tracing, where that was another object.
        written_globals: names of globals that the frame writes.
        variables: the environment variables that the traced code asked for.
    """

    module: torch.fx.GraphModule | None
    example_inputs: tuple[Any, ...]
    fake_mode: Any
    function: FunctionType
    root: Any
    guards: tuple[tuple[str, str], ...]
    codes: tuple[CodeType, ...]
    sources: tuple[str, ...]
    rebuild: Callable[[Callable[..., Any]], Callable[..., Any]]
    f_globals: Mapping[str, Any] = field(factory=dict)
    extra_inputs: tuple[Any, ...] = ()
    replicated: tuple[str, ...] = ()
    traced_root: Any = None
    written_globals: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()

    @property
    def root_name(self) -> str:
        """What the traced function calls its first parameter, where the root is bound to it."""
        return str(self.function.__code__.co_varnames[0]) if self.root is not None else "self"


@contextlib.contextmanager
def capture_settings() -> Iterator[None]:
    """Set what tracing needs, and put everything back.

    Size-oblivious symbols start at 0 and get no guard from torch's own 0/1 checks; automatic dynamic
    shapes would make the graph depend on what was traced earlier in the process.
    """
    import torch._dynamo.config
    from torch.fx.experimental import _config

    fx_config: Any = _config

    with (
        torch._dynamo.config.patch(
            automatic_dynamic_shapes=False,
            assume_static_by_default=True,
            specialize_int=True,
            specialize_float=True,
            capture_scalar_outputs=True,
            capture_dynamic_output_shape_ops=True,
            side_effect_replay_policy="silent",
            recompile_limit=1 << 20,
            accumulated_recompile_limit=1 << 20,
        ),
        fx_config.patch(backed_size_oblivious=True),
    ):
        yield


def import_tracer() -> None:
    """Import Dynamo, which costs over a CPU second once in a process and is no part of tracing."""
    import torch._dynamo.convert_frame  # noqa: F401


def tracing_lock() -> contextlib.AbstractContextManager[Any]:
    """Return torch's own lock around tracing, which threads that use `torch.compile` take as well.

    Dynamo's and Inductor's settings are process-wide while they work, so two threads must not trace or
    compile at a time. Whoever needs another lock too takes this one first: torch.compile holds it while
    it calls our backend.
    """
    from torch._dynamo.convert_frame import compile_lock

    return compile_lock


def reset_tracer() -> None:
    """Make Dynamo forget everything, as for a benchmark that starts afresh."""
    import torch._dynamo

    torch._dynamo.reset()


def holds_tracing_lock() -> bool:
    """Say whether this thread has the tracing lock, as it has while torch.compile calls our backend."""
    lock: Any = tracing_lock()
    return bool(lock._is_owned())


@contextlib.contextmanager
def nobody_traces() -> Iterator[bool]:
    """Keep everybody from tracing while the block runs; it gets False where somebody does already.

    It never waits, so that a finaliser may use it. Nobody traces in a process without Dynamo.
    """
    module = sys.modules.get("torch._dynamo.convert_frame")
    lock: Any = getattr(module, "compile_lock", None)
    if lock is None:
        yield True
    elif lock._is_owned() or not lock.acquire(blocking=False):
        yield False
    else:
        try:
            yield True
        finally:
            lock.release()


def capture_frame(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> FrameCapture:
    """Trace one call of a model or function as a single graph, without running it.

    Source: `torch._dynamo.convert_frame.fullgraph_capture`, the common front of export and AOT compile;
    the same shape in torch 2.11 to 2.15.
    """
    from torch._dynamo.convert_frame import fullgraph_capture, get_traced_fn
    from torch._dynamo.utils import dynamo_timed, get_metrics_context

    with capture_settings(), get_metrics_context(), dynamo_timed("intarsia_capture"):
        out = fullgraph_capture(model, args, kwargs)
    function, root = get_traced_fn(model)
    captured = out.graph_capture_output
    backend = out.backend_input

    def rebuild(graph_function: Callable[..., Any]) -> Callable[..., Any]:
        # Up to torch 2.12 built-in names count as globals that must be given.
        made = out.forward_callable(
            compiled_fn=graph_function, extra_globals={**vars(builtins), **captured.f_globals}
        )
        if root is None:
            return made
        return lambda *a, **k: made(root, *a, **k)

    return FrameCapture(
        module=None if backend is None else backend.graph_module,
        example_inputs=() if backend is None else tuple(backend.example_inputs),
        fake_mode=None if backend is None else backend.fake_mode,
        function=function,
        root=root,
        guards=(
            *(_guard_entry(guard) for guard in captured.output_graph.guards),
            *_one_object(captured.output_graph.guards),
        ),
        written_globals=_written_globals(captured.bytecode),
        codes=tuple(captured.traced_code or ()),
        sources=_input_sources(captured, backend),
        rebuild=rebuild,
        f_globals=captured.f_globals,
    )


_allowed: dict[int, int] = {}
_allowed_lock = threading.Lock()


@contextlib.contextmanager
def allowed_in_graph(functions: Sequence[Callable[..., Any]]) -> Iterator[None]:
    """Let Dynamo put calls of some functions into graphs as they are, and forget it afterwards.

    Dynamo's marks are process-wide, so they stay until the last of several threads is done.
    """
    import torch._dynamo
    from torch._dynamo import trace_rules

    with _allowed_lock:
        for function in functions:
            users = _allowed[id(function)] = _allowed.get(id(function), 0) + 1
            if users == 1:
                torch._dynamo.allow_in_graph(function)
    try:
        yield
    finally:
        with _allowed_lock:
            for function in functions:
                _allowed[id(function)] -= 1
                if not _allowed[id(function)]:
                    del _allowed[id(function)]
                    trace_rules._allowed_callable_ids.remove(id(function))


def makes_unbacked(node: torch.fx.Node) -> bool:
    """Say whether a node's value has a size that depends on data."""
    return bool(node.meta.get("unbacked_bindings")) or _has_unbacked(node.meta.get("example_value"))


def _has_unbacked(value: Any) -> bool:
    if isinstance(value, torch.SymInt):
        return any(is_unbacked(s) for s in value.node.expr.free_symbols)
    if isinstance(value, torch.Tensor):
        return any(_has_unbacked(s) for s in value.shape)
    return isinstance(value, tuple | list) and any(_has_unbacked(v) for v in value)


def _written_globals(code: CodeType) -> tuple[str, ...]:
    import dis

    writes = ("STORE_GLOBAL", "DELETE_GLOBAL")
    names = (i.argval for i in dis.get_instructions(code) if i.opname in writes)
    return tuple(dict.fromkeys(names))


def _input_sources(captured: Any, backend: Any) -> tuple[str, ...]:
    if backend is None:
        return ()
    known = captured.output_graph.export_metadata.graph_input_idx_to_local_source
    count = sum(node.op == "placeholder" for node in backend.graph_module.graph.nodes)
    return tuple(source_name(known[i]) if i in known else "" for i in range(count))


def source_name(source: Any) -> str:
    """Return a Dynamo source as Python text; a method in older torch, a property in newer."""
    return source.name if isinstance(source.name, str) else str(source.name())


def symbol_of_size(shape_env: Any, source: str, dim: int) -> Any:
    """Return the sympy symbol that tracing made for a dimension of an input, or None."""
    return shape_env.source_to_var.get(f"{source}.size()[{dim}]")


def sized_sources(shape_env: Any) -> dict[str, list[Any]]:
    """Return Dynamo's sources of tensors -> the sympy symbols of their dynamic sizes."""
    known = replacements(shape_env)
    found: dict[str, list[Any]] = {}
    for text, symbol in shape_env.source_to_var.items():
        source, _, dim = text.rpartition(".size()")
        if dim:
            found.setdefault(source, []).append(known.get(symbol, symbol))
    return found


def _guard_entry(guard: Any) -> tuple[str, str]:
    name = source_name(guard)
    make = guard.create_fn
    kind = getattr(make, "__name__", None) or getattr(getattr(make, "func", None), "__name__", "")
    given = dict(getattr(make, "keywords", None) or {})
    if kind == "HASATTR" and "attr" not in given:  # torch 2.11: the source is that of the attribute
        source = guard.originating_source
        base, attribute = getattr(source, "base", None), getattr(source, "member", None)
        if base is not None and isinstance(attribute, str):
            name, given["attr"] = source_name(base), attribute
    return _about_a_part(name, str(kind), given)


def _about_a_part(name: str, kind: str, given: Mapping[str, Any]) -> tuple[str, str]:
    """Return a guard on whether something has a key or attribute as one on a truth value."""
    if kind in ("DICT_CONTAINS", "DICT_NOT_CONTAINS", "SET_CONTAINS", "SET_NOT_CONTAINS"):
        key = given.get("key")
        # A key that cannot be written down makes a source that nobody can read, and nothing is kept.
        text = repr(key) if type(key) in (str, int, bytes, bool, float) else f"<{key!r}>"
        return f"({text} in {name})", "CONSTANT_MATCH" if text[0] != "<" else "ID_MATCH"
    if kind == "NOT_PRESENT_IN_GENERIC_DICT" and given.get("attr"):
        return f"({given['attr']!r} in {name}.__dict__)", "CONSTANT_MATCH"
    if kind == "HASATTR" and given.get("attr"):
        return f"hasattr({name}, {given['attr']!r})", "CONSTANT_MATCH"
    return name, kind


def placeholder_source(node: torch.fx.Node) -> str:
    """Return Dynamo's source of a graph input while its backend runs; "" where it has none."""
    argument = node.meta.get("grapharg")
    source = getattr(argument, "source", None)
    return "" if source is None else source_name(source)


def _one_object(guards: Any) -> list[tuple[str, str]]:
    """Return a guard on a truth value for each two sources that lead to one and the same object."""
    found = []
    for guard in guards:
        other = (getattr(guard.create_fn, "keywords", None) or {}).get("source_b")
        if other is not None:
            found.append((f"({source_name(guard)} is {source_name(other)})", "CONSTANT_MATCH"))
    return found


def is_static_placeholder(node: torch.fx.Node) -> bool:
    """Say whether Dynamo passes a parameter or buffer through this placeholder."""
    value = node.meta.get("example_value")
    tags = node.meta.get("tensor_dict") or {}
    return isinstance(value, torch.nn.Parameter) or "_dynamo_static_input_type" in tags


def mark_dynamic(tensor: torch.Tensor, dim: int) -> None:
    """Ask tracing to make a dimension symbolic, without complaint where it has to fix it."""
    import torch._dynamo

    torch._dynamo.maybe_mark_dynamic(tensor, dim)


_DYNAMO_MARKS = (
    "_dynamo_weak_dynamic_indices",
    "_dynamo_dynamic_indices",
    "_dynamo_static_indices",
    "_dynamo_unbacked_indices",
    "_dynamo_dynamic_range",
    "_has_dynamo_dim_marking",
)


@contextlib.contextmanager
def marks_restored(tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """Put Dynamo's marks on the caller's tensors back as they were."""
    saved = [{m: getattr(t, m) for m in _DYNAMO_MARKS if hasattr(t, m)} for t in tensors]
    copies = [{m: set(v) if isinstance(v, set) else v for m, v in s.items()} for s in saved]
    for tensor in tensors:
        for mark in _DYNAMO_MARKS:
            if hasattr(tensor, mark):
                delattr(tensor, mark)
    try:
        yield
    finally:
        for tensor, before in zip(tensors, copies, strict=True):
            for mark in _DYNAMO_MARKS:
                if hasattr(tensor, mark):
                    delattr(tensor, mark)
                if mark in before:
                    setattr(tensor, mark, before[mark])


# ----------------------------------------------------------------------------------- symbolic shapes


def all_symbols(shape_env: Any) -> list[Any]:
    """Return every integer symbol that tracing made."""
    return [symbol for symbol in shape_env.var_to_range if symbol.is_integer]


def is_unbacked(symbol: Any) -> bool:
    """Say whether a symbol's value depends on data (`.item()`, `nonzero`) and not on a shape."""
    from torch.utils._sympy.symbol import SymT, symbol_is_type

    return symbol_is_type(symbol, (SymT.UNBACKED_INT, SymT.UNBACKED_FLOAT))


def equal(left: Any, right: Any) -> Any:
    """Return the condition that two expressions are equal."""
    import sympy

    return sympy.Eq(left, right)


def fixed_symbol(condition: Any) -> Any:
    """Return the symbol that a condition leaves only one value, or None."""
    import sympy

    if not isinstance(condition, sympy.Eq):
        return None
    left, right = condition.args
    if left.is_Symbol and right.is_Integer:
        return left
    return right if right.is_Symbol and left.is_Integer else None


def at_most(left: Any, right: Any) -> Any:
    """Return the condition that an expression is no larger than another."""
    import sympy

    return sympy.Le(left, right)


def upper_bound(condition: Any) -> tuple[Any, int] | None:
    """Return an expression and a number: where that is no larger than this, a condition holds.

    None where the condition says nothing of the kind. The expression rises with every size, so that its
    largest value in a box is that at the box's highest sizes.
    """
    import sympy

    if not isinstance(condition, sympy.Ge | sympy.Le | sympy.Gt | sympy.Lt):
        return None
    number, rest = condition.gts.as_coeff_Add()
    if not number.is_Integer or not rises(condition.lts) or not rises(rest):
        return None
    strict = isinstance(condition, sympy.Gt | sympy.Lt)
    return condition.lts, int(number) - int(strict)


def rises(expression: Any) -> bool:
    """Say whether an expression's form shows that it is never negative and never falls when sizes rise."""
    import sympy
    from torch.utils._sympy.functions import FloorDiv

    if expression.is_Integer or expression.is_Symbol:
        return bool(expression.is_Symbol or expression >= 0)
    if isinstance(expression, FloorDiv):
        base, divisor = expression.args
        return bool(divisor.is_Integer and divisor > 0 and rises(base))
    if isinstance(expression, sympy.Pow):
        return bool(expression.exp.is_Integer and expression.exp > 0 and rises(expression.base))
    return isinstance(expression, sympy.Add | sympy.Mul) and all(map(rises, expression.args))


def unequal(left: Any, right: Any) -> Any:
    """Return the condition that two expressions differ."""
    import sympy

    return sympy.Ne(left, right)


def integer(value: int) -> Any:
    """Return sympy's integer."""
    import sympy

    return sympy.Integer(value)


def readable(expression: Any, names: Mapping[Any, str]) -> str:
    """Return an expression as Python-like text with the symbols' names."""
    import sympy

    renamed = expression.xreplace({s: sympy.Symbol(n) for s, n in names.items()})
    relations = {"Eq": "==", "Ne": "!="}
    kind = relations.get(
        type(renamed).__name__.replace("Equality", "Eq").replace("Unequality", "Ne")
    )
    if kind is not None:
        return f"{renamed.args[0]} {kind} {renamed.args[1]}"
    return str(renamed)


def python_source(expression: Any, names: Mapping[Any, str]) -> str:
    """Return Python source that computes an integer expression of torch's sympy."""
    from torch.utils._sympy.printers import PythonPrinter

    renamed = expression.xreplace({s: type(s)(n, **s.assumptions0) for s, n in names.items()})
    return str(PythonPrinter().doprint(renamed))


def function_source(expression: Any, symbols: Sequence[Any]) -> str:
    """Return the source of a function that computes an expression from its symbols' values."""
    names = {symbol: f"v{number}" for number, symbol in enumerate(symbols)}
    return f"lambda {', '.join(names.values())}: {python_source(expression, names)}"


def as_function(expression: Any, symbols: Sequence[Any]) -> Callable[..., Any]:
    """Return a Python function that computes an expression from its symbols' values."""
    import math

    made: Callable[..., Any] = eval(function_source(expression, symbols), {"math": math})
    return made


def traced_function(model: Any) -> tuple[Any, Any]:
    """Return the Python function that tracing a model starts with, and what it is bound to or None.

    The rule of Dynamo's `get_traced_fn`, without importing Dynamo: a module's `forward`, unless hooks or
    a `__call__` of its own have to be traced too.
    """
    function = model
    if isinstance(model, torch.nn.Module):
        function = model.forward if _is_plain_module(model) else model.__call__
        if isinstance(model, torch.fx.GraphModule) and not _is_plain_module(model):
            function = model._call_impl
    bound = getattr(function, "__self__", None)
    return (function, None) if bound is None else (function.__func__, bound)


_HOOKS = (
    "_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks",
)  # fmt: skip


def forward_hooks(module: torch.nn.Module | None) -> list[tuple[str, Any]]:
    """Return (kind, function) of what runs around a module's forward; None: around that of every module."""
    from torch.nn.modules import module as tables

    def table(name: str) -> Mapping[int, Any]:
        found: Mapping[int, Any] = (
            getattr(tables, f"_global{name}") if module is None else getattr(module, name)
        )
        return found

    return [(name, hook) for name in _HOOKS for hook in table(name).values()]


def function_modes() -> list[type]:
    """Return the classes of the active `TorchFunctionMode`s, which tracing goes through."""
    from torch.overrides import _get_current_function_mode_stack

    return [type(mode) for mode in _get_current_function_mode_stack()]


def _is_plain_module(model: torch.nn.Module) -> bool:
    hooks = [*forward_hooks(model), *forward_hooks(None)]
    forward = getattr(model.forward, "__func__", model.forward)
    call = getattr(model.__call__, "__func__", model.__call__)
    return not hooks and forward is not torch.nn.Module.forward and (
        call is torch.nn.Module.__call__
    )  # fmt: skip


def free_names(size: str) -> list[str]:
    """Return the symbols in a size expression as text."""
    if size.isidentifier():
        return [size]
    parsed = parse_expression(size, {})
    return sorted(str(s) for s in parsed.free_symbols)


def substituted(size: str, values: Mapping[str, int]) -> int | str:
    """Return a size expression as text with some symbols replaced by numbers."""
    if size in values:
        return values[size]
    parsed = parse_expression(size, {})
    numbers = {s: values[str(s)] for s in parsed.free_symbols if str(s) in values}
    if not numbers:
        return size
    made = parsed.xreplace({s: integer(n) for s, n in numbers.items()})
    return int(made) if made.is_Integer else str(made)


def size_source(size: str, variables: Mapping[str, str]) -> str:
    """Return Python source for a size expression as text, with each symbol's variable."""
    parsed = parse_expression(size, {})
    return python_source(parsed, {s: variables[str(s)] for s in parsed.free_symbols})


def is_contiguous(value: torch.Tensor) -> bool:
    """Say whether a fake tensor is contiguous for every size, not only for the example's."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    expected: Any = 1
    for size, stride in zip(reversed(value.shape), reversed(value.stride()), strict=True):
        if not statically_known_true(stride == expected) and not statically_known_true(size == 1):
            return False
        expected = expected * size
    return True


def __getattr__(name: str) -> Any:
    # Sympy is imported by torch anyway, but only when symbolic shapes are: not on `import torch`. Python
    # itself asks a module for `__path__`, and must not import it.
    if name not in ("TRUE", "FALSE"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import sympy

    return sympy.true if name == "TRUE" else sympy.false


def is_capture_failure(error: BaseException) -> bool:
    """Say whether an error is tracing's own verdict on the model, and not a defect elsewhere."""
    from torch._dynamo.exc import TorchDynamoException
    from torch.fx.experimental.symbolic_shapes import ConstraintViolationError

    return isinstance(error, TorchDynamoException | ConstraintViolationError)


def capture_failure(error: BaseException) -> str:
    """Return why tracing gave up, with the user's source line where Dynamo knows it."""
    text = str(getattr(error, "msg", "") or error).strip()
    reason = " ".join(line.strip() for line in text.splitlines()[:6] if line.strip())
    stack = getattr(error, "real_stack", None)
    if not stack:
        return reason
    frame = stack[-1]
    return f"{reason} ({frame.filename}:{frame.lineno}: {(frame.line or '').strip()})"


@frozen
class ShapeGuard:
    """A condition on sizes that tracing relied on, and where in the source it came from.

    `in_python` says whether the model's own Python decided on it, rather than one of torch's operators.
    """

    expression: Any
    where: str
    in_python: bool


def shape_guards(shape_env: Any) -> list[ShapeGuard]:
    """Return the conditions on symbols that tracing added."""
    return [
        ShapeGuard(g.expr, _location(g.sloc), _is_python_branch(g.sloc))
        for g in (shape_env.guards or ())
    ]


def _is_python_branch(sloc: Any) -> bool:
    # Dynamo evaluates the conditions of `if` and friends in its variables; an operator's own checks
    # come from fake kernels.
    frame = getattr(sloc, "framework_loc", None)
    return "_dynamo/variables" in str(getattr(frame, "filename", frame)).replace("\\", "/")


def _location(sloc: Any) -> str:
    user = str(getattr(sloc, "maybe_user_loc", "") or "")
    return user or str(sloc or "")


def symbol_range(shape_env: Any, symbol: Any) -> tuple[int, int | None]:
    """Return a symbol's (lowest, highest or None for no bound)."""
    found = shape_env.var_to_range.get(symbol)
    if found is None:
        return 0, None
    low, high = found.lower, found.upper
    return (
        int(low) if getattr(low, "is_Integer", False) else -UNBOUNDED,
        int(high) if getattr(high, "is_Integer", False) else None,
    )


def bounds(shape_env: Any, symbol: Any) -> list[Any]:
    """Return the ends of the range that tracing narrowed a symbol to, as conditions.

    A lower end up to 2 is left out: torch puts it there for every size, asked for or not.
    """
    import sympy

    low, high = symbol_range(shape_env, symbol)
    found = [sympy.Ge(symbol, low)] if low > 2 else []
    return [*found, sympy.Le(symbol, high)] if high is not None else found


def replacements(shape_env: Any) -> dict[Any, Any]:
    """Return what tracing found symbols to be equal to: a number or another expression."""
    return dict(shape_env.replacements)


def hint_of(shape_env: Any, symbol: Any) -> int | None:
    """Return the size that a symbol had in the example."""
    values = getattr(shape_env, "backed_var_to_val", None)
    if values is None:
        values = shape_env.var_to_val
    value = values.get(symbol)
    return None if value is None else int(value)


def expression_of(value: Any) -> Any:
    """Return the sympy expression of a SymInt, or the int itself."""
    return value.node.expr if isinstance(value, torch.SymInt) else value


def size_in_example(size: int | torch.SymInt) -> int:
    """Return what a size is in the example, without deciding that it is."""
    return int(size.node.hint) if isinstance(size, torch.SymInt) else size


def bounds_of(expression: Any, box: Mapping[Any, tuple[int, int]]) -> Any:
    """Return torch's interval answer for an expression over a box: a ValueRanges."""
    from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy

    return bound_sympy(expression, {s: ValueRanges(lo, hi) for s, (lo, hi) in box.items()})


def new_fake_mode() -> Any:
    """Return a FakeTensorMode with an empty ShapeEnv of its own."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    return FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)


def memoryless_mode() -> Any:
    """Return a mode in which tensors have metadata and no memory; sizes are plain numbers."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


def is_about_data(error: BaseException) -> bool:
    """Say whether an error is that a tensor without memory was asked for its values."""
    from torch._subclasses.fake_tensor import DataDependentOutputException

    return isinstance(error, DataDependentOutputException)


def storage_id(value: torch.Tensor) -> int:
    """Return what tensors of one storage share, for fake tensors too; unique where there is no storage."""
    if value.layout != torch.strided:
        return -id(value)
    return int(value.untyped_storage()._cdata)


def size_oblivious() -> contextlib.AbstractContextManager[Any]:
    """Return a block in which symbolic sizes are not guessed to be other than 0 or 1, as in capture."""
    from torch.fx.experimental import _config

    fx_config: Any = _config
    patched: contextlib.AbstractContextManager[Any] = fx_config.patch(backed_size_oblivious=True)
    return patched


def python_dispatcher() -> contextlib.AbstractContextManager[Any]:
    """Return a block in which operations on fake tensors are taken apart with symbolic sizes."""
    from torch._dispatch.python import enable_python_dispatcher

    made: contextlib.AbstractContextManager[Any] = enable_python_dispatcher()
    return made


def is_fake(value: Any) -> bool:
    """Say whether a value is a fake tensor."""
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(value, FakeTensor)


def new_symbol(fake_mode: Any, name: str, low: int, high: int, hint: int) -> torch.SymInt:
    """Return a SymInt for a new symbol of a range, with a hint inside it."""
    import sympy
    from torch._dynamo.source import ConstantSource
    from torch.fx.experimental.symbolic_shapes import DimDynamic
    from torch.utils._sympy.numbers import int_oo
    from torch.utils._sympy.value_ranges import ValueRanges

    env = fake_mode.shape_env
    source = ConstantSource(f"__intarsia_{name}")
    symbol = env.create_symbol(
        hint,
        source=source,
        dynamic_dim=DimDynamic.DYNAMIC,
        constraint_dim=None,
        do_not_specialize_zero_one=True,
    )
    assert isinstance(symbol, sympy.Symbol), symbol
    upper = int_oo if high >= UNBOUNDED else high
    env.var_to_range[symbol] = ValueRanges(low, upper)
    result = env.create_symintnode(symbol, hint=hint, source=source)
    assert isinstance(result, torch.SymInt)
    return result


def symint(fake_mode: Any, expression: Any, hint: int) -> Any:
    """Return a SymInt for an expression over existing symbols, or an int where it is a number."""
    if getattr(expression, "is_Integer", False) or isinstance(expression, int):
        return int(expression)
    return fake_mode.shape_env.create_symintnode(expression, hint=hint)


def parse_expression(text: str, symbols: Mapping[str, Any]) -> Any:
    """Parse an expression that `str` printed of torch's sympy (FloorDiv, Mod, Max...) back."""
    import sympy
    import torch.utils._sympy.functions as functions

    names: dict[str, Any] = {
        n: getattr(functions, n) for n in dir(functions) if n[:1].isupper() or n.startswith("Py")
    }
    for name in re.findall(r"[A-Za-z_]\w*", text):  # "N" and "E" mean other things to sympy
        names.setdefault(name, sympy.Symbol(name, integer=True))
    names.update(symbols)
    return sympy.sympify(text, locals=names)


# ------------------------------------------------------------------------------------- graphs and ops


def operation_name(target: Any) -> str | None:
    """Return "ns::op.overload" or "ns::op" of a torch operator, None for anything else."""
    if isinstance(target, torch._ops.OpOverload):
        return f"{target.namespace}::{target._schema.name.split('::')[1]}.{target._overloadname}"
    if isinstance(target, torch._ops.OpOverloadPacket):
        return str(target._qualified_op_name)
    if isinstance(target, torch._ops.HigherOrderOperator):
        return f"higher_order::{target.name()}"
    return None


def is_operator(target: Any) -> bool:
    """Say whether a target is an operator or operator packet."""
    return isinstance(target, torch._ops.OpOverload | torch._ops.OpOverloadPacket)


def operator_module(target: Any) -> str | None:
    """Return the Python module that defined a custom operator, or None where torch does not know."""
    overload = target
    if isinstance(target, torch._ops.OpOverloadPacket):
        overload = getattr(target, target.overloads()[0])
    name = overload._schema.name
    return _definition_module(name)


def _definition_module(name: str) -> str | None:
    from torch._library.custom_ops import OPDEFS

    found = OPDEFS.get(name)
    function = getattr(found, "_init_fn", None)
    return getattr(function, "__module__", None)


def is_random(node: torch.fx.Node) -> bool:
    """Say whether a node's operator draws random numbers; dropout of nothing does not."""
    target: Any = node.target
    if not is_overload(target) or torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    for index, argument in enumerate(target._schema.arguments):
        if argument.name == "dropout_p":
            given = node.args[index] if index < len(node.args) else argument.default_value
            return bool(node.kwargs.get(argument.name, given) != 0)
    return True


@contextlib.contextmanager
def empty_memory_filled(value: int) -> Iterator[None]:
    """Let this thread's new tensors of undefined values hold a number."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Filled(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            made = func(*args, **(kwargs or {}))
            name = func._schema.name.rpartition("::")[2]
            return made.fill_(value) if name.startswith(("empty", "new_empty")) else made

    with Filled():
        yield


def operations_seen(
    see: Callable[[Any, tuple[Any, ...], Mapping[str, Any]], Any],
) -> contextlib.AbstractContextManager[Any]:
    """Return a block in which `see(op, args, kwargs)` runs this thread's operators."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            return see(func, args, kwargs or {})

    return Seen()


def flattened(value: Any) -> tuple[list[Any], Any]:
    """Return the leaves of lists, tuples, dicts and what else torch's pytree knows, and their form."""
    from torch.utils._pytree import tree_flatten

    return tree_flatten(value)


def unflattened(leaves: Sequence[Any], form: Any) -> Any:
    """Return what `flattened` took apart, with other leaves."""
    from torch.utils._pytree import tree_unflatten

    return tree_unflatten(leaves, form)


def is_higher_order(target: Any) -> bool:
    """Say whether a target is a higher-order operator, which takes graphs as arguments."""
    return isinstance(target, torch._ops.HigherOrderOperator)


def higher_order_by_name(name: str) -> Any:
    """Return the higher-order operator of a name, or None."""
    return getattr(torch.ops.higher_order, name, None)


def is_overload(target: Any) -> bool:
    """Say whether a target is one overload of an operator."""
    return isinstance(target, torch._ops.OpOverload)


def schemas_of(target: Any) -> list[Any]:
    """Return the schema of an overload, or those of all overloads of a packet."""
    overloads = [target] if is_overload(target) else packet_overloads(target)
    return [overload._schema for overload in overloads]


def packet_overloads(packet: Any) -> list[Any]:
    """Return the overloads of an operator packet."""
    return [getattr(packet, name) for name in packet.overloads()]


def is_invoke_subgraph(node: torch.fx.Node) -> bool:
    """Say whether a node calls a region that `nested_compile_region` made."""
    return node.op == "call_function" and operation_name(node.target) in (
        "higher_order::invoke_subgraph",
    )


def serializable_callable() -> type:
    """Return the class of callables that torch saves with what `aot_compile` returns."""
    from torch._dynamo.aot_compile_types import SerializableCallable

    return SerializableCallable


# ------------------------------------------------------------------------------------------- inductor


@frozen
class InductorOutcome:
    """What Inductor made of a piece: the artifact's callable, and the cheaper call where it is safe.

    `saved` is the artifact opened, where one was asked for.
    """

    callable: Callable[..., Any]
    boxed: Callable[[list[Any]], Any] | None
    saved: SavedGraph | None


@frozen
class SavedGraph:
    """Inductor's artifact, opened: what to pickle, and the one compiled graph inside it."""

    bundle: Any
    graph: Any

    @property
    def source(self) -> str:
        """The Python module that Inductor generated."""
        return str(self.graph.source_code)

    @property
    def constants(self) -> Mapping[str, torch.Tensor]:
        """The tensors that the module finds among its globals."""
        return dict(self.graph.constants or {})

    @property
    def is_plain(self) -> bool:
        """Say whether the module needs no more than its source and constants: no kernels beside it."""
        graph = self.graph
        bundle = getattr(graph, "_triton_bundle", None)
        kernels = getattr(bundle, "kernel_artifacts", None)
        return not any((graph.torchbind_constants, graph.frozen_param_names, kernels))

    def returns(self, outputs: int) -> bool:
        """Say whether the compiled graph itself returns so many values."""
        return self.graph.output_strides is not None and len(self.graph.output_strides) == outputs

    def to_bytes(self, source: str) -> bytes:
        """Return the artifact as bytes, with another source of the generated module."""
        import hashlib
        import pickle

        if source != self.source:
            # Inductor keeps modules by this key in a folder that other programs share.
            self.graph.cache_key = "c" + hashlib.sha256(source.encode()).hexdigest()
            self.graph.source_code = source
        return pickle.dumps(self.bundle)


def inductor_compile(
    module: torch.fx.GraphModule,
    inputs: Sequence[Any],
    fake_mode: Any,
    config_patches: Mapping[str, Any],
    *,
    serializable: bool,
    direct: bool,
    adjust: Callable[[torch.fx.Graph], None] = lambda graph: None,
) -> InductorOutcome:
    """Compile a piece with `torch._inductor.standalone_compile`.

    `direct` asks for the compiled graph's own call, without AOTAutograd's run-time wrappers; it is only
    given where Inductor's graph returns exactly the piece's outputs. The output nodes of `module` must
    carry a fake tensor of `fake_mode`: that is how "from_graph" finds the mode. With `direct`, `adjust` is
    given the graph of ATen operations before code is generated, and may change it.
    """
    import torch._functorch.config
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.standalone_compile import standalone_compile
    from torch.fx.experimental import _config

    fx_config: Any = _config
    made: list[tuple[Any, tuple[int, int]]] = []

    def inner_compile(inner: Any, inner_inputs: Any, **keywords: Any) -> Any:
        adjust(inner.graph)
        inner.recompile()
        compiled = compile_fx_inner(inner, inner_inputs, **keywords)
        made.append((compiled, _counts(inner)))
        return compiled

    compile_options: dict[str, Any] = {"config_patches": dict(config_patches)}
    if direct:
        compile_options["inner_compile"] = inner_compile
    # AOTAutograd's cache skips the inner compiler on a hit, and with it the generated call; Inductor's
    # own cache underneath stays on. An artifact to keep is made by that cache's machinery.
    # Size-oblivious as in capture: `min(5, n)` stays an expression instead of a guess by the example.
    if serializable and fake_mode is not None:
        _mark_tensors(module, fake_mode)
    with (
        torch._functorch.config.patch(
            enable_autograd_cache=serializable and torch._functorch.config.enable_autograd_cache
        ),
        fx_config.patch(backed_size_oblivious=True),
        _own_entries(inputs),
    ):
        artifact = standalone_compile(
            module, inputs, dynamic_shapes="from_graph", options=compile_options, aot=serializable
        )
    boxed = None
    if len(made) == 1 and made[0][1] == _counts(module):
        boxed = getattr(made[0][0], "current_callable", None)
    return InductorOutcome(artifact, boxed, _opened(artifact) if serializable else None)


def _mark_tensors(module: torch.fx.GraphModule, fake_mode: Any) -> None:
    """Say of what a graph calls methods of that it is a tensor.

    AOTAutograd makes nothing that can be kept of a graph in which it does not see that, and a graph that
    came from another process has no metadata.
    """
    with fake_mode:
        stand_in = torch.empty(0)
    for node in module.graph.nodes:
        if node.op == "call_method" and isinstance(node.args[0], torch.fx.Node):
            node.args[0].meta.setdefault("example_value", stand_in)


_ADJUSTED = "1"
"""To be changed with what `adjust` does to a graph."""


def _own_entries(inputs: Sequence[Any]) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which torch's caches hold nothing for a piece whose sizes are not fixed.

    They keep the conditions that Inductor noted on sizes only as far as a size is an input of its own, so
    after a hit nobody would know that the result is good for some sizes alone. With fixed sizes they hold
    what was compiled with the same adjustments, which are no part of torch's own keys.
    """
    import uuid

    import torch.compiler.config

    sizes = [s for value in inputs if isinstance(value, torch.Tensor) for s in value.shape]
    is_dynamic = any(isinstance(size, torch.SymInt) for size in (*inputs, *sizes))
    settings: Any = torch.compiler.config
    tag = f"{settings.cache_key_tag} intarsia {uuid.uuid4().hex if is_dynamic else _ADJUSTED}"
    patched: contextlib.AbstractContextManager[Any] = settings.patch(cache_key_tag=tag)
    return patched


def _counts(module: torch.fx.GraphModule) -> tuple[int, int]:
    """Return how many inputs and outputs a graph has.

    AOTAutograd changes either where its wrappers have work to do: overlapping inputs of which one is
    written become views of one base, and outputs that alias something come with their bases.
    """
    values = module.graph.output_node().args[0]
    inputs = sum(node.op == "placeholder" for node in module.graph.nodes)
    return inputs, len(values) if isinstance(values, tuple | list) else 1


def _opened(artifact: Any) -> SavedGraph | None:
    import pickle

    compiled = getattr(getattr(artifact, "inner_fn", None), "compiled_fn", None)
    if compiled is not None and getattr(compiled, "serialize", None) is None:
        return None  # AOTAutograd would not keep it
    return _saved(pickle.loads(artifact.serialize()))


def _saved(bundle: Any) -> SavedGraph | None:
    entry = bundle[0] if isinstance(bundle, tuple) else bundle
    graph = getattr(getattr(entry, "compiled_fw", None), "result", None)
    if getattr(entry, "compiled_bw", None) is not None or not hasattr(graph, "source_code"):
        return None
    return SavedGraph(bundle, graph)


def torch_key() -> str:
    """Return torch's digest of its own sources, which its artifacts are bound to."""
    from torch._inductor.codecache import torch_key as key

    return bytes(key()).hex()


def inductor_load(data: bytes) -> tuple[Callable[..., Any], Any]:
    """Restore what `SavedGraph.to_bytes` wrote: the artifact's callable, and its graph's own call.

    The second takes one list and does without AOTAutograd's run-time wrappers.
    """
    import pickle

    from torch._functorch._aot_autograd.aot_autograd_result import deserialize_bundled_cache_entry
    from torch._inductor.standalone_compile import AOTCompiledArtifact

    bundle = pickle.loads(data)
    saved = _saved(bundle)
    tables = bundle[1:] if isinstance(bundle, tuple) else ()
    if saved is None or any(tables):  # Triton kernels that the model called itself
        loaded: Callable[..., Any] = AOTCompiledArtifact.deserialize(data)
        return loaded, None
    entry = bundle[0] if isinstance(bundle, tuple) else bundle
    loaded = deserialize_bundled_cache_entry(entry)
    return loaded, getattr(saved.graph, "current_callable", None)


def compiled_kernel(argument_types: Sequence[str], source: str) -> Callable[..., Any]:
    """Return a C++ kernel by what Inductor's generated module says of it; compiled already, as a rule."""
    from torch._inductor.codecache import CppPythonBindingsCodeCache

    made: Callable[..., Any] = CppPythonBindingsCodeCache.load_pybinding(argument_types, source)
    return made


@contextlib.contextmanager
def transforms_undone() -> Iterator[None]:
    """After an error in the block, end the function transforms that it left on.

    A graph enters vmap by a call and leaves it by another one, so that an error in between, or in
    functionalisation, leaves this thread inside.
    """
    depth = torch._C._functorch.get_dynamic_layer_stack_depth()
    try:
        yield
    except BaseException:
        torch._C._functorch.pop_dynamic_layer_stack_and_undo_to_depth(depth)
        raise


def pattern_matcher(
    pattern: Callable[..., Any], replacement: Callable[..., Any], examples: list[Any],
    check: Callable[[Mapping[str, Any]], bool] | None, numbers: Mapping[str, float],
    shape: Callable[[torch.fx.Graph], None], *, functional: bool,
) -> Callable[[torch.fx.Graph], int]:  # fmt: skip
    """Return what replaces one pattern in a graph by torch's matcher, and returns how often.

    `shape` is called with each trace of the pattern and of the replacement, before it is used.
    """
    from torch._inductor.pattern_matcher import (
        PatternMatcherPass,
        register_replacement,
        stable_topological_sort,
    )
    from torch.fx.experimental.proxy_tensor import make_fx

    names = tuple(inspect.signature(pattern).parameters)
    traced: dict[str, Any] = {}

    def trace(fn: Any, *args: Any, **_: Any) -> torch.fx.GraphModule:
        traced.update(zip(names, args[0][-len(names) :], strict=False))
        run = torch.func.functionalize(fn, remove="mutations") if functional else fn
        with size_oblivious(), torch.no_grad():
            made = make_fx(run, tracing_mode="real")(*args[0])
        made.graph.eliminate_dead_code()
        shape(made.graph)
        made.recompile()
        return made

    def fits(match: Any) -> bool:
        # Up to torch 2.11 a match says nothing of numbers; the trace at its own sizes came right before.
        known = {**{name: traced[name] for name in numbers}, **match.kwargs}
        found = {name: known[name] for name in names if name in known}
        return check is None or check({name: _shown(value) for name, value in found.items()})

    matcher = PatternMatcherPass(pass_name=getattr(pattern, "__name__", "pattern"))
    # Later torch decomposes a match before it is replaced, unless it is told by what: nothing.
    takes_table = "get_decomp_fn" in inspect.signature(register_replacement).parameters
    table: dict[str, Any] = {"get_decomp_fn": dict} if takes_table else {}
    register_replacement(
        pattern, replacement, examples, trace, [matcher], extra_check=fits,
        scalar_workaround=dict(numbers), **table,
    )  # fmt: skip

    def apply(graph: torch.fx.Graph) -> int:
        count = matcher.apply(graph)
        if (
            count
        ):  # a replacement stands where the first of several results stood, before others' inputs
            stable_topological_sort(graph)
        return int(count)

    return apply


def has_node(
    function: Callable[..., Any], examples: list[Any], test: Callable[[torch.fx.Node], bool]
) -> bool:
    """Say whether a function calls an operator of a kind."""
    from torch.fx.experimental.proxy_tensor import make_fx

    with torch.no_grad():
        return any(test(node) for node in make_fx(function)(*examples).graph.nodes)


def _shown(value: Any) -> Any:
    if not isinstance(value, torch.fx.Node):
        return value
    found = value.meta.get("val")
    return value.meta.get("example_value") if found is None else found


def inductor_slot(name: str) -> Any:
    """Return the pass that torch's own config has in one of Inductor's slots, or None."""
    import torch._inductor.config

    return getattr(torch._inductor.config, name)


def inductor_pass(run: Callable[[torch.fx.Graph], None], identity: Any, earlier: Any) -> Any:
    """Return a pass for one of Inductor's slots that runs after those that are in it already.

    Args:
        run: the pass.
        identity: what it is told from others by.
        earlier: what is in the slot: None, a pass or several.
    """
    from torch._inductor.custom_graph_pass import CustomGraphPass

    before = (
        list(earlier) if isinstance(earlier, list | tuple) else [] if earlier is None else [earlier]
    )

    class After(CustomGraphPass):
        def __call__(self, graph: torch.fx.Graph) -> None:
            for one in before:
                one(graph)
            run(graph)

        def uuid(self) -> Any:
            own = [one.uuid() if isinstance(one, CustomGraphPass) else None for one in before]
            # A pass without an identity is not to be cached, and neither is this one then.
            return None if any(u is None for u in own) else ("intarsia", repr(own), repr(identity))

    return After()


@contextlib.contextmanager
def cut_for_others() -> Iterator[None]:
    """Let Inductor cut graphs that are compiled or loaded inside, without recording them itself.

    It does so only where somebody wraps the parts. The wrapper is one for the whole process, so the caller
    holds the lock under which Inductor works.
    """
    from torch._inductor import utils

    holder = utils._unstable_customized_partition_wrapper
    before = holder.wrapper
    holder.wrapper = lambda part, _: part
    try:
        yield
    finally:
        holder.wrapper = before


def inductor_settings(patches: Mapping[str, Any]) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which settings of Inductor are changed."""
    import torch._inductor.config

    return torch._inductor.config.patch(dict(patches))


_importing = threading.Lock()


@contextlib.contextmanager
def kernel_imports() -> Iterator[None]:
    """Let libraries that Inductor made be imported: their start-up code reads an address from a variable.

    Inductor leaves the variable set. Here it is put back, unless Inductor is there to need it in another
    thread.
    """
    import os
    import sys

    name = "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"
    guards: Any = torch._C._dynamo.guards
    with _importing:
        was_set = name in os.environ
        os.environ[name] = str(guards._torchinductor_pyobject_tensor_data_ptr)
        try:
            yield
        finally:
            if not was_set and "torch._inductor.codecache" not in sys.modules:
                del os.environ[name]


def extern_kernel(name: str) -> Any:
    """Return the function that generated modules call by a name, or None."""
    from torch._inductor.select_algorithm import extern_kernels

    return getattr(extern_kernels, name, None)


def padding_notes_conditions() -> bool:
    """Say whether Inductor, to find out if padding a matrix product pays, notes conditions on its sizes.

    torch 2.11 compares sizes themselves with what the device can do, newer ones compare the example's. Such a
    condition is about speed alone, and no box without an end keeps it.
    """
    return torch_version() < (2, 12)


@functools.cache
def cpp_compiler_is_modern() -> bool:
    """Say whether Inductor's C++ compiler is GCC >= 12 or Clang >= 14.

    Those know every instruction set that torch asks about on x86. Inductor finds that out by compiling
    four test programs, which costs 8 CPU s in every process with an empty cache; the processor itself it
    asks separately. Linux only: other systems keep Inductor's own check.
    """
    import platform
    import subprocess
    import sys

    from torch._inductor.cpp_builder import get_cpp_compiler

    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    try:
        answer = subprocess.run(
            [get_cpp_compiler(), "--version"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        ).stdout
    except Exception:  # no compiler: Inductor has the better message
        return False
    first = answer.splitlines()[0] if answer else ""
    version = re.search(r"(\d+)\.\d+(\.\d+)?", first.split(")")[-1])
    if version is None:
        return False
    return int(version[1]) >= (14 if "clang" in first else 12)


def inductor_package(
    module: torch.fx.GraphModule,
    inputs: Sequence[Any],
    config_patches: Mapping[str, Any],
    folder: str,
    adjust: Callable[[torch.fx.Graph], None],
) -> str:
    """Compile a piece to a shared library in a folder, and return the library's path.

    `adjust` is given the graph of ATen operations before code is generated, may change it, and may raise.

    The compiler is AOTInductor's, which is given the graph as it is: `torch.export` in between would take
    neither sizes as inputs nor writes to inputs. A file of the same name that ends in ".json" lies beside
    the library where that calls operators by name. What is traced notes its conditions on sizes in the
    inputs' own fake mode.
    """
    from torch._inductor.compile_fx import compile_fx_aot, compile_fx_inner
    from torch.fx.experimental import _config

    def compile_inner(inner: Any, inner_inputs: Any, **keywords: Any) -> Any:
        adjust(inner.graph)
        inner.recompile()
        return compile_fx_inner(inner, inner_inputs, **keywords)

    fx_config: Any = _config
    inner_compile: Any = compile_inner
    patches = {
        **config_patches,
        "aot_inductor.output_path": folder,
        "aot_inductor.package": False,
        "aot_inductor.metadata": {},  # torch adds to the one that it finds here
    }
    with torch.no_grad(), fx_config.patch(backed_size_oblivious=True):
        made = compile_fx_aot(
            module, list(inputs), inner_compile=inner_compile, config_patches=patches
        )
    assert isinstance(made, str), made
    return made


def package_runner(path: str, device: torch.device) -> Callable[[list[Any]], list[Any]]:
    """Load a shared library of `inductor_package`; returns the call that takes and returns a list.

    Nothing of `torch._inductor` is imported. The call holds Python's lock until it returns, whatever runs
    inside, and two calls at a time wait for each other with that lock held.
    """
    runners: Any = torch._C._aoti
    if device.type == "cpu":
        return runners.AOTIModelContainerRunnerCpu(path, 1).run
    runner = getattr(runners, f"AOTIModelContainerRunner{device.type.capitalize()}")
    return runner(path, 1, str(device)).run


def inductor_changes() -> dict[str, Any]:
    """Return the settings of Inductor that this process changed, by name.

    A process that has not imported Inductor changed none, and does not import it for the answer. What
    environment variables set is not among them: Inductor takes that for its defaults.
    """
    import sys

    module: Any = sys.modules.get("torch._inductor.config")
    if module is None:
        return {}
    changed: dict[str, Any] = {}
    for name, entry in list(module._config.items()):
        value = _overriding(entry) if entry.alias is None else _NOTHING
        if value is not entry.default and not _is_unset(value) and value != entry.default:
            changed[name] = value
    return changed


_NOTHING = object()


def _overriding(entry: Any) -> Any:
    """Return what a user set: a context variable in newer torch, the value itself in 2.11."""
    override = entry.user_override
    return override.get() if isinstance(override, contextvars.ContextVar) else override


def _is_unset(value: Any) -> bool:
    from torch.utils._config_module import _UNSET_SENTINEL

    return value is _NOTHING or value is _UNSET_SENTINEL


def inductor_options() -> frozenset[str]:
    """Return the names of Inductor's own settings."""
    import torch._inductor.config as inductor_config

    return frozenset(inductor_config.get_config_copy())


# --------------------------------------------------------------------------------------------- events


def is_tracing() -> bool:
    """Say whether somebody collects `trace_structured` artifacts."""
    from torch._logging._internal import trace_log

    return bool(trace_log.handlers)


def trace_artifact(name: str, payload: str, encoding: str = "string") -> None:
    """Write a `trace_structured` artifact, which tlparse shows; free when tracing is off."""
    from torch._logging import trace_structured

    trace_structured(
        "artifact",
        metadata_fn=lambda: {"name": name, "encoding": encoding},
        payload_fn=lambda: payload,
    )


# ------------------------------------------------------------------------------------- CUDA captures


def leaves_failed_captures() -> bool:
    """Say whether a CUDA capture that cannot be ended keeps its memory pool for good (up to torch 2.13)."""
    return torch_version() < (2, 14)


def forget_capture(device: int, pool: tuple[int, int]) -> None:
    """Take a capture that could not be ended off the CUDA allocator's books: its route, then its pool.

    Torch 2.12 and 2.13 have ended the route already, and then refuse the first of the two.
    """
    for undo in (torch._C._cuda_endAllocateToPool, torch._C._cuda_releasePool):
        with contextlib.suppress(RuntimeError):
            undo(device, pool)


# ------------------------------------------------------------------------------------------- ranks


def default_store() -> Any:
    """Return the key-value store that the ranks of a `torch.distributed` job were started with.

    A connection of its own where the store can make one: a wait would hold up other threads.
    """
    from torch.distributed import distributed_c10d

    store: Any = distributed_c10d._get_default_store()
    try:
        return store.clone()
    except (AttributeError, RuntimeError):  # not every store, nor every torch, has it
        return store


def group_sizes() -> dict[str, int]:
    """Return the process groups that this process is in: name -> how many ranks."""
    from torch.distributed import distributed_c10d

    return {name: group.size() for group, name in distributed_c10d._world.pg_names.items()}


# --------------------------------------------------------------------------------------------- probes


def _probe(path: str) -> Callable[[], Decision]:
    def run() -> Decision:
        import importlib

        module, _, name = path.partition(":")
        value: Any = importlib.import_module(module)
        for part in name.split("."):
            value = getattr(value, part)
        return Decision(True, path)

    return run


PROBES: Mapping[str, Callable[[], Decision]] = {
    path: _probe(path)
    for path in (
        "torch._dispatch.python:enable_python_dispatcher",
        "torch._C:_set_grad_enabled",
        "torch._dynamo.convert_frame:fullgraph_capture",
        "torch._dynamo.convert_frame:compile_lock",
        "torch._dynamo.convert_frame:get_traced_fn",
        "torch.overrides:_get_current_function_mode_stack",
        "torch.nn.modules.module:_global_forward_pre_hooks",
        "torch.nn.modules.module:_global_forward_hooks",
        "torch.nn.modules.module:_global_backward_pre_hooks",
        "torch.nn.modules.module:_global_backward_hooks",
        "torch._dynamo.utils:get_metrics_context",
        "torch._dynamo.utils:dynamo_timed",
        "torch._dynamo.config:side_effect_replay_policy",
        "torch._dynamo.aot_compile_types:SerializableCallable.serialize_compile_artifacts",
        "torch._dynamo:maybe_mark_dynamic",
        "torch._dynamo.source:ConstantSource",
        "torch._dynamo.trace_rules:_allowed_callable_ids.remove",
        "torch.fx.experimental._config:backed_size_oblivious",
        "torch.fx.experimental.symbolic_shapes:ShapeEnv.create_symbol",
        "torch.fx.experimental.symbolic_shapes:DimDynamic",
        "torch.fx.experimental.symbolic_shapes:ConstraintViolationError",
        "torch.compiler.config:cache_key_tag",
        "torch.distributed.distributed_c10d:_get_default_store",
        "torch.distributed.distributed_c10d:_world.pg_names",
        "torch._subclasses.fake_tensor:FakeTensor",
        "torch._subclasses.fake_tensor:FakeTensorMode",
        "torch._subclasses.fake_tensor:DataDependentOutputException",
        "torch.utils._sympy.value_ranges:bound_sympy",
        "torch.utils._sympy.value_ranges:ValueRanges",
        "torch.utils._sympy.numbers:int_oo",
        "torch.utils._sympy.symbol:SymT",
        "torch.utils._sympy.functions:FloorDiv",
        "torch._inductor.standalone_compile:standalone_compile",
        "torch._inductor.standalone_compile:AOTCompiledArtifact.serialize",
        "torch._inductor.codecache:torch_key",
        "torch._inductor.codecache:CppPythonBindingsCodeCache.load_pybinding",
        "torch._inductor.output_code:CompiledFxGraph.after_deserialization",
        "torch._inductor.select_algorithm:extern_kernels",
        "torch._functorch._aot_autograd.aot_autograd_result:deserialize_bundled_cache_entry",
        "torch._C._dynamo.guards:_torchinductor_pyobject_tensor_data_ptr",
        "torch._inductor.compile_fx:compile_fx_inner",
        "torch._functorch.config:enable_autograd_cache",
        "torch._inductor.config:get_config_copy",
        "torch._inductor.config:custom_should_partition_ops",
        "torch._inductor.custom_graph_pass:CustomGraphPass",
        "torch._C._functorch:get_dynamic_layer_stack_depth",
        "torch._C._functorch:pop_dynamic_layer_stack_and_undo_to_depth",
        "torch._inductor.pattern_matcher:PatternMatcherPass.apply",
        "torch._inductor.pattern_matcher:register_replacement",
        "torch._inductor.pattern_matcher:stable_topological_sort",
        "torch._inductor.config:pre_grad_custom_pass",
        "torch._inductor.config:joint_custom_post_pass",
        "torch._inductor.config:post_grad_custom_pre_pass",
        "torch._inductor.config:post_grad_custom_post_pass",
        "torch._inductor.utils:_unstable_customized_partition_wrapper.wrapper",
        "torch._inductor.config:cpp.vec_isa_ok",
        "torch._inductor.config:_config",
        "torch.utils._config_module:_UNSET_SENTINEL",
        "torch.utils._python_dispatch:TorchDispatchMode",
        "torch.utils._pytree:tree_flatten",
        "torch.utils._pytree:tree_unflatten",
        "torch._inductor.config:aot_inductor.output_path",
        "torch._inductor.cpp_builder:get_cpp_compiler",
        "torch._inductor.compile_fx:compile_fx_aot",
        "torch._C._aoti:AOTIModelContainerRunnerCpu.run",
        "torch.utils._sympy.symbol:symbol_is_type",
        "torch.utils._sympy.printers:PythonPrinter",
        "torch._dynamo.exc:TorchDynamoException",
        "torch._ops:OpOverload",
        "torch._ops:OpOverloadPacket",
        "torch._ops:HigherOrderOperator",
        "torch._library.custom_ops:OPDEFS",
        "torch._C:_construct_storage_from_data_pointer",
        "torch._logging:trace_structured",
        "torch._logging._internal:trace_log",
        "torch._C:_cuda_endAllocateToPool",
        "torch._C:_cuda_releasePool",
    )
}
"""Private name -> probe; each answers, or raises what the missing name raises."""


def run_probes() -> dict[str, Decision]:
    """Try every private name; a failure becomes a Decision with its reason."""
    answers: dict[str, Decision] = {}
    for name, probe in PROBES.items():
        try:
            answers[name] = probe()
        except Exception as error:  # a probe reports whatever went wrong
            answers[name] = Decision(False, f"{type(error).__name__}: {error}")
    return answers
