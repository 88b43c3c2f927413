"""One proxied request and its answer: a state machine between a client's connection and a job's stream.

The two directions run independently, each with its own back-pressure::

    request   HEAD → BODY (by length or chunks) → SENT
    answer    AWAITED → BODY (none, by length, chunks, until close) → DONE,   or 101 → a `Tunnel` takes over

A request is sent a second time, over a fresh stream, if the one that was reused turns out to be of no use: a request
that may be repeated always, any other when it is certain that the job has seen none of it, because the agent had given
it no byte of the request when the stream ended (or when it brought bytes that answer nothing).

Whoever goes away ends the other side: a client that is gone resets the stream (the job sees its connection end), a job
that is gone before its head gives an error answer, afterwards the client's connection is cut so that a torn answer
never looks whole.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from prouter.errors import (
    AgentUnavailable,
    InvalidRequest,
    JobEnded,
    JobTimeout,
    JobUnreachable,
    Overloaded,
    PRouterError,
)
from prouter.jobs import Reason
from prouter.web.metrics import counters
from prouter.web.metrics.counters import JOB
from prouter.web.proxy.bodies import AnswerBody, RequestBody
from prouter.web.proxy.chunked import ChunkError
from prouter.web.proxy.connection import LITTLE, ClientConnection, ClientTooSlow
from prouter.web.proxy.forwarded import as_seen_by_the_client
from prouter.web.proxy.heads import BodyKind, RequestHead, ResponseHead
from prouter.web.proxy.mapping import Site
from prouter.web.proxy.pages import redirect
from prouter.web.proxy.placing import beside_its_root, own_origin, site, target_of_job
from prouter.web.proxy.response_heads import MAX_HEAD, AnswerHeads, head_end, parse
from prouter.web.proxy.rewrite import request_to_job, response_to_client
from prouter.web.proxy.tunnel import Tunnel
from prouter.web.proxy.upstream import Upstream
from prouter.web.router_client import JobRoute

if TYPE_CHECKING:
    from prouter.web.proxy.server import ProxyServer

__all__ = ["ProxyExchange"]

log = logging.getLogger("prouter.proxy")

_REPEATABLE = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE"})
_NEVER_REACHED = frozenset({"no_job", "not_running"})
"""Why the agent of a job that has ended opens no stream to it."""
_AGENT_GONE = frozenset({"path_lost", "agent_gone", "overloaded", "unknown_stream"})
"""Ends of a stream that say nothing of the job; the last: its agent was restarted."""
_SPLINTERED = 131072
"""Largest window for an answer in chunks of a few bytes: others are to have their turn between its pieces."""
_REASON_WAIT = 0.5
"""Seconds the news that a job has ended may take to explain a connection that broke."""


class ProxyExchange:
    """See the module's docstring.

    Args:
        server: the worker's proxy.
        client: the client's connection.
        head: the request.
        target: the request target for the job, raw, prefix stripped.
        own_host: whether it was asked for by the job's own host name, where targets have no prefix.
    """

    recipient = JOB
    half_close = False
    """A client that has ended its side may be gone; the connection finds out."""

    __slots__ = (
        "_answer",
        "_begun",
        "_body",
        "_done",
        "_heads",
        "_keep_alive",
        "_pending",
        "_reached",
        "_request",
        "_retried",
        "_upload",
        "awaiting_since",
        "client",
        "head",
        "own_host",
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
        self.own_host = own_host
        self.route: JobRoute | None = None
        self.upstream: Upstream | None = None
        self.awaiting_since = 0.0
        self._request = b""
        self._pending = b""
        self._upload = RequestBody(head)
        self._answer: ResponseHead | None = None
        self._heads: AnswerHeads | None = None
        """Made for an answer whose head does not come whole and alone, as it nearly always does."""
        self._body: AnswerBody | None = None
        self._begun = 0
        """Position of the request's first byte in the upstream's stream."""
        self._keep_alive = False
        self._reached = False
        """Whether the job was given some of the request before it was sent again."""
        self._retried = False
        self._done = False

    @property
    def awaits_client(self) -> bool:
        """Whether it can go on only when the client sends more of the request, of whose answer nothing was sent."""
        return self.upstream is not None and self._answer is None and not self._upload.over and not self._pending

    # -- starting -----------------------------------------------------------------------------------------------

    def forward(self, route: JobRoute) -> None:
        """Send the request to the job."""
        self.route = route
        head = self.head
        target, record = self.target, route.record
        if self.server.own_names_only and not self.own_host and not head.upgrade:
            self._redirect_to_own_name(route)
            return
        if target[:1] == b"/" and not self.own_host:  # nearly always
            target = route.prefix + target if record.path_mode == "keep" else target
        elif beside_its_root(route, head, target, own_host=self.own_host):
            outer = as_seen_by_the_client(head, self.client.origin).prefix
            self._redirect(outer + route.prefix + b"/" + target.lstrip(b"/"))
            return
        else:
            target = target_of_job(route, target, own_host=self.own_host)
        self._request = request_to_job(
            head,
            target,
            b"" if self.own_host else route.prefix,
            self.client.origin,
            site=self._site,
            local=record.host_mode == "local",
            mark=self.server.mark,
        )
        self._connect(self._request, fresh=bool(head.upgrade))

    @property
    def waiting(self) -> bool:
        """Whether it is neither forwarded nor over."""
        return self.upstream is None and not self._done and self.client.alive

    @property
    def _repeatable(self) -> bool:
        return self.head.method in _REPEATABLE and self.head.body == BodyKind.NONE

    def _connect(self, data: bytes, *, fresh: bool) -> None:
        """Send `data`, which begins with the request's head, to the job."""
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
        self._begun = upstream.stream.written
        if not self._upload.over:
            self.client.expect_body(True)
        self._send(data)
        if not self._upload.over and not self._pending:
            self.client.resume()  # it was told to wait if its body came before the job's route was known
            self.on_client_data()

    # -- the request's direction --------------------------------------------------------------------------------

    def on_client_data(self) -> None:
        """Pass request body bytes on, as far as the stream has room."""
        client = self.client
        if self.upstream is None or self._pending or self._upload.over:
            client.hold_pipelined()
            return
        if client.buffer:
            self._pass_on(client)
        if client.half_closed and not self._upload.over and not client.buffer and not self._pending:
            client.gone()  # the rest of the body will never come

    def _pass_on(self, client: ClientConnection) -> None:
        if self._answer is None:
            self.awaiting_since = time.monotonic()
        try:
            data, client.buffer = self._upload.take(client.buffer)
        except ChunkError as error:
            detail = f"Invalid request: {error}"
            if self._answer is None:
                self.fail(InvalidRequest(detail))
            else:
                self._cut(detail, b"")
            return
        if self._upload.splintered:
            client.receive_size = LITTLE
        elif client.receive_size == LITTLE:
            client.expect_body(True)
        if data:
            self._send(data)

    def _send(self, data: bytes) -> None:
        assert self.upstream is not None
        stream = self.upstream.stream
        if stream.closed:
            return
        taken = stream.write(data)
        if taken < len(data):
            self._pending = data[taken:]
            self.client.pause()
        elif self._upload.over:
            self.client.expect_body(False)

    def on_job_writable(self) -> None:
        """The stream has room again."""
        if self.upstream is None:
            return
        data, self._pending = self._pending, b""
        if data:
            self._send(data)
        if not self._pending and not self._done:
            if not self._upload.over and not self._upload.splintered:
                self.client.receive_size = self.upstream.stream.piece
            if self._answer is None:
                self.awaiting_since = time.monotonic()
            self.client.resume()
            self.on_client_data()

    def on_client_end(self) -> None:
        """The client sends nothing more. What it has sent may be all of the request."""
        self.on_client_data()

    # -- the answer's direction ---------------------------------------------------------------------------------

    def on_job_data(self, data: bytes) -> None:
        """Bytes of the job."""
        if self._answer is None:
            self._read_head(data)
        else:
            self._relay(data, len(data), b"")

    def _read_head(self, data: bytes) -> None:
        upstream = self.upstream
        assert upstream is not None
        size = len(data)  # of `data`, what is not consumed yet
        if self._stale() and self._try_again():
            return
        heads = self._heads
        try:
            if heads is None:
                data = bytes(data)
                end = head_end(data)
                if 0 < end <= MAX_HEAD:
                    whole = parse(data[:end])
                    if whole.status >= 200:
                        self._start_answer(whole, data[end:], size)
                        return
                heads = self._heads = AnswerHeads()
            heads.add(data)
            while (head := heads.next()) is not None:
                if head.status >= 200 or head.status == 101:
                    self._start_answer(head, heads.rest(), size)
                    return
                left = heads.pending
                self._pass_interim(head, size - left)
                size = left
                if self._done:
                    return
        except JobUnreachable as error:
            self._refuse(error)
            return
        upstream.stream.consume(size)

    def _stale(self) -> bool:
        """Whether what arrives cannot answer this request: the agent had given the job nothing of it by then."""
        upstream = self.upstream
        assert upstream is not None
        return upstream.reused and not self._retried and upstream.stream.acknowledged <= self._begun

    def _pass_interim(self, head: ResponseHead, size: int) -> None:
        """An answer before the answer (RFC 9110 section 15.2): for clients that know of them."""
        assert self.upstream is not None
        self._retried = True  # What the client has seen of an answer must not be repeated.
        self.awaiting_since = time.monotonic()
        if self.head.version == "1.1":
            self.client.write(self._render(head, chunked=False), self.upstream.stream, size)
        else:
            self.upstream.stream.consume(size)

    def _start_answer(self, head: ResponseHead, rest: bytes, size: int) -> None:
        self._answer = head
        self.awaiting_since = 0.0
        if head.status == 101:
            self._start_tunnel(head, rest, size)
            return
        self._count(head)
        self._body = body = AnswerBody(self.head, head)
        # Who is answered before all of the request has come is told to send the next elsewhere (RFC 9112 section 9.6).
        lasting = self.head.keep_alive and self._upload.over and not body.until_close
        self._keep_alive = lasting and not self.server.draining
        self._relay(rest, size, self._render(head, chunked=body.chunked))

    def _count(self, head: ResponseHead) -> None:
        began = self.client.began
        counters.current().answered(JOB, self.head.method, head.status, time.monotonic() - began)

    def _render(self, head: ResponseHead, *, chunked: bool) -> bytes:
        return response_to_client(
            head,
            self._site,
            chunked=chunked,
            keep_alive=self._keep_alive,
            client_version=self.head.version,
            own_host=self.own_host,
        )

    def _site(self) -> Site:
        """Where the job is, for this request."""
        assert self.route is not None
        return site(self.route, self.head, self.client.origin, own_host=self.own_host)

    def _relay(self, data: bytes, size: int, before: bytes) -> None:
        """Pass body bytes on, after `before`; `size` stream bytes are consumed once the client's kernel has them."""
        upstream, body = self.upstream, self._body
        assert upstream is not None
        assert body is not None
        try:
            data = body.feed(data)
        except ChunkError as error:
            self._cut(f"the job's answer broke: {error}", before)
            return
        if body.splintered:
            upstream.stream.most = _SPLINTERED
        self.client.write(before + data if before else data, upstream.stream, size)
        if body.over and not self._done:
            self._finish(reusable=body.clean and not body.splintered)

    def _start_tunnel(self, head: ResponseHead, rest: bytes, size: int) -> None:
        if not self.head.upgrade:
            self._answer = None
            self.fail(JobUnreachable("the job switched protocols unasked", code="bad_response"))
            return
        self._count(head)
        upstream = self.upstream
        assert upstream is not None
        self.client.write(self._render(head, chunked=False) + rest, upstream.stream, size)
        if self._done:
            return
        self._done = True
        self.server.exchanges.discard(self)
        self.upstream = None
        Tunnel(self.server, self.client, upstream, self._pending).start()

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
        elif reusable and self._upload.over and not self._pending and head.keep_alive and not upstream.stream.closed:
            upstream.release()
        else:
            upstream.discard()
        self.upstream = None
        if client.exchange is self:
            client.exchange_done(self._keep_alive)

    def on_job_finish(self) -> None:
        """The job closed its side."""
        if self._body is None:
            if not (self._stale() and self._try_again()):
                self._job_gone("the job closed the connection without an answer")
            return
        last = self._body.finish()
        if last is None:
            self._cut("the job closed the connection in the middle of its answer", b"")
            return
        if last:
            self.client.write(last)
        if not self._done:
            self._finish(reusable=False)

    def on_job_reset(self, code: str, text: str) -> None:
        """The stream is gone."""
        if self._answer is not None:
            self._cut(f"the connection to the job broke: {code} {text}", b"")
        elif code in _AGENT_GONE:
            self.fail(AgentUnavailable(f"the connection to the job's agent broke: {text}", retry_after=2))
        elif code == "connect_timeout":
            self.fail(JobTimeout(f"the job does not accept connections: {text}"))
        elif code in _NEVER_REACHED:
            self._explain(text, reached=False)
        else:
            self._job_gone(f"the connection to the job failed: {text or code}")

    def _job_gone(self, detail: str) -> None:
        """No answer will come over this stream: try once more if that is safe, or say why."""
        if not (self._repeatable and self._try_again()):
            self._explain(detail, reached=True)

    def _refuse(self, error: PRouterError) -> None:
        """The job's answer is no HTTP, or what an earlier answer left behind in a stream that is used again."""
        if not (self._repeatable and self._try_again()):
            self.fail(error)

    def _try_again(self) -> bool:
        """Send the request over a fresh stream, once; False when it is too late for that."""
        upstream = self.upstream
        assert upstream is not None
        if not upstream.reused or self._retried or (self._heads is not None and self._heads.pending):
            return False
        self._reached = not self._stale()
        self._retried = True
        data = self._request if self._repeatable else upstream.stream.since(self._begun) + self._pending
        self._pending = b""
        upstream.discard()
        self._connect(data, fresh=True)
        return True

    def _explain(self, detail: str, *, reached: bool) -> None:
        """Answer as soon as it is known whether the job has ended."""
        assert self.upstream is not None
        self.upstream.discard()
        self.upstream = None
        self.server.explain(self, detail, _REASON_WAIT, reached=reached or self._reached)

    def answer_with_reason(self, detail: str, *, reached: bool) -> None:
        """Fail with `detail` and, if the job has ended, how.

        Args:
            reached: whether the job had the request; one that had ended by then is treated like any that has.
        """
        route = self.route
        assert route is not None
        record = route.record
        if self._done or not self.client.alive:
            return
        if record.ended and not reached:
            self.fail(ended_error(route))
            return
        if record.ended and record.ending not in detail:
            detail = f"{detail}; {record.ending}"
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
        keep_alive = self._upload.over and self.head.keep_alive and self.head.version == "1.1"
        if self.client.exchange is self:
            self.client.fail(error, self.head, keep_alive=keep_alive and not self.server.draining)

    def _redirect_to_own_name(self, route: JobRoute) -> None:
        """Answer with where the same is under the job's own host name."""
        public = as_seen_by_the_client(self.head, self.client.origin)
        origin = own_origin(public, route.record.uid, self.server.job_domain.decode("ascii"))
        path = route.prefix + self.target if route.record.path_mode == "keep" else self.target
        self._redirect(origin.encode("ascii") + (path if path[:1] == b"/" else b"/" + path))

    def _redirect(self, location: bytes) -> None:
        """Answer with where to ask instead."""
        client = self.client
        keep_alive = self._upload.over and self.head.keep_alive and self.head.version == "1.1"
        keep_alive = keep_alive and not self.server.draining
        self._close_upstream("redirected", "")
        client.write(redirect(location, close=not keep_alive))
        if client.exchange is self:
            client.exchange_done(keep_alive)

    def on_client_gone(self) -> None:
        """The client's connection is closed."""
        self._close_upstream("client_gone", "the client is gone")
        self.client.exchange = None
        self.client.close()

    def on_client_drained(self) -> None:
        """Nothing to do: consumption is told as bytes reach the kernel."""

    def check_timeout(self, now: float, answer: float, body: float) -> None:
        """Give up on a request whose answer has not begun when nobody has moved for long.

        Args:
            now: monotonic time.
            answer: seconds the job may take; 0 for no limit.
            body: seconds for which the client may send nothing of its body; 0 for no limit.
        """
        if not self.awaiting_since:
            return
        told_to_wait = self.head.expect and not (self._heads and self._heads.interim)  # the job has to move
        if self.awaits_client and not told_to_wait:
            if body and now - self.awaiting_since > body:
                self.fail(ClientTooSlow("the request body took too long"))
        elif answer and now - self.awaiting_since > answer:
            self.fail(JobTimeout(f"the job gave no answer within {answer:g} s"))

    def end(self, reason: str) -> None:
        """End now (the worker stops): a request whose answer has not begun gets an error, other answers are cut."""
        if self.waiting or (self.awaiting_since and self._repeatable):
            self.fail(Overloaded(f"{reason}: ask again", code="draining", retry_after=1))
        elif self.awaiting_since:
            self.fail(JobTimeout(f"{reason}, and the job has not answered yet", code="draining"))
        else:
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
    told = record.error if record.reason is Reason.START_FAILED else None
    return JobEnded(told or f"job '{record.uid}': {record.ending}", job=record.uid, state=record.state.value)
