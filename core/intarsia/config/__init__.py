"""Settings: what can be set, where it is read from, and who set it.

Lowest first: built-in defaults, the platform's defaults, one file, the environment, code.
"""

from __future__ import annotations

from intarsia.config.layers import Layer, Level, ResolvedConfig
from intarsia.config.settings import Config, Passes, PieceMatch, Plugins, Route
from intarsia.config.sources import load_config, search_upward

__all__ = [
    "Config",
    "Layer",
    "Level",
    "Passes",
    "PieceMatch",
    "Plugins",
    "ResolvedConfig",
    "Route",
    "load_config",
    "search_upward",
]
