"""Addresses as users write them: ``host:port``, with brackets round IPv6 addresses, and ``ipc://PATH``."""

from __future__ import annotations

import os

__all__ = ["LOCAL", "join_address", "router_endpoint", "split_address", "tcp_endpoint"]

LOCAL = "ipc://"
"""What the address of a unix socket begins with."""
_LONGEST_PATH = 107
"""Bytes of a path that the address of a unix socket holds (unix(7))."""


def router_endpoint(address: str) -> str:
    """Return the ZeroMQ endpoint of a router: ``tcp://HOST:PORT``, or the ``ipc://PATH`` of its unix socket as it is.

    Raises:
        ValueError: it is neither ``host:port`` nor ``ipc://`` and an absolute path.
    """
    if not address.startswith(LOCAL):
        split_address(address)
        return f"tcp://{address}"
    path = address.removeprefix(LOCAL)
    if not path.startswith("/"):
        raise ValueError(f"must be 'host:port' or '{LOCAL}' and an absolute path, like {LOCAL}/run/prouter/agents.sock")
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise ValueError(
            f"the path of a unix socket has at most {_LONGEST_PATH} bytes; set a shorter server.socket on the router"
        )
    return address


def tcp_endpoint(host: str, port: int) -> str:
    """Return the ZeroMQ endpoint of a port at a machine's name or address: ``tcp://HOST:PORT``."""
    return f"tcp://{join_address(host, port)}"


def join_address(host: str, port: int) -> str:
    """Return ``host:port``, with brackets round an IPv6 address: the opposite of `split_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_address(text: str) -> tuple[str, int]:
    """Split ``host:port`` into the host, without brackets, and the port.

    Raises:
        ValueError: `text` is something else.
    """
    scheme, separator, rest = text.partition("://")
    if separator:
        place = rest.partition("/")[0] or "host:port"
        raise ValueError(f"must be 'host:port', not a URL; write '{place}' without '{scheme}://'")
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError("must be 'host:port'")
    bare = host[1:-1] if host[0] == "[" and host[-1] == "]" else host
    if not bare or not bare.isprintable() or any(c in "[]/@?# \\" for c in bare):
        raise ValueError("must be 'host:port', with the name or address of a machine and nothing else before the port")
    return bare, int(port)
