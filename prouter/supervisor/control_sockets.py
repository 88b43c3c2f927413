"""Listening sockets of the control endpoint, which outlive every process that accepts from them."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from prouter.config import ConfigError, RouterConfig

__all__ = ["ControlSockets"]

_BACKLOG = 4096


class ControlSockets:
    """One TCP socket and, if configured, one unix socket, both listening.

    Raises:
        ConfigError: an address cannot be bound.
    """

    def __init__(self, config: RouterConfig) -> None:
        control = config.control
        self._unix_path = Path(control.unix).absolute() if control.unix else None
        self._tcp = _listen_tcp(control.interface, control.port)
        self._host: str
        self._port: int
        self._host, self._port = self._tcp.getsockname()[:2]
        try:
            self._unix = _listen_unix(self._unix_path) if self._unix_path else None
        except ConfigError:
            self._tcp.close()
            raise

    @property
    def descriptors(self) -> list[int]:
        """The sockets' descriptors, for processes that accept; TCP first."""
        return [sock.fileno() for sock in (self._tcp, self._unix) if sock is not None]

    @property
    def url(self) -> str:
        """The endpoint's URL, with the actual port."""
        return f"http://[{self._host}]:{self._port}" if ":" in self._host else f"http://{self._host}:{self._port}"

    @property
    def port(self) -> int:
        """The actual TCP port."""
        return self._port

    @property
    def reachable(self) -> tuple[str, int]:
        """Host and port to connect to from this machine."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host), self._port  # noqa: S104

    def close(self) -> None:
        """Stop listening; processes that inherited the sockets must close them as well. Idempotent."""
        if self._unix is not None and self._unix_path is not None and self._unix.fileno() >= 0:
            self._unix_path.unlink(missing_ok=True)
            self._unix.close()
        self._tcp.close()


def _listen_tcp(interface: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in interface else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((interface, port))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"control.interface, control.port: cannot listen on {interface}:{port}: {error.strerror or error}; "
            "choose another port, or an address of this machine"
        ) from error
    return sock


def _listen_unix(path: Path) -> socket.socket:
    """Listen at a path with mode 0660: a web server in the group may connect, others may not."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # A chmod after bind would come too late: a connection could be made in between.
    before = os.umask(0o117)
    try:
        if path.is_socket():
            _remove_stale(path)
        sock.bind(os.fspath(path))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"control.unix: cannot listen on {path}: {error.strerror or error}; choose another path"
        ) from error
    finally:
        os.umask(before)
    return sock


def _remove_stale(path: Path) -> None:
    """Remove a socket that a dead process left behind; one that is in use stays, and binding fails."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
