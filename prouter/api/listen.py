"""The control endpoint's sockets, and the rule that nothing listens beyond loopback unprotected by accident."""

from __future__ import annotations

import ipaddress
import os
import socket
from pathlib import Path

from prouter.config import ConfigError, RouterConfig

__all__ = ["check_exposure", "is_loopback", "listen"]

_BACKLOG = 4096


def is_loopback(interface: str) -> bool:
    """Whether only this machine can reach `interface`."""
    if interface == "localhost":
        return True
    try:
        return ipaddress.ip_address(interface).is_loopback
    except ValueError:
        return False


def check_exposure(config: RouterConfig) -> None:
    """Refuse to serve other machines without access control.

    Raises:
        ConfigError: an interface beyond loopback has no tokens.
    """
    control, server = config.control, config.server
    if not is_loopback(control.interface) and not control.tokens and not control.allow_open:
        raise ConfigError(
            f"control.interface: {control.interface} can be reached from other machines and control.tokens is empty; "
            "set tokens, listen on 127.0.0.1 behind a proxy that checks access, or set control.allow_open"
        )
    if server.enabled and not is_loopback(server.interface) and not server.accept_tokens:
        raise ConfigError(
            f"server.interface: {server.interface} can be reached from other machines and server.accept_tokens is empty; "
            "set the tokens that agents must present, or listen on 127.0.0.1"
        )


def listen(config: RouterConfig) -> list[socket.socket]:
    """The listening sockets of the control endpoint: TCP first, then the unix socket if there is one.

    Raises:
        ConfigError: an address cannot be bound.
    """
    control = config.control
    family = socket.AF_INET6 if ":" in control.interface else socket.AF_INET
    sockets = []
    try:
        tcp = socket.socket(family, socket.SOCK_STREAM)
        sockets.append(tcp)
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tcp.bind((control.interface, control.port))
        tcp.listen(_BACKLOG)
        if control.unix:
            path = Path(control.unix)
            if path.is_socket():
                path.unlink()
            unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sockets.append(unix)
            before = os.umask(0o117)
            try:
                unix.bind(str(path))
            finally:
                os.umask(before)
            unix.listen(_BACKLOG)
    except OSError as error:
        for sock in sockets:
            sock.close()
        where = f"{control.interface}:{control.port}" if len(sockets) < 2 else control.unix
        raise ConfigError(f"control: cannot listen on {where}: {error.strerror or error}") from error
    return sockets
