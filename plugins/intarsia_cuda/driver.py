"""The few calls of the CUDA driver that torch does not offer, through its stable C interface."""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any

_RELAXED = 2
"""CU_STREAM_CAPTURE_MODE_RELAXED: no call of this thread can invalidate the capture."""


@functools.cache
def library() -> Any:
    """Return the driver's library, or None; torch has loaded it already where it uses CUDA."""
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None


def version() -> str:
    """Return the CUDA version that the driver serves ("13.0"), "" where there is no driver.

    It is the same for all patch releases of a driver branch, and asking initialises nothing.
    """
    number = ctypes.c_int(0)
    found = library()
    if found is None or found.cuDriverGetVersion(ctypes.byref(number)):
        return ""
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


def restart_capture(stream: int) -> bool:
    """End the capture on a stream, whatever became of it, and begin a new one; say whether one runs.

    A capture that was invalidated or has work that was never joined cannot be ended without an error, and
    it is over all the same. The new one can be ended, so that its owner may close its books.
    """
    found = library()
    if found is None:
        return False
    handle, graph = ctypes.c_void_p(stream), ctypes.c_void_p()
    if not found.cuStreamEndCapture(handle, ctypes.byref(graph)) and graph:
        found.cuGraphDestroy(graph)
    return not found.cuStreamBeginCapture_v2(handle, ctypes.c_int(_RELAXED))
