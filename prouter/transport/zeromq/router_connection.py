"""One peer of a ROUTER socket, as a connection of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol

from prouter.errors import ProtocolError
from prouter.fabric.bounds import MAX_MESSAGE
from prouter.transport.zeromq.descriptors import Undelivered, cookie_of, received_bytes, shut_down
from prouter.transport.zeromq.parts import check_size, held_size, queued_size

__all__ = ["RouterConnection"]

_AT_ONCE = 64
"""Messages that `RouterConnection.receive` returns at once."""
_EARLY = 4
"""Messages that an unauthenticated connection may send."""
_LAST_WORDS = 0.1
"""Seconds that libzmq's thread gets to send what it was handed before a connection is shut down."""


class _Listener(Protocol):
    """What a connection asks of its listener."""

    def hand_over(self, identity: bytes, parts: Sequence[bytes]) -> bool:
        """Give libzmq a message; False when the peer has not read enough of those before.

        Raises:
            OSError: the peer is gone.
        """

    def retry(self, connection: RouterConnection) -> None:
        """Return a connection that is blocked from `arrived` when its peer may have read."""

    def again(self, connection: RouterConnection) -> None:
        """Return a connection from `arrived` once more."""

    def close_later(self, connection: RouterConnection, seconds: float) -> None:
        """Close a connection after so long."""


class RouterConnection:
    """One peer of a `RouterListener`; see `prouter.transport.connection.Connection`.

    Its limits before `trust`: few messages, none larger than the listener's limit, and no more bytes than that in all.

    Attributes:
        pipe: number of libzmq's descriptor.
        pipe_open: whether libzmq still has it open.
        trusted: whether the peer is authenticated.
        ended: whether the other end has closed, and all that came before was delivered.
        closed: whether this end has.
    """

    __slots__ = (
        "_broken",
        "_cookie",
        "_early",
        "_finishing",
        "_inbox",
        "_inbox_bytes",
        "_listener",
        "_out",
        "_told",
        "_undelivered",
        "blocked",
        "closed",
        "ended",
        "identity",
        "more",
        "peer_key",
        "pipe",
        "pipe_open",
        "sent",
        "taken",
        "trusted",
    )

    fd = -1

    def __init__(self, listener: _Listener, pipe: int) -> None:
        self._listener = listener
        self.pipe = pipe
        self.pipe_open = True
        self._cookie = cookie_of(pipe)
        self._inbox: deque[list[Any]] = deque()
        self._inbox_bytes = 0
        self._out: deque[Sequence[bytes]] = deque()
        self._broken: ProtocolError | None = None
        self._early = 0
        self._undelivered: Undelivered | None = None
        """None before the peer is authenticated: then all that it has sent counts."""
        self._told = False
        self._finishing = False
        """Whether this end only sends its last words: libzmq reads on meanwhile, and nothing of it is kept."""
        self.identity = b""
        self.peer_key = ""
        self.more = False
        self.blocked = False
        self.taken = self.sent = 0
        self.trusted = self.ended = self.closed = False

    @property
    def ready(self) -> bool:
        """Whether its routing id is known: nothing can be sent before its first message."""
        return bool(self.identity)

    @property
    def unfinished(self) -> int:
        """Bytes of messages that libzmq has not whole, as of the last inspection, or that were not received yet."""
        return self._inbox_bytes + (self._undelivered.size if self._undelivered is not None else 0)

    def trust(self) -> None:
        """The peer is authenticated: it may send large messages, and many."""
        self.trusted = True
        self._undelivered = Undelivered(self.pipe, self._cookie)

    def receive(self) -> list[list[bytes]]:
        """Messages that have arrived, in order; perhaps not all of them.

        Raises:
            OSError: the connection has ended, and all that came before was returned.
            ProtocolError: the peer, which is not authenticated, sends more than it may.
        """
        inbox = self._inbox
        if inbox:
            if len(inbox) <= _AT_ONCE and self.trusted:
                messages, self._inbox = list(inbox), deque()
                self._inbox_bytes = 0
            else:
                messages = [inbox.popleft() for _ in range(min(_AT_ONCE if self.trusted else 1, len(inbox)))]
                self._inbox_bytes -= sum(map(held_size, messages))
            self.more = bool(self._inbox)
            if not self.more and (self._broken is not None or self.ended):
                self._listener.again(self)
            return messages
        self.more = False
        if self._broken is not None:
            raise self._broken
        if self.ended or self.closed:
            raise ConnectionResetError("closed by the other end")
        return []

    def queue(self, parts: Sequence[bytes]) -> None:
        """Have a message sent by the next `flush`.

        Raises:
            ProtocolError: it is larger than the other end accepts.
        """
        check_size(parts)
        self._out.append(parts)
        self.taken += queued_size(parts)

    def flush(self) -> None:
        """Hand libzmq what it takes; `RouterListener.arrived` returns this connection when it may take more.

        Raises:
            OSError: the connection is closed.
        """
        out = self._out
        self.blocked = False
        while out:
            if not self.identity:
                return
            parts = out[0]
            try:
                sent = self._listener.hand_over(self.identity, parts)
            except OSError:
                out.clear()
                self.sent = self.taken
                raise
            if not sent:
                self.blocked = True
                self._listener.retry(self)
                return
            out.popleft()
            self.sent += queued_size(parts)
            self._told = True

    def finish(self, seconds: float) -> None:
        """Close once libzmq had a moment to send what it was handed. Does not block."""
        if self.closed:
            return
        if not self._out and not self._told:
            self.close()
            return
        with suppress(OSError):  # Nobody is there to read it.
            self.flush()
        self._finishing = True
        self._forget_messages()
        self._listener.close_later(self, max(_LAST_WORDS, seconds))

    def close(self) -> None:
        """Close at once. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self._out.clear()
        self._forget_messages()
        self.shut_down()

    # -- called by the listener ---------------------------------------------------------------------------------------

    def deliver(self, parts: list[Any], limit: int) -> None:
        """A message arrived; `limit` bytes are accepted before the peer is authenticated."""
        if self._undelivered is not None:
            self._undelivered.delivered = True
        if self.closed or self._finishing or self._broken is not None:
            return
        size = held_size(parts)
        if not self.trusted:
            self._early += 1
            if size > limit or self._early > _EARLY:
                self._break("an unauthenticated connection sends more than an introduction")
                return
        if size > MAX_MESSAGE:
            self._break(f"a message of {size} bytes is larger than {MAX_MESSAGE}")
            return
        self._inbox.append(parts)
        self._inbox_bytes += size

    def inspect(self, limit: int) -> bool:
        """Look how much of a message libzmq holds; whether there is something to tell.

        Args:
            limit: bytes that the peer may have sent in all before it is authenticated.
        """
        if self._broken is not None:
            return False
        if self._undelivered is not None:
            return self._undelivered.measure()
        if received_bytes(self.pipe, self._cookie) <= limit:
            return False
        self._break("an unauthenticated connection sends more than an introduction")
        return True

    def lost(self) -> None:
        """libzmq has closed the descriptor; messages may still come."""
        self.pipe_open = False
        if self._undelivered is not None:
            self._undelivered.size = 0

    def shut_down(self) -> None:
        """Have libzmq see the connection's end."""
        if self.pipe_open:
            shut_down(self.pipe, self._cookie)

    def end(self) -> None:
        """All messages were delivered."""
        self.ended = True

    def _break(self, text: str) -> None:
        self._broken = ProtocolError(text)

    def _forget_messages(self) -> None:
        self._inbox.clear()
        self._inbox_bytes = 0
        self.more = False
