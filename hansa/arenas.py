"""The C library's allocator, told what kind of program this is."""

from __future__ import annotations

import ctypes
import sys

_M_ARENA_MAX = -8
_ARENAS = 2


def few_arenas() -> None:
    """Call before threads begin. glibc gives threads arenas of their own, and buffers of a megabyte that one thread
    allocates and another frees then grow all of them: with two, a coordinator takes a fifth less memory and a tenth less
    processor time. Elsewhere nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, _ARENAS)
