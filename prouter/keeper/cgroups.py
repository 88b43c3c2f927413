"""Control groups for jobs (cgroup v2), on machines where a part of the hierarchy is delegated to the agent.

A job's group knows all processes of the job, whatever they do to hide, and what they have used, ended ones included. It
can be killed in one step. If the memory controller is delegated, the kernel itself enforces the memory limit.
`prouter.keeper.delegation` finds the part of the hierarchy that may be used.

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
"""Use what is delegated to the agent, if anything is."""
OFF = "off"
"""Use no control groups."""

_JOB = "prouter-job-"
_TRIAL = "prouter-trial-"
_WANTED = ("memory", "pids")
_TASKS = 1024
_TASKS_PER_PROCESS = 32
"""Threads count as well for pids.max, and a process may have one per core in each of several pools: a backstop that no
ordinary program meets before its processes are counted.
"""
_PATIENCE = 0.1
"""Seconds until a group is empty after its last process was reaped, which newer kernels do with a delay."""

Log = Callable[[str, str], None]


class Group:
    """One job's control group.

    Attributes:
        procs: the file through which a process enters the group.
        holds_memory: whether the kernel enforces the job's memory limit.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.procs = f"{path}/cgroup.procs"
        self.holds_memory = False

    def limit(self, limits: Limits) -> None:
        """Have the kernel enforce the limits that it can enforce.

        Raises:
            OSError: it refuses.
        """
        if limits.memory is not None and os.path.exists(f"{self._path}/memory.max"):
            with contextlib.suppress(FileNotFoundError):  # The kernel has no swap.
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
            with contextlib.suppress(OSError):  # The group is gone, or a threaded one, which has no list.
                found += map(int, read(f"{directory}/cgroup.procs").split())
        return found

    def kill(self) -> None:
        """Send SIGKILL to all processes of the group in one step.

        Nothing happens before Linux 5.14, or if the job has made its group a threaded one.
        """
        with contextlib.suppress(OSError):
            _write(f"{self._path}/cgroup.kill", "1")

    def thaw(self) -> None:
        """Thaw the group, and groups that the job made below it (cgroup.freeze)."""
        for directory, _, _ in os.walk(self._path):
            with contextlib.suppress(OSError):  # The group is gone, or Linux is older than 5.2 and cannot freeze it.
                if read(f"{directory}/cgroup.freeze").strip() == "1":
                    _write(f"{directory}/cgroup.freeze", "0")

    def cpu_seconds(self) -> float | None:
        """CPU seconds of every process that ever ran in the group; None if the kernel does not tell."""
        return _field(f"{self._path}/cpu.stat", "usage_usec", 1e-6)

    def out_of_memory(self) -> bool:
        """Whether the kernel killed a process of the group for lack of memory."""
        return bool(_field(f"{self._path}/memory.events", "oom_kill", 1.0))

    def remove(self, *, patience: float = _PATIENCE) -> bool:
        """Remove the group, and groups that the job made below it; return whether it is gone.

        Args:
            patience: seconds for which it is tried.
        """
        deadline = time.monotonic() + patience
        while not self._removed():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        return True

    def _removed(self) -> bool:
        for directory, _, _ in os.walk(self._path, topdown=False):
            with contextlib.suppress(OSError):  # A group that is left still has a process, which the next lines find.
                os.rmdir(directory)
        return not os.path.exists(self._path)


class Hierarchy:
    """The part of the machine's hierarchy that the keeper may use.

    Args:
        path: the directory of the group below which jobs get theirs.

    Attributes:
        controllers: the wanted controllers that jobs' groups have.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.controllers: frozenset[str] = frozenset()
        self._given: list[str] = []

    def prepare(self, *, divide: bool, move: bool, log: Log) -> None:
        """Check that jobs can have groups here, and give those groups controllers.

        Args:
            divide: whether the keeper may give controllers to the groups below. If not, jobs have those given already.
            move: whether agent and keeper may be moved into a group of their own for that.

        Raises:
            OSError: no group can be made here, or no process can enter it.
        """
        there = read(f"{self.path}/cgroup.controllers").split()
        self._try()
        if divide:
            self._give([name for name in _WANTED if name in there], move=move, log=log)
        self.controllers = frozenset(_WANTED) & frozenset(read(f"{self.path}/cgroup.subtree_control").split())

    def _try(self) -> None:
        """Check that a process can enter a group here, which also takes rights on the group that it leaves."""
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
            given = []  # An earlier keeper gave them, so this one takes them back.
        for name in names:
            if name in given:
                continue
            try:
                _write(f"{self.path}/cgroup.subtree_control", f"+{name}")
                self._given.append(name)
            except OSError as error:  # EBUSY: there are processes in the group itself.
                log("info", f"event=controller_not_used controller={name} group={self.path!r} error={str(error)!r}")

    def give_back(self) -> None:
        """Take the controllers from the groups below, because no process can be started in a group that gives any.

        Otherwise systemd could not start the next agent while this keeper still ends the jobs of the last one.
        """
        for name in self._given:
            with contextlib.suppress(OSError):  # A group further below uses the controller, or the group is gone.
                _write(f"{self.path}/cgroup.subtree_control", f"-{name}")

    def where(self, job: str) -> str:
        """The directory of a job's group."""
        return f"{self.path}/{_JOB}{job}"

    def make(self, job: str, limits: Limits) -> Group:
        """Make the group of a new job.

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
    """Kill what an earlier keeper's jobs left in their groups, and remove the groups.

    Args:
        directories: of the groups, from the journal.
        patience: seconds for which this blocks at most.
    """
    deadline = time.monotonic() + patience
    groups = [Group(path) for path in directories if os.path.basename(path).startswith(_JOB)]
    for group in groups:
        group.kill()
    for group in groups:
        group.remove(patience=max(0.0, deadline - time.monotonic()))


def find(setting: str, *, move: bool, log: Log) -> Hierarchy | None:
    """The hierarchy for jobs' groups; None if there is none.

    Args:
        setting: `AUTO`, `OFF`, or the directory of a group that the agent may use.
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
    """Uids of the jobs whose groups a process is in or below. There are several if an agent is itself a job."""
    group = group_of(pid) or ""
    return [name.removeprefix(_JOB) for name in group.split("/") if name.startswith(_JOB)]


def _field(path: str, name: str, unit: float) -> float | None:
    """The value of a line ``name value`` in a flat keyed file, in `unit`; None if file or line is missing."""
    try:
        lines = read(path).splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * unit for line in lines if line.startswith(f"{name} ")), None)


def _enter_and_exit(procs: str) -> NoReturn:
    """In a forked child: enter a group and exit; the exit code is the number of the error."""
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
