"""Listening unix socket whose connections speak ZMTP on the process's own event loop."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

from prouter.transport.zmtp.accepting import BACKLOG, OwnListener
from prouter.transport.zmtp.wire import Wire

__all__ = ["UnixListener"]


class UnixListener(OwnListener):
    """Accepts DEALERs at a unix socket.

    A file that exists at the path is removed: the caller holds the lock of the directory, so a process that was killed
    has left it there.

    Args:
        path: of the socket.
        mode: its permissions.
        group: id of the group that owns it, None for this process's own.
        limit: bytes that are accepted before a peer is authenticated.

    Raises:
        OSError: it cannot be bound, or the group cannot be given to it.
    """

    def __init__(self, path: Path, *, mode: int = 0o600, group: int | None = None, limit: int | None = None) -> None:
        self._path = path
        self._limit = limit
        path.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            # Nobody may connect between bind and chmod.
            mask = os.umask(0o177)
            try:
                sock.bind(str(path))
            finally:
                os.umask(mask)
            if group is not None:
                os.chown(path, -1, group)
            path.chmod(mode)
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
        super().__init__(sock, f"ipc://{path}")

    def _wire(self, sock: socket.socket) -> Wire:
        return Wire(sock, b"ROUTER", b"DEALER", limit=self._limit)

    def close(self, linger: float = 0) -> None:
        """Accept nobody any more. Idempotent."""
        if self._socket.fileno() >= 0:
            self._socket.close()
            with suppress(OSError):  # The directory may be gone.
                self._path.unlink(missing_ok=True)
