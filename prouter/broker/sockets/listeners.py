"""Where peers connect: workers and agents of this machine at unix sockets, agents of any machine over tcp."""

from __future__ import annotations

import grp
from pathlib import Path

from prouter.config import ConfigError, RouterConfig
from prouter.config.directories import agents_socket, broker_endpoint
from prouter.transport.zmtp.server_keys import ServerCurve
from prouter.transport.zmtp.tcp_listener import TcpListener
from prouter.transport.zmtp.unix_listener import UnixListener

__all__ = ["listen_for_agents", "listen_for_local_agents", "listen_for_workers"]


def listen_for_workers(config: RouterConfig, limit: int) -> UnixListener:
    """Listen for this router's workers.

    Args:
        config: with its directories filled in.
        limit: bytes of an introduction.

    Raises:
        OSError: the socket cannot be bound.
    """
    return UnixListener(Path(broker_endpoint(config).removeprefix("ipc://")), limit=limit)


def listen_for_agents(config: RouterConfig, port: int | None, curve: ServerCurve | None, limit: int) -> TcpListener:
    """Listen for agents over tcp.

    Args:
        config: with ``server.interface`` and ``server.port``.
        port: instead of ``server.port``.
        curve: encryption, None for none.
        limit: bytes of an introduction.

    Raises:
        ConfigError: the address cannot be bound.
    """
    server = config.server
    wanted = port if port is not None else server.port
    try:
        return TcpListener(server.interface, wanted, curve=curve, limit=limit)
    except OSError as error:
        raise ConfigError(
            f"server.interface, server.port: cannot listen on {server.interface}:{wanted}: {error}"
        ) from error


def listen_for_local_agents(config: RouterConfig, limit: int) -> UnixListener | None:
    """Listen for agents of this machine at ``server.socket``; None when that is empty.

    Raises:
        ConfigError: the socket cannot be bound, or its group does not exist.
    """
    path = agents_socket(config)
    if path is None:
        return None
    group = config.server.socket_group
    try:
        gid = grp.getgrnam(group).gr_gid if group else None
    except KeyError:
        raise ConfigError(f"server.socket_group: there is no group {group!r} on this machine") from None
    try:
        return UnixListener(path, mode=0o600 if gid is None else 0o660, group=gid, limit=limit)
    except OSError as error:
        raise ConfigError(f"server.socket: cannot listen at {path}: {error.strerror or error}") from error
