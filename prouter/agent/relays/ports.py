"""The relay of one connection to a port of a job, for streams of kind ``tcp``.

Other than a relay to the job's HTTP server, it tells the worker first that the connection is established and has
reached the job: nobody may take a refused connection for one that ended at once.
"""

from __future__ import annotations

import errno
import os
import socket

from prouter.agent.relays.http import HttpRelay, RelayOwner
from prouter.fabric.stream import Stream
from prouter.transport.stream_io import pack_preface

__all__ = ["NO_SUCH_PORT", "PortRelay"]

NO_SUCH_PORT = "no_such_port"
"""Reset code: no process of the job listens there."""
_REFUSED = "refused"


class PortRelay(HttpRelay):
    """One stream's connection to a port of its job; made by `Connections.open_port`."""

    __slots__ = ("_told",)

    def __init__(self, owner: RelayOwner, job: str, stream: Stream) -> None:
        super().__init__(owner, job, stream)
        self._told = False
        """Whether the worker knows of the connection."""

    def connected(self, sock: socket.socket) -> None:
        """Tell the worker and begin to relay; end the stream if the connection has failed."""
        try:
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code))
            sock.getpeername()
        except OSError as error:
            sock.close()
            gone = errno.ECONNREFUSED if error.errno in (errno.ENOTCONN, errno.EINVAL) else error.errno
            self._fail(OSError(gone, os.strerror(gone or 0)))
            return
        self._told = True
        self.stream.write(pack_preface({"ok": True}))
        super().connected(sock)

    def end(self, code: str, text: str) -> None:
        """Reset the stream and close the connection."""
        super().end(NO_SUCH_PORT if code == _REFUSED and not self._told else code, text)
