"""Upstream connections: one stream each, over which a worker speaks HTTP/1.1 to a job, kept for reuse when idle.

A worker keeps at most `MAX_IDLE` idle streams per job, for at most `MAX_AGE` seconds. A stream on which anything
arrives while it is idle is discarded, because those bytes would be taken for the next response.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Protocol

from prouter.fabric.stream import Stream
from prouter.web.router_client import RouterClient
from prouter.web.routes import JobRoute

__all__ = ["MAX_AGE", "MAX_IDLE", "Upstream", "UpstreamPool", "UpstreamUser"]

MAX_IDLE = 128
"""Idle streams kept per job and worker."""
MAX_AGE = 30.0
"""Seconds a stream may stay idle."""
FRESH = 1.0
"""Seconds of idleness up to which a stream is reused for a request that must not be repeated.

Servers close connections that were idle for longer, and such a request could be lost to that.
"""


class UpstreamUser(Protocol):
    """The user of an upstream connection: an exchange or a tunnel."""

    def on_job_data(self, data: bytes) -> None:
        """Handle bytes of the job; the user has to consume them on `Upstream.stream`."""

    def on_job_finish(self) -> None:
        """Handle that the job shut down its sending side."""

    def on_job_writable(self) -> None:
        """Continue a write that the stream's window cut short."""

    def on_job_reset(self, code: str, text: str) -> None:
        """Handle the end of the stream."""


class Upstream:
    """One upstream connection.

    Attributes:
        stream: the stream to the agent.
        user: gets what arrives; None while the connection is idle.
        job: uid of the job.
        connection: uid of its agent's connection.
        reused: whether the connection served a request before.
    """

    takes_views = True

    __slots__ = ("_pool", "connection", "idle_since", "job", "reused", "stream", "user")

    def __init__(self, pool: UpstreamPool, job: str, stream: Stream, connection: str = "") -> None:
        self._pool = pool
        self.job = job
        self.connection = connection
        self.stream = stream
        self.user: UpstreamUser | None = None
        self.reused = False
        self.idle_since = 0.0
        stream.handler = self

    def release(self) -> None:
        """Return the connection to the pool."""
        self.user = None
        self._pool._put(self)

    def discard(self, code: str = "done", text: str = "") -> None:
        """Reset the stream; the job sees its connection end."""
        self.user = None
        self.stream.reset(code, text)

    def on_data(self, data: bytes) -> None:
        if self.user is not None:
            self.user.on_job_data(data)
        else:
            self._pool._drop(self)

    def on_finish(self) -> None:
        if self.user is not None:
            self.user.on_job_finish()
        else:
            self._pool._drop(self)

    def on_writable(self) -> None:
        if self.user is not None:
            self.user.on_job_writable()

    def on_reset(self, code: str, text: str) -> None:
        if self.user is not None:
            self.user.on_job_reset(code, text)
        else:
            self._pool._drop(self)

    def on_closed(self) -> None:
        """Do nothing: both directions ended in order, and `on_finish` was called."""


class UpstreamPool:
    """The upstream connections of one worker."""

    def __init__(self, client: RouterClient) -> None:
        self._client = client
        self._idle: dict[str, deque[Upstream]] = {}

    @property
    def idle(self) -> int:
        """Number of idle connections."""
        return sum(len(waiting) for waiting in self._idle.values())

    def get(self, route: JobRoute, *, repeatable: bool) -> Upstream:
        """Return an idle connection to the job, or a new one.

        Args:
            repeatable: whether the request may be sent again if the idle connection turns out to be dead.

        Raises:
            AgentUnavailable: the agent is not linked.
        """
        waiting = self._idle.get(route.record.uid)
        while waiting:
            upstream = waiting.pop()
            stream = upstream.stream
            if stream.closed:
                continue
            if not repeatable and time.monotonic() - upstream.idle_since > FRESH:
                waiting.append(upstream)
                break
            upstream.reused = True
            return upstream
        return self.new(route)

    def new(self, route: JobRoute) -> Upstream:
        """Open a new connection to the job.

        Raises:
            AgentUnavailable: the agent is not linked.
        """
        job = route.record.uid
        stream = self._client.open_stream(route.connection, {"kind": "http", "job": job})
        return Upstream(self, job, stream, route.connection)

    def sweep(self, now: float) -> None:
        """Close connections that were idle for too long, or whose agent stops; to be called about once a second."""
        for job, waiting in list(self._idle.items()):
            if waiting and not self._client.is_up(waiting[0].connection):
                for upstream in waiting:
                    upstream.discard("idle")
                waiting.clear()
            while waiting and now - waiting[0].idle_since > MAX_AGE:
                waiting.popleft().discard("idle")
            if not waiting:
                del self._idle[job]

    def close(self) -> None:
        """Close all idle connections."""
        for waiting in self._idle.values():
            for upstream in list(waiting):
                upstream.discard("idle")
        self._idle.clear()

    def _put(self, upstream: Upstream) -> None:
        if not self._client.is_up(upstream.connection):
            upstream.discard("idle")
            return
        waiting = self._idle.setdefault(upstream.job, deque())
        upstream.idle_since = time.monotonic()
        waiting.append(upstream)
        if len(waiting) > MAX_IDLE:
            waiting.popleft().discard("idle")

    def _drop(self, upstream: Upstream) -> None:
        upstream.stream.reset("idle", "")
        waiting = self._idle.get(upstream.job)
        if waiting is not None and upstream in waiting:
            waiting.remove(upstream)
