"""The control endpoint's listening sockets, which outlive every process that accepts from them."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from prouter.config import ConfigError, RouterConfig

__all__ = ["listen"]

_BACKLOG = 4096


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
