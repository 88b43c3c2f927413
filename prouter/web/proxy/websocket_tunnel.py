"""A tunnel whose client speaks WebSocket (RFC 6455): raw bytes to the job, binary messages to the client.

The bytes of the client's messages reach the job in order, whatever their frames; where a message ends means nothing.
WebSocket has no half-close. When the job shuts down its sending side, the client gets a close frame; when the client
closes in order, the job gets the rest of its bytes, and then the end.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from prouter.errors import InvalidRequest
from prouter.fabric.stream import Direction
from prouter.web.proxy.connection import SMALL_READ
from prouter.web.proxy.interfaces import Client, ProxyContext
from prouter.web.proxy.tunnel import Tunnel
from prouter.web.proxy.upstream import Upstream

__all__ = ["MAX_FRAME", "WebSocketTunnel", "accept"]

log = logging.getLogger("prouter.proxy")

MAX_FRAME = 1024 * 1024
"""Bytes of a client's frame, which is held in memory until it is whole. Messages may have any number of frames."""
_MESSAGE = 256 * 1024
"""Bytes of a message to the client, at most."""
_SMALL_FRAME = 512
"""Average bytes of frames that take long to work through."""
_UNREAD = 65536
"""Bytes that a client may leave unread; beyond that only the last of its pings is answered."""
_PATIENCE = 60.0
"""Seconds for which a job may be silent whose client has closed, and a client whose job has finished."""
_TO_JOB = frozenset({Opcode.BINARY, Opcode.CONT})
_REASON = 123
"""Bytes of a reason in a close frame, at most (RFC 6455 section 5.5)."""
_ORDERLY, _GOING_AWAY, _UNSUPPORTED, _FAILED = 1000, 1001, 1003, 1011
_BINARY = Subprotocol("binary")
"""Offered by programs that speak to TCP servers through websockify, such as noVNC; browsers insist on an answer."""
_FIELDS = ("Sec-WebSocket-Version", "Sec-WebSocket-Key", "Sec-WebSocket-Protocol")

_protocol_log = logging.getLogger("prouter.websocket")
_protocol_log.setLevel(logging.WARNING)


def accept(field: Callable[[str], str | None]) -> tuple[ServerProtocol, bytes]:
    """Accept a client's handshake; no extension is accepted, compression neither.

    Args:
        field: returns the value of a request's field by its name; None without one.

    Returns:
        The connection's state, and the response.

    Raises:
        InvalidRequest: it is no handshake of WebSocket, version 13.
    """
    protocol = ServerProtocol(
        select_subprotocol=lambda _protocol, offered: _BINARY if _BINARY in offered else None,
        max_size=(None, MAX_FRAME),
        logger=_protocol_log,
    )
    named = "".join(f"{name}: {value}\r\n" for name in _FIELDS if (value := field(name)) is not None)
    head = f"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{named}\r\n"
    protocol.receive_data(head.encode("latin-1"))
    request = next((event for event in protocol.events_received() if isinstance(event, Request)), None)
    response = protocol.accept(request) if request is not None else None
    if response is None or response.status_code != 101:
        raise InvalidRequest(f"Invalid request: no handshake of WebSocket: {protocol.handshake_exc}")
    protocol.send_response(response)
    return protocol, b"".join(protocol.data_to_send())


