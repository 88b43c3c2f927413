"""The users as which jobs run (the setting ``jobs.user``), and their processes.

Standard library only: used by the keeper.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
from collections.abc import Collection
from typing import NamedTuple

__all__ = ["User", "kill_processes", "missing_capabilities", "with_processes"]

_CAPABILITIES = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_FOWNER": 3,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_SYS_PTRACE": 19,
}
"""What starting, watching and ending jobs of other users takes, by bit (capabilities(7))."""

_STATUS = re.compile(rb"^State:\t(.).*?^Uid:\t([^\n]*)", re.DOTALL | re.MULTILINE)
_PATIENCE = 1.0
_NO_USER = 2**32 - 2
"""A uid that no process has. It must not be root: kill(2) would reach root's processes."""


class User(NamedTuple):
    """A user of jobs.

    Attributes:
        name: of its account; of no account, a made-up one for variables such as USER.
        groups: supplementary group ids.
        alone: whether no other job and nothing else uses it, so that whatever process it has may be killed.
        isolated: whether jobs get a /tmp of their own (`prouter.keeper.isolation`).
    """

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    alone: bool = True
    isolated: bool = True


def missing_capabilities() -> list[str]:
    """The capabilities that this process needs for jobs of other users, and does not have."""
    with open("/proc/self/status") as status:
        effective = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))
    return [name for name, bit in _CAPABILITIES.items() if not effective >> bit & 1]


def with_processes(uids: Collection[int]) -> dict[int, list[int]]:
    """The pids of living processes by user, for those of these users that have any."""
    found: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            fd = os.open(f"/proc/{name}/status", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue  # It has ended.
        try:
            match = _STATUS.search(os.read(fd, 1024))
        except ProcessLookupError:
            continue
        finally:
            os.close(fd)
        if match is None or match[1] in b"ZX":
            continue
        for uid in {int(word) for word in match[2].split()}.intersection(uids):
            found.setdefault(uid, []).append(int(name))
    return found


def kill_processes(user: User) -> None:
    """Send SIGKILL to every process of a user. Call it as root; it forks.

    kill(2) signals all processes that the caller may signal in one step, and a process with such a signal cannot fork.
    """
    pid = os.fork()
    if pid == 0:
        try:
            _take_rights(user.uid)
            os.kill(-1, signal.SIGKILL)
        finally:
            os._exit(0)
    # Where `_NO_USER` does not exist, the processes may have stopped it. Linux has no pidfd_open(2) before 5.3.
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(pid)
        select.select([pidfd], [], [], _PATIENCE)
        os.close(pidfd)
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _take_rights(uid: int) -> None:
    """Get the user's right to send signals. Its processes get none to signal this one, nor this one any others."""
    os.setgroups([])
    try:
        os.setresuid(_NO_USER, uid, _NO_USER)
    except OSError:  # A container without that number.
        os.setresuid(uid, uid, uid)
