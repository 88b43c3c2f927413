"""The rights with which this thread uses files: the agent's own, or those of the user as which a job runs.

A sandbox belongs to its job's user, who may have put anything into it: links, fifos, other names of other files. So an
agent that runs as root works in it with that user's rights (setfsuid(2), for one thread), and whatever the job has
prepared leads to nothing that the job could not do itself. docs/decisions/confinement.md says more.

A block of these must neither switch greenlets nor start threads: rights belong to the thread, and new threads inherit
them.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

from prouter.processes.users import User

__all__ = ["GROUP", "acting", "as_agent", "check", "own", "put_in_use"]

GROUP = 65534
"""Group id that the agent uses in sandboxes and no job has, so that only the agent may enter those of ended jobs."""

P = ParamSpec("P")
T = TypeVar("T")

_libc = ctypes.CDLL(None)
_QUERY = ctypes.c_uint32(-1 & 0xFFFFFFFF)


class _Thread(threading.local):
    """What this thread has said about the rights that it uses.

    Attributes:
        user: the user whose rights it has; None for the agent's own.
        chosen: whether it has chosen any.
    """

    user: User | None = None
    chosen: bool = False


_thread = _Thread()
_in_use = False
"""Whether any job of this process has a user; otherwise nothing here does anything."""


def put_in_use() -> None:
    """Have the functions here take effect, because a job has a user."""
    global _in_use
    _in_use = True


def acting(user: User | None) -> contextlib.AbstractContextManager[None]:
    """Use files with this user's rights in the block; None for the agent's own, where jobs have no users.

    Raises:
        PermissionError: the system refuses.
    """
    return _switched(user) if _in_use else contextlib.nullcontext()


def own() -> contextlib.AbstractContextManager[None]:
    """Use files with the agent's own rights in the block: for what no job may change."""
    return acting(None)


def as_agent(function: Callable[P, T]) -> Callable[P, T]:
    """Have a function use files with the agent's own rights, whoever calls it."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **keywords: P.kwargs) -> T:
        if not _in_use:
            return function(*args, **keywords)
        with _switched(None):
            return function(*args, **keywords)

    return wrapped


def check(user: User | None) -> None:
    """Refuse to work for a job of this user unless the thread has chosen its rights.

    Raises:
        RuntimeError: it has not; a programming error.
    """
    if user is not None and not _thread.chosen:
        raise RuntimeError(f"files of user {user.uid} are used without a choice of rights")


@contextlib.contextmanager
def _switched(user: User | None) -> Iterator[None]:
    before, chosen = _thread.user, _thread.chosen
    _use(before, user)
    _thread.user, _thread.chosen = user, True
    try:
        yield
    finally:
        _thread.user, _thread.chosen = before, chosen
        _use(user, before)


def _use(before: User | None, after: User | None) -> None:
    """Change the thread's rights; nothing is called while they stay the same."""
    if before == after:
        return
    uid = os.geteuid() if after is None else after.uid
    gid = os.getegid() if after is None else GROUP
    _libc.setfsgid(ctypes.c_uint32(gid))
    _libc.setfsuid(ctypes.c_uint32(uid))
    if _libc.setfsuid(_QUERY) & 0xFFFFFFFF != uid or _libc.setfsgid(_QUERY) & 0xFFFFFFFF != gid:
        raise PermissionError(f"the rights of user {uid} cannot be taken")
