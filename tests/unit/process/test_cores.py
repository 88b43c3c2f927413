"""What other processes of the same user may learn of a process that forbids inspection."""

from __future__ import annotations

import ctypes
import os

from prouter.process.cores import forbid_inspection
from tests.support.unprivileged import as_ordinary_user

_PR_SET_DUMPABLE = 4


def _readable(pid: int) -> list[str]:
    """The private files of a process in /proc that this process may open."""
    found = []
    for name in ("environ", "fd", "maps", "mem"):
        try:
            os.close(os.open(f"/proc/{pid}/{name}", os.O_RDONLY))
        except PermissionError:
            continue
        found.append(name)
    return found


def _readable_for_child() -> list[str]:
    inspected = os.getpid()
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, ",".join(_readable(inspected)).encode())
        os._exit(0)
    os.wait()
    os.close(write)
    return os.read(read, 1000).decode().split(",")


def test_a_process_of_the_same_user_reads_nothing() -> None:
    def work() -> None:
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)  # A change of user has switched it off.
        assert "environ" in _readable_for_child()
        forbid_inspection()
        assert _readable_for_child() == [""]
        assert os.listdir("/proc/self/fd"), "it still sees itself"

    as_ordinary_user(work)
