"""The part of the machine's cgroup v2 hierarchy that the agent may use.

If a group was delegated to the agent, the keeper may *divide* it: give its controllers to the groups below. Otherwise
the keeper may make groups without controllers below the agent's own, if no systemd manages the machine's groups.
docs/decisions/keeper.md has the rules and the reasons.

Sources: the kernel's Documentation/admin-guide/cgroup-v2.rst, systemd's docs/CGROUP_DELEGATION.md, proc(5), cgroups(7).
"""

from __future__ import annotations

import contextlib
import os
import re

__all__ = ["LEAF", "delegated", "group_of", "read"]

LEAF = "prouter-agent"
"""Group for agent and keeper: a group that gives controllers to groups below may have no process itself."""

_MARKS = ("user.delegate", "trusted.delegate")
"""Extended attributes by which systemd marks a delegated group."""
_USER_MANAGER = re.compile(r"/user@[0-9]+\.service/")
"""All groups below this belong to a user, and are managed by that user's systemd."""
_BOOTED = "/run/systemd/system"
"""Exists if systemd manages the machine (sd_booted(3))."""
_ESCAPES = ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\"))


def delegated() -> tuple[str | None, bool]:
    """The directory of the group for jobs' groups, None if there is none; and whether it may be divided.

    It is this process's own group, or the one above if its own is `LEAF`.
    """
    group = group_of(os.getpid())
    directory = _directory_of(group) if group is not None else None
    if group is None or directory is None:
        return None, False
    if os.path.basename(group) == LEAF:
        group, directory = os.path.dirname(group), os.path.dirname(directory)
    if not _is_writable(directory):
        return None, False
    if _is_marked(directory) or _is_ours(directory, group):
        return directory, True
    unmanaged = os.geteuid() == 0 and not os.path.isdir(_BOOTED)
    return directory if unmanaged else None, False


def group_of(pid: int) -> str | None:
    """The cgroup v2 path of a process, as this process sees the hierarchy."""
    try:
        lines = read(f"/proc/{pid}/cgroup").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return next((line[3:] for line in lines if line.startswith("0::")), None)


def read(path: str) -> str:
    """The text of a small file."""
    with open(path, encoding="ascii", errors="surrogateescape") as file:
        return file.read()


def _directory_of(group: str) -> str | None:
    """The directory of a group in the cgroup v2 file system (proc(5), mountinfo)."""
    for line in read("/proc/self/mountinfo").splitlines():
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


def _is_marked(directory: str) -> bool:
    """Whether systemd, or another program with the same mark, has delegated the group."""
    for name in _MARKS:
        with contextlib.suppress(OSError):
            if os.getxattr(directory, name) == b"1":
                return True
    return False


def _is_ours(directory: str, group: str) -> bool:
    """Whether this user (not root) owns the group, or it is the root of a container's own hierarchy."""
    if os.geteuid() != 0:
        return os.stat(directory).st_uid == os.geteuid() and _USER_MANAGER.search(f"{group}/") is None
    return group == "/" and os.path.exists(
        f"{directory}/cgroup.type"
    )  # The root of the machine's hierarchy has no such file.


def _is_writable(directory: str) -> bool:
    names = ("", "/cgroup.procs", "/cgroup.subtree_control")
    return all(os.access(directory + name, os.W_OK) for name in names)
