"""Raw bytes both ways after ``101 Switching Protocols`` (RFC 9110 section 7.8), until each side has ended its own."""

from __future__ import annotations

import logging
import time

from prouter.fabric.stream import Direction
from prouter.web.metrics.counters import JOB
from prouter.web.proxy.interfaces import Client, ProxyContext
from prouter.web.proxy.upstream import Upstream

__all__ = ["Tunnel"]

log = logging.getLogger("prouter.proxy")

_HALF_CLOSED = 60.0
"""Seconds a job may be silent in a tunnel whose client has shut down its sending side."""


class Tunnel:
    """A client's connection and a stream to a job, joined.

    Args:
        server: the worker's proxy.
        client: the client's connection.
        upstream: the connection to the job.
        pending: bytes of the client that wait for the stream's window.
    """

    __slots__ = ("_client", "_pending", "_server", "_upstream")

    recipient = JOB
    half_close = True
    """Each side of a tunnel may end on its own, as in TCP."""
    awaits_client = False

    def __init__(self, server: ProxyContext, client: Client, upstream: Upstream, pending: bytes) -> None:
        self._server = server
        self._client = client
        self._upstream = upstream
        self._pending = pending

    def start(self) -> None:
        """Take over from the exchange that switched protocols."""
        client = self._client
        self._server.exchanges.add(self)
        client.exchange = self
        self._upstream.user = self
        client.expect_body(True)
        if self._pending:
            return
        client.resume()
        if client.buffer:
            self.on_client_data()
        if client.half_closed:
            self.on_client_end()

    # -- from the client to the job -----------------------------------------------------------------------------

    def on_client_data(self) -> None:
        """Pass on what the client sent."""
        client = self._client
        if self._pending:
            client.hold_pipelined()
            return
        data, client.buffer = client.buffer, b""
        self._send(data)

    def _send(self, data: bytes) -> None:
        stream = self._upstream.stream
        if stream.closed:
            return
        taken = stream.write(data)
        if taken < len(data):
            self._pending = data[taken:]
            self._client.pause()

    def on_job_writable(self) -> None:
        """Send what waited for the stream's window, then read the client again."""
        data, self._pending = self._pending, b""
        if data:
            self._send(data)
        if self._pending:
            return
        client = self._client
        client.resume()
        if client.buffer:
            self.on_client_data()
        elif client.half_closed:
            self._client_finished()

    def on_client_end(self) -> None:
        """Shut down the stream once all that the client sent is in it."""
        self._client.deadline = time.monotonic() + _HALF_CLOSED
        if not self._pending:
            self._client_finished()

    def _client_finished(self) -> None:
        """Shut down the stream: the client sends nothing more, and all it sent is on its way."""
        stream = self._upstream.stream
        stream.close()
        if stream.receiving is not Direction.OPEN:
            self._end()

    # -- from the job to the client -----------------------------------------------------------------------------

    def on_job_data(self, data: bytes) -> None:
        """Pass on what the job sent."""
        client = self._client
        if client.half_closed:
            client.deadline = time.monotonic() + _HALF_CLOSED
        client.write(data, self._upstream.stream, len(data))

    def on_job_finish(self) -> None:
        """Shut down the client's connection, or end both once the client has shut down its side, too."""
        if self._client.half_closed and not self._pending:
            self._end()
        else:
            self._client.shut_write()

    # -- ends ---------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        """End the tunnel, whose sides have both finished."""
        self._server.exchanges.discard(self)
        self._upstream.user = None
        self._upstream.stream.close()
        self._client.exchange = None
        self._client.finish()

    def on_job_reset(self, code: str, text: str) -> None:
        """Reset the client's connection: a FIN would look like an end in order."""
        log.warning("event=tunnel_cut job=%s detail=%r", self._upstream.job, text or code)
        self._discard("cut", text)
        self._client.abort()

    def on_client_disconnected(self) -> None:
        """Reset the stream, so that the job sees its connection end."""
        self._discard("client_gone", "the client disconnected")

    def on_client_drained(self) -> None:
        """Do nothing: bytes count as consumed one by one as they reach the kernel."""

    def check_timeout(self, now: float, response: float, body: float) -> None:
        """Do nothing: a tunnel may be silent for as long as it likes."""

    def end(self, reason: str) -> None:
        """Cut the tunnel, because the worker stops."""
        self._discard("worker_stops", reason)
        self._client.abort()

    def _discard(self, code: str, text: str) -> None:
        self._server.exchanges.discard(self)
        self._upstream.discard(code, text)
