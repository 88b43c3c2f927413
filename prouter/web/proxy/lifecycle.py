"""The life of a proxied exchange: its state, and every way in which it ends other than with a whole response."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod

from prouter.errors import JobTimeout, JobUnreachable, Overloaded, PRouterError
from prouter.web.metrics.counters import JOB
from prouter.web.proxy.addresses.forwarded import Forwarded
from prouter.web.proxy.interfaces import Client, ProxyContext
from prouter.web.proxy.messages.heads import BodyKind
from prouter.web.proxy.own_responses.pages import redirect
from prouter.web.proxy.own_responses.refusals import ClientTooSlow, job_ended
from prouter.web.proxy.sender import RequestSender
from prouter.web.proxy.states import (
    ABORTED,
    COMMITTED,
    DONE,
    EXPLAINING,
    NEXT_RESPONSE,
    RESENDABLE,
    ROUTING,
    STREAMING,
    SUBSTITUTED,
    ResponseState,
    refuse,
)
from prouter.web.proxy.upstream import Upstream
from prouter.web.routes import JobRoute

__all__ = ["ExchangeLifecycle"]

log = logging.getLogger("prouter.proxy")

_REPEATABLE = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE"})
_REASON_WAIT = 0.5
"""Seconds to wait for the news that a job has ended, which may explain a connection that broke."""


class ExchangeLifecycle(ABC):
    """State and ends of an exchange; `prouter.web.proxy.exchange.ProxyExchange` adds the two directions.

    Args:
        server: the worker's proxy.
        client: the client's connection.
        forwarded: the request.

    Attributes:
        state: how far the response is; only `_change` sets it.
        route: where the job is; None until that is known.
        upstream: the connection to the job while one is used.
        awaiting_since: monotonic time since which the job or the client owes the next bytes, 0 once the job responded.
    """

    recipient = JOB
    half_close = False
    """A client that shut down its sending side may have disconnected; the connection finds out."""

    __slots__ = (
        "_continued",
        "_reached",
        "_sender",
        "awaiting_since",
        "client",
        "forwarded",
        "head",
        "route",
        "server",
        "state",
        "upstream",
    )

    def __init__(self, server: ProxyContext, client: Client, forwarded: Forwarded) -> None:
        self.server = server
        self.client = client
        self.forwarded = forwarded
        self.head = forwarded.head
        self.state = ROUTING
        self.route: JobRoute | None = None
        self.upstream: Upstream | None = None
        self.awaiting_since = 0.0
        self._sender = RequestSender(client, forwarded.head)
        self._reached = False
        """Whether the job may have read the request before it was sent again."""
        self._continued = False
        """Whether the job sent an interim response."""

    @property
    def awaits_client(self) -> bool:
        """Whether nothing of the response was sent and only the client can move on, by sending more of the request."""
        return self._sender.state is STREAMING and RESENDABLE <= self.state <= COMMITTED

    @property
    def waiting(self) -> bool:
        """Whether the client waits while no stream is open: for the job's route, or for the reason of a failure."""
        return self.state in (ROUTING, EXPLAINING) and self.client.alive

    @property
    def _over(self) -> bool:
        return self.state >= DONE

    @property
    def _repeatable(self) -> bool:
        return self.head.method in _REPEATABLE and self.head.body == BodyKind.NONE

    def _change(self, state: ResponseState) -> None:
        """Change the state.

        Raises:
            RuntimeError: `NEXT_RESPONSE` does not allow it; a programming error.
        """
        if state not in NEXT_RESPONSE[self.state]:
            raise refuse(self.state, state)
        self.state = state

    @abstractmethod
    def on_client_data(self) -> None:
        """Handle new bytes of the client."""

    @abstractmethod
    def on_client_drained(self) -> None:
        """Handle that the kernel has taken all bytes written."""

    def on_client_end(self) -> None:
        """Handle the end of the client's sending side: what it has sent may be all of the request."""
        self.on_client_data()

    # -- failing ------------------------------------------------------------------------------------------------

    def _explain(self, detail: str, *, reached: bool) -> None:
        """Fail as soon as it is known whether the job has ended."""
        assert self.upstream is not None
        self._change(EXPLAINING)
        self.upstream.discard()
        self.upstream = None
        self.server.explain(self, detail, _REASON_WAIT, reached=reached or self._reached)

    def fail_with_reason(self, detail: str, *, reached: bool) -> None:
        """Fail with `detail` and, if the job has ended, how it ended.

        Args:
            reached: whether the job may have read the request; a job that ended before is treated like any ended job.
        """
        route = self.route
        assert route is not None
        record = route.record
        if not self.waiting:
            return
        if record.ended and not reached:
            self.fail(job_ended(route))
            return
        if record.ended and record.ending not in detail:
            detail = f"{detail}; {record.ending}"
        self.fail(JobUnreachable(detail, job=record.uid, state=record.state.value))

    # -- responses of the router's own --------------------------------------------------------------------------

    def fail(self, error: PRouterError) -> None:
        """Respond with an error. To be called only while nothing of the job's response was sent."""
        if self._over:
            return
        self._close(SUBSTITUTED, "failed", error.detail)
        if error.job is None and self.route is not None:
            error.job = self.route.record.uid
        if self.client.exchange is self:
            self.client.fail(error, self.head, keep_alive=self._own_keep_alive)

    def _redirect(self, location: bytes) -> None:
        """Respond with a redirect."""
        client, keep_alive = self.client, self._own_keep_alive
        self._close(SUBSTITUTED, "redirected", "")
        client.write(redirect(location, close=not keep_alive))
        if client.exchange is self:
            client.exchange_done(keep_alive)

    @property
    def _own_keep_alive(self) -> bool:
        """Whether the connection may serve another request after a response of the router's own."""
        head = self.head
        return self._sender.received and head.keep_alive and head.version == "1.1" and not self.server.draining

    # -- aborting -----------------------------------------------------------------------------------------------

    def _cut(self, detail: str, before: bytes) -> None:
        """Reset the client's connection, after `before`: the response cannot be completed, and must not look so."""
        route = self.route
        log.warning("event=response_cut job=%s detail=%r", route.record.uid if route else None, detail)
        if before:
            self.client.write(before)
        if not self._over:
            self._close(ABORTED, "cut", detail)
        self.client.abort()

    def on_client_disconnected(self) -> None:
        """Reset the stream, so that the job does not work for nobody."""
        if not self._over:
            self._close(ABORTED, "client_gone", "the client disconnected")

    def check_timeout(self, now: float, response: float, body: float) -> None:
        """Give up on a request whose response has not begun if nobody has moved for too long.

        Args:
            now: monotonic time.
            response: seconds the job may take; 0 for no limit.
            body: seconds the client may pause within its body; 0 for no limit.
        """
        if not self.awaiting_since:
            return
        # A client that expects 100 Continue may wait for it: until then the job has to move (RFC 9110 section 10.1.1).
        job_to_continue = self.head.expect and not self._continued
        if self.awaits_client and not job_to_continue:
            if body and now - self.awaiting_since > body:
                self.fail(ClientTooSlow(f"the request body paused for {body:g} s, the limit control.upload_timeout"))
        elif response and now - self.awaiting_since > response:
            self.fail(JobTimeout(f"the job did not respond within {response:g} s, the limit control.response_timeout"))

    def end(self, reason: str) -> None:
        """End at once, because the worker stops: with an error before the response has begun, else with a cut."""
        if self.waiting or (self.awaiting_since and self._repeatable):
            self.fail(Overloaded(f"{reason}: send the request again", code="draining", retry_after=1))
        elif self.awaiting_since:
            self.fail(JobTimeout(f"{reason}, and the job has not responded yet", code="draining"))
        else:
            if not self._over:
                self._close(ABORTED, "worker_stops", reason)
            self.client.abort()

    def _close(self, state: ResponseState, code: str, text: str) -> None:
        """End the exchange in `state` and reset its stream."""
        self._change(state)
        self.server.exchanges.discard(self)
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.discard(code, text)