class WebSocketTunnel(Tunnel):
    """A client's WebSocket and a stream to a job, joined.

    Args:
        server: the worker's proxy.
        client: the client's connection.
        upstream: the connection to the job.
        protocol: state of the WebSocket, open.
    """

    __slots__ = ("_client_left", "_pong", "_protocol", "_until")

    def __init__(self, server: ProxyContext, client: Client, upstream: Upstream, protocol: ServerProtocol) -> None:
        super().__init__(server, client, upstream, b"")
        self._protocol = protocol
        self._pong = b""
        """The answer to the client's last ping, while it leaves too much unread."""
        self._client_left = False
        """Whether the client has closed in order. Its connection belongs to this tunnel no longer."""
        self._until = 0.0
        """Monotonic time at which the other side is given up after one has ended; 0 while neither has."""

    # -- from the client to the job -----------------------------------------------------------------------------

    def on_client_data(self) -> None:
        """Pass on what the client sent."""
        client, protocol = self._client, self._protocol
        if self._pending:
            client.hold_pipelined()
            return
        data, client.buffer = client.buffer, b""
        if not data:
            return
        protocol.receive_data(data)
        frames = [event for event in protocol.events_received() if isinstance(event, Frame)]
        # Small frames take long to decode: other clients get their turn between.
        client.expect_body(False)
        if len(frames) * _SMALL_FRAME > len(data):
            client.receive_size = SMALL_READ
        if any(frame.opcode is Opcode.TEXT for frame in frames):
            protocol.fail(_UNSUPPORTED, "only binary messages")
            self._break_off("a text message")
            return
        payload = b"".join(frame.data for frame in frames if frame.opcode in _TO_JOB)
        if payload:
            self._send(payload)
        if protocol.close_rcvd is not None:
            self._client_closed()
        elif protocol.parser_exc is not None:
            self._break_off(str(protocol.parser_exc))
        else:
            self._answer(protocol.data_to_send())

    def _send(self, data: bytes) -> None:
        stream = self._upstream.stream
        taken = len(data) if stream.closed else stream.write(data)
        if taken < len(data):
            self._pending = data[taken:]
            if not self._client_left:
                self._client.pause()

    def _answer(self, pongs: Sequence[bytes]) -> None:
        """Send pongs; of a client that does not read only the last one is kept (RFC 6455 section 5.5.3)."""
        if pongs and self._client.out_size > _UNREAD:
            self._pong = pongs[-1]
        elif pongs:
            self._client.write(b"".join(pongs))

    def on_client_drained(self) -> None:
        """Send the pong that waited."""
        pong, self._pong = self._pong, b""
        if pong:
            self._client.write(pong)

    def on_job_writable(self) -> None:
        """Send what waited for the stream's window, then read the client again."""
        data, self._pending = self._pending, b""
        if data:
            self._send(data)
        if self._pending:
            return
        if self._client_left:
            self._finish_stream()
            return
        self._client.resume()
        self.on_client_data()
        self.on_client_end()

    def on_client_end(self) -> None:
        """Handle the end of the client's sending side: without a close frame before, it is a disconnect."""
        client = self._client
        if client.half_closed and client.exchange is self and not self._pending and not client.buffer:
            client.disconnected()

    def _client_closed(self) -> None:
        """Answer the client's close frame, and end the job's side once it has everything."""
        self._client_left, self._until = True, time.monotonic() + _PATIENCE
        self._let_go()
        if not self._pending:
            self._finish_stream()

    def _break_off(self, why: str) -> None:
        """End both sides: the client broke the protocol."""
        log.info("event=websocket_refused job=%s detail=%r", self._upstream.job, why)
        self._discard("client_gone", why)
        self._let_go()

    def _let_go(self) -> None:
        """Send the client what is left of the protocol, and close its connection."""
        client = self._client
        client.exchange = None
        client.write(b"".join(self._protocol.data_to_send()))
        client.finish()

    # -- from the job to the client -----------------------------------------------------------------------------

    def on_job_data(self, data: bytes) -> None:
        """Pass on what the job sent."""
        protocol, stream = self._protocol, self._upstream.stream
        if protocol.state is not State.OPEN:
            stream.consume(len(data))
            return
        for start in range(0, len(data), _MESSAGE):
            piece = data[start : start + _MESSAGE] if len(data) > _MESSAGE else data
            protocol.send_binary(piece)
            self._client.write(b"".join(protocol.data_to_send()), stream, len(piece))

    def on_job_finish(self) -> None:
        """Close the WebSocket: the job sends nothing more."""
        if self._client_left:
            self._end_stream()
        elif self._protocol.state is State.OPEN:
            self._until = time.monotonic() + _PATIENCE
            self._protocol.send_close(_ORDERLY)
            self._client.write(b"".join(self._protocol.data_to_send()))

    def _finish_stream(self) -> None:
        """Shut down the stream: the job gets the end after all that the client sent."""
        stream = self._upstream.stream
        stream.close()
        if stream.receiving is not Direction.OPEN:
            self._end_stream()

    def _end_stream(self) -> None:
        self._server.exchanges.discard(self)
        self._upstream.user = None

    # -- ends ---------------------------------------------------------------------------------------------------

    def on_job_reset(self, code: str, text: str) -> None:
        """Close the WebSocket with an error: anything else would look like an end in order."""
        log.warning("event=tunnel_cut job=%s detail=%r", self._upstream.job, text or code)
        self._discard("cut", text)
        if not self._client_left:
            self._close(_FAILED, text or code)

    def check_timeout(self, now: float, response: float, body: float) -> None:
        """Give up a side that goes on for too long after the other one has ended."""
        if not self._until:
            return
        if self._client.out_size and not self._client_left:
            self._until = now + _PATIENCE  # the client still reads what came before the close frame
        elif now > self._until and self._client_left:
            self._discard("client_gone", "the client has closed its WebSocket")
        elif now > self._until:
            self._client.disconnected()

    def end(self, reason: str) -> None:
        """Close the WebSocket at once, because the worker stops or the client may not use it any more."""
        self._discard("worker_stops", reason)
        if self._client_left:
            return
        if self._client.out_size:
            self._client.abort()  # a close frame would have to wait for what the client does not read
        else:
            self._close(_GOING_AWAY, reason)

    def _close(self, code: int, reason: str) -> None:
        if self._protocol.state is State.OPEN:
            self._protocol.fail(code, reason.encode()[:_REASON].decode(errors="ignore"))
        self._let_go()
