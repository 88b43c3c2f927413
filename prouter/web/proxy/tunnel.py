"""What follows a ``101 Switching Protocols``: raw bytes both ways, until each side has ended its own."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from prouter.fabric.stream import Direction
from prouter.web.metrics.counters import JOB
from prouter.web.proxy.connection import ClientConnection
from prouter.web.proxy.upstream import Upstream

if TYPE_CHECKING:
    from prouter.web.proxy.server import ProxyServer

__all__ = ["Tunnel"]

log = logging.getLogger("prouter.proxy")

_HALF_CLOSED = 60.0
"""Seconds a job may be silent in a tunnel whose client has ended its side."""


class Tunnel:
    """A client's connection and a job's stream, joined.

    Args:
        server: the worker's proxy.
        client: the client's connection.
        upstream: the connection to the job.
        pending: what the client has sent and the stream had no room for yet.
    """

    __slots__ = ("_client", "_pending", "_server", "_upstream")

    recipient = JOB
    half_close = True
    awaits_client = False
    """Each side may end on its own."""

    def __init__(self, server: ProxyServer, client: ClientConnection, upstream: Upstream, pending: bytes) -> None:
        self._server = server
        self._client = client
        self._upstream = upstream
        self._pending = pending

    def start(self) -> None:
        """Take over from the exchange that led here."""
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
        """See `ClientExchange`."""
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
        """See `UpstreamUser`."""
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
        """See `ClientExchange`."""
        self._client.deadline = time.monotonic() + _HALF_CLOSED
        if not self._pending:
            self._client_finished()

    def _client_finished(self) -> None:
        """The client sends nothing more, and all it sent is on its way."""
        stream = self._upstream.stream
        stream.close()
        if stream.receiving is not Direction.OPEN:
            self._end()

    # -- from the job to the client -----------------------------------------------------------------------------

    def on_job_data(self, data: bytes) -> None:
        """See `UpstreamUser`."""
        client = self._client
        if client.half_closed:
            client.deadline = time.monotonic() + _HALF_CLOSED
        client.write(data, self._upstream.stream, len(data))

    def on_job_finish(self) -> None:
        """See `UpstreamUser`."""
        if self._client.half_closed and not self._pending:
            self._end()
        else:
            self._client.shut_write()

    # -- ends ---------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        """Both sides have finished."""
        self._server.exchanges.discard(self)
        self._upstream.user = None
        self._upstream.stream.close()
        self._client.exchange = None
        self._client.finish()

    def on_job_reset(self, code: str, text: str) -> None:
        """See `UpstreamUser`."""
        log.warning("event=tunnel_cut job=%s detail=%r", self._upstream.job, text or code)
        self._discard("cut", text)
        self._client.abort()

    def on_client_gone(self) -> None:
        """See `ClientExchange`."""
        self._discard("client_gone", "the client is gone")

    def on_client_drained(self) -> None:
        """Nothing to do: consumption is told as bytes reach the kernel."""

    def check_timeout(self, now: float, answer: float, body: float) -> None:
        """A tunnel may be silent for as long as it likes."""

    def end(self, reason: str) -> None:
        """Cut it now (the worker stops)."""
        self._discard("worker_stops", reason)
        self._client.abort()

    def _discard(self, code: str, text: str) -> None:
        self._server.exchanges.discard(self)
        self._upstream.discard(code, text)
