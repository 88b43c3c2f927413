"""WebSocket bridges: the router as client of two servers, a job's and another, each getting the other's messages.

Both sides are servers, so raw bytes cannot be passed on (a client masks its frames, RFC 6455 section 5.3); the
websockets library speaks both connections. The job's side runs over a fabric stream, behind a socket pair. Fragments
are passed on as they come, so a long message needs no memory of its size.
"""

from __future__ import annotations

import logging
import socket
import time
import uuid
from collections.abc import Iterator
from typing import Any

import gevent
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI, WebSocketException
from websockets.sync.client import ClientConnection, connect

from prouter.api.client import JobRoute, RouterClient
from prouter.errors import InvalidRequest, JobUnreachable, NotFound, PRouterError
from prouter.transport.stream_io import CHUNK, StreamIO, StreamReset

__all__ = ["Bridge", "Bridges"]

log = logging.getLogger("prouter.bridges")

_OPEN_TIMEOUT = 15.0
_MAX_MESSAGE = None
_MAX_FRAGMENT = 64 * 1024 * 1024
"""Largest single frame; it is held in memory."""
_NO_STATUS = frozenset({1005, 1006, 1015})
"""Close codes that are never sent (RFC 6455 section 7.4.1)."""


class Bridge:
    """One bridge between a job's WebSocket and another server's.

    Attributes:
        uid: names it in the API.
        job: uid of the job.
        url: where its other end is connected to.
        since: epoch seconds of its beginning.
    """

    def __init__(self, route: JobRoute, path: str, url: str) -> None:
        self.uid = uuid.uuid4().hex
        self.connection = route.connection
        self.job = route.record.uid
        self.path = path
        self.url = url
        self.since = time.time()
        self._stream: StreamIO | None = None
        self._ours: socket.socket | None = None
        self._job_side: ClientConnection | None = None
        self._other_side: ClientConnection | None = None

    def describe(self) -> dict[str, Any]:
        """The bridge as the API lists it."""
        return {
            "uid": self.uid,
            "connection": self.connection,
            "job": self.job,
            "path": self.path,
            "url": self.url,
            "since": self.since,
        }

    def open_job_side(self, client: RouterClient) -> None:
        """Connect to the job. Blocks the greenlet.

        Raises:
            JobUnreachable: the job is not there or no WebSocket server.
        """
        self._stream = StreamIO(client.open_stream(self.connection, {"kind": "http", "job": self.job}))
        theirs, self._ours = socket.socketpair()
        gevent.spawn(self._pump_to_job, self._stream, self._ours)
        gevent.spawn(self._pump_from_job, self._stream, self._ours)
        try:
            self._job_side = self._connect(f"ws://localhost{self.path}", theirs)
        except (OSError, WebSocketException, TimeoutError) as error:
            theirs.close()
            self.close()
            raise JobUnreachable(f"the job's WebSocket cannot be opened: {error}", job=self.job) from error

    def open_other_side(self) -> None:
        """Connect to the other server. Blocks the greenlet.

        Raises:
            JobUnreachable: it cannot be reached; the code is ``url_unreachable``.
        """
        try:
            self._other_side = self._connect(self.url, None)
        except (OSError, WebSocketException, TimeoutError) as error:
            raise JobUnreachable(f"{self.url} cannot be opened: {error}", code="url_unreachable") from error

    def run(self) -> None:
        """Pass messages both ways until one side closes, then close the other alike."""
        first, second = self._job_side, self._other_side
        assert first is not None
        assert second is not None
        there = gevent.spawn(_copy, first, second)
        back = gevent.spawn(_copy, second, first)
        gevent.joinall([there, back])
        self.close()

    def close(self, code: int = 1001, reason: str = "the bridge ends") -> None:
        """End both sides. Idempotent."""
        for side in (self._job_side, self._other_side):
            if side is not None:
                side.close(code, reason)
        if self._stream is not None:
            self._stream.reset("done")
        if self._ours is not None:
            self._ours.close()

    @staticmethod
    def _connect(url: str, sock: socket.socket | None) -> ClientConnection:
        connection = connect(
            url,
            sock=sock,
            compression=None,
            proxy=None,
            open_timeout=_OPEN_TIMEOUT,
            ping_interval=None,
            close_timeout=5,
            max_size=(_MAX_MESSAGE, _MAX_FRAGMENT),
            legacy=True,
        )
        assert isinstance(connection, ClientConnection)
        return connection

    def _pump_to_job(self, stream: StreamIO, ours: socket.socket) -> None:
        try:
            while data := ours.recv(CHUNK):
                stream.write_all(data)
            stream.close()
        except (OSError, StreamReset) as error:
            log.debug("event=bridge_pump_ended bridge=%s error=%r", self.uid, error)
            stream.reset("done")

    def _pump_from_job(self, stream: StreamIO, ours: socket.socket) -> None:
        try:
            while data := stream.read(CHUNK):
                ours.sendall(data)
            ours.shutdown(socket.SHUT_WR)
        except (OSError, StreamReset) as error:
            log.debug("event=bridge_pump_ended bridge=%s error=%r", self.uid, error)
            ours.close()


