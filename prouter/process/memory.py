"""Makes the C library keep the memory of message buffers instead of giving it back to the kernel after every message.

By default, buffers of 128 KiB and more are mapped and unmapped one by one, and a heap's free top is returned at once;
each message then costs a page fault per 4 KiB, two to five times the price of copying it (docs/performance.md).
Processes that carry streams call `keep_freed_memory` before they start threads.
"""

from __future__ import annotations

import ctypes
import logging

__all__ = ["LOCAL_BUFFER", "give_back_memory", "keep_freed_memory"]

LOCAL_BUFFER = 1024 * 1024
"""Bytes the kernel holds in each direction of a connection between worker and broker. By default it is less than one
bulk message, which then takes several turns of both processes (docs/performance.md). Agents' connections are left to
TCP's own adaptation, which knows the network."""

log = logging.getLogger("prouter.transport")

# Parameters of mallopt(3), as <malloc.h> numbers them.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

_SETTINGS = (
    (_M_MMAP_THRESHOLD, 16 * 1024 * 1024),  # above the largest payload of a frame
    (_M_TRIM_THRESHOLD, 16 * 1024 * 1024),  # free memory at the heap's end that a process may hold on to
    (_M_TOP_PAD, 1024 * 1024),
    (_M_ARENA_MAX, 1),  # what the loop allocates, other threads free: one heap serves all best
)


def keep_freed_memory() -> None:
    """Let this process keep up to 16 MiB of freed memory. Does nothing where the C library is not glibc. Idempotent."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for parameter, value in _SETTINGS:
        if not mallopt(parameter, value):
            log.info("event=mallopt_refused parameter=%d value=%d", parameter, value)


def give_back_memory() -> None:
    """Give what is free to the kernel, for once: much was used that is rarely needed. Takes milliseconds."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
