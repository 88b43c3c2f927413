"""A local TCP port whose connections go to a port of a job, by ``Upgrade: tcp`` of the HTTP API."""

from __future__ import annotations

import random
import socket
import ssl
import struct
import threading
import time
from contextlib import suppress
from urllib.parse import urlsplit

from prouter.cli.moving.splicing import splice
from prouter.cli.remote.failures import Failure, describe, note
from prouter.client import ConnectionFailed, RouterError
from prouter.client.core.errors import from_response

__all__ = ["Forwarder"]

_CHUNK = 64 * 1024
_MOST_HEAD = 64 * 1024
_PATIENCE = 30.0
"""Seconds for which a connection is tried while the router is away."""
_CONNECT = 10.0
_PASSING = (429, 502, 503, 504)
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""After a laptop has slept, connections that the other end forgot end within a minute."""


class Forwarder:
    """Listens on a local port.

    Attributes:
        address: host and port on which it listens.

    Args:
        url: of the router.
        token: an access token, or None.
        ca: file of the authority that signed the router's certificate, or None.
        target: path of the request that connects with the job's port.
        listen: host and port; 0 for a free one.

    Raises:
        Failure: the port cannot be had.
    """

    def __init__(
        self,
        url: str,
        token: str | None,
        ca: str | None,
        target: str,
        listen: tuple[str, int],
        patience: float = _PATIENCE,
    ) -> None:
        parts = urlsplit(url)
        assert parts.hostname
        self._host = parts.hostname
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context(cafile=ca) if parts.scheme == "https" else None
        self._patience = patience
        fields = ["Host: " + parts.netloc.rpartition("@")[2], "Connection: Upgrade", "Upgrade: tcp"]
        fields += [f"Authorization: Bearer {token}"] if token else []
        self._request = "\r\n".join([f"GET {parts.path.rstrip('/')}{target} HTTP/1.1", *fields, "", ""]).encode()
        try:
            self._listener = socket.create_server(
                listen, family=socket.AF_INET6 if ":" in listen[0] else socket.AF_INET
            )
        except OSError as error:
            raise Failure(f"{listen[0]}:{listen[1]}: {error.strerror}; choose another LOCALPORT, or 0") from error
        self.address: tuple[str, int] = self._listener.getsockname()[:2]

    def serve(self) -> None:
        """Connect whoever connects, until the listener is closed."""
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve_one, args=(client,), daemon=True).start()

    def close(self) -> None:
        """Accept nobody any more."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve_one(self, client: socket.socket) -> None:
        try:
            server, early = self._connected()
        except (RouterError, OSError) as error:
            note(f"a connection was refused: {describe(error)}")
            client.close()
            return
        with client, server:
            try:
                splice(client, server, early)
            except OSError:
                for end in (client, server):
                    _reset_at_close(end)

    def _connected(self) -> tuple[socket.socket, bytes]:
        """Return a connection with the job's port, and the first bytes from it.

        Raises:
            RouterError: the router refused it, or did not answer for too long.
        """
        end = time.monotonic() + self._patience
        pause = 0.1
        while True:
            try:
                return self._dial()
            except ssl.SSLCertVerificationError as error:
                raise ConnectionFailed(f"the router's certificate is not trusted: {error.verify_message}") from error
            except (RouterError, OSError) as error:
                if isinstance(error, RouterError) and error.status not in _PASSING:
                    raise
                if time.monotonic() + pause > end:
                    if isinstance(error, RouterError):
                        raise
                    raise ConnectionFailed(f"no router answers at {self._host}:{self._port}: {error}") from error
            time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
            pause = min(2 * pause, 2.0)

    def _dial(self) -> tuple[socket.socket, bytes]:
        connection = socket.create_connection((self._host, self._port), _CONNECT)
        try:
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_hostname=self._host)
            connection.settimeout(_PATIENCE)
            connection.sendall(self._request)
            early = _upgraded(connection)
            connection.settimeout(None)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _KEEPALIVE.items():
                if hasattr(socket, name):
                    connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        except BaseException:
            connection.close()
            raise
        return connection, early


def _reset_at_close(connection: socket.socket) -> None:
    """Have the other end see that the connection broke: to be closed like others would say that all was sent."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _upgraded(connection: socket.socket) -> bytes:
    """Read the response head; return what follows it.

    Raises:
        RouterError: it is not 101.
    """
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(_CHUNK)
        if not piece or len(data) > _MOST_HEAD:
            raise OSError("the connection ended before the router answered")
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    words = lines[0].split(" ", 2)
    status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
    if status == 101:
        return rest
    if status == 200 or not status:
        raise RouterError("the router does not know this request: it is an older one", status=501, code="not_supported")
    raise from_response(status, fields, _body(connection, rest, fields))


def _body(connection: socket.socket, data: bytes, fields: dict[str, str]) -> bytes:
    length = fields.get("content-length", "")
    wanted = min(int(length), _MOST_HEAD) if length.isdigit() else 0
    with suppress(OSError):
        while len(data) < wanted and (piece := connection.recv(_CHUNK)):
            data += piece
    return data
