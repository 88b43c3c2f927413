"""Addresses that lead to a job's own listeners; the agent connects to no others for the job.

A port alone does not identify a listener, because another program may have the same port of another address: a job that
listens on ``[::]:8889`` for IPv6 only does not own ``127.0.0.1:8889``. The kernel gives a connection to the listener
with the most specific address. A listener for all IPv6 addresses also gets IPv4 connections that no IPv4 listener takes
(ip(7), ipv6(7)).

Several programs of one user may share an address (SO_REUSEPORT in socket(7)); then each connection goes to any of them,
so the address counts as nobody's.

The agent sees neither sockets in another network namespace, which it could not reach, nor those of a process that it
may not examine (`Sockets.hidden`). It accepts a port that it chose itself for such a process if the socket was made by
a user as which that process acts, and nobody else is known to hold it; but not a port that the job reports, which could
be anybody's.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import NamedTuple

from prouter.errors import NotFound
from prouter.processes.process_tree import read_process
from prouter.runners.sockets import Address, Listener, Sockets

__all__ = [
    "Peer",
    "addresses",
    "all_addresses",
    "is_peer",
    "leads_to",
    "loopback",
    "loopback_addresses",
    "loopback_ports",
    "no_such_port",
    "peer_of",
    "refusal",
]

_ANY = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
_LOOPBACK = ("127.0.0.1", "::1")
_SHOWN = 10
"""Ports that an error text names, at most."""
_CREDENTIALS = struct.Struct("iII")
"""struct ucred: pid, uid, gid (unix(7))."""


class Peer(NamedTuple):
    """The process that listens at a unix socket.

    Attributes:
        pid: the process that called listen(2), 0 if it is not visible from here.
        uid: its user.
        name: the path or abstract name to which it bound the socket, which differs from the path that was connected to
            if that is a link.
    """

    pid: int
    uid: int
    name: str


def loopback(port: int) -> list[Address]:
    """Return the port's two loopback addresses."""
    return [Address(host, port) for host in _LOOPBACK]


def addresses(port: int, sockets: Sockets) -> list[Address]:
    """Return the addresses with this port that reach the job, IPv4 before IPv6."""
    found = [address for one in sockets.own if one.port == port for address in _reached(one, sockets.foreign)]
    return sorted(dict.fromkeys(found), key=lambda address: ":" in address.host)


def all_addresses(sockets: Sockets) -> list[Address]:
    """Return all addresses that reach the job, lower ports first."""
    ports = sorted({one.port for one in sockets.own if one.family != "unix"})
    return [address for port in ports for address in addresses(port, sockets)]


def loopback_addresses(port: int, sockets: Sockets) -> list[Address]:
    """Return those of the `addresses` that only this machine can connect to."""
    return [address for address in addresses(port, sockets) if _is_loopback(address.host)]


def loopback_ports(sockets: Sockets) -> list[int]:
    """Return the ports of all loopback addresses that reach the job, in order."""
    return sorted({address.port for address in all_addresses(sockets) if _is_loopback(address.host)})


def leads_to(address: Address, sockets: Sockets, *, assigned: bool = False) -> frozenset[int]:
    """Return the inodes of the job's sockets that get connections to a TCP address; none if others may get them.

    Args:
        assigned: whether the agent chose the port for the job.
    """
    if address in addresses(address.port, sockets):
        return frozenset(one.inode for one in sockets.own if one.port == address.port)
    if not assigned or any(one.port == address.port for one in sockets.own):
        return frozenset()
    there = [one for one in sockets.foreign if one.port == address.port]
    if any(one.pid or one.uid not in sockets.hidden_uids for one in there):
        return frozenset()
    return frozenset(one.inode for one in there if address in _reached(one, []))


def peer_of(connection: socket.socket) -> Peer:
    """Return the process that listens at the other end of a connected unix socket.

    Raises:
        OSError: it is not connected.
    """
    pid, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    name = connection.getpeername()
    return Peer(pid, uid, os.fsdecode(name).replace("\0", "@"))


def is_peer(peer: Peer, path: str, sockets: Sockets) -> bool:
    """Return whether it is a process of the job that listens at a unix socket.

    If the process that called listen(2) has ended, because its children serve, the job has to hold a socket of that
    very path. Only the job was told the path, so nobody else binds a socket to it by chance.
    """
    if peer.pid in sockets.pids:
        return True
    process = read_process(peer.pid) if peer.pid > 0 else None
    if peer.pid <= 0 or (process is not None and process.alive):
        return False
    return peer.name == path and any(one.family == "unix" and one.host == path for one in sockets.own)


def refusal(port: int, sockets: Sockets) -> str | None:
    """Return why a reported port cannot be the job's; None if it is, or if nobody has it yet."""
    if addresses(port, sockets) or not any(one.port == port and _near(one.host) for one in sockets.foreign):
        return None
    text = f"port {port} is another program's: a job may report only ports on which its own processes listen"
    if sockets.hidden:
        text += (
            f"; its process {sockets.hidden[0]} runs as another user, so the agent cannot see its ports: "
            'expose it with {"port": "assign"}'
        )
    return text


def no_such_port(job: str, port: int, sockets: Sockets) -> NotFound:
    """The error for a port on which no process of a job listens on loopback."""
    ports = loopback_ports(sockets)
    others = "on no port there" if not ports else f"only on {', '.join(map(str, ports[:_SHOWN]))}"
    others += ", …" if len(ports) > _SHOWN else ""
    return NotFound(
        f"no process of job '{job}' listens on port {port} of loopback (127.0.0.1 or ::1): it listens {others}",
        job=job,
        code="no_such_port",
    )


def _reached(own: Listener, foreign: list[Listener]) -> list[Address]:
    if own.family == "unix":
        return []
    host = own.host.removeprefix("::ffff:")
    others = {one.host.removeprefix("::ffff:") for one in foreign if one.port == own.port}
    if host in others:
        return []  # It is shared.
    if host not in _ANY:
        return [Address(host, own.port)]
    found = []
    if own.host == "::":
        if "::1" not in others:
            found.append(Address("::1", own.port))
        others |= {"127.0.0.1"} if "0.0.0.0" in others else set()  # noqa: S104 - compared, not bound
    if "127.0.0.1" not in others:
        found.append(Address("127.0.0.1", own.port))
    return found


def _near(host: str) -> bool:
    """Return whether connections to loopback may reach a listener bound to this address."""
    return host in _ANY or _is_loopback(host)


def _is_loopback(host: str) -> bool:
    return host == "::1" or host.removeprefix("::ffff:").startswith("127.")
