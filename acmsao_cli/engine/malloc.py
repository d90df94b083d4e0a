"""glibc's malloc, told when to give memory back: what a process holds is then what it uses.

By itself it raises the size from which blocks are mapped, and so returned when they are freed, up
to 32 MiB, and keeps holes below it: hundreds of MB in a training on a CPU. See mallopt(3).
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# What malloc begins with; and what it ends at by itself, where large blocks come and go.
FIRST, LAST = 128 * 2**10, 32 * 2**20
# Who has set it up by these is left alone.
SETTINGS = ("GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


def give_back() -> None:
    """Return what is free now."""
    _call("malloc_trim", 0)


def give_back_at_once() -> None:
    """From now on return freed tensors at once; it costs time, as pages come back as zeros."""
    _set_threshold(FIRST)


def keep_for_later() -> None:
    """From now on keep freed tensors up to 32 MiB, as malloc does by itself after a while."""
    _set_threshold(LAST)


def _set_threshold(size: int) -> None:
    if not any(name in os.environ for name in SETTINGS):
        _call("mallopt", M_MMAP_THRESHOLD, size)
        _call("mallopt", M_TRIM_THRESHOLD, 2 * size)


def _call(name: str, *numbers: int) -> None:
    """Another libc has no such functions, and goes its own way."""
    with suppress(AttributeError, OSError):
        getattr(ctypes.CDLL(None), name)(*numbers)
