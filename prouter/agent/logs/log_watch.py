"""Notices for followers that a log has grown, without polling: one inotify descriptor for the whole agent.

`LogWatcher` owns no loop. Its owner watches `fileno` for readability and calls `dispatch`. All followers of one file
share one kernel watch, and all writes between two calls of `dispatch` cause one notice.
"""

from __future__ import annotations

import errno
import itertools
import os
import struct
from collections.abc import Callable
from typing import final

from prouter.agent.sandbox import syscalls

__all__ = ["LogWatcher"]

_EVENT = struct.Struct("iIII")  # struct inotify_event: wd, mask, cookie, len (of the name, none for watched files)
_READ = 1 << 16
_FULL = (errno.ENOSPC, errno.ENOMEM, errno.EMFILE)


@final
class LogWatcher:
    """Calls back after writes to watched files. Use it from one thread (the agent's loop).

    Raises:
        OSError: EMFILE if the user has no inotify instance left (fs.inotify.max_user_instances).
    """

    def __init__(self) -> None:
        self._fd = syscalls.inotify_init()
        self._tokens = itertools.count(1)
        self._watch_of: dict[int, int] = {}
        self._callbacks: dict[int, dict[int, Callable[[], None]]] = {}

    def fileno(self) -> int:
        """Return a descriptor that is readable when `dispatch` has something to do."""
        return self._fd

    def watch(self, fd: int, callback: Callable[[], None]) -> int | None:
        """Call `callback` from `dispatch` after the open file was written to.

        Read the file once after this call, for earlier writes.

        Returns:
            A token for `unwatch`; None if the user has no watch left (fs.inotify.max_user_watches): poll then.
        """
        try:
            watch = syscalls.inotify_add_watch(self._fd, b"/proc/self/fd/%d" % fd, syscalls.IN_MODIFY)
        except OSError as error:
            if error.errno in _FULL:
                return None
            raise
        token = next(self._tokens)
        self._watch_of[token] = watch
        self._callbacks.setdefault(watch, {})[token] = callback
        return token

    def unwatch(self, token: int) -> None:
        """End a watch. Idempotent."""
        watch = self._watch_of.pop(token, None)
        if watch is None:
            return
        others = self._callbacks.get(watch)
        if others is None:
            return
        others.pop(token, None)
        if not others:
            del self._callbacks[watch]
            syscalls.inotify_rm_watch(self._fd, watch)

    def dispatch(self) -> None:
        """Read the kernel's events, and call back each follower of a written file once."""
        changed: set[int] = set()
        while True:
            try:
                events = os.read(self._fd, _READ)
            except BlockingIOError:
                break
            position = 0
            while position < len(events):
                watch, mask, _, length = _EVENT.unpack_from(events, position)
                position += _EVENT.size + length
                if mask & syscalls.IN_Q_OVERFLOW:
                    changed.update(self._callbacks)
                elif mask & syscalls.IN_MODIFY:
                    changed.add(watch)
            if len(events) < _READ // 2:
                break
        for watch in changed:
            for callback in list(self._callbacks.get(watch, {}).values()):
                callback()

    def close(self) -> None:
        """End all watches. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._watch_of.clear()
        self._callbacks.clear()
