"""Control groups for jobs (cgroup v2), where a part of the hierarchy was delegated to the agent.

A job's group knows what no look at /proc can: who belongs to the job, whatever hides; what all of it used, ended
processes included; and it is killed in one step. Where the memory controller is delegated too, the kernel itself keeps
the job to its memory. What is delegated, and how the keeper tells, is said in docs/decisions/keeper.md.

Sources: the kernel's Documentation/admin-guide/cgroup-v2.rst, systemd's docs/CGROUP_DELEGATION.md, cgroups(7).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable

from prouter.agent.limits import Limits

__all__ = ["AUTO", "OFF", "Group", "Hierarchy", "find", "jobs_of"]

AUTO = "auto"
"""Use what is delegated, if anything is."""
OFF = "off"
"""Use none."""

_LEAF = "prouter-agent"
"""Where agent and keeper go: a group whose controllers are given to groups below it may hold no process itself."""
_JOB = "prouter-job-"
_WANTED = ("memory", "pids")
_TASKS_PER_PROCESS = 32
"""Threads count as well for pids.max: a backstop that no ordinary program meets before its processes are counted."""
_MARKS = ("user.delegate", "trusted.delegate")
"""Extended attributes by which systemd marks a delegated group."""
_ESCAPES = ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\"))

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
            _write(f"{self._path}/pids.max", str(limits.processes * _TASKS_PER_PROCESS))

    def processes(self) -> list[int]:
        """Pids of all living processes in the group and in those below it."""
        found: list[int] = []
        for directory, _, _ in os.walk(self._path):
            with contextlib.suppress(FileNotFoundError, OSError):  # Gone by now, or a threaded group without a list.
                found += map(int, _read(f"{directory}/cgroup.procs").split())
        return found

    def kill(self) -> None:
        """SIGKILL to everything in it at once. Kernels before 5.14 cannot: then nothing happens."""
        with contextlib.suppress(FileNotFoundError):
            _write(f"{self._path}/cgroup.kill", "1")

    def cpu_seconds(self) -> float | None:
        """CPU time of everything that ever ran in it; None when the kernel does not say."""
        return _field(f"{self._path}/cpu.stat", "usage_usec", 1e-6)

    def out_of_memory(self) -> bool:
        """Whether the kernel killed it for its memory."""
        return bool(_field(f"{self._path}/memory.events", "oom_kill", 1.0))

    def remove(self) -> bool:
        """Remove it, and groups that the job made below it; whether it is gone."""
        for directory, _, _ in os.walk(self._path, topdown=False):
            with contextlib.suppress(OSError):  # Whatever is left holds a process; told by what follows.
                os.rmdir(directory)
        return not os.path.exists(self._path)


class Hierarchy:
    """The part of the machine's hierarchy that is the keeper's to use.

    Args:
        path: the delegated group's directory.

    Attributes:
        controllers: those that jobs' groups have, of the wanted ones.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.controllers: frozenset[str] = frozenset()

    def prepare(self, *, move: bool, log: Log) -> None:
        """Give jobs' groups the controllers there are.

        Args:
            move: whether agent and keeper may be moved out of the way, into a group of their own.
        """
        inside = _read(f"{self.path}/cgroup.procs").split()
        if move and inside and {int(pid) for pid in inside} <= {os.getpid(), os.getppid()}:
            with contextlib.suppress(FileExistsError):
                os.mkdir(f"{self.path}/{_LEAF}")
            for pid in inside:
                _write(f"{self.path}/{_LEAF}/cgroup.procs", pid)
        there = set(_read(f"{self.path}/cgroup.controllers").split())
        given = []
        for name in _WANTED:
            if name in there:
                try:
                    _write(f"{self.path}/cgroup.subtree_control", f"+{name}")
                    given.append(name)
                except OSError as error:  # EBUSY: processes in the group itself.
                    log("info", f"event=controller_not_used controller={name} group={self.path!r} error={str(error)!r}")
        self.controllers = frozenset(given)

    def make(self, job: str, limits: Limits) -> Group:
        """A new job's group.

        Raises:
            OSError: it cannot be made.
        """
        path = f"{self.path}/{_JOB}{job}"
        os.mkdir(path)
        group = Group(path)
        try:
            group.limit(limits)
        except OSError:
            group.remove()
            raise
        return group

    def end_left_by(self, jobs: Iterable[str], *, patience: float) -> None:
        """Kill what an earlier keeper's jobs left in their groups, and remove these; blocks for `patience` seconds."""
        deadline = time.monotonic() + patience
        groups = [Group(f"{self.path}/{_JOB}{job}") for job in jobs]
        for group in groups:
            group.kill()
        while not all(group.remove() for group in groups) and time.monotonic() < deadline:
            time.sleep(0.002)


