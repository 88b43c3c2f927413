"""Processes under measurement: finding them, their CPU time and memory, and ending them.

A stack's processes carry the stack's mark in their environment or the stack's directory in their command line, or
descend from one that does.
Times are CPU seconds (user and system, all threads, ended ones included), sizes bytes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["MARK", "Process", "Usage", "busy_seconds", "end", "find", "peak_reset", "usage"]

MARK = "PROUTER_BENCH_STACK"
TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Process:
    """One process, identified by pid and start time, with its role (``broker``, ``worker 1``, ``job`` …)."""

    pid: int
    started: int
    role: str


@dataclass(frozen=True)
class Usage:
    """CPU time of a process so far, and its peak resident memory since `peak_reset`."""

    cpu: float
    resident: int
    peak: int
    descriptors: int


def stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat from the third on (state, ppid, …), or None if the process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def read(pid: int, name: str) -> bytes:
    """Read a file of /proc/PID; it is empty if the process has ended."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def find(mark: str, directory: Path) -> list[Process]:
    """Return all live processes of the stack with this mark and directory; roles that several share are numbered."""
    needle, place = f"{MARK}={mark}".encode(), os.fsencode(directory)
    everything = {
        int(entry): fields for entry in os.listdir("/proc") if entry.isdigit() and (fields := stat(int(entry)))
    }
    commands = {pid: read(pid, "cmdline") for pid, fields in everything.items() if fields[0] not in "ZX"}
    ours = {pid for pid in commands if needle in read(pid, "environ").split(b"\0") or place in commands[pid]}
    ours.discard(os.getpid())
    fresh = ours
    while fresh:
        fresh = {pid for pid in commands if int(everything[pid][1]) in fresh} - ours
        ours |= fresh
    found = [(pid, int(everything[pid][19]), role(commands[pid], int(everything[pid][1]))) for pid in ours]
    return _number(sorted(found, key=lambda one: (one[1], one[0])))


def _number(found: list[tuple[int, int, str]]) -> list[Process]:
    roles = [name for _, _, name in found]
    processes = []
    for index, (pid, started, name) in enumerate(found):
        nth = f" {roles[: index + 1].count(name)}" if roles.count(name) > 1 else ""
        processes.append(Process(pid, started, name + nth))
    return processes


def role(command: bytes, parent: int) -> str:
    """Return the role of a process, by its command line and its parent's."""
    words = command.replace(b"\0", b" ").decode(errors="replace")
    if "nginx" in words:
        return "nginx worker" if "worker process" in words else "nginx master"
    if "configurable-http-proxy" in words:
        return "node"
    if "gunicorn" in words:
        return "worker" if b"gunicorn" in read(parent, "cmdline") else "gunicorn"
    if "tests/jobs/" in words:
        return "job"
    if "keeper" in words:
        return "keeper"
    for name in ("broker", "agent", "up"):
        if f"prouter {name}" in words:
            return "supervisor" if name == "up" else name
    return "job"


def usage(process: Process) -> Usage | None:
    """Return what a process has used; None if it has ended."""
    fields = stat(process.pid)
    if fields is None or int(fields[19]) != process.started:
        return None
    status = dict(line.split(":", 1) for line in read(process.pid, "status").decode().splitlines() if ":" in line)
    try:
        descriptors = len(os.listdir(f"/proc/{process.pid}/fd"))
    except OSError:
        return None
    return Usage(
        cpu=(int(fields[11]) + int(fields[12])) / TICK,
        resident=int(status.get("VmRSS", "0 kB").split()[0]) * 1024,
        peak=int(status.get("VmHWM", "0 kB").split()[0]) * 1024,
        descriptors=descriptors,
    )


def peak_reset(process: Process) -> None:
    """Reset the peak to what is resident now (proc(5), clear_refs)."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")


def busy_seconds() -> float:
    """Return the seconds for which all CPUs of this machine were busy since it started."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICK


def end(mark: str, directory: Path, grace: float) -> None:
    """End all processes of a stack: TERM, and KILL after `grace` seconds."""
    for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
        deadline = time.monotonic() + patience
        for process in find(mark, directory):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)
        while find(mark, directory) and time.monotonic() < deadline:
            time.sleep(0.05)
