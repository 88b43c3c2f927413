"""What every transport offers: a listener that accepts connections, and connections that carry messages.

`prouter.transport.zmtp` implements both with ZMTP on the process's event loop, `prouter.transport.zeromq` with pyzmq
over tcp. Neither knows an event loop: the broker wraps them for epoll, workers and agents for gevent. Nothing blocks
unless its docstring says so.

A loop uses a listener like this::

    for connection in listener.accept():      # when listener.fd is readable, or listener.more
        ...                                   # watch connection.fd, if it has one
    for connection in listener.arrived():     # the same moment
        ...                                   # as if connection.fd were readable and writable

and a connection like this::

    messages = connection.receive()           # when readable, or connection.more
    connection.queue(parts)                   # any time once it is ready
    connection.flush()                        # once per event loop iteration; again when writable, while it is blocked
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

__all__ = ["Connection", "Listener"]


class Connection(Protocol):
    """One connection, of either side."""

    @property
    def fd(self) -> int:
        """The descriptor to watch; -1 when the listener's is watched instead, or when the connection is closed.

        A descriptor of libzmq becomes readable for whatever the connection waits for, sending included.
        """

    @property
    def ready(self) -> bool:
        """Whether the handshake is over; nothing leaves before."""

    @property
    def identity(self) -> bytes:
        """The routing id that the other end chose."""

    @property
    def peer_key(self) -> str:
        """The public key that the other end has proved to own, as 40 characters of Z85; empty without encryption."""

    @property
    def more(self) -> bool:
        """Whether `receive` has more, even if nothing else arrives."""

    @property
    def blocked(self) -> bool:
        """Whether `flush` left something that the other end does not take yet."""

    @property
    def taken(self) -> int:
        """Bytes queued so far, with what keeping them costs."""

    @property
    def sent(self) -> int:
        """Of those, the bytes that have left this process's own queue."""

    @property
    def unfinished(self) -> int:
        """Bytes held for messages that have not arrived whole or have not been received yet."""

    def receive(self) -> list[list[bytes]]:
        """Return messages that have arrived, in order, perhaps not all of them.

        Raises:
            OSError: the connection is closed, and every message that came before its end was returned.
            ProtocolError: the other end breaks the protocol, or a limit.
        """

    def queue(self, parts: Sequence[bytes]) -> None:
        """Have a message sent by the next `flush`.

        Raises:
            ProtocolError: the message or a part of it is larger than the other end accepts.
        """

    def flush(self) -> None:
        """Send what is queued, as far as the other end takes it.

        Raises:
            OSError: the connection is closed; `receive` returns what came before its end.
        """

    def trust(self) -> None:
        """Lift the limits of an unauthenticated connection."""

    def finish(self, seconds: float) -> None:
        """Close once what is queued has left, at most after so many seconds. Of a unix socket, this blocks."""

    def close(self) -> None:
        """Close at once. Idempotent."""


class Listener(Protocol):
    """Accepts connections at one endpoint."""

    @property
    def endpoint(self) -> str:
        """``tcp://HOST:PORT`` with the port that was bound, or ``ipc://PATH``."""

    @property
    def fd(self) -> int:
        """The descriptor to watch: readable when there is something to accept or, of libzmq, to receive."""

    @property
    def more(self) -> bool:
        """Whether there is more to accept or receive, even if `fd` does not become readable."""

    def accept(self) -> Sequence[Connection]:
        """Return connections that were made since, not too many at once.

        Raises:
            OSError: the system lacks the descriptors or memory to accept.
        """

    def arrived(self) -> Sequence[Connection]:
        """Return connections without a descriptor of their own that have something to receive or can be flushed."""

    def tick(self, now: float) -> None:
        """Look after time limits; to be called about every 0.1 s while there are connections, `now` being monotonic."""

    def close(self, linger: float = 0) -> None:
        """Accept nobody any more. Connections of a ROUTER end with it, after at most `linger` seconds. Idempotent."""
