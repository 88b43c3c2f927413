"""A client's connection on the gevent loop: reads request heads, hands each to an exchange, writes with back-pressure.

Nothing here blocks. A connection is read even while its request is in progress: only a read shows a disconnect.
"""

from __future__ import annotations

import _socket
import logging
import socket
import time
from typing import Any

from prouter.access.roles import Principal
from prouter.errors import InvalidRequest, PRouterError
from prouter.fabric.stream import Stream
from prouter.web.metrics.counters import API
from prouter.web.proxy.addresses.forwarded import Origin
from prouter.web.proxy.addresses.hops import came_through
from prouter.web.proxy.half_closed import HalfClosed, has_closed
from prouter.web.proxy.interfaces import ClientExchange, ProxyContext
from prouter.web.proxy.messages.heads import RequestHead, take_request
from prouter.web.proxy.output import ClientOutput
from prouter.web.proxy.own_responses.failures import Asker, failure_response
from prouter.web.proxy.own_responses.pages import error_response, request_id
from prouter.web.proxy.own_responses.refusals import ClientTooSlow

__all__ = ["SMALL_READ", "ClientConnection"]

log = logging.getLogger("prouter.proxy")

_READ = 65536
_READ_BODY = 262144
"""Bytes of the first read of a request body or a tunnel; later ones are as large as the stream's pieces."""
SMALL_READ = 8192
"""Bytes of one read where they take long to work through, so that other clients get their turn."""
_PIPELINE_LIMIT = 65536
"""Bytes buffered while a request is in progress; beyond that the connection is not read."""
_UNREAD_LIMIT = 65536
"""Bytes of responses that a client may leave unread; beyond that its next requests wait."""
_LINGER_SECONDS = 2.0
"""Seconds without a byte after which a connection that is being closed is closed."""
_LINGER_LIMIT = 30.0
"""Seconds a client may go on sending while its connection is being closed.

A client that sends its whole body before it reads would otherwise get a reset in place of the response.
"""
_PROGRESS = 1024
"""Bytes that count as progress."""


