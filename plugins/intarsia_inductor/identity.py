"""What decides the code that Inductor generates, beside the piece itself: the compiler's part of a key.

The C++ compiler is not in it: it changes neither what an artifact does nor where it runs, and a machine that
has none must find what another one made.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from intarsia import torch_compat

PREFIXES = ("TORCHINDUCTOR_", "AOT_INDUCTOR_", "TORCH_INDUCTOR_")
"""Inductor's settings start from variables with these names."""

IRRELEVANT = (
    "CACHE_DIR", "COMPILE_THREADS", "WORKER", "REMOTE_CACHE", "FX_GRAPH_CACHE", "AUTOGRAD_CACHE",
    "CPP_CACHE_", "DISABLE_CACHES", "DEBUG", "PROFIL", "PROTON", "LOG", "TIMEOUT", "SAVE_ARGS",
    "METRIC_TABLES", "QUIESCE", "PRECOMPILE", "INSTALL_GXX", "REPORT_CHOICES", "CHOICES_DISPLAYED",
    "VEC_ISA_OK", "LINE_TABLES", "FRAME_POINTER", "CUTLASS_DIR", "CK_DIR",
)  # fmt: skip
"""Parts of the names of variables that say where and how fast, or what is written down on the way."""

SETTINGS_ASIDE = (
    "trace", "worker_", "compile_threads", "fx_graph_cache", "fx_graph_remote_cache", "autotune_local_cache",
    "autotune_remote_cache", "bundled_autotune_remote_cache", "cuda.cutlass_dir", "cutlass.cutlass_dir",
    "xpu.cutlass_dir", "cudagraph_policy", "verbose_progress", "profiler_", "cpp.vec_isa_ok", "debug",
    "aot_inductor.output_path", "aot_inductor.metadata", "aot_inductor.repro_level",
    "aot_inductor.dump_aoti_minifier", "quiesce_", "force_disable_caches", "precompilation_timeout",
)  # fmt: skip
"""How the settings begin that do the same, or that this plugin sets itself."""


class NoIdentity(Exception):
    """Something that changes the code cannot be told apart from others of its kind; the message has it."""


def identity(
    options: Mapping[str, Any], *, on_cpu: bool, declared: Iterable[str] = ()
) -> dict[str, str]:
    """Return the named parts of the compiler's identity.

    `declared` are the variables that are in every key already.

    Raises:
        NoIdentity: a pass has no `uuid()`, or one that returns None.
    """
    found = {f"option {name}": described(name, value) for name, value in options.items()}
    for name, value in torch_compat.inductor_changes().items():
        if not name.startswith(SETTINGS_ASIDE):
            found[f"setting {name}"] = described(name, value)
    found |= _variables(set(declared))
    found |= _torch_state()
    if on_cpu and not options.get("cpp.dynamic_threads"):
        # The generated loops are divided among so many threads.
        found["CPU threads"] = str(torch.get_num_threads())
    return dict(sorted(found.items()))


def _variables(declared: set[str]) -> dict[str, str]:
    return {
        f"variable {name}": value
        for name, value in os.environ.items()
        if name.startswith(PREFIXES)
        and name not in declared
        and not any(part in name for part in IRRELEVANT)
    }


def _torch_state() -> dict[str, str]:
    """Return the switches of torch that are not as they were on import and that generated code follows."""
    state = {
        "deterministic": (torch.are_deterministic_algorithms_enabled(), False),
        "deterministic, warn only": (torch.is_deterministic_algorithms_warn_only_enabled(), False),
        "float32 matmul precision": (torch.get_float32_matmul_precision(), "highest"),
        "default dtype": (torch.get_default_dtype(), torch.float32),
    }
    return {f"torch {name}": str(value) for name, (value, usual) in state.items() if value != usual}


def described(name: str, value: Any) -> str:
    """Return a setting as text that is the same in every process.

    Raises:
        NoIdentity: it is, or holds, an object without one.
    """
    if value is None or isinstance(value, bool | int | float | str | bytes | torch.dtype):
        return repr(value)
    if isinstance(value, Mapping):
        pairs = sorted((str(k), described(name, v)) for k, v in value.items())
        return "{" + ", ".join(f"{k}: {v}" for k, v in pairs) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(described(name, v) for v in value) + "]"
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(described(name, v) for v in value)) + "}"
    uuid = getattr(value, "uuid", None)
    identity = uuid() if callable(uuid) else None
    if identity is None:
        kind = getattr(value, "__qualname__", None) or type(value).__qualname__
        raise NoIdentity(f"{kind}, given as {name}, has no uuid()")
    return f"{type(value).__qualname__} {identity!r}"
