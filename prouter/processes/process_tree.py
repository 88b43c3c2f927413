"""Processes as /proc shows them: parents and children, what they use, and safe signals to them.

Standard library only, without threads or an event loop, because the keeper uses it and must start fast.

The kernel uses pids again, so a pid identifies a process only together with its start time. Functions that act on a
process take a `Process`, which has both. Sources: proc(5), pidfd_open(2), getrlimit(2).
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterable
from typing import NamedTuple

__all__ = [
    "MARK_VARIABLE",
    "InvalidUid",
    "Process",
    "all_processes",
    "children",
    "cpu_seconds",
    "descend",
    "effective_uid",
    "environment_mark",
    "is_exiting",
    "limit_mark",
    "mark_value",
    "pss_bytes",
    "read_process",
    "rss_bytes",
    "send",
    "with_descendants",
]

MARK_VARIABLE = "PROUTER_JOB_ID"
"""Environment variable that holds the uid of the job a process was started for."""

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

_MARK_BIT = 1 << 61
_MARK_DIGITS = 15
_HEX = frozenset("0123456789abcdef")
_PF_EXITING = 0x4


class InvalidUid(ValueError):
    """A malformed uid of a job."""


class Process(NamedTuple):
    """One process at one moment, from /proc/PID/stat.

    Attributes:
        start: clock ticks since the machine booted; with `pid` it identifies the process.
        state: one letter as in proc(5): R, S, D, T, Z…
        threads: more than 1 with state Z means that only the main thread has ended.
        ticks: clock ticks of CPU time, user and system, with those of children that it has waited for.
    """

    pid: int
    parent: int
    group: int
    session: int
    start: int
    state: str
    threads: int
    ticks: int

    @property
    def key(self) -> tuple[int, int]:
        """Pid and start time, which identify the process."""
        return self.pid, self.start

    @property
    def alive(self) -> bool:
        """Whether it can still run code: not a zombie, and not dead."""
        return self.state not in "ZX" or self.threads > 1


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.read(fd, 65536)
        if len(data) < 4096:
            return data
        parts = [data]
        while data:
            data = os.read(fd, 65536)
            parts.append(data)
        return b"".join(parts)
    finally:
        os.close(fd)


def read_process(pid: int) -> Process | None:
    """The process with this pid now, or None if there is none."""
    try:
        data = _read(f"/proc/{pid}/stat")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name is in parentheses, and may contain spaces and parentheses.
    fields = data[data.rindex(b")") + 2 :].split()
    return Process(
        pid=pid,
        parent=int(fields[1]),
        group=int(fields[2]),
        session=int(fields[3]),
        start=int(fields[19]),
        state=fields[0].decode(),
        threads=int(fields[17]),
        ticks=sum(map(int, fields[11:15])),
    )


def effective_uid(pid: int) -> int | None:
    """The effective user id of a process, also of a zombie (proc(5)); None if there is no such process.

    The owner of its directory in /proc would not do: that is root for a process that has forbidden inspection.
    """
    try:
        status = _read(f"/proc/{pid}/status")
    except (FileNotFoundError, ProcessLookupError):
        return None
    at = status.index(b"\nUid:")
    return int(status[at + 1 : status.index(b"\n", at + 1)].split()[2])


def is_exiting(pid: int) -> bool:
    """Whether a process has ended, or is ending: PF_EXITING (linux/sched.h) is set before its files are closed."""
    try:
        data = _read(f"/proc/{pid}/stat")
    except (FileNotFoundError, ProcessLookupError):
        return True
    fields = data[data.rindex(b")") + 2 :].split()
    return fields[0] in b"ZX" or bool(int(fields[6]) & _PF_EXITING)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def all_processes() -> list[Process]:
    """Every process that this process can see; takes about 10 µs for each."""
    return [process for process in map(read_process, _pids()) if process is not None]


def _has_children_files() -> bool:
    pid = os.getpid()
    return os.path.exists(f"/proc/{pid}/task/{pid}/children")


def _children_by_file(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            found += map(int, _read(f"/proc/{pid}/task/{thread}/children").split())
    except (FileNotFoundError, ProcessLookupError):
        pass  # The process or one of its threads has ended meanwhile, and its children have another parent now.
    return found


def _children_by_scan(pid: int) -> list[int]:
    return [process.pid for process in all_processes() if process.parent == pid]


children: Callable[[int], list[int]] = _children_by_file if _has_children_files() else _children_by_scan
"""Pids of a process's children, zombies included; [] if it has none or is gone.

