"""Bytes to stdout and stderr, and what tells that nobody reads them any more."""

from __future__ import annotations

import os
import select
import threading

from prouter.cli.remote.exits import Exit

__all__ = ["closed", "end_without_reader", "write_all"]


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


def end_without_reader() -> None:
    """From now on end this process as soon as nobody reads its stdout, also while it has nothing to print.

    For commands that wait for news and hold nothing that has to be released.
    """

    def wait() -> None:
        polled = select.poll()
        polled.register(1, 0)
        polled.poll()  # returns at errors and hang-ups only, so never for a file
        os._exit(Exit.BROKEN_PIPE)

    threading.Thread(target=wait, name="reader", daemon=True).start()