def find(setting: str, *, move: bool, log: Log) -> Hierarchy | None:
    """The hierarchy to use, ready for jobs; None for none.

    Args:
        setting: `AUTO`, `OFF`, or the directory of a group that is the agent's to use.
        move: see `Hierarchy.prepare`.
    """
    if setting == OFF:
        return None
    directory = _delegated_directory() if setting == AUTO else setting
    if directory is None:
        return None
    hierarchy = Hierarchy(directory)
    try:
        hierarchy.prepare(move=move, log=log)
    except OSError as error:
        level = "info" if setting == AUTO else "warning"
        log(level, f"event=cgroups_not_used group={directory!r} error={str(error)!r}")
        return None
    controllers = ",".join(sorted(hierarchy.controllers)) or "none"
    log("info", f"event=cgroups_used group={directory!r} controllers={controllers}")
    return hierarchy


def jobs_of(pid: int) -> list[str]:
    """The uids of the jobs whose groups the process is in or below: several where an agent is a job itself."""
    group = _group_of(pid) or ""
    return [name.removeprefix(_JOB) for name in group.split("/") if name.startswith(_JOB)]


def _group_of(pid: int) -> str | None:
    """The process's cgroup v2 path, as this process sees the hierarchy."""
    try:
        lines = _read(f"/proc/{pid}/cgroup").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return next((line[3:] for line in lines if line.startswith("0::")), None)


def _delegated_directory() -> str | None:
    """This process's own group, or the one above if that is `_LEAF`, if it is ours to divide."""
    group = _group_of(os.getpid())
    directory = _directory_of(group) if group is not None else None
    if group is None or directory is None:
        return None
    if os.path.basename(group) == _LEAF:
        group, directory = os.path.dirname(group), os.path.dirname(directory)
    return directory if _is_delegated(directory) or _is_ours(directory, group) else None


def _directory_of(group: str) -> str | None:
    """Where the cgroup v2 file system shows this group (proc(5), mountinfo)."""
    for line in _read("/proc/self/mountinfo").splitlines():
        mount, _, kind = line.partition(" - ")
        if kind.split(" ", 1)[0] != "cgroup2":
            continue
        root, point = map(_unescaped, mount.split(" ")[3:5])
        below = os.path.relpath(group, root)
        if not below.startswith(".."):
            return os.path.normpath(f"{point}/{below}")
    return None


def _unescaped(word: str) -> str:
    for written, meant in _ESCAPES:
        word = word.replace(written, meant)
    return word


def _is_delegated(directory: str) -> bool:
    """Whether systemd, or somebody by the same sign, handed the group over."""
    for name in _MARKS:
        with contextlib.suppress(OSError):
            if os.getxattr(directory, name) == b"1":
                return _is_writable(directory)
    return False


def _is_ours(directory: str, group: str) -> bool:
    """Whether the group is ours by its owner (not root's), or as the root of a container's own hierarchy."""
    if os.geteuid() != 0:
        return os.stat(directory).st_uid == os.geteuid() and _is_writable(directory)
    return group == "/" and os.path.exists(f"{directory}/cgroup.type") and _is_writable(directory)


def _is_writable(directory: str) -> bool:
    names = ("", "/cgroup.procs", "/cgroup.subtree_control")
    return all(os.access(directory + name, os.W_OK) for name in names)


def _field(path: str, name: str, unit: float) -> float | None:
    """A line ``name value`` of a flat keyed file, in `unit`; None where the file or the line is missing."""
    try:
        lines = _read(path).splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * unit for line in lines if line.startswith(f"{name} ")), None)


def _read(path: str) -> str:
    with open(path, encoding="ascii", errors="surrogateescape") as file:
        return file.read()


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode("ascii"))
    finally:
        os.close(fd)
