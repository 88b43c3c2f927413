"""A client's connection on the gevent loop: reads request heads, hands each to an exchange, writes with back-pressure.

Everything runs as callbacks of the loop; nothing here blocks. Reading never stops for long, so that a client that goes
away is noticed at once, whatever state its request is in.
"""

from __future__ import annotations

import _socket
import fcntl
import logging
import select
import socket
import struct
import termios
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from gevent import monkey

from prouter.errors import InvalidRequest, PRouterError
from prouter.fabric.stream import Stream
from prouter.web.metrics import counters
from prouter.web.metrics.counters import API
from prouter.web.proxy.forwarded import Origin
from prouter.web.proxy.half_closed import HalfClosed
from prouter.web.proxy.heads import RequestHead, may_become_request, parse_request
from prouter.web.proxy.hops import came_through
from prouter.web.proxy.pages import error_response, request_id

if TYPE_CHECKING:
    from prouter.web.proxy.server import ProxyServer

__all__ = ["LITTLE", "ClientConnection", "ClientExchange", "ClientTooSlow"]

log = logging.getLogger("prouter.proxy")

_RECV = 65536
_RECV_BODY = 262144
"""Bytes of a read of a body or tunnel, to begin with."""
LITTLE = 8192
"""Bytes of a read where these take long to work through: others are to have their turn meanwhile."""
_PIPELINE_LIMIT = 65536
"""Bytes read ahead while an answer is pending; then reading waits."""
_ANSWER_LIMIT = 65536
"""Bytes of earlier answers a client may leave unread; then its next requests wait."""
_LINGER_SECONDS = 2.0
"""Seconds a client that is to be closed may send nothing before it is."""
_LINGER_LIMIT = 30.0
"""Seconds it may go on sending. Who sends all of a body before looking for the answer then finds one."""
_STEP = 1024
"""Bytes that count as progress."""
_poll = monkey.get_original("select", "poll")
_RESET_LINGER = struct.pack("ii", 1, 0)


class HeadTooLarge(PRouterError):
    """The request head is over the limit."""

    code = "head_too_large"
    status = 431
    level = logging.INFO


class ClientTooSlow(PRouterError):
    """A request that did not come to its end in time (RFC 9110 section 15.5.9)."""

    code = "body_timeout"
    status = 408
    level = logging.INFO


class ClientExchange(Protocol):
    """One request and its answer, from the connection's point of view."""

    @property
    def awaits_client(self) -> bool:
        """Whether it can go on only when the client sends more of the request, of whose answer nothing was sent."""

    @property
    def recipient(self) -> int:
        """`prouter.web.metrics.counters.API` or ``JOB``: as whose its answer counts."""

    @property
    def half_close(self) -> bool:
        """Whether a client that has ended its sending side counts as there, whatever the connection thinks."""

    def on_client_data(self) -> None:
        """More bytes are in `ClientConnection.buffer`."""

    def on_client_end(self) -> None:
        """The client has ended its sending side; see `ClientConnection.half_closed`."""

    def on_client_gone(self) -> None:
        """The client is gone."""

    def on_client_drained(self) -> None:
        """Everything written has reached the kernel."""

    def end(self, reason: str) -> None:
        """End now: with an error if nothing of the answer was sent, else with a cut."""


