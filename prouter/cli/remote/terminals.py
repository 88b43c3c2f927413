"""Bytes to stdout and stderr, and what tells that nobody reads them any more."""

from __future__ import annotations

import os
import select

__all__ = ["closed", "write_all"]


def write_all(descriptor: int, data: bytes) -> None:
    """Write all bytes, also to a descriptor that does not block.

    Raises:
        BrokenPipeError: nobody reads them any more.
        OSError: they cannot be written: the terminal is gone, or the disk full.
    """
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            waiting = select.poll()
            waiting.register(descriptor, select.POLLOUT)
            waiting.poll()


def closed(descriptor: int) -> bool:
    """Whether the reader of a pipe, or the terminal, is gone."""
    polled = select.poll()
    polled.register(descriptor, 0)
    return any(what & (select.POLLERR | select.POLLHUP | select.POLLNVAL) for _, what in polled.poll(0))
