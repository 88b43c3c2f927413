"""A request on its way to a job: its head, then its body, as fast as the stream's window and the client allow."""

from __future__ import annotations

from prouter.web.proxy.connection import SMALL_READ
from prouter.web.proxy.interfaces import Client
from prouter.web.proxy.messages.bodies import RequestBody
from prouter.web.proxy.messages.heads import RequestHead
from prouter.web.proxy.states import BLOCKED, HELD, NEXT_REQUEST, SENT, STREAMING, RequestState, refuse
from prouter.web.proxy.upstream import Upstream

__all__ = ["RequestSender"]


class RequestSender:
    """The request's direction of an exchange; `prouter.web.proxy.states` draws its states.

    Args:
        client: the client's connection, which is read no further while the stream's window is full.
        head: the request's head.

    Attributes:
        state: how far the request is; only `_change` sets it.
        pending: bytes that wait for the stream's window; not empty exactly while BLOCKED.
    """

    __slots__ = ("_body", "_client", "_start", "_upstream", "pending", "state")

    def __init__(self, client: Client, head: RequestHead) -> None:
        self.state = HELD
        self.pending = b""
        self._client = client
        self._body = RequestBody(head)
        self._upstream: Upstream | None = None
        self._start = 0
        """Offset of the request's first byte in the stream."""

    @property
    def received(self) -> bool:
        """Whether the client has sent all of the request, even if the stream has not taken it."""
        return self._body.over

    @property
    def unseen(self) -> bool:
        """Whether the agent had given the job no byte of the request when it last reported."""
        assert self._upstream is not None
        return self._upstream.stream.acknowledged <= self._start

    @property
    def sent(self) -> bytes:
        """All bytes of the request so far, for a second stream; whole as long as the request is `unseen`."""
        assert self._upstream is not None
        return self._upstream.stream.since(self._start) + self.pending

    def start(self, upstream: Upstream, data: bytes) -> None:
        """Begin, or begin again, with `data`: the request's head and what is known of its body."""
        self._upstream = upstream
        self._start = upstream.stream.written
        self.pending = b""
        if not self._body.over:
            self._client.expect_body(True)
        self._write(data)

    def pass_on(self) -> None:
        """Send what the client's buffer holds of the body. To be called while STREAMING only.

        Raises:
            ChunkError: the client's chunked framing is broken.
        """
        client, body = self._client, self._body
        data, client.buffer = body.take(client.buffer)
        if body.fragmented:
            client.receive_size = SMALL_READ  # tiny chunks take long to decode: other clients get their turn between
        elif client.receive_size == SMALL_READ:
            client.expect_body(True)
        if data:
            self._write(data)

    def on_writable(self) -> None:
        """Send what waited for the window, and have the client read again once nothing waits."""
        data, self.pending = self.pending, b""
        if data:
            self._write(data)
        if self.pending:
            return
        assert self._upstream is not None
        if not self._body.over and not self._body.fragmented:
            self._client.receive_size = self._upstream.stream.piece
        self._client.resume()

    def _write(self, data: bytes) -> None:
        """Give `data` to the stream, and keep what its window has no room for."""
        assert self._upstream is not None
        stream = self._upstream.stream
        taken = len(data) if stream.closed else stream.write(data)  # the end of a closed stream is told separately
        if taken < len(data):
            self.pending = data[taken:]
            self._client.pause()
            self._change(BLOCKED)
        elif self._body.over:
            self._client.expect_body(False)
            self._change(SENT)
        else:
            self._change(STREAMING)

    def _change(self, state: RequestState) -> None:
        """Change the state.

        Raises:
            RuntimeError: `NEXT_REQUEST` does not allow it; a programming error.
        """
        now = self.state
        if state is now:
            return  # each piece of a body finds the state that the one before left
        if state not in NEXT_REQUEST[now]:
            raise refuse(now, state)
        self.state = state