Exact for the calling process, if single-threaded; of others a child may be missed while they fork and reap (proc(5)).
Kernels without CONFIG_PROC_CHILDREN cost a scan of /proc.
"""


def descend(roots: Iterable[int], *, most: int | None = None) -> list[Process]:
    """The processes with these pids and all their descendants, parents before their children.

    Args:
        most: stop after so many, because a tree may grow as fast as it is read.
    """
    found: list[Process] = []
    seen: set[int] = set()
    queue = list(roots)
    for pid in queue:
        process = None if pid in seen else read_process(pid)
        if process is None:
            continue
        seen.add(pid)
        found.append(process)
        if most is not None and len(found) >= most:
            break
        if process.alive:
            queue += children(pid)
    return found


def with_descendants(chosen: Callable[[Process], bool]) -> list[Process]:
    """Every process on the machine that `chosen` accepts, and all descendants of such, by one scan of /proc."""
    processes = all_processes()
    offspring: dict[int, list[Process]] = {}
    for process in processes:
        offspring.setdefault(process.parent, []).append(process)
    queue = [process for process in processes if chosen(process)]
    found = {process.key: process for process in queue}
    for process in queue:
        for child in offspring.get(process.pid, ()):
            if child.key not in found:
                found[child.key] = child
                queue.append(child)
    return list(found.values())


def mark_value(job: str) -> int:
    """The soft RLIMIT_RTTIME, in microseconds, that marks processes of this job: unique, and too large to take effect.

    Raises:
        InvalidUid: the uid is too short, or not in hex digits.
    """
    if len(job) < _MARK_DIGITS or not _HEX.issuperset(job):
        raise InvalidUid(f"a job's uid is 32 hex digits, not {job!r}")
    return _MARK_BIT | int(job[:_MARK_DIGITS], 16)


def limit_mark(pid: int) -> int | None:
    """The `mark_value` of a process; None if it is not marked."""
    try:
        soft = resource.prlimit(pid, resource.RLIMIT_RTTIME)[0]
    except ProcessLookupError:
        return None
    except PermissionError:
        soft = _limit_from_proc(pid)
    return soft if soft >= _MARK_BIT and soft < _MARK_BIT << 1 else None


def _limit_from_proc(pid: int) -> int:
    # prlimit(2) does not show the limits of a set-uid program; /proc does.
    try:
        data = _read(f"/proc/{pid}/limits")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return -1
    for line in data.splitlines():
        if line.startswith(b"Max realtime timeout"):
            soft = line[26:].split()[0]
            return int(soft) if soft.isdigit() else -1
    return -1


def environment_mark(pid: int) -> str | None:
    """The job's uid in the environment with which a process was started; None without one or the right to read it."""
    try:
        data = _read(f"/proc/{pid}/environ")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    at = (b"\0" + data).find(b"\0" + MARK_VARIABLE.encode() + b"=")
    if at < 0:
        return None
    return data[at + len(MARK_VARIABLE) + 1 :].split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def rss_bytes(pid: int) -> int:
    """Bytes of a process's resident memory; shared pages count in full. 0 if it is gone."""
    try:
        return int(_read(f"/proc/{pid}/statm").split()[1]) * PAGE_BYTES
    except (FileNotFoundError, ProcessLookupError):
        return 0


def pss_bytes(pid: int) -> int:
    """Bytes of a process's resident memory; shared pages count by their share. Much slower than `rss_bytes`.

    Without the right to read that, or support of the kernel, it is `rss_bytes`. 0 if the process is gone.
    """
    try:
        for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        pass
    return rss_bytes(pid)


def cpu_seconds(processes: Iterable[Process]) -> float:
    """CPU seconds of these processes, and of their children that have ended."""
    return sum(process.ticks for process in processes) / TICKS_PER_SECOND


def send(process: Process, signum: int) -> bool:
    """Send a signal to exactly this process.

    Returns:
        Whether it was sent. False if the process is gone, or this process has no right to signal it.
    """
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    except OSError:
        # Linux before 5.3 has no pidfds, or no descriptor is left: the pid may be another process's by now.
        return _send_by_pid(process, signum)
    try:
        now = read_process(process.pid)
        if now is None or now.start != process.start:
            return False
        signal.pidfd_send_signal(fd, signum)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(fd)
    return True


def _send_by_pid(process: Process, signum: int) -> bool:
    now = read_process(process.pid)
    if now is None or now.start != process.start:
        return False
    try:
        os.kill(process.pid, signum)
    except (ProcessLookupError, PermissionError):
        return False
    return True
