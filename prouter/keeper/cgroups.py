"""Control groups for jobs (cgroup v2), where a part of the hierarchy was delegated to the agent.

A job's group knows what no look at /proc can: who belongs to the job, whatever hides; what all of it used, ended
processes included; and it is killed in one step. Where the memory controller is delegated too, the kernel itself keeps
the job to its memory. Which part of the hierarchy that is: `prouter.keeper.delegation`.

Sources: the kernel's Documentation/admin-guide/cgroup-v2.rst, systemd's docs/CGROUP_DELEGATION.md, cgroups(7).
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterable
from typing import NoReturn

from prouter.keeper.delegation import LEAF, delegated, group_of, read
from prouter.processes.limits import Limits

__all__ = ["AUTO", "OFF", "Group", "Hierarchy", "end_left", "find", "jobs_of"]

AUTO = "auto"
"""Use what is delegated, if anything is."""
OFF = "off"
"""Use none."""

_JOB = "prouter-job-"
_TRIAL = "prouter-trial-"
_WANTED = ("memory", "pids")
_TASKS = 1024
_TASKS_PER_PROCESS = 32
"""Threads count as well for pids.max, and a process may have one per core in each of several pools: a backstop that no
ordinary program meets before its processes are counted.
"""
_PATIENCE = 0.1
"""Seconds until a group is empty whose last process was awaited: newer kernels let it leave after its parent knows."""

Log = Callable[[str, str], None]


class Group:
    """One job's control group.

    Attributes:
        procs: the file a process enters the group by.
        holds_memory: whether the kernel keeps the job to its limit of memory.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.procs = f"{path}/cgroup.procs"
        self.holds_memory = False

    def limit(self, limits: Limits) -> None:
        """Have the kernel hold what it can hold.

        Raises:
            OSError: it refuses.
        """
        if limits.memory is not None and os.path.exists(f"{self._path}/memory.max"):
            with contextlib.suppress(FileNotFoundError):  # A kernel without swap.
                _write(f"{self._path}/memory.swap.max", "0")
            _write(f"{self._path}/memory.oom.group", "1")
            _write(f"{self._path}/memory.max", str(limits.memory))
            self.holds_memory = True
        if limits.processes is not None and os.path.exists(f"{self._path}/pids.max"):
            _write(f"{self._path}/pids.max", str(_TASKS + limits.processes * _TASKS_PER_PROCESS))

    def processes(self) -> list[int]:
        """Pids of all living processes in the group and in those below it."""
        found: list[int] = []
        for directory, _, _ in os.walk(self._path):
            with contextlib.suppress(OSError):  # Gone by now, or a threaded group, which has no list.
                found += map(int, read(f"{directory}/cgroup.procs").split())
        return found

    def kill(self) -> None:
        """SIGKILL to everything in it at once.

        Nothing happens where that cannot be: before Linux 5.14, or in a group that the job itself made a threaded one.
        """
        with contextlib.suppress(OSError):
            _write(f"{self._path}/cgroup.kill", "1")

    def thaw(self) -> None:
        """Let it run on if somebody has frozen it, or a group that the job made below it (cgroup.freeze)."""
        for directory, _, _ in os.walk(self._path):
            with contextlib.suppress(OSError):  # Gone by now, or a kernel before 5.2: nothing is frozen there.
                if read(f"{directory}/cgroup.freeze").strip() == "1":
                    _write(f"{directory}/cgroup.freeze", "0")

    def cpu_seconds(self) -> float | None:
        """CPU time of everything that ever ran in it; None when the kernel does not say."""
        return _field(f"{self._path}/cpu.stat", "usage_usec", 1e-6)

    def out_of_memory(self) -> bool:
        """Whether the kernel killed it for its memory."""
        return bool(_field(f"{self._path}/memory.events", "oom_kill", 1.0))

    def remove(self, *, patience: float = _PATIENCE) -> bool:
        """Remove it, and groups that the job made below it, trying for `patience` seconds; whether it is gone."""
        deadline = time.monotonic() + patience
        while not self._removed():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        return True

    def _removed(self) -> bool:
        for directory, _, _ in os.walk(self._path, topdown=False):
            with contextlib.suppress(OSError):  # Whatever is left holds a process; told by what follows.
                os.rmdir(directory)
        return not os.path.exists(self._path)


