"""A job that tries what it must not: given what it may know of another job, it prints what it could do, as JSON."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

known = json.loads(sys.argv[1])
reached: list[str] = []
libc = ctypes.CDLL(None, use_errno=True)

PTRACE_SEIZE = 16906
MNT_DETACH = 2
CLONE_NEWNS = 0x20000


def attempt(name: str, action: Callable[..., Any], *arguments: Any) -> None:
    """Note the name if the action neither fails nor returns False."""
    try:
        if action(*arguments) is not False:
            reached.append(name)
    except (OSError, ValueError):
        pass


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(100)


def append(path: str) -> None:
    with open(path, "ab"):
        pass


def connect(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(path)


def call(name: str, *arguments: Any) -> bool:
    return bool(getattr(libc, name)(*arguments) >= 0)


def reads_memory(pid: int) -> bool:
    class Piece(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]

    buffer = ctypes.create_string_buffer(8)
    with open("/proc/self/maps") as maps:
        address = int(maps.read().partition("-")[0], 16)
    local, remote = Piece(ctypes.addressof(buffer), 8), Piece(address, 8)
    # Another program may have nothing at this address; the right to look is what counts.
    done = libc.process_vm_readv(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
    return bool(done >= 0 or ctypes.get_errno() == 14)


def become_by(program: str) -> bool:
    return subprocess.run([program, "-c", "true"], stdin=subprocess.DEVNULL, capture_output=True).returncode == 0


for path in known["files"]:
    attempt(f"read {path}", read, path)
    attempt(f"write {path}", append, path)
for path in known["directories"]:
    attempt(f"list {path}", os.listdir, path)
    attempt(f"make in {path}", append, f"{path}/planted")
for path in known["sockets"]:
    attempt(f"connect {path}", connect, path)
for pid in known["pids"]:
    for name in ("environ", "mem", "maps", "auxv", "stack", "syscall"):
        attempt(f"{name} of {pid}", read, f"/proc/{pid}/{name}")
    for name in ("fd", "root", "cwd", "map_files"):
        attempt(f"{name} of {pid}", os.listdir, f"/proc/{pid}/{name}")
    attempt(f"trace {pid}", call, "ptrace", PTRACE_SEIZE, pid, None, None)
    attempt(f"signal {pid}", os.kill, pid, 0)
    attempt(f"limit {pid}", call, "prlimit", pid, 7, None, ctypes.create_string_buffer(16))
    attempt(f"memory of {pid}", reads_memory, pid)
attempt("list neighbours", os.listdir, "..")
attempt("make a neighbour", os.mkdir, "../planted")
attempt("move the sandbox", os.rename, os.getcwd(), f"{os.getcwd()}.moved")
attempt("become root", os.setuid, 0)
attempt("change group", os.setgid, 0)
attempt("join a group", os.setgroups, [0])
attempt("change root", os.chroot, "/")
attempt("make a device", os.mknod, "device", 0o20666, os.makedev(1, 3))
attempt("give a file away", os.chown, ".pagent.tmp", 0, 0)
attempt("link to a file of others", os.link, "/etc/shadow", "shadow")
attempt("mount", call, "mount", b"tmpfs", b"/mnt", b"tmpfs", 0, None)
attempt("unmount", call, "umount2", b"/tmp", MNT_DETACH)
attempt("enter the machine's mounts", call, "setns", os.open("/proc/1", os.O_PATH), CLONE_NEWNS)
attempt("su", become_by, "su")

with open("/proc/self/status") as status:
    lines = dict(line.split(":\t", 1) for line in status.read().splitlines() if ":\t" in line)
about = {
    "uids": sorted(set(lines["Uid"].split())),
    "gids": sorted(set(lines["Gid"].split())),
    "groups": lines["Groups"].split(),
    "no_new_privs": lines["NoNewPrivs"],
    "capabilities": [lines[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")],
    "umask": lines["Umask"],
    "tmp": sorted(os.listdir("/tmp")),
    "memory": sorted(os.listdir("/dev/shm")),
    "environment": dict(os.environ),
}
print(json.dumps({"reached": reached, "about": about}))
