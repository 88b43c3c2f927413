"""One proxied request and its answer: a state machine between a client's connection and a job's stream.

The two directions run independently, each with its own back-pressure::

    request   HEAD → BODY (by length or chunks) → SENT
    answer    AWAITED → BODY (none, by length, chunks, until close) → DONE,   or 101 → TUNNEL both ways

Whoever goes away ends the other side: a client that is gone resets the stream (the job sees its connection end), a job
that is gone before its head gives an error answer, afterwards the client's connection is cut so that a torn answer
never looks whole.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from prouter.api.client import JobRoute
from prouter.api.proxy.chunked import LAST_CHUNK, ChunkDecoder, ChunkError, encode_chunk
from prouter.api.proxy.connection import ClientConnection
from prouter.api.proxy.forwarded import as_seen_by_the_client
from prouter.api.proxy.heads import BodyKind, RequestHead, ResponseHead, parse_response
from prouter.api.proxy.rewrite import request_to_job, response_to_client
from prouter.api.proxy.upstream import Upstream
from prouter.errors import (
    AgentUnavailable,
    InvalidRequest,
    JobEnded,
    JobTimeout,
    JobUnreachable,
    PRouterError,
)
from prouter.fabric.stream import Direction

if TYPE_CHECKING:
    from prouter.api.proxy.server import ProxyServer

__all__ = ["ProxyExchange"]

log = logging.getLogger("prouter.proxy")

_REPEATABLE = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE"})
_MAX_ANSWER_HEAD = 262144
_HALF_CLOSED = 60.0
"""Seconds a job may go on sending through a tunnel whose client has ended its side."""
_REASON_WAIT = 0.3
"""Seconds the news that a job has ended may take to explain a connection that broke."""


class ProxyExchange:
    """See the module's docstring.

    Args:
        server: the worker's proxy.
        client: the client's connection.
        head: the request.
        target: the request target for the job, raw, prefix stripped.
    """

    __slots__ = (
        "_answer",
        "_answer_buffer",
        "_answer_left",
        "_body_left",
        "_chunks",
        "_decoder",
        "_done",
        "_keep_alive",
        "_pending",
        "_request",
        "_retried",
        "_sent_request",
        "_tunnel",
        "awaiting_since",
        "client",
        "head",
        "prefix_owned",
        "route",
        "server",
        "target",
        "upstream",
    )

    def __init__(
        self, server: ProxyServer, client: ClientConnection, head: RequestHead, target: bytes, *, own_host: bool
    ) -> None:
        self.server = server
        self.client = client
        self.head = head
        self.target = target
        self.prefix_owned = own_host
        self.route: JobRoute | None = None
        self.upstream: Upstream | None = None
        self.awaiting_since = 0.0
        self._request = b""
        self._pending = b""
        self._body_left = head.length if head.body == BodyKind.LENGTH else 0
        self._decoder = ChunkDecoder() if head.body == BodyKind.CHUNKED else None
        self._sent_request = head.body == BodyKind.NONE or (head.body == BodyKind.LENGTH and not head.length)
        self._answer: ResponseHead | None = None
        self._answer_buffer = b""
        self._answer_left = -1
        self._chunks: ChunkDecoder | None = None
        self._keep_alive = False
        self._retried = False
        self._tunnel = False
        self._done = False

    # -- starting -----------------------------------------------------------------------------------------------

    def forward(self, route: JobRoute) -> None:
        """Send the request to the job."""
        self.route = route
        head = self.head
        prefix = b"" if self.prefix_owned else route.prefix
        keep = route.record.path_mode == "keep" and not self.prefix_owned
        target = prefix + self.target if keep else self.target
        if target[:1] != b"/" and target != b"*":
            target = b"/" + target
        self._request = request_to_job(head, target, prefix, self.client.origin)
        self._connect(fresh=bool(head.upgrade))

    @property
    def waiting(self) -> bool:
        """Whether it is neither forwarded nor over."""
        return self.upstream is None and not self._done and self.client.alive

    @property
    def half_close(self) -> bool:
        """Whether each side may end on its own, as in a tunnel."""
        return self._tunnel

    @property
    def _repeatable(self) -> bool:
        return self.head.method in _REPEATABLE and self.head.body == BodyKind.NONE

    def _connect(self, *, fresh: bool) -> None:
        assert self.route is not None
        try:
            if fresh:
                upstream = self.server.pool.new(self.route)
            else:
                upstream = self.server.pool.get(self.route, repeatable=self._repeatable)
        except PRouterError as error:
            self.fail(error)
            return
        self.upstream = upstream
        upstream.user = self
        self.awaiting_since = time.monotonic()
        if not self._sent_request:
            self.client.expect_body(True)
        self._send(self._request)
        if not self._sent_request and not self._pending:
            self.client.resume()  # it was told to wait if its body came before the job's route was known
            if self.client.buffer:
                self.on_client_data()

    # -- the request's direction --------------------------------------------------------------------------------

    def on_client_data(self) -> None:
        """Pass request body bytes (or tunnelled ones) on, as far as the stream has room."""
        client = self.client
        if self.upstream is None or self._pending:
            client.hold_pipelined()
            return
        if self._tunnel:
            data, client.buffer = client.buffer, b""
            self._send(data)
            return
        if self._sent_request or not client.buffer:
            client.hold_pipelined()
            return
        data, client.buffer = client.buffer, b""
        if self._decoder is None:
            body = data[: self._body_left]
            client.buffer = data[len(body) :]
            self._body_left -= len(body)
            self._sent_request = self._body_left == 0
            self._send(body)
            return
        try:
            body = self._decoder.feed(data)
        except ChunkError as error:
            self.fail(InvalidRequest(f"Invalid request: {error}"))
            return
        encoded = encode_chunk(body) if body else b""
        if self._decoder.complete:
            client.buffer = self._decoder.rest
            self._sent_request = True
            encoded += LAST_CHUNK
        if encoded:
            self._send(encoded)

    def _send(self, data: bytes) -> None:
        assert self.upstream is not None
        stream = self.upstream.stream
        if stream.closed:
            return
        taken = stream.write(data)
        if taken < len(data):
            self._pending = data[taken:]
            self.client.pause()
        elif self._sent_request and not self._tunnel:
            self.client.expect_body(False)

    def on_job_writable(self) -> None:
        """The stream has room again."""
        if self.upstream is None:
            return
        data, self._pending = self._pending, b""
        if data:
            self._send(data)
        if not self._pending and not self._done:
            self.client.resume()
            if self.client.buffer:
                self.on_client_data()
            elif self._tunnel and not self._pending and self.client.half_closed:
                self._client_finished()

    # -- the answer's direction ---------------------------------------------------------------------------------

    def on_job_data(self, data: bytes) -> None:
        """Bytes of the job."""
        assert self.upstream is not None
        if self._tunnel:
            self.client.write(data, self.upstream.stream, len(data))
        elif self._answer is None:
            self._read_head(data)
        else:
            self._relay(data, len(data), b"")

    def _read_head(self, data: bytes) -> None:
        assert self.upstream is not None
        assert self.route is not None
        size = len(data)
        data = self._answer_buffer + data  # bytes, also when it was a view
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self.upstream.stream.consume(size)
            self._answer_buffer = data
            if len(data) > _MAX_ANSWER_HEAD:
                self.fail(JobUnreachable("the job's answer has too large a head", code="bad_response"))
            elif not b"HTTP/".startswith(data[:5]):
                self.fail(JobUnreachable("the job's answer is not valid HTTP", code="bad_response"))
            return
        self._answer_buffer = b""
        try:
            head = parse_response(data[: end + 4])
        except PRouterError as error:
            self.fail(error)
            return
        rest = data[end + 4 :]
        if head.status < 200 and head.status != 101:
            self._retried = True  # What the client has seen of an answer must not be repeated.
            if self.head.version == "1.1":
                self.client.write(self._render(head, chunked=False))
            if rest:
                self._read_head_again(rest, size)
            else:
                self.upstream.stream.consume(size)
            return
        self._start_answer(head, rest, size)

    def _read_head_again(self, rest: bytes, size: int) -> None:
        """An interim answer and more arrived at once: `rest` belongs to the next head."""
        assert self.upstream is not None
        self.upstream.stream.consume(size - len(rest))
        self._read_head(rest)

    def _start_answer(self, head: ResponseHead, rest: bytes, size: int) -> None:
        request = self.head
        self._answer = head
        self.awaiting_since = 0.0
        if head.status == 101:
            self._start_tunnel(head, rest, size)
            return
        chunked = False
        keep_alive = request.keep_alive and not self.server.draining
        if request.method == b"HEAD" or head.status in (204, 304):
            self._answer_left = 0
        elif head.body == BodyKind.LENGTH:
            self._answer_left = head.length
        else:
            if head.body == BodyKind.CHUNKED:
                self._chunks = ChunkDecoder()
            chunked = request.version == "1.1"
            keep_alive = keep_alive and chunked
        self._keep_alive = keep_alive
        self._relay(rest, size, self._render(head, chunked=chunked))

    def _render(self, head: ResponseHead, *, chunked: bool) -> bytes:
        route = self.route
        assert route is not None
        strip = route.record.path_mode != "keep" and not self.prefix_owned
        port = (route.record.endpoint or {}).get("port")
        public = as_seen_by_the_client(self.head, self.client.origin)
        return response_to_client(
            head,
            chunked=chunked,
            keep_alive=self._keep_alive,
            client_version=self.head.version,
            prefix=public.prefix + route.prefix if strip else public.prefix,
            public=public,
            job_origins=(b"127.0.0.1:%d" % port, b"localhost:%d" % port, b"[::1]:%d" % port) if port else (),
            own_host=self.prefix_owned,
        )

    def _relay(self, data: bytes, size: int, before: bytes) -> None:
        """Pass body bytes on, after `before`; `size` stream bytes are consumed once the client's kernel has them."""
        upstream = self.upstream
        assert upstream is not None
        client = self.client
        chunks = self._chunks
        clean = True
        if chunks is not None:
            try:
                data = chunks.feed(bytes(data))
            except ChunkError as error:
                self._cut(f"the job's answer broke: {error}", before)
                return
            over = chunks.complete
            clean = not chunks.rest
        elif self._answer_left >= 0:
            clean = len(data) <= self._answer_left
            if not clean:
                data = data[: self._answer_left]
            self._answer_left -= len(data)
            over = self._answer_left == 0
        else:
            over = False
        if data and self._answer_left < 0 and self.head.version == "1.1":
            data = encode_chunk(data)
        if over and chunks is not None and self.head.version == "1.1":
            data += LAST_CHUNK
        client.write(before + data if before else data, upstream.stream, size)
        if over:
            self._finish(reusable=clean)

    # -- tunnels ------------------------------------------------------------------------------------------------

    def _start_tunnel(self, head: ResponseHead, rest: bytes, size: int) -> None:
        if not self.head.upgrade:
            self._answer = None
            self.fail(JobUnreachable("the job switched protocols unasked", code="bad_response"))
            return
        assert self.upstream is not None
        self._tunnel = True
        self.client.expect_body(True)
        self.client.write(self._render(head, chunked=False) + rest, self.upstream.stream, size)
        self.client.resume()
        if self.client.buffer:
            self.on_client_data()

    def _client_finished(self) -> None:
        """The client sends nothing more through the tunnel, and all it sent is on its way."""
        assert self.upstream is not None
        stream = self.upstream.stream
        stream.close()
        if stream.receiving is not Direction.OPEN:
            self._end_tunnel()

    def _end_tunnel(self) -> None:
        """Both sides have finished."""
        self._done = True
        self.server.exchanges.discard(self)
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.user = None
            upstream.stream.close()
        self.client.exchange = None
        self.client.finish()

    # -- ends ---------------------------------------------------------------------------------------------------

    def _finish(self, *, reusable: bool) -> None:
        """The answer is complete."""
        upstream, client, head = self.upstream, self.client, self._answer
        assert upstream is not None
        assert head is not None
        self._done = True
        self.server.exchanges.discard(self)
        if not client.alive:
            upstream.discard("client_gone", "the client is gone")
        elif reusable and self._sent_request and not self._pending and head.keep_alive and not upstream.stream.closed:
            upstream.release()
        else:
            upstream.discard()
        self.upstream = None
        if client.exchange is self:
            client.exchange_done(self._keep_alive and self._sent_request)

    def on_job_finish(self) -> None:
        """The job closed its side."""
        upstream = self.upstream
        assert upstream is not None
        if self._tunnel:
            if self.client.half_closed:
                self._end_tunnel()
            else:
                self.client.shut_write()
            return
        if self._answer is None:
            self._job_gone("the job closed the connection without an answer")
        elif self._answer_left < 0 and self._chunks is None:
            if self.head.version == "1.1":
                self.client.write(LAST_CHUNK)
            self._finish(reusable=False)
        else:
            self._cut("the job closed the connection in the middle of its answer", b"")

    def on_job_reset(self, code: str, text: str) -> None:
        """The stream is gone."""
        if self._answer is not None:
            self._cut(f"the connection to the job broke: {code} {text}", b"")
        elif code in ("path_lost", "agent_gone", "overloaded"):
            self.fail(AgentUnavailable(f"the connection to the job's agent broke: {text}", retry_after=2))
        elif code == "connect_timeout":
            self.fail(JobTimeout(f"the job does not accept connections: {text}"))
        else:
            self._job_gone(f"the connection to the job failed: {text or code}")

    def _job_gone(self, detail: str) -> None:
        """No answer will come over this stream: try once more if that is safe, or say why."""
        upstream = self.upstream
        assert upstream is not None
        if upstream.reused and not self._retried and self._repeatable and not self._answer_buffer:
            self._retried = True
            upstream.discard()
            self._connect(fresh=True)
            return
        upstream.discard()
        self.upstream = None
        self.server.explain(self, detail, _REASON_WAIT)

    def answer_with_reason(self, detail: str) -> None:
        """Fail with `detail` and, if the job has ended, how."""
        route = self.route
        assert route is not None
        record = route.record
        if record.ended:
            detail = f"{detail}; {record.ending}"
        if self.client.alive and not self._done:
            self.fail(JobUnreachable(detail, job=record.uid, state=record.state.value))

    def _cut(self, detail: str, before: bytes) -> None:
        """The answer cannot be completed: make that visible."""
        route = self.route
        log.warning("event=answer_cut job=%s detail=%r", route.record.uid if route else None, detail)
        if before:
            self.client.write(before)
        self._close_upstream("cut", detail)
        self.client.abort()

    def fail(self, error: PRouterError) -> None:
        """Answer with an error of our own; nothing of the job's answer has been sent."""
        if self._done:
            return
        self._close_upstream("failed", error.detail)
        if error.job is None and self.route is not None:
            error.job = self.route.record.uid
        keep_alive = self._sent_request and self.head.keep_alive and not isinstance(error, InvalidRequest)
        if self.client.exchange is self:
            self.client.fail(error, self.head, keep_alive=keep_alive and not self.server.draining)

    def on_client_gone(self) -> None:
        """The client closed: the whole connection, or (tunnels) its sending side."""
        if self._tunnel and self.client.alive and self.upstream is not None:
            self.client.deadline = time.monotonic() + _HALF_CLOSED
            if not self._pending:
                self._client_finished()
            return
        self._close_upstream("client_gone", "the client is gone")
        self.client.exchange = None
        self.client.close()

    def on_client_drained(self) -> None:
        """Nothing to do: consumption is told as bytes reach the kernel."""

    def check_timeout(self, now: float, limit: float) -> None:
        """Give up on a job that has been silent for `limit` seconds after the request."""
        if self.awaiting_since and self._sent_request and not self._pending and now - self.awaiting_since > limit:
            self.fail(JobTimeout(f"the job gave no answer within {limit:g} s"))

    def end(self, reason: str) -> None:
        """Cut everything now (the worker stops)."""
        self._close_upstream("worker_stops", reason)
        self.client.abort()

    def _close_upstream(self, code: str, text: str) -> None:
        self._done = True
        self.server.exchanges.discard(self)
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.discard(code, text)


def ended_error(route: JobRoute) -> JobEnded:
    """Why a job that has ended gives no answers."""
    record = route.record
    return JobEnded(f"job '{record.uid}': {record.ending}", job=record.uid, state=record.state.value)