class Hierarchy:
    """The part of the machine's hierarchy that is the keeper's to use.

    Args:
        path: the directory of the group below which jobs get theirs.

    Attributes:
        controllers: those that jobs' groups have, of the wanted ones.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.controllers: frozenset[str] = frozenset()
        self._given: list[str] = []

    def prepare(self, *, divide: bool, move: bool, log: Log) -> None:
        """Make sure that jobs can have groups here, with the controllers there are.

        Args:
            divide: whether controllers may be given to the groups below; without, jobs get those that somebody gave.
            move: whether agent and keeper may be moved out of the way for that, into a group of their own.

        Raises:
            OSError: no groups can be made here, or no processes put into them.
        """
        there = read(f"{self.path}/cgroup.controllers").split()
        self._try()
        if divide:
            self._give([name for name in _WANTED if name in there], move=move, log=log)
        self.controllers = frozenset(_WANTED) & frozenset(read(f"{self.path}/cgroup.subtree_control").split())

    def _try(self) -> None:
        """See whether a process can enter a group here: that takes rights over the groups it comes from as well."""
        trial = Group(f"{self.path}/{_TRIAL}{os.getpid()}")
        os.mkdir(os.path.dirname(trial.procs))
        try:
            child = os.fork()
            if child == 0:
                _enter_and_exit(trial.procs)
            number = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        finally:
            trial.remove()
        if number != 0:
            raise OSError(number, os.strerror(number), trial.procs)

    def _give(self, names: list[str], *, move: bool, log: Log) -> None:
        inside = read(f"{self.path}/cgroup.procs").split()
        if names and move and inside and {int(pid) for pid in inside} <= {os.getpid(), os.getppid()}:
            with contextlib.suppress(FileExistsError):
                os.mkdir(f"{self.path}/{LEAF}")
            for pid in inside:
                _write(f"{self.path}/{LEAF}/cgroup.procs", pid)
        given = read(f"{self.path}/cgroup.subtree_control").split()
        if os.path.basename(group_of(os.getpid()) or "") == LEAF:
            given = []  # By an earlier keeper: ours to take back.
        for name in names:
            if name in given:
                continue
            try:
                _write(f"{self.path}/cgroup.subtree_control", f"+{name}")
                self._given.append(name)
            except OSError as error:  # EBUSY: processes in the group itself.
                log("info", f"event=controller_not_used controller={name} group={self.path!r} error={str(error)!r}")

    def give_back(self) -> None:
        """Take the controllers from the groups below: nothing can be started in a group that gives any.

        So a service manager could not start the next agent while this keeper still ends the last one's jobs.
        """
        for name in self._given:
            with contextlib.suppress(OSError):  # Somebody made use of it further below, or all of it is gone.
                _write(f"{self.path}/cgroup.subtree_control", f"-{name}")

    def where(self, job: str) -> str:
        """The directory of a job's group."""
        return f"{self.path}/{_JOB}{job}"

    def make(self, job: str, limits: Limits) -> Group:
        """A new job's group.

        Raises:
            OSError: it cannot be made.
        """
        path = self.where(job)
        os.mkdir(path)
        group = Group(path)
        try:
            group.limit(limits)
        except OSError:
            group.remove()
            raise
        return group


def end_left(directories: Iterable[str], *, patience: float) -> None:
    """Kill what an earlier keeper's jobs left in their groups, and remove these; blocks for `patience` seconds at most.

    Args:
        directories: of the groups, as that keeper wrote them down.
    """
    deadline = time.monotonic() + patience
    groups = [Group(path) for path in directories if os.path.basename(path).startswith(_JOB)]
    for group in groups:
        group.kill()
    for group in groups:
        group.remove(patience=max(0.0, deadline - time.monotonic()))


def find(setting: str, *, move: bool, log: Log) -> Hierarchy | None:
    """The hierarchy to use, ready for jobs; None for none.

    Args:
        setting: `AUTO`, `OFF`, or the directory of a group that is the agent's to use.
        move: see `Hierarchy.prepare`.
    """
    if setting == OFF:
        return None
    directory, divide = delegated() if setting == AUTO else (setting, True)
    if directory is None:
        return None
    hierarchy = Hierarchy(directory)
    try:
        hierarchy.prepare(divide=divide, move=move, log=log)
    except OSError as error:
        level = "info" if setting == AUTO else "warning"
        log(level, f"event=cgroups_not_used group={directory!r} error={str(error)!r}")
        return None
    controllers = ",".join(sorted(hierarchy.controllers)) or "none"
    log("info", f"event=cgroups_used group={directory!r} controllers={controllers}")
    return hierarchy


def jobs_of(pid: int) -> list[str]:
    """The uids of the jobs whose groups the process is in or below: several where an agent is a job itself."""
    group = group_of(pid) or ""
    return [name.removeprefix(_JOB) for name in group.split("/") if name.startswith(_JOB)]


def _field(path: str, name: str, unit: float) -> float | None:
    """A line ``name value`` of a flat keyed file, in `unit`; None where the file or the line is missing."""
    try:
        lines = read(path).splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * unit for line in lines if line.startswith(f"{name} ")), None)


def _enter_and_exit(procs: str) -> NoReturn:
    """In a child: enter a group and end; the exit code is the error's number."""
    number = errno.EIO
    try:
        _write(procs, "0")
        number = 0
    except OSError as error:
        number = error.errno or number
    finally:
        os._exit(number)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode("ascii"))
    finally:
        os.close(fd)
