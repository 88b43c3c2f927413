"""Listening sockets of a set of processes: how the agent finds the server of a job that does not report its port.

It looks at the network namespace of the calling process, because it can connect to these sockets only. Sources:
sock_diag(7), or where that is not available proc_net(5); proc(5).
"""

from __future__ import annotations

import logging
import os
import socket
import struct
from collections.abc import Iterable, Iterator

from prouter.runners.local import sock_diag
from prouter.runners.sockets import Listener, Sockets

__all__ = ["listening", "survey"]

_TCP_LISTEN = b"0A"
_UNIX_ACCEPTS = 1 << 16
_UNIX_STREAM = 1

_has_sock_diag = True
"""Whether netlink has worked so far; otherwise /proc is read, which is slower."""

_log = logging.getLogger("prouter.agent")


def listening(pids: Iterable[int]) -> list[Listener]:
    """Return the sockets on which these processes listen: `Sockets.own`."""
    return survey(pids).own


def survey(pids: Iterable[int]) -> Sockets:
    """Return the listening sockets of these processes, and of everybody else."""
    members = list(pids)
    owners, hidden = _holders(members)
    others = _holders(set(_all_pids()).difference(members))[0] if hidden else {}
    own: list[Listener] = []
    foreign: list[Listener] = []
    for family, version in (("ipv4", socket.AF_INET), ("ipv6", socket.AF_INET6)):
        for host, port, inode, uid in _tcp(version):
            owner = owners.get(inode, 0)
            holder = owner or others.get(inode, 0)
            (own if owner else foreign).append(Listener(family, host, port, holder, inode, uid))
    if owners:
        own += [Listener("unix", path, 0, owners[inode], inode) for path, inode in _unix() if inode in owners]
    uids = frozenset(uid for pid in hidden for uid in _acting_uids(pid))
    return Sockets(own, foreign, hidden, uids, frozenset(members), owners.keys())


def _holders(pids: Iterable[int]) -> tuple[dict[int, int], list[int]]:
    """Return a holder for the inode of each socket of these processes, and the processes that may not be looked at."""
    holders: dict[int, int] = {}
    hidden: list[int] = []
    for pid in pids:
        try:
            for inode in _socket_inodes(pid):
                holders.setdefault(inode, pid)
        except PermissionError:
            hidden.append(pid)
    return holders, hidden


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _acting_uids(pid: int) -> list[int]:
    """Return the effective, saved and file system user ids of a process, as which it may have made sockets."""
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            line = next((line for line in status if line.startswith(b"Uid:")), b"")
    except OSError:
        return []
    return [int(word) for word in line.split()[2:]]


def _socket_inodes(pid: int) -> Iterator[int]:
    directory = f"/proc/{pid}/fd"
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, ProcessLookupError):
        return
    for name in names:
        try:
            target = os.readlink(f"{directory}/{name}")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # Closed meanwhile, or the process now runs as another user.
        if target.startswith("socket:["):
            yield int(target[8:-1])


def _tcp(version: socket.AddressFamily) -> list[tuple[str, int, int, int]]:
    global _has_sock_diag
    if _has_sock_diag:
        try:
            return list(sock_diag.listening(version))
        except OSError as error:
            _has_sock_diag = False
            _log.info("event=no_sock_diag error=%r", str(error))
    return list(_tcp_of_proc(version))


def _tcp_of_proc(version: socket.AddressFamily) -> Iterator[tuple[str, int, int, int]]:
    path = "/proc/self/net/tcp" if version is socket.AF_INET else "/proc/self/net/tcp6"
    if not os.path.exists(path):
        return  # A kernel without IPv6.
    with open(path, "rb") as table:
        next(table, None)
        for line in table:
            fields = line.split()
            if fields[3] != _TCP_LISTEN:
                return  # The kernel lists all listening sockets before the connections, which may be very many.
            address, port = fields[1].split(b":")
            # Each 32-bit word of the address is printed as a number in the machine's byte order.
            words = [int(address[at : at + 8], 16) for at in range(0, len(address), 8)]
            host = socket.inet_ntop(version, struct.pack(f"={len(words)}I", *words))
            yield host, int(port, 16), int(fields[9]), int(fields[7])


def _unix() -> Iterator[tuple[str, int]]:
    with open("/proc/self/net/unix", "rb") as table:
        next(table, None)
        for line in table:
            fields = line.rstrip(b"\n").split(None, 7)
            if len(fields) == 8 and int(fields[3], 16) & _UNIX_ACCEPTS and int(fields[4], 16) == _UNIX_STREAM:
                yield os.fsdecode(fields[7]), int(fields[6])
