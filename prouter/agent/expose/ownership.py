"""Addresses that lead to a job's own listeners, the only ones that may be served as the job's.

A port alone does not identify a listener, because another program may have the same port of another address: a job that
listens on ``[::]:8889`` for IPv6 only does not own ``127.0.0.1:8889``. The kernel gives a connection to the listener
with the most specific address. A listener for all IPv6 addresses also gets IPv4 connections that no IPv4 listener takes
(ip(7), ipv6(7)).

The agent sees neither sockets in another network namespace, which it could not reach, nor those of a process that it
may not examine (`Sockets.hidden`). It accepts a port that it chose itself for such a process if nobody else is known to
have taken it, but not a port that the job reports, which could be anybody's.
"""

from __future__ import annotations

from prouter.agent.expose.listening_sockets import Listener, Sockets
from prouter.agent.expose.probe import Address

__all__ = ["addresses", "all_addresses", "loopback", "refusal"]

_ANY = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
_LOOPBACK = ("127.0.0.1", "::1")


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


def _reached(own: Listener, foreign: list[Listener]) -> list[Address]:
    if own.family == "unix":
        return []
    if own.host not in _ANY:
        return [Address(own.host.removeprefix("::ffff:"), own.port)]
    others = {one.host for one in foreign if one.port == own.port}
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
    return host in _ANY or host == "::1" or host.removeprefix("::ffff:").startswith("127.")
