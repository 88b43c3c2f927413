"""One proxied request and its response, between a client's connection and a stream to a job.

`prouter.web.proxy.states` draws the two state machines. `RequestSender` is the request's direction with its state,
`ProxyExchange` the response's direction, and `ExchangeLifecycle`, its base, the state of that and the ends.

The router sends a request a second time, over a fresh stream, if the reused one turns out to be dead:

- a repeatable one (GET, HEAD, OPTIONS or TRACE without a body) in any case;
- any other only if the agent had given the job no byte of it when the stream ended or bytes arrived. Such bytes belong
  to an earlier response: a request that was not read has no response.

Whichever side disconnects, the other one learns it. If the client does, the stream is reset, and the job sees its
connection end. If the job does, the client gets an error; once the response has begun, its connection is reset, so
that a response that was cut never looks whole.
"""

from __future__ import annotations

import logging
import time

from prouter.access.roles import OPEN_ROUTER
from prouter.errors import AgentUnavailable, Forbidden, InvalidRequest, JobTimeout, JobUnreachable, PRouterError
from prouter.web.metrics import counters
from prouter.web.metrics.counters import JOB
from prouter.web.proxy.addresses.forwarded import Forwarded
from prouter.web.proxy.addresses.mapping import Site
from prouter.web.proxy.addresses.placing import redirect_for, site, target_of_job
from prouter.web.proxy.addresses.rewrite import request_to_job, response_to_client
from prouter.web.proxy.addresses.roots import Asked
from prouter.web.proxy.addresses.sandbox import sandbox_lines
from prouter.web.proxy.interfaces import Client, ProxyContext
from prouter.web.proxy.lifecycle import ExchangeLifecycle
from prouter.web.proxy.messages.bodies import ResponseBody
from prouter.web.proxy.messages.chunked import ChunkError
from prouter.web.proxy.messages.heads import ResponseHead
from prouter.web.proxy.messages.response_heads import MAX_HEAD, ResponseHeads, head_end, parse
from prouter.web.proxy.states import BODY, COMMITTED, DONE, RESENDABLE, STREAMING, TUNNEL
from prouter.web.proxy.tunnel import Tunnel
from prouter.web.routes import JobRoute

__all__ = ["ProxyExchange"]

log = logging.getLogger("prouter.proxy")

_NEVER_REACHED = frozenset({"no_job", "not_running"})
"""Codes with which an agent refuses a stream to a job that has ended."""
_AGENT_LOST = frozenset({"path_lost", "agent_gone", "overloaded", "unknown_stream"})
"""Codes of a stream's end that say nothing about the job; ``unknown_stream`` means that its agent was restarted."""
_FRAGMENTED_WINDOW = 131072
"""Bytes of the receive window of a response in tiny chunks, so that other clients get their turn between its pieces."""


_WIDE_SCOPE = (
    "a service worker's script must be below the job's root: beside it, it could serve the router's own addresses"
)


