"""The switch of a client's connection from an API request to a stream, after ``101 Switching Protocols``."""

from __future__ import annotations

from websockets.server import ServerProtocol

from prouter.transport.stream_io import StreamIO
from prouter.web.proxy.interfaces import Client
from prouter.web.proxy.tunnel import Tunnel
from prouter.web.proxy.upstream import Upstream
from prouter.web.proxy.websocket_tunnel import WebSocketTunnel

__all__ = ["Switch"]


class Switch:
    """A stream to a job that is to take a client's connection over.

    Args:
        io: the stream, behind its preface.
        job: uid of the job.
        response: the whole response.
        protocol: state of the client's WebSocket; None for raw bytes.
    """

    def __init__(self, io: StreamIO, job: str, response: bytes, protocol: ServerProtocol | None) -> None:
        self._io = io
        self._job = job
        self._response = response
        self._protocol = protocol

    def begin(self, client: Client) -> None:
        """Send the response and join both.

        Raises:
            StreamReset: the stream has ended early meanwhile. Nothing was sent.
        """
        pieces, finished = self._io.give_up()
        server = client.server
        upstream = Upstream(server.pool, self._job, self._io.stream)
        tunnel = (
            Tunnel(server, client, upstream, b"")
            if self._protocol is None
            else WebSocketTunnel(server, client, upstream, self._protocol)
        )
        server.exchanges.add(tunnel)
        client.exchange = upstream.user = tunnel
        client.write(self._response)
        for piece in pieces:
            tunnel.on_job_data(piece)
        if client.exchange is tunnel:
            tunnel.start()
        if finished and client.exchange is tunnel:
            tunnel.on_job_finish()

    def cancel(self) -> None:
        """End the stream: the client has disconnected before."""
        self._io.reset("client_gone", "the client disconnected")
