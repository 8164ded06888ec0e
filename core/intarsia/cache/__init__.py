"""The compile cache: keys from named factors, checked entries, stores, and one path that loads.

Nothing here imports torch, and nothing is unpickled, executed or loaded as a library: a payload is bytes
until the checks have passed and whoever asked for it gets them.
"""

from __future__ import annotations

from intarsia.cache.cache import Cache, Near
from intarsia.cache.entry import BadEntry, Entry, Unusable
from intarsia.cache.journal import Crash, Journal
from intarsia.cache.key import Difference, differences, key_of
from intarsia.cache.opening import open_cache

__all__ = [
    "BadEntry",
    "Cache",
    "Crash",
    "Difference",
    "Entry",
    "Journal",
    "Near",
    "Unusable",
    "differences",
    "key_of",
    "open_cache",
]