class ClientConnection:
    """See the module's docstring.

    Attributes:
        buffer: bytes received and not used yet.
        began: when the request being answered came, or the connection.
        exchange: the request being answered, None between requests.
        alive: whether bytes can still be written.
        moved_at: monotonic time at which the request began, or the last KiB of it or its answer had passed.
        idle_since: monotonic time at which it was made, or its last request ended.
        deadline: monotonic time at which it is closed unless something happens, 0 for none.
    """

    __slots__ = (
        "_eof",
        "_fd",
        "_half_closed",
        "_linger_until",
        "_moved",
        "_out",
        "_paused",
        "_reader",
        "_shut",
        "_socket",
        "_writer",
        "alive",
        "began",
        "buffer",
        "deadline",
        "exchange",
        "idle_since",
        "moved_at",
        "origin",
        "out_size",
        "receive_size",
        "server",
    )

    def __init__(self, server: ProxyServer, sock: _socket.socket, origin: Origin) -> None:
        self.server = server
        self.origin = origin
        self.buffer = b""
        self.exchange: ClientExchange | None = None
        self.began = time.monotonic()
        self.alive = True
        self.idle_since = self.moved_at = now = time.monotonic()
        self.deadline = now + server.head_timeout
        self._moved = 0
        self.out_size = 0
        self.receive_size = _RECV
        self._socket = sock
        self._fd = sock.fileno()
        self._out: deque[tuple[memoryview, Stream | None, int]] = deque()
        self._paused = False
        self._eof = False
        self._shut = False
        self._linger_until = 0.0
        """When discarding what still comes ends, 0 while nothing is discarded."""
        self._half_closed: HalfClosed | None = None
        self._writer: Any = None
        self._reader = server.loop.io(self._fd, 1)
        self._reader.start(self._on_readable)

    @property
    def half_closed(self) -> bool:
        """Whether the client has ended its sending side."""
        return self._eof

    @property
    def closing(self) -> bool:
        """Whether it closes by itself: once all is sent and the client has closed too, or has had time to."""
        return self._shut

    @property
    def stuck(self) -> bool:
        """Whether a request is in progress and its client is to do something: send more of it, or take the answer."""
        return self.exchange is not None and (self.out_size > 0 or self.exchange.awaits_client)

    def give_up(self) -> None:
        """End a connection that is stuck, at once: its place is needed."""
        if not self.out_size:
            error = ClientTooSlow("too many clients are connected, and this request waits for its client")
            name = request_id([])
            self.write(error_response(error, accept=b"", head_only=False, request_id=name, close=True))
        log.info("event=client_given_up client=%s waiting=%.1f", self.origin.address, time.monotonic() - self.moved_at)
        self.gone()

    def _progress(self, size: int) -> None:
        """So many bytes of a request or its answer have passed."""
        self._moved += size
        if self._moved >= _STEP:
            self._moved = 0
            self.moved_at = time.monotonic()

    # -- reading ------------------------------------------------------------------------------------------------

    def pause(self) -> None:
        """Stop reading until `resume`."""
        if not self._paused and self.alive:
            self._paused = True
            self._reader.stop()

    def resume(self) -> None:
        """Read on."""
        if self._paused and self.alive and not self._eof:
            self._paused = False
            self._reader.start(self._on_readable)

    def expect_body(self, expected: bool) -> None:
        """Choose the read size: large while a request body or a tunnel streams."""
        self.receive_size = _RECV_BODY if expected else _RECV

    def _on_readable(self) -> None:
        try:
            data = self._socket.recv(self.receive_size)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.gone()
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
        """The client sends nothing more; it may still wait for answers."""
        self._eof = True
        self._reader.stop()
        if self.exchange is None:
            self._next_request()
        else:
            self.exchange.on_client_end()
        if self.exchange is not None and not self.exchange.half_close:
            self._half_closed = HalfClosed(self.server.loop, self._fd, self.gone)
            self._half_closed.answered = bool(self._out)  # had it closed, bytes it has not read would reset us

    def hold_pipelined(self) -> None:
        """Keep what a client sends ahead of its turn, up to a limit; then stop reading."""
        if len(self.buffer) >= _PIPELINE_LIMIT:
            self.pause()

    def _next_request(self) -> None:
        if self.out_size > _ANSWER_LIMIT:
            self.hold_pipelined()
            return
        self._read_heads()
        if self.exchange is None or len(self.buffer) < _PIPELINE_LIMIT:
            self.resume()
        if self._eof and self.exchange is None and self.alive:
            self.finish()

    def _read_heads(self) -> None:
        while self.exchange is None and self.buffer and self.alive and not self._shut:
            buffer = self.buffer
            if buffer[0] in b"\r\n":
                self.buffer = buffer.lstrip(b"\r\n")
                continue
            end = buffer.find(b"\r\n\r\n")
            if end < 0 or end > self.server.max_head:
                if len(buffer) > self.server.max_head:
                    self.fail(HeadTooLarge(f"the request head is larger than {self.server.max_head} bytes"))
                elif b"\n\n" in buffer:
                    self.fail(InvalidRequest("Invalid request: lines must end with CRLF"))
                elif not may_become_request(buffer):
                    self.fail(InvalidRequest("Invalid request: not the head of an HTTP/1 request"))
                return
            self.buffer = buffer[end + 4 :]
            raw = buffer[: end + 4]
            try:
                head = parse_request(raw)
            except InvalidRequest as error:
                self.fail(error)
                return
            self.deadline = 0.0
            self.moved_at = time.monotonic()
            mark = self.server.mark
            self.server.dispatch(self, head, mark in raw and came_through(head.headers, mark))

    # -- writing ------------------------------------------------------------------------------------------------

    def write(self, data: bytes, stream: Stream | None = None, size: int = 0) -> None:
        """Send `data`; once the kernel has it, `size` bytes of `stream` count as consumed."""
        if not self.alive:
            return
        if self._half_closed is not None:
            self._half_closed.answered = True
        if self._out:
            self._out.append((memoryview(data), stream, size))
            self.out_size += len(data)
            return
        try:
            sent = self._socket.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self.gone()
            return
        if sent == len(data):
            if stream is not None:
                stream.consume(size)
            return
        self._out.append((memoryview(data)[sent:], stream, size))
        self.out_size = len(data) - sent
        self._progress(_STEP)
        if self._writer is None:
            self._writer = self.server.loop.io(self._fd, 2)
        self._writer.start(self._on_writable)

    def _on_writable(self) -> None:
        out = self._out
        while out:
            data, stream, size = out[0]
            try:
                sent = self._socket.send(data)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self.gone()
                return
            self.out_size -= sent
            self._progress(sent)
            if self.exchange is None:
                self.deadline = time.monotonic() + self.server.idle_timeout  # it is slow, not idle
            if sent < len(data):
                out[0] = (data[sent:], stream, size)
                return
            out.popleft()
            if stream is not None:
                stream.consume(size)
        self._writer.stop()
        if self.exchange is not None:
            self.exchange.on_client_drained()
        elif self.buffer and not self._shut:
            self._next_request()
        if self._shut and not self._out and self.alive:
            self._finish_writing()

    def undelivered(self) -> int:
        """Bytes written that the client's kernel has not acknowledged (tcp(7), SIOCOUTQ)."""
        if not self.alive:
            return self.out_size
        (unacknowledged,) = struct.unpack("i", fcntl.ioctl(self._fd, termios.TIOCOUTQ, bytes(4)))
        return self.out_size + int(unacknowledged)

    # -- the end of an exchange, and of the connection ----------------------------------------------------------

    def exchange_done(self, keep_alive: bool) -> None:
        """The exchange is over and its answer written: next request, or close once everything is sent."""
        self.exchange = None
        self.receive_size = _RECV
        if not keep_alive or (self._eof and not self.buffer):
            self.finish()
            return
        self.idle_since = now = time.monotonic()
        self.deadline = now + self.server.idle_timeout
        if self.buffer:
            self.server.loop.run_callback(self._next_request)
        else:
            self.resume()

    def fail(self, error: PRouterError, head: RequestHead | None = None, *, keep_alive: bool = False) -> None:
        """Answer with an error of our own and end the exchange."""
        headers = head.headers if head is not None else []
        name_of_request = request_id(headers)
        accept = b",".join(value for name, value in headers if name.lower() == b"accept")
        log.log(
            error.level,
            "event=request_failed code=%s status=%d request=%s client=%s job=%s detail=%r",
            error.code,
            error.status,
            name_of_request,
            self.origin.address,
            error.job,
            error.detail,
        )
        head_only = head is not None and head.method == b"HEAD"
        recipient = API if self.exchange is None else self.exchange.recipient
        method, seconds = (head.method, time.monotonic() - self.began) if head is not None else (b"", 0.0)
        counters.current().answered(recipient, method, error.status, seconds)
        self.write(
            error_response(error, accept=accept, head_only=head_only, request_id=name_of_request, close=not keep_alive)
        )
        self.exchange_done(keep_alive)

    def finish(self) -> None:
        """Close after everything written has been sent."""
        self.shut_write()
        if self._out:
            self.deadline = time.monotonic() + self.server.idle_timeout

    def shut_write(self) -> None:
        """Half-close after everything written has been sent; the client may go on sending."""
        self._shut = True
        if not self._out and self.alive:
            self._finish_writing()

    def _finish_writing(self) -> None:
        """All is sent: FIN, then discard what still arrives for a moment, lest a reset eats our answer."""
        if self._eof and self.exchange is None:
            self.close()
            return
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.gone()
            return
        if self.exchange is None:
            self.buffer = b""
            now = time.monotonic()
            self._linger_until = now + _LINGER_LIMIT
            self.deadline = now + _LINGER_SECONDS
            if self._paused:
                self.resume()

    def abort(self) -> None:
        """Reset the connection so that the client sees that its answer was cut off."""
        if self.alive:
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_LINGER)
            except OSError as error:
                log.debug("event=abort_failed client=%s error=%r", self.origin.address, error)
            self.exchange = None
            self.close()

    def gone(self) -> None:
        """The client's connection broke."""
        if not self.alive:
            return
        exchange, self.exchange = self.exchange, None
        self.close()
        if exchange is not None:
            exchange.on_client_gone()

    def close(self) -> None:
        """Close now. Idempotent."""
        if not self.alive:
            return
        self.alive = False
        self._reader.stop()
        self._reader.close()
        if self._writer is not None:
            self._writer.stop()
            self._writer.close()
        if self._half_closed is not None:
            self._half_closed.stop()
        self._socket.close()
        for _data, stream, size in self._out:
            if stream is not None:
                stream.consume(size)
        self._out.clear()
        self.out_size = 0
        self.server.forget(self)

    def vanished(self) -> bool:
        """Whether the client closed while we were not reading; the kernel tells what is behind bytes it still holds.

        A client that blocked before it went away, its own kernel full of bytes we have no room for, is not found out
        before some of them were taken: its end has not been sent yet.
        """
        if not self._paused or self._eof or not self.alive:
            return False
        poll = _poll()
        poll.register(self._fd, 0 if self.exchange is not None and self.exchange.half_close else select.POLLRDHUP)
        return bool(poll.poll(0))

    def expire(self) -> None:
        """The deadline passed: an idle client, one too slow with its head, or one that lingers."""
        if self._out and self.exchange is None:
            self.abort()  # it does not read, so it has not got all of its answer
        elif self.buffer and not self._linger_until and self.exchange is None:
            self.fail(InvalidRequest("Invalid request: the request head took too long", code="head_timeout"))
        else:
            self.gone()
