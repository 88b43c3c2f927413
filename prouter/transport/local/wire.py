"""A connected stream socket that speaks ZMTP, for whatever loop watches it. Nothing in it blocks but `Wire.finish`."""

from __future__ import annotations

import _socket
import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice

from prouter.errors import ProtocolError
from prouter.process.memory import LOCAL_BUFFER
from prouter.transport.local.zmtp import Zmtp, encode_message, opening

__all__ = ["BUFFER_COST", "Wire"]

_READ = 64 * 1024
"""Bytes asked for at once while no large part is on its way."""
_READS = 8
"""Reads before other events of the loop get their turn."""
BUFFER_COST = 96
"""What a buffer that waits to be sent costs beside its bytes."""
_BUFFERS = 64
"""Buffers in one system call; the kernel takes 1,024."""


class Wire:
    """See the module's docstring.

    Attributes:
        ready: whether the other end has introduced itself; messages wait for that.
        identity: the routing id it asks for.
        more: whether `receive` has more, whatever arrives.
        blocked: whether something is left that the kernel had no room for: `flush` when the socket is writable.
        taken: bytes that were queued so far, and what keeping them costs.
        sent: of those, what has left.
        peer_key: empty, since ZMTP's mechanism NULL proves no key.

    Args:
        sock: connected; it is the wire's from now on.
        kind: this end's type of socket, ``b"DEALER"`` or ``b"ROUTER"``.
        peer: the other end's.
        identity: routing id for the other end to know this one by.
        limit: for a stranger: size of a message that is taken before `trust`, bytes.
    """

    __slots__ = ("_out", "_protocol", "_sock", "blocked", "fd", "sent", "taken")

    peer_key = ""

    def __init__(
        self, sock: _socket.socket, kind: bytes, peer: bytes, identity: bytes = b"", *, limit: int | None = None
    ) -> None:
        sock.setblocking(False)
        if sock.family == socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LOCAL_BUFFER)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LOCAL_BUFFER)
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self.fd = sock.fileno()
        self.blocked = False
        self.taken = self.sent = 0
        self._protocol = Zmtp(peer, limit=limit)
        self._out: deque[bytes] = deque()
        # It fits into the empty buffer of a new connection.
        sock.send(opening(kind, identity))

    @property
    def ready(self) -> bool:
        """See the class."""
        return self._protocol.ready

    @property
    def identity(self) -> bytes:
        """See the class."""
        return self._protocol.identity

    def trust(self) -> None:
        """The other end is known: it may send large messages, and many."""
        self._protocol.trust()

    @property
    def unfinished(self) -> int:
        """Bytes of a message that has not arrived whole, the part that has begun counted whole."""
        return self._protocol.unfinished

    @property
    def more(self) -> bool:
        """See the class."""
        return self._protocol.more

    def receive(self) -> list[list[bytes]]:
        """Messages that have arrived, in order; perhaps not all of them.

        Raises:
            OSError: the connection is closed, and everything before its end was returned.
            ProtocolError: the other end does not speak ZMTP as it should.
        """
        protocol, sock = self._protocol, self._sock
        if protocol.more:
            return protocol.receive(b"")
        messages: list[list[bytes]] = []
        try:
            for _ in range(_READS):
                room = protocol.room
                if room is None:
                    wanted = _READ
                    data = sock.recv(_READ)
                    count = len(data)
                    if count:
                        messages += protocol.receive(data)
                else:
                    wanted = len(room)
                    count = sock.recv_into(room)
                    if count:
                        messages += protocol.filled(count)
                if not count:
                    raise ConnectionResetError("closed by the other end")
                if count < wanted or protocol.more:
                    break
        except BlockingIOError:
            return messages
        except (OSError, ProtocolError):
            if not messages:
                raise
        return messages

    def queue(self, parts: Sequence[bytes]) -> None:
        """Have a message sent by the next `flush`."""
        buffers = encode_message(parts)
        self._out += buffers
        for buffer in buffers:
            self.taken += len(buffer) + BUFFER_COST

    def flush(self) -> None:
        """Send what is queued, as far as the kernel takes it.

        Raises:
            OSError: the connection is closed.
        """
        out = self._out
        self.blocked = False
        if not self._protocol.ready:
            return
        while out:
            try:
                sent = self._sock.send(out[0]) if len(out) == 1 else self._sock.sendmsg(list(islice(out, _BUFFERS)))
            except BlockingIOError:
                self.blocked = True
                return
            self.sent += sent
            while sent:
                length = len(out[0])
                if sent < length:
                    out[0] = memoryview(out[0])[sent:]  # type: ignore[assignment]
                    break
                sent -= length
                self.sent += BUFFER_COST
                out.popleft()

    def finish(self, seconds: float) -> None:
        """Close when what is queued has left, at most after so long. Blocks."""
        deadline = time.monotonic() + seconds
        with suppress(OSError):  # Nobody is there to read it.
            self.flush()
            while self.blocked and time.monotonic() < deadline:
                waiting = select.poll()
                waiting.register(self.fd, select.POLLOUT)
                waiting.poll(max(0, int((deadline - time.monotonic()) * 1000)))
                self.flush()
        self.close()

    def close(self) -> None:
        """Close at once. Idempotent."""
        self._out.clear()
        self._protocol = Zmtp()
        self._sock.close()