def _is_service_worker(headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether a browser asks for the script of a service worker, whose directory is its scope."""
    return any(name.lower() == b"service-worker" for name, _value in headers)


class ProxyExchange(ExchangeLifecycle):
    """One request to a job, from its dispatch until the client has the response.

    The client's connection calls ``on_client_…``, the stream to the job ``on_job_…``.

    Args:
        server: the worker's proxy.
        client: the client's connection.
        forwarded: the request.
        asked: what it asks for.

    Attributes:
        asked: what it asks for.
        own_host: whether the client used the job's own host name, where targets have no prefix.
        target: the raw request target without the job's prefix.
    """

    __slots__ = ("_body", "_heads", "_keep_alive", "_request", "_response", "asked", "own_host", "target")

    def __init__(self, server: ProxyContext, client: Client, forwarded: Forwarded, asked: Asked) -> None:
        super().__init__(server, client, forwarded)
        self.asked = asked
        self.target = asked.target
        self.own_host = asked.own_host
        self._request = b""
        """The request's head as the job gets it."""
        self._heads: ResponseHeads | None = None
        """Only for a head that does not arrive whole in one piece; nearly all do."""
        self._response: ResponseHead | None = None
        self._body: ResponseBody | None = None
        self._keep_alive = False

    # -- starting -----------------------------------------------------------------------------------------------

    def forward(self, route: JobRoute) -> None:
        """Send the request to the job."""
        self.route = route
        head, target, record = self.head, self.target, route.record
        if target[:1] == b"/" and not self.own_host and not self.server.own_names_only:  # nearly always
            target = route.prefix + target if record.path_mode == "keep" else target
        else:
            elsewhere = redirect_for(
                route,
                self.forwarded,
                target,
                prefix=self._prefix,
                own_host=self.own_host,
                only_domain=self.server.job_domain if self.server.own_names_only else b"",
            )
            if elsewhere:
                self._redirect(elsewhere)
                return
            if not self.own_host and target[:1] != b"/" and _is_service_worker(head.headers):
                self.fail(Forbidden(_WIDE_SCOPE, code="service_worker_scope"))
                return
            target = target_of_job(route, target, own_host=self.own_host)
        self._request = request_to_job(
            self.forwarded,
            target,
            b"" if self.own_host else self._prefix,
            site=self._site,
            local=record.host_mode == "local",
            mark=self.server.mark,
            fields=self.server.request_fields,
        )
        # An upgrade may not be sent again, and its stream serves nothing afterwards: reuse would be all risk.
        self._connect(self._request, fresh=bool(head.upgrade))

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
        self._change(RESENDABLE if upstream.reused else COMMITTED)
        upstream.user = self
        self.awaiting_since = time.monotonic()
        self._sender.start(upstream, data)
        if self._sender.state is STREAMING:
            self.client.resume()  # it was paused if much of the body arrived before the job's route was known
            self.on_client_data()

    # -- the request's direction --------------------------------------------------------------------------------

    def on_client_data(self) -> None:
        """Pass on bytes of the request body, as far as the stream's window allows."""
        client, sender = self.client, self._sender
        if sender.state is not STREAMING or self.upstream is None:
            client.hold_pipelined()
            return
        if client.buffer:
            if self.state is not BODY:
                self.awaiting_since = time.monotonic()
            try:
                sender.pass_on()
            except ChunkError as error:
                self._refuse_body(f"Invalid request: {error}")
                return
        if client.half_closed and sender.state is STREAMING and not client.buffer:
            client.disconnected()  # the rest of the body will never come

    def _refuse_body(self, detail: str) -> None:
        """End a request whose body is broken: with an error if the response has not begun."""
        if self.state is BODY:
            self._cut(detail, b"")
        else:
            self.fail(InvalidRequest(detail))

    def on_client_drained(self) -> None:
        """Do nothing: bytes count as consumed one by one as they reach the kernel."""

    def on_job_writable(self) -> None:
        """Send what waited for the stream's window."""
        if self.upstream is None:
            return
        self._sender.on_writable()
        if not self._sender.pending and not self._over:
            if self.state is not BODY:
                self.awaiting_since = time.monotonic()
            self.on_client_data()

    # -- the response's direction -------------------------------------------------------------------------------

    def on_job_data(self, data: bytes) -> None:
        """Handle bytes of the job."""
        if self.state is BODY:
            self._relay(data, len(data), b"")
        else:
            self._read_head(data)

    def _read_head(self, data: bytes) -> None:
        """Find the response's head in what the job sends, and pass on interim responses before it."""
        upstream = self.upstream
        assert upstream is not None
        size = len(data)  # bytes that are still to be consumed
        if self._stale and self._send_again():
            return
        heads = self._heads
        try:
            if heads is None:
                data = bytes(data)
                end = head_end(data)
                if 0 < end <= MAX_HEAD:
                    whole = parse(data[:end])
                    if whole.status >= 200:
                        self._start_response(whole, data[end:], size)
                        return
                heads = self._heads = ResponseHeads()
            heads.add(data)
            while (head := heads.next()) is not None:
                if head.status >= 200 or head.status == 101:
                    self._start_response(head, heads.rest(), size)
                    return
                left = heads.pending
                self._pass_interim(head, size - left)
                size = left
                if self._over:
                    return
        except JobUnreachable as error:
            self._refuse_response(error)
            return
        upstream.stream.consume(size)

    @property
    def _stale(self) -> bool:
        """Whether what arrives cannot be the response, because the job has read nothing of the request."""
        return self.state is RESENDABLE and self._sender.unseen

    def _pass_interim(self, head: ResponseHead, size: int) -> None:
        """Relay an interim response (RFC 9110 section 15.2), except to HTTP/1.0 clients, which know none."""
        assert self.upstream is not None
        if self.state is RESENDABLE:
            self._change(COMMITTED)  # a second copy of the request could bring the client a second interim response
        self._continued = True
        self.awaiting_since = time.monotonic()
        if self.head.version == "1.1":
            self.client.write(self._render(head, chunked=False), self.upstream.stream, size)
        else:
            self.upstream.stream.consume(size)

    def _start_response(self, head: ResponseHead, rest: bytes, size: int) -> None:
        """Relay the response's head and what arrived of its body."""
        if head.status == 101:
            self._start_tunnel(head, rest, size)
            return
        self._response = head
        self._change(BODY)
        self.awaiting_since = 0.0
        self._count(head)
        self._body = body = ResponseBody(self.head, head)
        # A client that is still sending has to send its next request elsewhere (RFC 9112 section 9.6).
        persistent = self.head.keep_alive and self._sender.received and not body.until_close
        self._keep_alive = persistent and not self.server.draining
        # In one write: a second system call would cost more than all else of a small response.
        self._relay(rest, size, self._render(head, chunked=body.chunked))

    def _count(self, head: ResponseHead) -> None:
        began = self.client.began
        counters.current().count_response(JOB, self.head.method, head.status, time.monotonic() - began)

    def _render(self, head: ResponseHead, *, chunked: bool) -> bytes:
        return response_to_client(
            head,
            self._site,
            chunked=chunked,
            keep_alive=self._keep_alive,
            client_version=self.head.version,
            own_host=self.own_host,
            opener=self.own_host or self.forwarded.principal is OPEN_ROUTER,
            sandbox=sandbox_lines(self.head) if self.asked.key is not None else b"",
        )

    def _site(self) -> Site:
        """The job's addresses, for this request."""
        assert self.route is not None
        return site(self.route, self.forwarded.public, prefix=self._prefix, own_host=self.own_host)

    @property
    def _prefix(self) -> bytes:
        """The job's prefix as the client used it; the public one under the job's own host name."""
        assert self.route is not None
        return self.route.prefix if self.asked.key is None else self.asked.prefix

    def _relay(self, data: bytes, size: int, before: bytes) -> None:
        """Pass on body bytes after `before`; once the client's kernel has them, `size` stream bytes are consumed."""
        upstream, body = self.upstream, self._body
        assert upstream is not None
        assert body is not None
        try:
            data = body.feed(data)
        except ChunkError as error:
            self._cut(f"the job's response body is broken: {error}", before)
            return
        if body.fragmented:
            upstream.stream.most = _FRAGMENTED_WINDOW
        self.client.write(before + data if before else data, upstream.stream, size)
        if body.over and self.state is BODY:
            # A job that sends chunks of a byte is not trusted to be quick with the next response either.
            self._finish(reusable=body.clean and not body.fragmented)

    def _start_tunnel(self, head: ResponseHead, rest: bytes, size: int) -> None:
        """Relay ``101 Switching Protocols`` and hand over to a tunnel."""
        if not self.head.upgrade:
            detail = "the job switched protocols, which the request did not ask for"
            self.fail(JobUnreachable(detail, code="bad_response"))
            return
        self.awaiting_since = 0.0
        self._count(head)
        upstream = self.upstream
        assert upstream is not None
        self.client.write(self._render(head, chunked=False) + rest, upstream.stream, size)
        if self._over:
            return  # the client disconnected
        self._change(TUNNEL)
        self.server.exchanges.discard(self)
        self.upstream = None
        Tunnel(self.server, self.client, upstream, self._sender.pending).start()

    def _finish(self, *, reusable: bool) -> None:
        """End the exchange, whose response is complete."""
        upstream, client, head = self.upstream, self.client, self._response
        assert upstream is not None
        assert head is not None
        self._change(DONE)
        self.server.exchanges.discard(self)
        sender = self._sender
        if not client.alive:
            upstream.discard("client_gone", "the client disconnected")
        elif reusable and sender.received and not sender.pending and head.keep_alive and not upstream.stream.closed:
            upstream.release()
        else:
            upstream.discard()
        self.upstream = None
        if client.exchange is self:
            client.exchange_done(self._keep_alive)

    # -- the job's side ends ------------------------------------------------------------------------------------

    def on_job_finish(self) -> None:
        """Handle that the job shut down its sending side."""
        body = self._body
        if body is None:
            if not (self._stale and self._send_again()):
                self._job_lost("the job closed the connection without a response")
            return
        last = body.finish()
        if last is None:
            self._cut("the job closed the connection in the middle of its response", b"")
            return
        if last:
            self.client.write(last)
        if not self._over:
            self._finish(reusable=False)

    def on_job_reset(self, code: str, text: str) -> None:
        """Handle the end of the stream."""
        if self.state is BODY:
            self._cut(f"the connection to the job broke: {code} {text}", b"")
        elif code in _AGENT_LOST:
            self.fail(AgentUnavailable(f"the connection to the job's agent broke: {text}", retry_after=2))
        elif code == "connect_timeout":
            self.fail(JobTimeout(f"the job does not accept connections: {text}"))
        elif code in _NEVER_REACHED:
            self._explain(text, reached=False)
        else:
            self._job_lost(f"the connection to the job failed: {text or code}")

    def _job_lost(self, detail: str) -> None:
        """Handle the end of a stream without a response: send the request again if that is safe, else say why."""
        if not (self._repeatable and self._send_again()):
            self._explain(detail, reached=True)

    def _refuse_response(self, error: PRouterError) -> None:
        """Handle bytes that are no response. On a reused stream they may be left over from an earlier response."""
        if not (self._repeatable and self._send_again()):
            self.fail(error)

    def _send_again(self) -> bool:
        """Send the request over a fresh stream; return False if that is too late."""
        if self.state is not RESENDABLE or (self._heads is not None and self._heads.pending):
            return False
        upstream = self.upstream
        assert upstream is not None
        self._reached = not self._sender.unseen
        data = self._request if self._repeatable else self._sender.sent
        upstream.discard()
        self.upstream = None
        self._connect(data, fresh=True)
        return True
