"""The end of a test cluster: a process that waits until its stdin closes, then ends all that the cluster started.

It is a process of its own, so that nothing is left of a cluster whose test was killed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

__all__ = ["MARK", "clean_up"]

MARK = "PROUTER_TEST_SLURM"
"""Variable in the environment of every daemon; slurmstepd inherits it. Its value is the cluster's directory."""
_CONTROLLER = b"slurmctld\0"
_PATIENCE = 20.0


def clean_up(root: Path) -> None:
    """Kill the controller, so that nothing is started any more, then all other processes; delete the files."""
    for pid in _processes(root):
        if _command(pid).startswith(_CONTROLLER):
            _kill(pid)
    deadline = time.monotonic() + _PATIENCE
    while (left := _processes(root)) and time.monotonic() < deadline:
        for pid in left:
            _kill(pid)
        time.sleep(0.02)
    shutil.rmtree(root, ignore_errors=True)


def _processes(root: Path) -> set[int]:
    """Daemons, and all processes of jobs: those that descend from daemons, and those whose environment names the
    cluster's directory."""
    mark = os.fsencode(root) + b"/"
    parents: dict[int, int] = {}
    found: set[int] = set()
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            status = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            environment = Path(f"/proc/{name}/environ").read_bytes()
        except (OSError, UnicodeDecodeError):
            continue
        if status[0] in "ZX":
            continue
        parents[int(name)] = int(status[1])
        ours = f"{MARK}={root}".encode() in environment.split(b"\0")
        in_job = mark in environment and b"SLURM_JOB_ID=" in environment
        if ours or in_job:
            found.add(int(name))
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rpartition(b"/")[2]
    except OSError:
        return b""


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    sys.stdin.buffer.read()
    clean_up(Path(sys.argv[1]))