class ClientConnection:
    """One client's connection; `prouter.web.proxy.interfaces.Client` is what exchanges use of it.

    Args:
        server: the worker's proxy.
        sock: the accepted socket, non-blocking.
        origin: how the client reached the worker.

    Attributes:
        moved_at: monotonic time at which the request began, or the last KiB of it or its response had passed.
        idle_since: monotonic time at which the connection was accepted, or its last request ended.
    """

    __slots__ = (
        "_eof",
        "_fd",
        "_half_closed",
        "_linger_until",
        "_moved",
        "_output",
        "_paused",
        "_reader",
        "_shut",
        "_socket",
        "alive",
        "began",
        "buffer",
        "deadline",
        "exchange",
        "idle_since",
        "moved_at",
        "origin",
        "principal",
        "receive_size",
        "server",
    )

    def __init__(self, server: ProxyContext, sock: _socket.socket, origin: Origin) -> None:
        self.server = server
        self.origin = origin
        self.principal: Principal | None = None
        self.buffer = b""
        self.exchange: ClientExchange | None = None
        self.alive = True
        self.began = self.idle_since = self.moved_at = now = time.monotonic()
        self.deadline = now + server.head_timeout
        self.receive_size = _READ
        self._moved = 0
        self._socket = sock
        self._fd = sock.fileno()
        self._output = ClientOutput(server.loop, sock, self._on_writable)
        self._paused = False
        self._eof = self._shut = False
        self._linger_until = 0.0
        """Monotonic time at which discarding ends; 0 while what arrives is not discarded."""
        self._half_closed: HalfClosed | None = None
        self._reader: Any = server.loop.io(self._fd, 1)
        self._reader.start(self._on_readable)

    @property
    def half_closed(self) -> bool:
        """Whether the client has shut down its sending side."""
        return self._eof

    @property
    def closing(self) -> bool:
        """Whether the connection closes by itself: once all is sent, and the client closes or its time is over."""
        return self._shut

    @property
    def out_size(self) -> int:
        """Bytes written that wait for the kernel."""
        return self._output.size

    @property
    def stuck(self) -> bool:
        """Whether a request is in progress and waits for its client to send more or to read the response."""
        return self.exchange is not None and (self._output.size > 0 or self.exchange.awaits_client)

    def evict(self) -> None:
        """End a connection that is stuck, for the sake of a new one."""
        if not self._output.size:
            error = ClientTooSlow("too many clients are connected, and this request waits for its client")
            self.write(error_response(error, accept=b"", head_only=False, request_id=request_id([]), close=True))
        log.info("event=client_evicted client=%s waiting=%.1f", self.origin.address, time.monotonic() - self.moved_at)
        self.disconnected()

    def _progress(self, size: int) -> None:
        """Count bytes of a request or its response that have passed."""
        self._moved += size
        if self._moved >= _PROGRESS:
            self._moved = 0
            self.moved_at = time.monotonic()

    # -- reading ------------------------------------------------------------------------------------------------

    def pause(self) -> None:
        """Stop reading until `resume`."""
        if not self._paused and self.alive:
            self._paused = True
            self._reader.stop()

    def resume(self) -> None:
        """Read again."""
        if self._paused and self.alive and not self._eof:
            self._paused = False
            self._reader.start(self._on_readable)

    def expect_body(self, expected: bool) -> None:
        """Choose the size of reads: large while a request body or a tunnel streams."""
        self.receive_size = _READ_BODY if expected else _READ

    def _on_readable(self) -> None:
        try:
            data = self._socket.recv(self.receive_size)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.disconnected()
            return
        if self._linger_until:
            if not data:
                self.close()
            self.deadline = min(time.monotonic() + _LINGER_SECONDS, self._linger_until)
            return
        if not data:
            self._on_end()
            return
        self.buffer = self.buffer + data if self.buffer else data
        if self.exchange is None:
            self._next_request()
        else:
            self._progress(len(data))
            self.exchange.on_client_data()

    def _on_end(self) -> None:
        """Handle the client's FIN: it sends nothing more, but may still wait for responses."""
        self._eof = True
        self._reader.stop()  # at its end a socket stays readable, and the loop would spin
        if self.exchange is None:
            self._next_request()
        else:
            self.exchange.on_client_end()
        if self.exchange is not None and not self.exchange.half_close:
            self._half_closed = HalfClosed(self.server.loop, self._fd, self.disconnected)
            # A client that closed with unread bytes would have sent RST, not FIN (RFC 2525 section 2.17).
            self._half_closed.responded = not self._output.empty

    def hold_pipelined(self) -> None:
        """Buffer what arrives, up to a limit; then stop reading."""
        if len(self.buffer) >= _PIPELINE_LIMIT:
            self.pause()

    def _next_request(self) -> None:
        if self._output.size > _UNREAD_LIMIT:
            self.hold_pipelined()
            return
        self._read_heads()
        if self.exchange is None or len(self.buffer) < _PIPELINE_LIMIT:
            self.resume()
        if self._eof and self.exchange is None and self.alive:
            self.finish()

    def _read_heads(self) -> None:
        """Dispatch requests until one stays in progress or the buffer holds no whole head."""
        while self.exchange is None and self.alive and not self._shut:
            self.buffer = buffer = self.buffer.lstrip(b"\r\n")  # RFC 9112 section 2.2: empty lines before a request
            if not buffer:
                return
            try:
                found = take_request(buffer, self.server.max_head)
            except PRouterError as error:
                self.fail(error)
                return
            if found is None:
                return
            head, raw, self.buffer = found
            self.deadline = 0.0
            self.moved_at = time.monotonic()
            mark = self.server.mark
            # The search in the raw bytes costs 0.1 µs and spares nearly every request the look at its fields.
            self.server.dispatch(self, head, mark in raw and came_through(head.headers, mark))

    # -- writing ------------------------------------------------------------------------------------------------

    def write(self, data: bytes, stream: Stream | None = None, size: int = 0) -> None:
        """Send `data`; once the kernel has it, `size` bytes of `stream` count as consumed."""
        if not self.alive:
            return
        if self._half_closed is not None:
            self._half_closed.responded = True
        try:
            queued = self._output.write(data, stream, size)
        except OSError:
            self.disconnected()
            return
        if queued:
            self._progress(_PROGRESS)  # the client's time to read begins now

    def _on_writable(self) -> None:
        try:
            sent = self._output.flush()
        except OSError:
            self.disconnected()
            return
        self._progress(sent)
        if sent and self.exchange is None:
            self.deadline = time.monotonic() + self.server.idle_timeout  # it is slow, not idle
        if not self._output.empty:
            return
        if self.exchange is not None:
            self.exchange.on_client_drained()
        elif self.buffer and not self._shut:
            self._next_request()
        if self._shut and self._output.empty and self.alive:
            self._finish_writing()

    def undelivered(self) -> int:
        """Bytes written that the client's kernel has not acknowledged."""
        return self._output.undelivered() if self.alive else 0

    # -- the end of an exchange, and of the connection ----------------------------------------------------------

    def exchange_done(self, keep_alive: bool) -> None:
        """End the exchange, whose response is written, and begin the next request or close."""
        self.exchange = None
        self.receive_size = _READ
        if not keep_alive or (self._eof and not self.buffer):
            self.finish()
            return
        self.idle_since = now = time.monotonic()
        self.deadline = now + self.server.idle_timeout
        if self.buffer:
            # In the next iteration: pipelined requests would else nest their callbacks, and starve other clients.
            self.server.loop.run_callback(self._next_request)
        else:
            self.resume()

    def fail(self, error: PRouterError, head: RequestHead | None = None, *, keep_alive: bool = False) -> None:
        """Send an error of the router's own and end the exchange.

        Args:
            head: the request's head; None if there is none, because it could not be parsed.
            keep_alive: whether the connection may serve another request.
        """
        recipient = API if self.exchange is None else self.exchange.recipient
        asker = Asker(self.origin.address, self.principal, recipient, self.began)
        self.write(failure_response(error, head, asker, close=not keep_alive))
        self.exchange_done(keep_alive)

    def finish(self) -> None:
        """Close once everything written is sent."""
        self.shut_write()
        if not self._output.empty:
            self.deadline = time.monotonic() + self.server.idle_timeout

    def shut_write(self) -> None:
        """Shut down the sending side once everything written is sent; the client may go on sending."""
        self._shut = True
        if self._output.empty and self.alive:
            self._finish_writing()

    def _finish_writing(self) -> None:
        """Send FIN, then discard what arrives for a moment.

        A close with unread bytes sends RST, at which the client's kernel may drop the response (RFC 9112 section 9.6).
        """
        if self._eof and self.exchange is None:
            self.close()
            return
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.disconnected()
            return
        if self.exchange is None:
            self.buffer = b""
            now = time.monotonic()
            self._linger_until = now + _LINGER_LIMIT
            self.deadline = now + _LINGER_SECONDS
            if self._paused:
                self.resume()

    def abort(self) -> None:
        """Reset the connection, so that the client sees that its response was cut."""
        if self.alive:
            self._output.reset_on_close()
            self.exchange = None
            self.close()

    def disconnected(self) -> None:
        """Close, and tell the exchange that the client disconnected. Idempotent."""
        if not self.alive:
            return
        exchange, self.exchange = self.exchange, None
        self.close()
        if exchange is not None:
            exchange.on_client_disconnected()

    def close(self) -> None:
        """Close at once. Idempotent."""
        if not self.alive:
            return
        self.alive = False
        self._reader.stop()
        self._reader.close()
        if self._half_closed is not None:
            self._half_closed.stop()
        self._output.close()
        self._socket.close()
        self.server.forget(self)

    def has_disconnected(self) -> bool:
        """Whether the client closed while its connection was not read; poll() sees that behind unread bytes.

        A client that blocked before it closed, because both kernels are full of bytes that the worker has no room for,
        is found out only after some were taken: its FIN has not been sent yet.
        """
        if not self._paused or self._eof or not self.alive:
            return False
        both_sides = self.exchange is not None and self.exchange.half_close
        return has_closed(self._fd, both_sides=both_sides)

    def expire(self) -> None:
        """Handle the deadline: the client is idle, too slow with its request head, or lingers."""
        if self.exchange is None and not self._output.empty:
            self.abort()  # it does not read: a FIN would make a response that was cut look whole
        elif self.exchange is None and self.buffer and not self._linger_until:
            detail = f"Invalid request: the request head took too long: more than {self.server.head_timeout:g} s"
            self.fail(InvalidRequest(detail, code="head_timeout"))
        else:
            self.disconnected()
