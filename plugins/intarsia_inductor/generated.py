"""Rewrites the Python module that Inductor generates, so that it runs without what made it.

Inductor's module holds its kernels as C++ source and compiles them when it is imported. Here the compiled
libraries take their place. Where the module then needs nothing of Inductor any more, it becomes a module
that needs torch alone.
"""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path
from typing import Any

from attrs import frozen

from intarsia import torch_compat

HOOK = "intarsia_kernel"
"""What a rewritten module calls with a library's digest to get its kernel."""

_IMPORT_HOOK = f"from intarsia_inductor.kernels import kernel as {HOOK}"
_UNUSED = ("get_args", "benchmark_compiled_module")


@frozen
class GeneratedModule:
    """A generated module without C++ in it.

    Attributes:
        source: its Python, which imports `HOOK` and gets kernels by it.
        light: its Python without a name of Inductor's, run where `HOOK` is defined; None where it needs one.
        libraries: the kernels' libraries by digest.
    """

    source: str
    light: str | None
    libraries: dict[str, bytes]


def without_compiler(source: str) -> GeneratedModule:
    """Put compiled kernels in the place of their C++ source.

    The caller has set Inductor as it was when the module was generated, so that nothing is compiled again.
    """
    tree = ast.parse(source)
    libraries: dict[str, bytes] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and _is_kernel(node.value):
            node.value = _from_library(node.value, libraries)
    text = f"{_IMPORT_HOOK}\n{ast.unparse(tree)}\n" if libraries else source
    return GeneratedModule(text, _lightened(tree), libraries)


def _is_kernel(value: ast.expr) -> bool:
    return (
        isinstance(value, ast.Call)
        and ast.unparse(value.func) == "async_compile.cpp_pybinding"
        and len(value.args) == 2
        and not value.keywords
    )


def _from_library(value: Any, libraries: dict[str, bytes]) -> ast.expr:
    kernel: Any = torch_compat.compiled_kernel(*map(ast.literal_eval, value.args))
    data = Path(kernel.__self__.__file__).read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    libraries[digest] = data
    return ast.parse(f"{HOOK}({digest!r})", mode="eval").body


# ------------------------------------------------------------------------- modules that need torch alone


def _lightened(tree: ast.Module) -> str | None:
    """Return a module's Python without any import of Inductor, or None where it needs one."""
    kept = [s for s in tree.body if not _is_dropped(s)]
    for statement in kept:
        _own_functions(statement)
    used = {
        n.id for s in kept for n in ast.walk(s) if isinstance(n, ast.Name) and n.id != _target(s)
    }
    body: list[ast.stmt] = []
    for statement in kept:
        if isinstance(statement, ast.ImportFrom) and _is_inductor(statement.module):
            if any((a.asname or a.name) in used for a in statement.names):
                return None
            continue
        if _target(statement) in used or _target(statement) is None:
            body.append(statement)
    return ast.unparse(ast.Module(body, []))


def _is_dropped(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.FunctionDef):
        return statement.name in _UNUSED
    if isinstance(statement, ast.If):
        return "__main__" in ast.unparse(statement.test)
    text = ast.unparse(statement) if not isinstance(statement, ast.ClassDef) else ""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return True  # the block that tunes kernels, as text
    return text in (
        "async_compile = AsyncCompile()", "async_compile.wait(globals())", "del async_compile",
    )  # fmt: skip


def _target(statement: ast.stmt) -> str | None:
    """Return the name that a statement sets and nothing else needs; None where it stays in any case."""
    if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
        name = statement.targets[0].id
        return None if name in ("call", "runner", "recursively_apply_fns") else name
    return None


def _is_inductor(module: str | None) -> bool:
    return bool(module) and str(module).startswith(("torch._inductor", "torch._dynamo"))


class _Functions(ast.NodeTransformer):
    """Calls torch's function where Inductor's table of functions holds that very one."""

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        self.generic_visit(node)
        if not isinstance(node.value, ast.Name) or node.value.id != "extern_kernels":
            return node
        import torch

        theirs = getattr(torch, node.attr, None)
        if theirs is None or torch_compat.extern_kernel(node.attr) is not theirs:
            return node
        return ast.Attribute(ast.Name("torch", ast.Load()), node.attr, ast.Load())


def _own_functions(statement: ast.stmt) -> None:
    _Functions().visit(statement)
