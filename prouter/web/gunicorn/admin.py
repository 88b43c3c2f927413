"""Requests of the API: each runs the WSGI app in a greenlet of its own.

The request is parsed already, and `prouter.web.gunicorn.wsgi` makes the WSGI environment and frames the response. The
connection is read while the app works, so that a client that disconnects ends its request (GreenletExit in the app).
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import gevent
from gevent.event import Event

from prouter.errors import InvalidRequest, Overloaded, PRouterError
from prouter.fabric.stream import MAX_PIECE
from prouter.web.gunicorn.wsgi import ResponseWriter, environment
from prouter.web.metrics.counters import API
from prouter.web.proxy.addresses.forwarded import Forwarded
from prouter.web.proxy.connection import SMALL_READ
from prouter.web.proxy.interfaces import Client
from prouter.web.proxy.messages.chunked import ChunkDecoder, ChunkError
from prouter.web.proxy.messages.heads import BodyKind
from prouter.web.proxy.own_responses.refusals import ClientTooSlow
from prouter.web.proxy.switching import Switch

__all__ = ["AdminExchange", "AdminService"]

log = logging.getLogger("prouter.web")

_READ_AHEAD = 64 * 1024
"""Bytes of a request body that are buffered for the app; few, because each read joins and cuts the buffer."""
_WRITE_AHEAD = 256 * 1024
"""Bytes of a response that are buffered for the client before the app has to wait."""
_ACKNOWLEDGED_AFTER = 0.0005
"""First interval at which to look whether a client has acknowledged all, seconds; doubles up to `_ASKED_EVERY`."""
_ASKED_EVERY = 0.1

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
AtOnce = Callable[[Client, Forwarded], bool]


class ClientDisconnected(ConnectionError):
    """The client disconnected while the app was reading or writing."""


class _Body(io.RawIOBase):
    """``wsgi.input``: blocks the greenlet until the client has sent more."""

    def __init__(self, exchange: AdminExchange) -> None:
        self._exchange = exchange

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            return b"".join(iter(lambda: self._exchange.read_body(_WRITE_AHEAD), b""))
        return self._exchange.read_body(size) if size else b""

    def readinto(self, buffer: Any) -> int:
        data = self._exchange.read_body(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        return self.read()


class AdminExchange:
    """One request to the WSGI app.

    Args:
        app: the WSGI app.
        client: the client's connection.
        forwarded: the request.
    """

    recipient = API
    half_close = False
    """A client that shut down its sending side may have disconnected; the connection finds out."""

    def __init__(self, app: WsgiApp, client: Client, forwarded: Forwarded) -> None:
        head = forwarded.head
        self._app = app
        self._client = client
        self._head = head
        self._forwarded = forwarded
        self._left = head.length if head.body == BodyKind.LENGTH else 0
        self._decoder = ChunkDecoder() if head.body == BodyKind.CHUNKED else None
        self._decoded = b""
        self._fragmented = False
        """Whether the body's chunks are so small that they take long to decode."""
        self._wake = Event()
        self._deadline = time.monotonic() + client.server.body_timeout if client.server.body_timeout else 0.0
        """Monotonic time by which all of the body has to arrive, 0 for none."""
        self._pause = 0.0
        """Seconds the client may pause within its body, 0 for no limit."""
        self._asking = False
        self._write_ahead = _WRITE_AHEAD
        self._expect = head.expect and head.version == "1.1"
        self._response: ResponseWriter | None = None
        self._switch: Switch | None = None
        self.greenlet: gevent.Greenlet[..., None] | None = None

    @property
    def awaits_client(self) -> bool:
        """Whether the app waits for more of the request's body."""
        return self._asking

    # -- the connection's side ----------------------------------------------------------------------------------

    def on_client_data(self) -> None:
        """Wake the app for bytes of the body; hold those of the next request."""
        self._wake.set()
        if len(self._client.buffer) >= _READ_AHEAD or self._body_done:
            self._client.hold_pipelined()

    def on_client_end(self) -> None:
        """Wake the app: what it waits for may never arrive."""
        self._wake.set()

    def on_client_disconnected(self) -> None:
        """End the app's greenlet wherever it waits (GreenletExit)."""
        self._wake.set()
        if self.greenlet is not None:
            self.greenlet.kill(block=False)

    def on_client_drained(self) -> None:
        """Let the app write again."""
        self._wake.set()

    def end(self, reason: str) -> None:
        """End at once, because the worker stops: with an error if the response has not begun, else with a cut."""
        client = self._client
        if self._response is not None and self._response.head_sent:
            client.abort()
        else:
            client.fail(Overloaded(f"{reason}: send the request again", code="draining", retry_after=1), self._head)
        if self.greenlet is not None:
            self.greenlet.kill(block=False)

    # -- the app's side -----------------------------------------------------------------------------------------

    @property
    def _body_done(self) -> bool:
        return self._left == 0 if self._decoder is None else self._decoder.complete and not self._decoded

    def read_body(self, size: int) -> bytes:
        """Return up to `size` bytes of the request body, none at its end. Blocks the greenlet.

        Raises:
            ClientDisconnected: the client disconnected before the end.
            InvalidRequest: the chunked framing is broken.
            ClientTooSlow: the body did not arrive in time.
        """
        client = self._client
        client.receive_size = SMALL_READ if self._fragmented else min(max(size, client.receive_size), MAX_PIECE)
        while not self._body_done:
            if self._expect:
                self._expect = False
                client.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            data = self._take(size)
            if data:
                if len(client.buffer) < _READ_AHEAD:
                    client.resume()
                return data
            if self._decoder is not None and self._decoder.complete:
                break
            if not client.alive or client.half_closed:
                raise ClientDisconnected("the client disconnected in the middle of the request body")
            self._wait_for_client()
        return b""

    def expect_upload(self) -> None:
        """Limit pauses within the body in place of its whole time. In WSGI this is ``prouter.upload``."""
        self._deadline, self._pause = 0.0, self._client.server.upload_timeout

    def _wait_for_client(self) -> None:
        patience = max(0.0, self._deadline - time.monotonic()) if self._deadline else self._pause or None
        self._wake.clear()
        self._client.resume()
        self._asking = True
        try:
            self._wake.wait(patience)
        finally:
            self._asking = False
        if not self._wake.is_set():
            limit = "control.body_timeout" if self._deadline else "control.upload_timeout"
            raise ClientTooSlow(f"the request body took too long: its time is over ({limit})")

    def _take(self, size: int) -> bytes:
        client = self._client
        if self._decoder is None:
            data = client.buffer[: min(size, self._left)]
            client.buffer = client.buffer[len(data) :]
            self._left -= len(data)
            return data
        if not self._decoded and client.buffer:
            raw, client.buffer = client.buffer, b""
            try:
                self._decoded = b"".join(self._decoder.feed(raw))
            except ChunkError as error:
                raise InvalidRequest(f"Invalid request: {error}") from error
            self._fragmented = 2 * len(self._decoded) < len(raw)
            if self._decoder.complete:
                client.buffer = self._decoder.rest
        data, self._decoded = self._decoded[:size], self._decoded[size:]
        return data

    def _discard_body(self) -> bool:
        """Drop what arrived of a body that the app does not read, and return whether that was the rest of it."""
        try:
            while not self._body_done and self._take(_WRITE_AHEAD):
                pass
        except InvalidRequest:
            return False
        return self._body_done

    def send(self, data: bytes) -> None:
        """Send bytes of the response. Blocks the greenlet while the client is slow.

        Raises:
            ClientDisconnected: the client disconnected.
        """
        client = self._client
        client.write(data)
        while client.alive and client.out_size > self._write_ahead:
            self._wake.clear()
            self._wake.wait()
        if not client.alive:
            raise ClientDisconnected("the client disconnected")

    def limit_write_ahead(self, size: int) -> None:
        """Set how many bytes of the response may be buffered. In WSGI this is ``prouter.write_ahead``."""
        self._write_ahead = size

    def wait_delivered(self) -> None:
        """Block until the client has acknowledged everything sent so far. In WSGI this is ``prouter.delivered``.

        Raises:
            ClientDisconnected: the client disconnected before.
        """
        client = self._client
        pause = _ACKNOWLEDGED_AFTER
        while client.alive and client.undelivered():
            self._wake.clear()
            self._wake.wait(pause)
            pause = min(2 * pause, _ASKED_EVERY)
        if not client.alive:
            raise ClientDisconnected("the client disconnected before it had everything")

    def run(self) -> None:
        """Carry out the request. Runs in a greenlet and raises nothing."""
        client, head = self._client, self._head
        response = self._response = ResponseWriter(
            head,
            self.send,
            keep_alive=head.keep_alive and not client.server.draining,
            body_read=self._discard_body,
        )
        try:
            self._respond(response)
            if self._switch is not None and client.exchange is self:
                switch, self._switch = self._switch, None
                switch.begin(client)
                return
        except (ClientDisconnected, gevent.GreenletExit):
            if client.exchange is self:
                client.exchange = None
                client.close()
            return
        except Exception as error:
            failure = self._as_error(error)
            if response.head_sent:
                log.log(failure.level, "event=response_cut path=%r detail=%r", self._path, failure.detail)
                client.abort()
                return
            if client.exchange is self:
                client.fail(failure, head)
            return
        finally:
            if self._switch is not None:
                self._switch.cancel()
        if client.exchange is self:
            client.exchange_done(response.keep_alive and self._body_done)

    @property
    def _path(self) -> bytes:
        return self._head.target.partition(b"?")[0]

    def switch_protocols(self, switch: Switch) -> None:
        """Have a stream take the connection over once the app has returned. In WSGI this is ``prouter.switch``."""
        self._switch = switch

    def client_key(self) -> str:
        """Return the key of the client's budgets. In WSGI this is ``prouter.client_key``."""
        return self._client.server.client_key(self._forwarded)

    def _as_error(self, error: Exception) -> PRouterError:
        """Return the error for the client; one that was not foreseen goes into the log only."""
        if isinstance(error, PRouterError):
            return error
        log.error("event=request_crashed path=%r", self._path, exc_info=error)
        return PRouterError("the request failed in the router: its log has the reason")

    def _respond(self, response: ResponseWriter) -> None:
        origin = self._client.origin
        public = self._forwarded.public
        environ = environment(
            self._head,
            _Body(self),
            scheme=public.proto.decode("ascii"),
            client="" if origin.address == "unix" else origin.address,
            port=origin.port,
        )
        environ["prouter.hosts"] = self._forwarded.hosts
        environ["prouter.public"] = public
        environ["prouter.principal"] = self._forwarded.principal
        environ["prouter.visitor"] = self._forwarded.visitor
        environ["prouter.refused"] = self._forwarded.refused
        environ["prouter.forwarded_for"] = self._forwarded.clients
        environ["prouter.client_key"] = self.client_key
        environ["prouter.delivered"] = self.wait_delivered
        environ["prouter.upload"] = self.expect_upload
        environ["prouter.write_ahead"] = self.limit_write_ahead
        environ["prouter.upgrade"] = self._head.upgrade
        environ["prouter.switch"] = self.switch_protocols
        result = self._app(environ, response.start_response)
        try:
            if self._switch is not None:
                return
            for piece in result:
                response.write(piece)
            response.close()
        finally:
            close = getattr(result, "close", None)
            if close is not None:
                close()


class AdminService:
    """Starts WSGI requests of one worker.

    Args:
        app: the WSGI app.
        at_once: responds to some requests without the app, and returns whether it has.
    """

    def __init__(self, app: WsgiApp, at_once: AtOnce = lambda _client, _forwarded: False) -> None:
        self._app = app
        self._at_once = at_once

    def start(self, client: Client, forwarded: Forwarded) -> None:
        """Start the request on a connection."""
        if self._at_once(client, forwarded):
            return
        exchange = AdminExchange(self._app, client, forwarded)
        client.exchange = exchange
        if forwarded.head.body != BodyKind.NONE:
            client.expect_body(True)
        exchange.greenlet = gevent.spawn(exchange.run)