def _copy(source: ClientConnection, target: ClientConnection) -> None:
    """Pass messages on, fragment by fragment, text as text and binary as binary, and the close at the end."""
    code, reason = 1000, ""
    try:
        while True:
            _copy_message(source, target)
    except ConnectionClosed as closed:
        if closed.rcvd is not None:
            code, reason = closed.rcvd.code, closed.rcvd.reason
        elif source.protocol.close_code is not None:
            code = source.protocol.close_code
    except WebSocketException as error:
        code, reason = 1011, str(error)[:100]
    if code in _NO_STATUS:
        code, reason = (1000, "") if code == 1005 else (1001, "the other side is gone")
    target.close(code, reason)


def _copy_message(source: ClientConnection, target: ClientConnection) -> None:
    fragments: Iterator[str | bytes] = iter(source.recv_streaming())
    first = next(fragments, None)
    if first is None:
        return
    second = next(fragments, None)
    if second is None:
        target.send(first)
        return

    def all_fragments() -> Iterator[str | bytes]:
        yield first
        yield second
        yield from fragments

    target.send(all_fragments())


class Bridges:
    """The bridges of one worker.

    Args:
        client: the worker's connection to the broker; other workers' bridges are known through it.
    """

    def __init__(self, client: RouterClient) -> None:
        self._client = client
        self._bridges: dict[str, Bridge] = {}
        client.on_bridge_end = self._end_here
        client.list_bridges = lambda: [bridge.describe() for bridge in self._bridges.values()]

    def __len__(self) -> int:
        return len(self._bridges)

    def start(self, connection: str, job: str, path: str, url: str) -> Bridge:
        """Connect to the job, then, in the background, to `url`, and bridge them. Blocks until the job is connected.

        Raises:
            InvalidRequest: the url is no ws or wss URL.
            JobUnreachable: the job's WebSocket does not open.
        """
        if not url.startswith(("ws://", "wss://")):
            raise InvalidRequest("Invalid request: url must start with ws:// or wss://")
        bridge = Bridge(self._client.route(connection, job), path, url)
        bridge.open_job_side(self._client)
        self._bridges[bridge.uid] = bridge
        self._client.bridges_changed()
        gevent.spawn(self._run, bridge)
        return bridge

    def end(self, uid: str) -> None:
        """End a bridge of this worker.

        Raises:
            NotFound: there is none of that uid here.
        """
        bridge = self._bridges.get(uid)
        if bridge is None:
            raise NotFound(f"bridge '{uid}' is not found")
        bridge.close()

    def close_all(self) -> None:
        """End every bridge (the worker stops)."""
        for bridge in list(self._bridges.values()):
            bridge.close(1012, "the router restarts")

    def _end_here(self, uid: str) -> None:
        bridge = self._bridges.get(uid)
        if bridge is not None:
            gevent.spawn(bridge.close)

    def _run(self, bridge: Bridge) -> None:
        try:
            bridge.open_other_side()
            bridge.run()
        except PRouterError as error:
            log.warning("event=bridge_failed bridge=%s job=%s error=%r", bridge.uid, bridge.job, error.detail)
        except (InvalidHandshake, InvalidURI, OSError) as error:
            log.warning("event=bridge_failed bridge=%s job=%s error=%r", bridge.uid, bridge.job, error)
        finally:
            bridge.close()
            self._bridges.pop(bridge.uid, None)
            self._client.bridges_changed()
