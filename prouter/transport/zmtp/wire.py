"""A connection that speaks ZMTP over a stream socket, for any event loop. Nothing in it blocks but `Wire.finish`."""

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
from prouter.transport.zmtp.codec import Zmtp

__all__ = ["BUFFER_COST", "Wire"]

_READ = 64 * 1024
"""Bytes of one read, unless a large part is arriving."""
_READS = 8
"""Reads of one `receive`, after which other connections are served."""
BUFFER_COST = 96
"""Bytes of memory that a buffer takes beside its content while it waits to be sent."""
_BUFFERS = 64
"""Buffers in one system call; the kernel accepts 1,024."""


class Wire:
    """One connection, of either side (`prouter.transport.connection.Connection`).

    Args:
        sock: a connected socket, which belongs to the wire from now on.
        kind: this end's type of socket, ``b"DEALER"`` or ``b"ROUTER"``.
        peer: the type of the other end's socket.
        identity: routing id by which the other end knows this one.
        limit: bytes of a message that are accepted before `trust`; None for an end that is trusted from the beginning.
        protocol: a codec made for this connection; by default one without encryption.

    Attributes:
        blocked: whether the kernel's buffer was full; call `flush` when the socket is writable.
        taken: bytes queued so far, each buffer with `BUFFER_COST`.
        sent: how many of these have been sent.
        peer_key: the public key that the other end has proved to own, in Z85; empty without encryption.
    """

    __slots__ = ("_out", "_protocol", "_sock", "blocked", "fd", "peer_key", "sent", "taken")

    def __init__(
        self,
        sock: _socket.socket,
        kind: bytes,
        peer: bytes,
        identity: bytes = b"",
        *,
        limit: int | None = None,
        protocol: Zmtp | None = None,
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
        self.peer_key = ""
        self._protocol = protocol if protocol is not None else Zmtp(peer, limit=limit)
        self._out: deque[bytes] = deque()
        # Never blocks: it fits into the empty buffer of a new connection.
        sock.send(self._protocol.opening(kind, identity))

    @property
    def ready(self) -> bool:
        """Whether the handshake is over; no message is sent before."""
        return self._protocol.ready

    @property
    def identity(self) -> bytes:
        """The routing id that the other end chose."""
        return self._protocol.identity

    def trust(self) -> None:
        """Accept large messages from now on, and many at once: the other end has authenticated."""
        self._protocol.trust()

    @property
    def unfinished(self) -> int:
        """Bytes of memory that the arriving message takes; a large part counts whole once it has begun."""
        return self._protocol.unfinished

    @property
    def more(self) -> bool:
        """Whether another `receive` returns more, even if nothing else arrives."""
        return self._protocol.more

    def receive(self) -> list[list[bytes]]:
        """Return messages that have arrived, in order, perhaps not all of them.

        Raises:
            OSError: the connection is closed, and everything that came before was returned.
            ProtocolError: the other end violates ZMTP or a limit.
        """
        protocol, sock = self._protocol, self._sock
        if not protocol.ready:
            return self._shake_hands()
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
                # A short read emptied the socket: another one would only cost a system call.
                if count < wanted or protocol.more:
                    break
        except BlockingIOError:
            return messages
        except (OSError, ProtocolError):
            # Messages that came before the end are returned first; the next call raises again.
            if not messages:
                raise
        return messages

    def _shake_hands(self) -> list[list[bytes]]:
        """Read once and go on with the handshake; return the messages that follow it.

        Raises:
            OSError: the connection is closed.
            ProtocolError: the other end violates ZMTP or a limit.
        """
        protocol, data = self._protocol, b""
        try:
            data = self._sock.recv(_READ)
            # A client that disconnected meanwhile gets no handshake, unless it has sent everything already.
            if not data or (protocol.answers and not self._sock.recv(1, socket.MSG_PEEK)):
                raise ConnectionResetError("closed by the other end")
        except BlockingIOError:
            if not data:
                return []
        try:
            messages = protocol.receive(data)
        finally:
            if protocol.reply:
                reply, protocol.reply = protocol.reply, b""
                # Never blocks, as above: the other end answers each piece before it gets the next.
                self._sock.send(reply)
        self.peer_key = protocol.peer_key
        return messages

    def queue(self, parts: Sequence[bytes]) -> None:
        """Queue a message for the next `flush`.

        Raises:
            ProtocolError: it is larger than the other end accepts.
        """
        buffers = self._protocol.encode(parts)
        self._out += buffers
        for buffer in buffers:
            self.taken += len(buffer) + BUFFER_COST

    def flush(self) -> None:
        """Send what is queued, as far as the kernel accepts it.

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
        """Send what is queued for `seconds` at most, then close. Blocks."""
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
        self.fd = -1
