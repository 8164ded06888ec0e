"""Intarsia cuts a captured PyTorch graph into pieces and gives each to the compiler that suits it.

Importing this package imports no torch: what needs torch is loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intarsia.errors import (
    CacheError,
    CaptureError,
    CompileFailed,
    CompileRejected,
    ConfigError,
    ContractError,
    IntarsiaError,
    MetadataError,
    MismatchError,
    PassError,
    PluginError,
    RecordError,
    ShapeError,
    SplitError,
    UnsupportedTorchError,
)

if TYPE_CHECKING:
    from intarsia.api import Compiled, compile, load
    from intarsia.interfaces import API_VERSION
    from intarsia.jit import reports
    from intarsia.ranks.exchange import TorchExchange
    from intarsia.ranks.protocol import Exchange
    from intarsia.static_graph.plain import record
    from intarsia.static_graph.step import current_step, step

__version__ = "0.1.0"

__all__ = [
    "API_VERSION",
    "CacheError",
    "CaptureError",
    "CompileFailed",
    "CompileRejected",
    "Compiled",
    "ConfigError",
    "ContractError",
    "Exchange",
    "IntarsiaError",
    "MetadataError",
    "MismatchError",
    "PassError",
    "PluginError",
    "RecordError",
    "ShapeError",
    "SplitError",
    "TorchExchange",
    "UnsupportedTorchError",
    "__version__",
    "compile",
    "current_step",
    "load",
    "record",
    "reports",
    "step",
]

_LAZY = {
    "API_VERSION": "intarsia.interfaces",
    "Compiled": "intarsia.api",
    "Exchange": "intarsia.ranks.protocol",
    "TorchExchange": "intarsia.ranks.exchange",
    "compile": "intarsia.api",
    "current_step": "intarsia.static_graph.step",
    "load": "intarsia.api",
    "record": "intarsia.static_graph.plain",
    "reports": "intarsia.jit",
    "step": "intarsia.static_graph.step",
}


def __getattr__(name: str) -> Any:
    """Load a public name on first use, so that importing the package stays cheap."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_LAZY[name]), name)
    # From now on the name is found without coming here.
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
