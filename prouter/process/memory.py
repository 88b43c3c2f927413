"""Memory of message buffers: the C library keeps it instead of returning it to the kernel after every message.

By default the C library maps and unmaps each buffer of 128 KiB or more, and returns a heap's free top at once. Each
message then costs a page fault for every 4 KiB, two to five times the price of copying it (docs/performance.md).
Processes that carry streams call `keep_freed_memory` before they start threads.
"""

from __future__ import annotations

import ctypes
import logging
import os

__all__ = ["LOCAL_BUFFER", "give_back_memory", "keep_freed_memory", "resident_memory"]

LOCAL_BUFFER = 1024 * 1024
"""Bytes that the kernel buffers in each direction of a connection between worker and broker. The default is less than
one bulk message, which then takes several event loop iterations of both processes (docs/performance.md). Agents'
connections keep TCP's own adaptive buffers, which know the network."""

log = logging.getLogger("prouter.transport")

_PAGE = os.sysconf("SC_PAGE_SIZE")

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
    """Let this process keep up to 16 MiB of freed memory. Does nothing if the C library is not glibc. Idempotent."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for parameter, value in _SETTINGS:
        if not mallopt(parameter, value):
            log.info("event=mallopt_refused parameter=%d value=%d", parameter, value)


def give_back_memory() -> None:
    """Return free memory to the kernel once, after much was used that is rarely needed. Takes milliseconds."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def resident_memory() -> int:
    """Bytes of memory that this process has in use."""
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[1]) * _PAGE
